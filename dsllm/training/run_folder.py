"""A run's folder at the start of a run: set aside, resumed, or refused because another model lives there."""

from datetime import datetime
from pathlib import Path
from typing import Any

from dsllm.config import RunConfig
from dsllm.data.manifest import TokenizerInfo
from dsllm.errors import CheckpointError
from dsllm.section import dotted
from dsllm.training.checkpoints import Checkpoint, write_whole
from dsllm.training.monitor import METRICS

CONTENTS = ("config.yaml", METRICS, "tensorboard", "checkpoints")
"""What a run writes into its folder."""


def set_aside(run_dir: Path) -> Path | None:
    """Move what a former run left in the folder into a dated folder within it; None if there was nothing."""
    left = [run_dir / name for name in CONTENTS if (run_dir / name).exists()]
    if not left:
        return None
    aside = run_dir / f"set_aside_{datetime.now():%Y%m%d_%H%M%S}"
    aside.mkdir()
    for path in left:
        path.rename(aside / path.name)
    return aside


def check_same_tokenizer(checkpoint: Checkpoint, tokenizer: TokenizerInfo) -> None:
    """Raises `CheckpointError` if the checkpoint's model knows other tokens than those of the data."""
    if not checkpoint.tokenizer.same_as(tokenizer):
        raise CheckpointError(
            f"{checkpoint.path}: trained on tokens of {checkpoint.tokenizer}, the data now holds those of {tokenizer}; "
            f"give --data.path the data of its tokenizer, or take another run_dir"
        )


def check_same_model(checkpoint: Checkpoint, config: RunConfig) -> None:
    """Raises `CheckpointError`, naming every key that differs, if the checkpoint holds another model."""
    theirs = differences(checkpoint.config().model.model_dump(), config.model.model_dump(), "model")
    if theirs:
        raise CheckpointError(
            f"{checkpoint.path}: a checkpoint of another model: {'; '.join(theirs)}; "
            f"take another run_dir, or --fresh to set the former run aside"
        )


def write_config(run_dir: Path, config: RunConfig) -> list[str]:
    """Save the resolved configuration; gives what differs from the one that was saved before."""
    path = run_dir / "config.yaml"
    changed = []
    if path.exists():
        before = RunConfig.from_file(path).model_dump(mode="json")
        changed = differences(before, config.model_dump(mode="json"), "")
    write_whole(path, config.as_yaml())
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
