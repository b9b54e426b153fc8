"""What a forward pass keeps for the backward one, counted and not guessed: for any model, without its memory.

The model runs on tensors that have a shape and no values (torch's FakeTensorMode), and each tensor that autograd saves
is counted once by its storage, but for the parameters. Once with one sequence and once with two: what grows is
activations; the rest, under autocast, are weights that it has cast.
"""

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks

from dsllm.config import ModelConfig
from dsllm.models import Unfilled, build_model
from dsllm.models.language_model import LanguageModel


@dataclass(frozen=True)
class Activations:
    """In bytes."""

    sequence: int
    """That a sequence of the model's context keeps, from the forward pass on."""
    recomputed: int
    """That a sequence keeps for a while in the block which is computed anew; 0 if none is."""
    cast: int
    """Weights that autocast has cast."""


def count_activations(config: ModelConfig, recompute: Any, half: bool, autocast: bool) -> Activations:
    """The activations of a model in fp32, or `half` precision by its weights or by `autocast`.

    `recompute` is `train.activation_checkpointing`. Raises `ConfigError` if the model has no such blocks.
    """
    one, two = (_saved(config, recompute, half, autocast, rows) for rows in (1, 2))
    all_one, all_two = (_saved(config, "none", half, autocast, rows) for rows in (1, 2))
    blocks = [b - a for a, b in zip(all_one[1:], all_two[1:], strict=True)]
    kept = sum(two) - sum(one)
    return Activations(kept, max(blocks, default=0) if kept < sum(blocks) else 0, sum(one) - kept)


def _saved(config: ModelConfig, recompute: Any, half: bool, autocast: bool, rows: int) -> list[int]:
    """Bytes that are saved outside of all blocks, and in each block as it is executed."""
    with FakeTensorMode(), Unfilled():
        model = _built(config, half and not autocast)
        model.checkpoint_activations(recompute)
        counted = _Counted(model)
        products = torch.autocast("cpu", dtype=torch.bfloat16) if autocast and half else nullcontext()
        with saved_tensors_hooks(counted.note, lambda tensor: tensor), products:
            model.hidden(torch.zeros(rows, config.context, dtype=torch.int64))
    return counted.bytes


def _built(config: ModelConfig, half: bool) -> LanguageModel:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16 if half else torch.float32)
    try:
        return build_model(config)
    finally:
        torch.set_default_dtype(before)


class _Counted:
    """Counts what is saved while a model runs, by block."""

    def __init__(self, model: LanguageModel):
        self.bytes = [0]
        self._known = {
            parameter.untyped_storage()._cdata: parameter.untyped_storage() for parameter in model.parameters()
        }
        self._block = 0
        run = model.run_block

        def run_block(index: int, block: nn.Module, *inputs: Any) -> Any:
            self.bytes.append(0)
            self._block = len(self.bytes) - 1
            out = run(index, block, *inputs)
            self._block = 0
            return out

        model.run_block = run_block  # type: ignore[method-assign]

    def note(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._known:
            self._known[storage._cdata] = storage  # held, so that no other gets its address
            self.bytes[self._block] += storage.nbytes()
        return tensor
