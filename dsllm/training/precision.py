"""In which precision to multiply, by what the hardware does well."""

from typing import Literal

import torch

Precision = Literal["fp32", "bf16", "fp16"]

DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def fastest_precision(device: torch.device) -> Precision:
    """bf16 where the hardware multiplies it fast; else fp16 on a GPU (tensor cores since 7.0) and fp32 on a CPU.

    A CPU that lacks the instructions emulates bf16, slower than fp32; so it is asked, not guessed.
    """
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    abilities = torch.cpu.get_capabilities()
    return "bf16" if abilities.get("avx512_bf16") or abilities.get("amx_bf16") or abilities.get("bf16") else "fp32"
