"""DeepSpeed, told what it would otherwise find out at length or complain about to the user."""

import os
import warnings
from collections.abc import Callable
from functools import cache, wraps
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


def import_muon() -> None:
    """Import DeepSpeed's Muon so that its functions are compiled at their first call, not at its import.

    DeepSpeed asks of every optimizer whether it is Muon and imports it to know. `torch.compile` over its functions then
    imports torch's inductor: 0.7 s of every start, for nothing where the optimizer is another.
    """
    from deepspeed.runtime import compiler

    at_once = compiler.compile
    compiler.compile = lambda: _compiled_when_called
    try:
        import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: F401
    finally:
        compiler.compile = at_once


def _compiled_when_called(function: Callable[..., Any]) -> Callable[..., Any]:
    compiled = cache(lambda: torch.compile(function))

    @wraps(function)
    def call(*arguments: Any, **options: Any) -> Any:
        return compiled()(*arguments, **options)

    return call
