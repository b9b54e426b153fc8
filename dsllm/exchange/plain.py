"""A checkpoint's model as a plain transformer: what is adapted, mixed or used several times is written out.

    Plain.of(checkpoint)                       uses 4, adapters        →   n_layer blocks, each with weights of its own
    plain["blocks.7.mlp.up.weight"]            W + scale · B A of block 1, made when it is asked for

One tensor at a time is made, so a model needs no more memory than the largest of them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

from torch import Tensor

from dsllm.errors import CheckpointError, ConfigError
from dsllm.growth.grow import Growing, Target
from dsllm.growth.plan import Names, as_growable
from dsllm.models.gpt2 import GPT2Config
from dsllm.models.progressive import ProgressiveConfig
from dsllm.store import TensorStore
from dsllm.training.checkpoints import Checkpoint
from dsllm.training.offline import DETACH, MERGE, growing_of, plan_growth


@dataclass(frozen=True)
class Plain:
    """Tensors of a plain GPT-2 by name, from those of a checkpoint."""

    section: GPT2Config
    """Of the plain model: `n_layer` blocks, each used once."""
    shapes: Mapping[str, tuple[int, ...]]
    """By name, without the tied head."""
    _origin: Mapping[str, str]
    """Which tensor of the checkpoint's model, or of the merged one, each of them is."""
    _source: TensorStore | Growing

    @classmethod
    def of(cls, checkpoint: Checkpoint, adapters: bool = True) -> "Plain":
        """The model with its adapters merged, or without them as the frozen weights alone are.

        Raises:
            ConfigError: the model is of another kind, or has a second column: no plain transformer is its function.
            CheckpointError: gates are still opening, or a tensor is not the one that was written.
        """
        path, given = checkpoint.path, checkpoint.config().model
        if not isinstance(given, GPT2Config):
            raise ConfigError(f"{path}: model.name = {given.name} is no GPT-2, so no plain transformer is the same")
        section = as_growable(given)
        assert isinstance(section, ProgressiveConfig)
        if section.lateral is not None:
            raise ConfigError(f"{path}: a model with a second column (model.lateral) has no form as plain blocks")
        store = checkpoint.store()
        store.verify(entry for entry in store.entries.values() if entry.kind == "weight")
        source: TensorStore | Growing = store
        if section.unsettled:
            plan = plan_growth(checkpoint, MERGE if adapters else DETACH)
            source = growing_of(checkpoint, plan)
            grown = source.model.config
            assert isinstance(grown, ProgressiveConfig)
            section = grown
        if section.gate is not None and section.gate.opening(checkpoint.progress.step) < 1:
            raise CheckpointError(f"{path}: its gates (model.gate) are still opening; train on until they are open")
        names = Names.of(section)
        origin, shapes = {}, {}
        for name, shape in names.shapes.items():
            head, _, within = name.removeprefix("blocks.").partition(".")
            layers = [layer for layer, block in enumerate(section.executed) if str(block) == head]
            for ours in [f"blocks.{layer}.{within}" for layer in layers] if name.startswith("blocks.") else [name]:
                origin[ours], shapes[ours] = name, shape
        fields = {key: value for key, value in section.model_dump().items() if key in GPT2Config.model_fields}
        return cls(GPT2Config(**{**fields, "name": "gpt2"}), shapes, origin, source)

    @property
    def parameters(self) -> int:
        """How many numbers all its tensors are."""
        return sum(map(prod, self.shapes.values()))

    def __getitem__(self, name: str) -> Tensor:
        """A tensor in fp32; mapped from the checkpoint's file where it is the same."""
        origin = self._origin[name]
        if isinstance(self._source, Growing):
            return self._source.value(Target("weight", origin, self._source.plan.tensors[origin]))
        return self._source["weight", origin]


def check_finished(path: Path, checkpoint: Checkpoint) -> None:
    """Raises `CheckpointError` if `path` is a run that has not come to its end, and not one of its checkpoints."""
    steps = checkpoint.config().train.steps
    if path.resolve() != checkpoint.path.resolve() and checkpoint.progress.step < steps:
        raise CheckpointError(
            f"{path}: stopped at step {checkpoint.progress.step:,} of {steps:,}; train on with the same command, or "
            f"name the checkpoint itself: {checkpoint.path}"
        )
