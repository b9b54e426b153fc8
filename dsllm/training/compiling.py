"""What torch.compile needs before a run may ask for it, and what it is to leave alone."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from dsllm.errors import ConfigError

SHAPES = 64
"""Shapes for which one code is compiled: levels of a model differ in width and length, evaluations in batch."""


def check_compiler(device: torch.device) -> None:
    """Make ready to compile for `device`; raises `ConfigError` where no compiler is found."""
    import torch._dynamo
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    wrong, cure = "", "install g++"
    try:
        get_cpp_compiler()
    except (InvalidCxxCompiler, OSError):
        wrong = "torch finds no C++ compiler"
    if device.type == "cuda" and not torch.utils._triton.has_triton():
        wrong, cure = "torch finds no Triton for this GPU", "install triton"
    if wrong:
        raise ConfigError(f"train.compile = true: {wrong}; {cure}, or take false")
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, SHAPES)


def hide_hooks(model: nn.Module) -> None:
    """Keep torch.compile out of the hooks on `model`'s modules; call it once DeepSpeed has put them there.

    At ZeRO 3 every module within a block has hooks that gather its weights and let them go. Traced, they are compiled
    anew for each module and each state of DeepSpeed's, up to the limit, and then left as they were: 96 s for a model of
    one block that is ready in 18 s without.
    """
    for module in model.modules():
        for hooks in (module._forward_pre_hooks, module._forward_hooks):
            for key, hook in hooks.items():
                hooks[key] = torch.compiler.disable(hook)


@contextmanager
def uncompiled(compiles: bool) -> Iterator[None]:
    """Within it what was compiled runs as it is written: for passes of many lengths, each of which would be compiled.

    `compiles`: whether anything is. Without, nothing happens: asking torch takes a second of imports.
    """
    if not compiles:
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield
