"""Adapters in a file of their own, with the hash of the base that they belong to.

    save_adapters(model, "maths.safetensors", base_hash)       blocks.0.attention.qkv.lora_A, .lora_B, …
    load_adapters(model, "maths.safetensors", base_hash)       refused if the model's base is another

Adapters mean nothing on another base: the same shapes fit, and the text is noise. safetensors runs no code when read.
"""

import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from dsllm.errors import CheckpointError
from dsllm.models.lora import is_adapter


def save_adapters(model: nn.Module, path: str | Path, base_hash: str) -> None:
    """Write the model's adapters in fp32; `base_hash` names the base, as its checkpoint does. The file appears whole.

    The model must hold its parameters whole, as `load_model` gives it. Raises `CheckpointError` if it has no adapters
    or the file cannot be written.
    """
    tensors = {name: parameter.detach().float().cpu().contiguous() for name, parameter in _adapters(model).items()}
    if not tensors:
        raise CheckpointError(f"{path}: the model has no adapters to save; give it model.lora")
    path = Path(path)
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        save_file(tensors, unfinished, metadata={"base": base_hash})
        os.replace(unfinished, path)
    except (OSError, SafetensorError) as error:
        unfinished.unlink(missing_ok=True)
        raise CheckpointError(f"{path}: cannot be written ({error}); take another place") from None


@torch.no_grad()
def load_adapters(model: nn.Module, path: str | Path, base_hash: str) -> None:
    """Fill the model's adapters from a file of `save_adapters`; `base_hash` names the base that the model has.

    Raises `CheckpointError`, and leaves the model as it is, if the file is no such file, belongs to another base, or
    holds adapters of other names or shapes than the model has.
    """
    adapters = _adapters(model)
    try:
        with safe_open(path, framework="pt") as file:
            base = (file.metadata() or {}).get("base")
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
            _check(path, base, base_hash, shapes, {name: tuple(p.shape) for name, p in adapters.items()})
            for name in adapters:
                if file.get_slice(name).get_dtype() != "F32":
                    raise CheckpointError(f"{path}: {name} is not in fp32, as written; take the file that was written")
            for name, parameter in adapters.items():
                parameter.copy_(file.get_tensor(name))
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be read as adapters ({error}); name a file of save_adapters") from None


def _adapters(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if is_adapter(name)}


def _check(
    path: str | Path,
    base: str | None,
    base_hash: str,
    found: dict[str, tuple[int, ...]],
    needed: dict[str, tuple[int, ...]],
) -> None:
    if base is None:
        raise CheckpointError(f"{path}: names no base; name a file of save_adapters")
    if base != base_hash:
        raise CheckpointError(
            f"{path}: its adapters belong to the base {base[:12]}, the model's is {base_hash[:12]}; load that base"
        )
    for name in sorted(found.keys() | needed.keys()):
        if found.get(name) != needed.get(name):
            raise CheckpointError(
                f"{path}: {name} is {found.get(name, 'missing')} in it and {needed.get(name, 'missing')} in the model; "
                "build the model with the same blocks and the same model.lora"
            )
