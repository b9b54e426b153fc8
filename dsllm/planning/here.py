"""The plan of a run on the machine that it is about to start on: `launch/train.py --dry_run`."""

import os
import re

import psutil
import torch

from dsllm.config import RunConfig
from dsllm.planning.accelerators import KNOWN, Accelerator
from dsllm.planning.plan import GIB, SHARE_OF_PEAK, Cluster, plan, planned_precision, with_known_sizes
from dsllm.planning.words import table

INTERCONNECT = 100.0
"""Gbit/s of a host, unless it is known."""


def plan_here(config: RunConfig) -> str:
    """The plan in words, for as many ranks as the launcher has started; raises `ConfigError` as `plan` does."""
    ranks, per_node = (int(os.environ.get(name, "1")) for name in ("WORLD_SIZE", "LOCAL_SIZE"))
    device, name = device_here(per_node)
    cluster = Cluster(-(-ranks // per_node), min(ranks, per_node), device, INTERCONNECT)
    config, vocabulary = with_known_sizes(config)
    precision = planned_precision(config, device)
    share = SHARE_OF_PEAK[device.gpu]
    assumed = [
        f"{name}: {device.memory:.3g} GiB a rank, and products in {precision} reach {share:.0%} of "
        f"{device.peak(precision) / 1e12:g} TFLOP/s",
        *([f"hosts send {INTERCONNECT:g} Gbit/s, by rings, alone"] if cluster.nodes > 1 else []),
        *([vocabulary] if vocabulary else []),
    ]
    return table(config, cluster, list(plan(config, cluster, precision, share)), assumed)


def device_here(per_node: int) -> tuple[Accelerator, str]:
    """This machine's device, or a rank's share of its processor, and what it is called."""
    if not torch.cuda.is_available():
        return KNOWN["cpu"].model_copy(update={"memory": psutil.virtual_memory().total / per_node / GIB}), "processor"
    name, memory = torch.cuda.get_device_name(), torch.cuda.get_device_properties(0).total_memory / GIB
    plain = re.sub(r"[^a-z0-9]", "", name.lower())
    key = next((key for key in KNOWN if key in plain), None)
    described = name if key else f"{name}, whose speed is not known and taken for an A100's"
    return KNOWN[key or "a100"].model_copy(update={"memory": memory}), described
