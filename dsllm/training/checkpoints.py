"""Checkpoints that are complete if and only if their marker is there.

    RUN/checkpoints/step_00000100/
        tensors.json, weight/, exp_avg/, exp_avg_sq/      see `dsllm.store`
        config.yaml                  the configuration whose model this is
        COMPLETE                     written last, removed first; JSON: the progress, what wrote it, and the bytes and
                                     checksums of the other files and of itself
    RUN/checkpoints/step_00000100.01/     the same step after a structural event
    RUN/checkpoints/latest           the name of the newest complete one, replaced atomically

DeepSpeed alone would let rank 0 name a checkpoint in `latest` while other ranks are still writing theirs, and what it
writes fits one number of ranks. Here every rank writes its share of the tensors and syncs, all wait, and only then the
marker is written and `latest` moved. All hosts must see the folder.
"""

import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from dsllm.config import RunConfig
from dsllm.data.files import sync_to_disk, write_atomically
from dsllm.data.manifest import TokenizerInfo
from dsllm.errors import CheckpointError, DamagedError, UserError
from dsllm.store import Entry, TensorStore, checksum, link_tensor, write_tensor
from dsllm.training.marker import CONFIG, MARKER, Marker, files_in, sealed
from dsllm.training.precision import Precision
from dsllm.training.progress import Progress
from dsllm.training.tensors import EngineTensors
from dsllm.training.world import World

T = TypeVar("T")


@dataclass(frozen=True)
class Origin:
    """What a run depends on besides the model; one that resumes may change the first two."""

    world_size: int
    zero_stage: int
    precision: Precision | None
    """As resolved; `auto` takes it over on resumption. None: nothing was trained yet."""
    tokenizer: TokenizerInfo
    order: dict[str, Any]
    """What the order of samples follows from, by the names of its keys."""


@dataclass(frozen=True)
class Snapshot:
    """What a checkpoint says besides the tensors."""

    progress: Progress
    origin: Origin
    config: RunConfig
    """With the model whose tensors these are."""
    asked: dict[str, Any]
    """The `model` section that the run began with; growth leads away from it."""
    state: dict[str, Any]
    """What a trainer keeps of its own, as JSON."""


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint on disk."""

    path: Path
    progress: Progress
    origin: Origin
    asked: dict[str, Any]
    state: dict[str, Any]

    @classmethod
    def read(cls, path: Path) -> "Checkpoint":
        """Raises `CheckpointError` if the folder is no complete checkpoint, or a file of it is damaged.

        Of tensors it looks at the sizes alone: their values are read and checked by whoever wants them.
        """
        marker = Marker.read(path)
        checkpoint = cls(
            path,
            marker.part("progress", Progress),
            marker.part("origin", Origin),
            marker.mapping("asked"),
            marker.mapping("state"),
        )
        for problem in marker.problems():
            raise type(problem)(f"{problem}; remove the folder to go on from the checkpoint before it")
        return checkpoint

    def config(self) -> RunConfig:
        """The configuration that it was written with."""
        return RunConfig.from_file(self.path / CONFIG)

    def store(self) -> TensorStore:
        """Its tensors."""
        return TensorStore.read(self.path)


def checkpoint_name(step: int, event: int = 0) -> str:
    """The folder of a step's checkpoint, or of what the `event`-th structural event of that step made of it."""
    return f"step_{step:08d}" + (f".{event:02d}" if event else "")


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
        self._seen: list[Path] | None = None
        self._damaged: dict[Path, str] = {}
        """Those that `newest` passed over, and why."""

    def newest(self) -> Checkpoint | None:
        """The newest complete checkpoint that is whole; every byte of it is read and checked, by each rank a share.

        Damaged ones are passed over. Raises `CheckpointError` if there are only such, or if one cannot be read: it may
        be whole, and another host, another day or another version of dsllm may read it.
        """
        self._seen = self.world.from_main(lambda: complete_checkpoints(self.run_dir))
        for path in reversed(self._seen or []):
            try:
                return self.world.together(partial(self.whole, path))
            except DamagedError as error:
                self._damaged[path] = str(error)
        if self._damaged:
            newest, why = next(iter(self._damaged.items()))
            raise CheckpointError(f"{newest.parent}: no checkpoint is whole, --fresh starts over; the newest: {why}")
        return None

    def check_unchanged(self) -> None:
        """On one rank, with the run's lock: raises `CheckpointError` if another run has written since `newest`."""
        if self._seen is not None and complete_checkpoints(self.run_dir) != self._seen:
            raise CheckpointError(f"{self.run_dir}: another run has just written a checkpoint there; start again")

    def whole(self, path: Path) -> Checkpoint:
        """A checkpoint, this rank's share of its tensors read and checked; `DamagedError` if one is damaged."""
        checkpoint = Checkpoint.read(path)
        store = checkpoint.store()
        store.verify(list(store.entries.values())[self.world.rank :: self.world.size])
        return checkpoint

    def set_damaged_aside(self) -> list[str]:
        """On one rank: rename what `newest` passed over, so that it counts as none any more; says what and why."""
        told = []
        for path, why in self._damaged.items():
            aside = path.with_name(f"damaged.{path.name}")
            shutil.rmtree(aside, ignore_errors=True)  # the same step's of an earlier start
            _unwritable_is_said(path, partial(path.rename, aside))
            told.append(f"{path.name}, now {aside.name} ({why})")
        return told

    def save(self, tensors: EngineTensors, snapshot: Snapshot, base: TensorStore | None) -> Path:
        """Write a complete checkpoint, move `latest` to it and remove those beyond the newest `keep`.

        What is frozen is linked from `base`, the checkpoint it was read from. Raises `UserError` on every rank, and
        leaves the earlier checkpoints whole, if it cannot be written.
        """
        path = self.folder / checkpoint_name(snapshot.progress.step)

        def write() -> list[Entry]:
            return write_tensors(tensors, path, base, self.world)

        self.write(path, write, tensors.aliases, tensors.steps(), snapshot)
        self.world.from_main(self.prune)
        return path

    def write(
        self,
        path: Path,
        entries: Callable[[], list[Entry]],
        aliases: dict[str, str],
        steps: dict[str, int],
        snapshot: Snapshot,
    ) -> None:
        """Make `path` a complete checkpoint of the tensors that `entries` writes, each rank its share."""
        try:
            self.world.from_main(lambda: _unwritable_is_said(path, lambda: _remove(path)))
            mine = self.world.together(lambda: _unwritable_is_said(path, lambda: _synced(path, entries)))
            written = [entry for share in self.world.everyone(mine) for entry in share]
            store = TensorStore.of(path, written, aliases, steps)
            self.world.from_main(lambda: _unwritable_is_said(path, lambda: complete(store, snapshot)))
        except UserError:
            if self.world.is_main:
                shutil.rmtree(path, ignore_errors=True)
            raise

    def prune(self) -> None:
        """Remove the checkpoints beyond the newest `keep`; what cannot be removed now is at the next one."""
        for old in complete_checkpoints(self.run_dir)[: -self.keep]:
            with suppress(OSError):
                _remove(old)


