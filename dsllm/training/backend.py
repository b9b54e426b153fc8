"""DeepSpeed, told what it would otherwise find out at length or complain about to the user."""

import os
import warnings
from typing import Any

import torch


def import_deepspeed() -> Any:
    """The module `deepspeed`; the first import of it must be this one."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else it warns that it found no GPU
    # DeepSpeed calls functions that torch is about to rename; its users can do nothing about that.
    warnings.filterwarnings("ignore", r"`torch\.distributed\.", FutureWarning)
    import deepspeed

    # On CPUs it would compile a kernel for inference before the first step: a minute on a new machine, a compiler
    # needed, and a lock that a killed process leaves behind. Training has no use for it.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed
