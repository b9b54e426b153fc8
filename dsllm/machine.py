"""What this machine calls itself: figures of seconds belong to it."""

import platform
from pathlib import Path

import torch


def processor_name() -> str:
    """As Linux knows it, else as Python does."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def default_device() -> torch.device:
    """Where a single process asks a model: on the current GPU, if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def machine_name(device: torch.device) -> str:
    """What figures measured on `device` depend on, in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{processor_name()}, {threads} thread{'s' * (threads != 1)}"
