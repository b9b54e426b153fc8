"""The plan of a run on the machine that it is about to start on: `launch/train.py --dry_run`."""

import os
import re

import psutil
import torch

from dsllm.config import RunConfig
from dsllm.planning.accelerators import KNOWN, Accelerator
from dsllm.planning.plan import GIB, SHARE_OF_PEAK, Cluster, known_vocabulary, plan
from dsllm.planning.words import table

INTERCONNECT = 100.0
"""Gbit/s of a host, unless it is known."""


def plan_here(config: RunConfig) -> str:
    """The plan in words, for as many ranks as the launcher has started; raises `ConfigError` as `plan` does."""
    ranks, per_node = (int(os.environ.get(name, "1")) for name in ("WORLD_SIZE", "LOCAL_SIZE"))
    device, name = device_here(per_node)
    cluster = Cluster(-(-ranks // per_node), min(ranks, per_node), device, INTERCONNECT)
    config, vocabulary = known_vocabulary(config)
    asked = config.train.precision
    precision = ("bf16" if device.gpu else "fp32") if asked == "auto" else asked
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
    known = next((device for key, device in KNOWN.items() if key in plain), KNOWN["a100"])
    return known.model_copy(update={"memory": memory}), name
