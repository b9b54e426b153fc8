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
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dsllm.config import RunConfig
from dsllm.data.files import sync_to_disk, write_atomically
from dsllm.data.manifest import TokenizerInfo
from dsllm.errors import CheckpointError, UserError
from dsllm.training.precision import Precision
from dsllm.training.progress import Progress
from dsllm.training.world import World

MARKER = "COMPLETE"


@dataclass(frozen=True)
class Origin:
    """What a checkpoint depends on besides the model: a run that resumes from it must have the same."""

    world_size: int
    zero_stage: int
    precision: Precision
    """As resolved; `auto` takes it over on resumption."""
    tokenizer: TokenizerInfo
    order: dict[str, Any]
    """What the order of samples follows from, by the names of its keys."""


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint on disk."""

    path: Path
    progress: Progress
    origin: Origin

    @classmethod
    def read(cls, path: Path) -> "Checkpoint":
        """Raises `CheckpointError` if the folder is no complete checkpoint, or a part is not as long as it was."""
        try:
            facts = json.loads((path / MARKER).read_text(encoding="utf-8"))
            origin = {**facts["origin"], "tokenizer": TokenizerInfo(**facts["origin"]["tokenizer"])}
            checkpoint = cls(path, Progress(**facts["progress"]), Origin(**origin))
            expected = dict(facts["files"])
        except FileNotFoundError:
            raise CheckpointError(f"{path}: not a complete checkpoint, its file {MARKER} is missing") from None
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"{path / MARKER}: cannot be read ({error!r}), damaged or of another version of dsllm; "
                f"remove the folder to go on from the one before it, or start over with --fresh"
            ) from None
        found = _sizes(path)
        for name, size in expected.items():
            if found.get(name) != size:
                raise CheckpointError(
                    f"{path / name}: {found.get(name, 'no')} bytes, {size} were written; "
                    f"remove the folder to go on from the checkpoint before it"
                )
        return checkpoint

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

    def __init__(self, run_dir: Path, world: World, keep: int):
        self.folder = run_dir / "checkpoints"
        self.run_dir = run_dir
        self.world = world
        self.keep = keep

    def newest(self) -> Checkpoint | None:
        """The newest complete checkpoint as rank 0 sees it; every rank must see it too."""
        found = self.world.from_main(lambda: complete_checkpoints(self.run_dir))
        return self.world.together(lambda: Checkpoint.read(found[-1])) if found else None

    def save(self, engine: Any, progress: Progress, config: RunConfig, origin: Origin) -> Path:
        """Write a complete checkpoint, move `latest` to it and remove those beyond the newest `keep`.

        Raises `UserError` on every rank, and leaves the earlier checkpoints whole, if it cannot be written.
        """
        path = self.folder / checkpoint_name(progress.step)
        try:
            self.world.from_main(lambda: _remove(path))
            self.world.together(lambda: self._write_parts(engine, path))
            self.world.from_main(lambda: self._complete(path, progress, config, origin))
        except UserError:
            if self.world.is_main:
                shutil.rmtree(path, ignore_errors=True)
            raise
        return path

    def load(self, engine: Any, checkpoint: Checkpoint) -> None:
        """Restore weights and optimizer; the engine is of the same origin."""
        loaded, _ = engine.load_checkpoint(str(self.folder), tag=checkpoint.path.name)
        if loaded is None:
            raise CheckpointError(f"{checkpoint.path}: DeepSpeed found nothing to load; take an older checkpoint")

    def _write_parts(self, engine: Any, path: Path) -> None:
        with _unwritable_is_said(path):
            engine.save_checkpoint(str(self.folder), tag=path.name, save_latest=False)
            if self.world.local_rank == 0:
                for file in path.iterdir():
                    sync_to_disk(file)

    def _complete(self, path: Path, progress: Progress, config: RunConfig, origin: Origin) -> None:
        with _unwritable_is_said(path):
            write_atomically(path / "config.yaml", config.as_yaml().encode())
            facts = {"progress": asdict(progress), "origin": asdict(origin), "files": _sizes(path)}
            facts["origin"]["tokenizer"] = origin.tokenizer.model_dump()
            write_atomically(path / MARKER, json.dumps(facts, indent=2).encode())
            write_atomically(self.folder / "latest", f"{path.name}\n".encode())
            for old in complete_checkpoints(self.run_dir)[: -self.keep]:
                _remove(old)


@contextmanager
def _unwritable_is_said(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError) as error:  # torch's writer turns a full disk into a RuntimeError
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"{path}: cannot be written ({reason}); free disk space or take another run_dir. "
            f"The same command goes on from the checkpoint before it"
        ) from None


def _sizes(path: Path) -> dict[str, int]:
    """Bytes of each part of a checkpoint."""
    return {file.name: file.stat().st_size for file in sorted(path.iterdir()) if file.name != MARKER}


def _remove(path: Path) -> None:
    """Remove a checkpoint, if it is there: its marker first."""
    if path.exists():
        (path / MARKER).unlink(missing_ok=True)
        shutil.rmtree(path)
