"""What is left of a run's checkpoints and records: every byte of them against its checksum.

    step_00000100: 61 tensors, 180 MB, whole
    step_00000150: 61 tensors, 180 MB, 1 damaged file
      runs/mine/checkpoints/step_00000150/weight/wte.weight.npy: its checksum is not the one that was written
    step_00000200: incomplete, writing or removing it was interrupted; a run passes over it
    metrics.jsonl: 1,204 records, whole

Starting a run, evaluating or growing makes the same checks of what it reads; this reads everything, and goes on after
the first damage.
"""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from dsllm.errors import CheckpointError, ConfigError, UserError
from dsllm.store import INDEX, TensorStore
from dsllm.training.checkpoints import Checkpoint, complete_checkpoints, find_checkpoint, incomplete_checkpoints
from dsllm.training.marker import MARKER, Marker
from dsllm.training.monitor import METRICS, damaged_lines, read_metrics

REMOVE = "; remove the folder to go on from the checkpoint before it"


@dataclass
class Verdict:
    """What was found of one checkpoint, or of a run's records."""

    name: str
    holds: str
    """In words, how much it is."""
    problems: list[str] = field(default_factory=list)
    """A line for each damaged file."""
    remark: str = ""

    def __str__(self) -> str:
        count = len(self.problems)
        state = f"{count} damaged file{'s' if count > 1 else ''}" if count else "whole"
        return "\n  ".join([f"{self.name}: {self.holds}, {state}{self.remark}", *self.problems])


def verify_checkpoint(path: Path) -> Verdict:
    """Reads a complete checkpoint from end to end and gathers everything that is wrong with it."""
    problems: list[str] = []
    sealed = True
    try:
        marker = Marker.read(path)
        sealed = marker.sealed
        problems += map(str, marker.problems())
        if not problems:
            checkpoint = Checkpoint.read(path)
            # Sealed bytes are those that were written; what they name may not be importable here.
            with suppress(*[ConfigError] * sealed):
                checkpoint.config()
    except UserError as error:
        problems.append(str(error).removesuffix(REMOVE))
    unknown = "tensors that nothing vouches for"
    if any(problem.startswith(f"{path / INDEX}: ") for problem in problems):
        return Verdict(path.name, unknown, problems)
    try:
        store = TensorStore.read(path)
    except CheckpointError as error:
        return Verdict(path.name, unknown, [*problems, str(error)])
    for entry in store.entries.values():
        try:
            store.verify([entry])
        except CheckpointError as error:
            if not any(problem.startswith(f"{path / entry.file}: ") for problem in problems):
                problems.append(str(error).removesuffix(REMOVE))
    size = sum(entry.nbytes for entry in store.entries.values())
    older = f" (its {MARKER} is of an older dsllm or edited: it vouches for sizes, only tensors have checksums)"
    return Verdict(path.name, f"{len(store.entries)} tensors, {megabytes(size)}", problems, "" if sealed else older)


def verify_records(run_dir: Path) -> Verdict:
    """Counts the records of a run, and names the lines that are none."""
    damaged = damaged_lines(run_dir)
    holds = f"{len(read_metrics(run_dir)):,} records"
    if not damaged:
        return Verdict(METRICS, holds)
    lines = f"{len(damaged):,} damaged line{'s' if len(damaged) > 1 else ''}, the first is line {damaged[0]:,}"
    return Verdict(METRICS, holds, [f"{run_dir / METRICS}: {lines}; left out, and dropped at the run's next start"])


def verify(path: Path, every: bool = False) -> Iterator[Verdict | str]:
    """What is found at a run's folder or at one of its checkpoints, part by part; a text is no damage.

    Args:
        path: a checkpoint, or a run: then its newest complete one, its records, and the names of incomplete ones.
        every: of a run, all complete checkpoints.

    Raises:
        CheckpointError: there is no complete checkpoint.
    """
    if (path / MARKER).exists():
        yield verify_checkpoint(path)
        return
    found = complete_checkpoints(path)
    if not found:
        find_checkpoint(path)  # which says why
    for checkpoint in found if every else found[-1:]:
        yield verify_checkpoint(checkpoint)
    for incomplete in incomplete_checkpoints(path):
        yield f"{incomplete.name}: incomplete, writing or removing it was interrupted; a run passes over it"
    for aside in sorted((path / "checkpoints").glob("damaged.step_*")):
        yield f"{aside.name}: damaged, set aside by a start of the run; it can be removed"
    latest = path / "checkpoints" / "latest"
    named = latest.read_bytes().strip() if latest.is_file() else None
    if named not in [checkpoint.name.encode() for checkpoint in found]:
        yield "latest: names no complete checkpoint; the run's next one puts that right, and no run reads it"
    yield verify_records(path)


def megabytes(size: int) -> str:
    return f"{size / 1e6:,.0f} MB" if size >= 1e7 else f"{size / 1e6:.2f} MB"
