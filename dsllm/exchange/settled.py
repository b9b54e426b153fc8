"""A checkpoint's model of plain blocks: what is adapted, mixed or gated is written out, tensor by tensor.

    settled = Settled.of(checkpoint)
    settled["blocks.1.mlp.up.weight"]       W + scale · B A, made when it is asked for

One tensor at a time is made, so a model needs no more memory than the largest of them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from dsllm.errors import CheckpointError
from dsllm.growth.grow import Growing, Target
from dsllm.growth.plan import Names, as_growable
from dsllm.models.growable import GrowableConfig
from dsllm.store import TensorStore
from dsllm.training.checkpoints import Checkpoint
from dsllm.training.offline import DETACH, MERGE, growing_of, plan_growth


@dataclass(frozen=True)
class Settled:
    """The model's tensors by name, in fp32."""

    section: GrowableConfig
    shapes: Mapping[str, tuple[int, ...]]
    """By name, each tensor once."""
    _source: TensorStore | Growing

    @classmethod
    def of(cls, checkpoint: Checkpoint, adapters: bool = True) -> "Settled":
        """The model with its adapters merged, or without them: the frozen weights alone.

        Raises:
            ConfigError: the model is none that can grow.
            CheckpointError: gates are still opening, or a tensor is not the one that was written.
        """
        section = as_growable(checkpoint.config().model)
        if section.gate is not None and section.gate.opening(checkpoint.progress.step) < 1:
            raise CheckpointError(
                f"{checkpoint.path}: its gates (model.gate) are still opening; train on until they are open"
            )
        store = checkpoint.store()
        store.verify(entry for entry in store.entries.values() if entry.kind == "weight")
        source: TensorStore | Growing = store
        if section.unsettled:
            source = growing_of(checkpoint, plan_growth(checkpoint, MERGE if adapters else DETACH))
            section = as_growable(source.model.config)
        return cls(section, Names.of(section).shapes, source)

    def __getitem__(self, name: str) -> Tensor:
        """A tensor; mapped from the checkpoint's file where it is the same."""
        if isinstance(self._source, Growing):
            return self._source.value(Target("weight", name, self._source.plan.tensors[name]))
        return self._source["weight", name]


def check_finished(path: Path, checkpoint: Checkpoint) -> None:
    """Raises `CheckpointError` if `path` is a run that has not come to its end, and not one of its checkpoints."""
    steps = checkpoint.config().train.steps
    if path.resolve() != checkpoint.path.resolve() and checkpoint.progress.step < steps:
        raise CheckpointError(
            f"{path}: stopped at step {checkpoint.progress.step:,} of {steps:,}; train on with the same command, or "
            f"name the checkpoint itself: {checkpoint.path}"
        )
