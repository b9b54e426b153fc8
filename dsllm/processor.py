"""What this machine's processor calls itself."""

import platform
from pathlib import Path


def processor_name() -> str:
    """As Linux knows it, else as Python does."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
