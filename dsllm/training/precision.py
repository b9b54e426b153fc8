"""In which precision to multiply, by what the hardware does well."""

import time
from collections.abc import Callable
from typing import Literal

import torch

from dsllm.training.world import World

Precision = Literal["fp32", "bf16", "fp16"]

DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

WORTH_IT = 1.2
"""How much faster bf16 must be on a CPU: what it rounds away, and what casting costs, is not given up for less."""


def resolved_precision(
    asked: Literal["auto", "fp32", "bf16", "fp16"], saved: Precision | None, world: World
) -> Precision:
    """What to train in: as asked, or with auto as the checkpoint did, or else what rank 0 finds to be fastest."""
    if asked != "auto":
        return asked
    if saved is not None:
        return saved
    return world.from_main(lambda: fastest_precision(world.device))


def fastest_precision(device: torch.device, seconds: Callable[[torch.dtype], float] | None = None) -> Precision:
    """bf16 where the hardware multiplies it faster; else fp16 on a GPU (tensor cores since 7.0) and fp32 on a CPU.

    A CPU is timed, by `seconds` of a matrix product: what it is said to have does not tell. Of two Xeons with AVX-512
    BF16 the one with AMX did 2048³ in bf16 at 6.5 times the speed of fp32, the one without at 0.6 times.
    """
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    seconds = seconds or product_seconds
    return "bf16" if seconds(torch.bfloat16) * WORTH_IT < seconds(torch.float32) else "fp32"


def product_seconds(dtype: torch.dtype, repeats: int = 5) -> float:
    """The fastest of a few linear maps on the CPU, 1024 × 512 → 1024, in seconds: a gigaflop each."""
    x, weight = torch.ones(1024, 512, dtype=dtype), torch.ones(1024, 512, dtype=dtype)
    best = float("inf")
    with torch.no_grad():
        for _ in range(repeats):
            begun = time.perf_counter()
            torch.nn.functional.linear(x, weight)
            best = min(best, time.perf_counter() - begun)
    return best