def complete(store: TensorStore, snapshot: Snapshot) -> None:
    """Make a complete checkpoint of the folder of a store whose tensors are written, and let `latest` name it."""
    path = store.folder
    store.finish()
    write_atomically(path / CONFIG, snapshot.config.as_yaml().encode())
    facts = {
        "progress": asdict(snapshot.progress),
        "origin": {**asdict(snapshot.origin), "tokenizer": snapshot.origin.tokenizer.model_dump()},
        "asked": snapshot.asked,
        "state": snapshot.state,
        **files_in(path),
    }
    write_atomically(path / MARKER, sealed(facts))
    write_atomically(path.parent / "latest", f"{path.name}\n".encode())


def write_tensors(tensors: EngineTensors, path: Path, base: TensorStore | None, world: World) -> list[Entry]:
    """Write this rank's share of an engine's tensors into a folder: of n ranks, every n-th.

    Frozen ones are linked from `base`; where memory holds them in fp32, only once they are seen to be unchanged.
    """
    entries: list[Entry] = []
    failed: Exception | None = None
    position = 0
    for name in tensors.names():
        for kind in tensors.kinds(name):
            mine, position = position % world.size == world.rank, position + 1
            known = base.entry(kind, name) if base is not None and tensors.is_frozen(name) else None
            whole = None  # the last one goes before the next is gathered
            if known is None or tensors.exact:
                whole = tensors.whole(name, kind)
            # The others wait in `whole` for this rank too, so it goes on to the end and complains then.
            if not mine or failed is not None:
                continue
            try:
                if known is None or base is None:
                    assert whole is not None
                    entries.append(write_tensor(path, kind, name, whole))
                elif whole is None or checksum(whole) == known.sha256:
                    entries.append(link_tensor(path, known, base.folder))
                else:
                    failed = CheckpointError(
                        f"{path}: {name} is frozen, yet memory holds other values than {base.folder} or its file was "
                        f"changed; start the command again: it checks the file, and goes on from the last checkpoint"
                    )
            except OSError as error:
                failed = error
    if failed is not None:
        raise failed
    return entries


def _synced(path: Path, entries: Callable[[], list[Entry]]) -> list[Entry]:
    """Write `entries`, and their names in the folders down to the disk."""
    written = entries()
    for folder in {(path / entry.file).parent for entry in written}:
        sync_to_disk(folder)
    return written


def _unwritable_is_said(path: Path, action: Callable[[], T]) -> T:
    try:
        return action()
    except OSError as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"{path}: cannot be written ({reason}); free disk space or take another run_dir. "
            f"The same command goes on from the checkpoint before it"
        ) from None


def _remove(path: Path) -> None:
    """Remove a checkpoint, if it is there: its marker first."""
    if path.exists():
        (path / MARKER).unlink(missing_ok=True)
        shutil.rmtree(path)
