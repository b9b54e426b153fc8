"""A run's folder at the start of a run: set aside, resumed, or refused because another model lives there."""

from pathlib import Path
from typing import Any

from dsllm.config import RunConfig
from dsllm.data.files import write_atomically
from dsllm.data.manifest import TokenizerInfo
from dsllm.errors import CheckpointError, ConfigError
from dsllm.section import dotted
from dsllm.training.checkpoints import Checkpoint, Origin
from dsllm.training.monitor import METRICS

CONTENTS = ("config.yaml", METRICS, "tensorboard", "wandb", "checkpoints", "growth")
"""What a run writes into its folder."""


def clear_for(config: RunConfig, fresh: bool) -> Path | None:
    """Before a run that begins at step 0: set aside what is there, if `fresh` or if another configuration wrote it.

    A run that was stopped before its first checkpoint goes on in its own records.
    """
    saved = config.run_dir / "config.yaml"
    try:
        ours = saved.exists() and RunConfig.from_file(saved) == config
    except ConfigError:
        ours = False
    return None if ours and not fresh else set_aside(config.run_dir)


def set_aside(run_dir: Path) -> Path | None:
    """Move what a former run left in the folder into a numbered folder within it; None if there was nothing."""
    left = [run_dir / name for name in CONTENTS if (run_dir / name).exists()]
    if not left:
        return None
    number = 1 + max((int(path.suffix[1:]) for path in run_dir.glob("set_aside.[0-9]*")), default=0)
    aside = run_dir / f"set_aside.{number}"
    aside.mkdir()
    for path in left:
        path.rename(aside / path.name)
    return aside


def check_resumable(checkpoint: Checkpoint, config: RunConfig, origin: Origin) -> None:
    """Raises `CheckpointError`, naming all that differs, if this run cannot go on from the checkpoint exactly."""
    check_same_tokenizer(checkpoint, origin.tokenizer)
    then = checkpoint.origin
    model = differences(checkpoint.asked, config.model.model_dump(mode="json"), "model")
    if model:
        _refuse(checkpoint, "a checkpoint of another model", model)
    began = checkpoint.config().init_from
    if began != config.init_from:
        _refuse(checkpoint, "began with other weights", [f"init_from was {began}, now {config.init_from}"])
    order = differences(then.order, origin.order, "")
    if order and checkpoint.progress.consumed_samples:
        _refuse(checkpoint, "its samples came in another order", order)
    if then.precision not in (None, origin.precision):
        changed = [f"train.precision was {then.precision}, now {origin.precision}"]
        _refuse(checkpoint, "trained in another precision", changed)


def check_same_tokenizer(checkpoint: Checkpoint, tokenizer: TokenizerInfo) -> None:
    """Raises `CheckpointError` if the checkpoint's model knows other tokens than those of the data."""
    if not checkpoint.origin.tokenizer.same_as(tokenizer):
        raise CheckpointError(
            f"{checkpoint.path}: trained on tokens of {checkpoint.origin.tokenizer}, the data now holds those of "
            f"{tokenizer}; put back the data of its tokenizer, or take another run_dir"
        )


def _refuse(checkpoint: Checkpoint, what: str, changed: list[str]) -> None:
    raise CheckpointError(
        f"{checkpoint.path}: {what}: {'; '.join(changed)}; "
        f"put it back, take another run_dir, or --fresh to set the former run aside"
    )


def write_config(run_dir: Path, config: RunConfig) -> list[str]:
    """Save the resolved configuration; gives what differs from the one that was saved before."""
    path = run_dir / "config.yaml"
    changed = []
    if path.exists():
        before = RunConfig.from_file(path).model_dump(mode="json")
        changed = differences(before, config.model_dump(mode="json"), "")
    write_atomically(path, config.as_yaml().encode())
    return changed


def differences(before: dict[str, Any], now: dict[str, Any], at: str) -> list[str]:
    """`train.lr was 0.001, now 0.002` for each value that differs in two nested dictionaries."""
    lines = []
    for key in {**before, **now}:
        old, new = before.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            lines += differences(old, new, dotted(at, key))
        elif old != new:
            lines.append(f"{dotted(at, key)} was {old}, now {new}")
    return lines
