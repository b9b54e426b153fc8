"""Checkpoints that are complete if and only if their marker is there.

    RUN/checkpoints/step_00000100/
        mp_rank_00_model_states.pt, *zero_pp_rank_*_optim_states.pt      DeepSpeed's own, one part per rank
        config.yaml                  the configuration whose model this is
        COMPLETE                     written last, removed first; JSON: the progress and what wrote it
    RUN/checkpoints/latest           the name of the newest complete one, replaced atomically

DeepSpeed alone would let rank 0 name a checkpoint in `latest` while other ranks are still writing theirs. Here every
rank writes and syncs, all wait, and only then the marker is written and `latest` moved. All hosts must see the folder.
"""

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsllm.config import RunConfig
from dsllm.data.manifest import TokenizerInfo
from dsllm.errors import CheckpointError
from dsllm.training.progress import Progress
from dsllm.training.world import World

MARKER = "COMPLETE"


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint on disk."""

    path: Path
    progress: Progress
    world_size: int
    zero_stage: int
    tokenizer: TokenizerInfo
    """Of the text that the model was trained on."""

    @classmethod
    def read(cls, path: Path) -> "Checkpoint":
        """Raises `CheckpointError` if the folder is no complete checkpoint."""
        try:
            facts = json.loads((path / MARKER).read_text(encoding="utf-8"))
            tokenizer = TokenizerInfo(**facts["tokenizer"])
            return cls(path, Progress(**facts["progress"]), facts["world_size"], facts["zero_stage"], tokenizer)
        except FileNotFoundError:
            raise CheckpointError(f"{path}: not a complete checkpoint, its file {MARKER} is missing") from None
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"{path / MARKER}: cannot be read ({error!r}), damaged or of another version of dsllm; "
                f"remove the folder to go on from the one before it, or start over with --fresh"
            ) from None

    def config(self) -> RunConfig:
        """The configuration that it was written with."""
        return RunConfig.from_file(self.path / "config.yaml")


def checkpoint_name(step: int) -> str:
    return f"step_{step:08d}"


def complete_checkpoints(run_dir: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    return sorted(marker.parent for marker in (run_dir / "checkpoints").glob(f"step_*/{MARKER}"))


def incomplete_checkpoints(run_dir: Path) -> list[Path]:
    """Checkpoint folders without a marker: writing or removing them was interrupted."""
    return sorted(path for path in (run_dir / "checkpoints").glob("step_*") if not (path / MARKER).exists())


def find_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint at `path`, or the newest complete one of the run at `path`; `CheckpointError` if there is none."""
    if (path / MARKER).exists():
        return Checkpoint.read(path)
    found = complete_checkpoints(path)
    if found:
        return Checkpoint.read(found[-1])
    if not path.exists():
        raise CheckpointError(f"{path}: no such run or checkpoint; name a run's folder, as in runs/mine")
    raise CheckpointError(f"{path}: holds no complete checkpoint; give a run's folder or one of its checkpoints/step_*")


class Checkpoints:
    """Writes, finds and prunes the checkpoints of a run; its methods are collective over the ranks."""

    def __init__(self, run_dir: Path, world: World, keep: int, tokenizer: TokenizerInfo):
        self.folder = run_dir / "checkpoints"
        self.run_dir = run_dir
        self.world = world
        self.keep = keep
        self.tokenizer = tokenizer

    def newest(self) -> Checkpoint | None:
        """The newest complete checkpoint as rank 0 sees it; every rank must see it too."""
        found = self.world.from_main(lambda: complete_checkpoints(self.run_dir))
        return self.world.together(lambda: Checkpoint.read(found[-1])) if found else None

    def save(self, engine: Any, progress: Progress, config: RunConfig) -> Path:
        """Write a complete checkpoint, move `latest` to it and remove those beyond the newest `keep`."""
        path = self.folder / checkpoint_name(progress.step)
        if self.world.is_main and path.exists():
            _remove(path)
        self.world.barrier()
        engine.save_checkpoint(str(self.folder), tag=path.name, save_latest=False)
        if self.world.local_rank == 0:
            for file in path.iterdir():
                _sync(file)
        self.world.barrier()
        if self.world.is_main:
            write_whole(path / "config.yaml", config.as_yaml())
            facts = {
                "progress": progress.as_dict(),
                "world_size": self.world.size,
                "zero_stage": engine.zero_optimization_stage(),
                "tokenizer": self.tokenizer.model_dump(),
            }
            write_whole(path / MARKER, json.dumps(facts, indent=2) + "\n")
            write_whole(self.folder / "latest", path.name + "\n")
            for old in complete_checkpoints(self.run_dir)[: -self.keep]:
                _remove(old)
        self.world.barrier()
        return path

    def load(self, engine: Any, checkpoint: Checkpoint) -> None:
        """Restore weights and optimizer. Raises `CheckpointError` if another number of ranks or stage wrote them."""
        stage = engine.zero_optimization_stage()
        if checkpoint.world_size != self.world.size:
            raise CheckpointError(
                f"{checkpoint.path}: written by {checkpoint.world_size} ranks, now there are {self.world.size}; "
                f"start {checkpoint.world_size}, or take another run_dir"
            )
        if checkpoint.zero_stage != stage:
            raise CheckpointError(
                f"{checkpoint.path}: written at ZeRO stage {checkpoint.zero_stage}, train.ds_config now says {stage}; "
                f"take the ds_config of that stage, or another run_dir"
            )
        loaded, _ = engine.load_checkpoint(str(self.folder), tag=checkpoint.path.name)
        if loaded is None:
            raise CheckpointError(f"{checkpoint.path}: DeepSpeed found nothing to load; take an older checkpoint")


def write_whole(path: Path, text: str) -> None:
    """Write a small file so that it is there whole or not at all, after a power cut too."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    _sync(temporary)
    temporary.replace(path)
    _sync(path.parent)


def _remove(path: Path) -> None:
    (path / MARKER).unlink(missing_ok=True)
    shutil.rmtree(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
