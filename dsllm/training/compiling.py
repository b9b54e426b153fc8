"""What torch.compile needs before a run may ask for it."""

import torch

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
