"""What a growing run remembers in its checkpoints besides tensors and progress, and what it writes down of its events.

RUN/growth/decisions.jsonl                 each structural decision when it is taken: a resumed run repeats them
RUN/growth/step_00000100.npz               the probe of a checkpoint that is about to change
RUN/growth/step_00000100.01/plan.json      what is done to it, tensor by tensor, hashed
RUN/growth/step_00000100.01/event.json     from which checkpoint, begun when, the seconds of its parts so far
RUN/growth/step_00000100.01/receipt.json   what was verified; an event without one is verified by whoever resumes
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

from dsllm.config import GrowthConfig
from dsllm.data.files import os_errors_named, write_atomically
from dsllm.errors import CheckpointError, shown
from dsllm.growth.decisions import OperatorChoice, Phase, Point
from dsllm.growth.phases import Action, GrowNow, MergeNow, RaceNow
from dsllm.growth.plan import GrowthPlan
from dsllm.json_file import parse_json
from dsllm.training.ledger import Ledger

FOLDER = "growth"
CHECKPOINT = re.compile(r"step_[0-9]{8,20}(\.[0-9]{2,9})?")
ACTIONS: dict[str, type[Action]] = {kind.__name__: kind for kind in (MergeNow, GrowNow, RaceNow)}


@dataclass
class Race:
    """Branches from one checkpoint, one for each candidate, each trained up to step `until`."""

    origin: str
    """Name of the checkpoint that they start from."""
    phase: Phase
    candidates: list[OperatorChoice]
    until: int
    losses: list[float] = field(default_factory=list)
    """Validation losses of the branches that are done."""
    flops: float = 0.0
    seconds: float = 0.0
    """What they have cost."""


@dataclass
class GrowthState:
    """Where a growing run stands."""

    stage: int = 0
    """Growth events so far."""
    phase: Phase = "full"
    grown_at_step: int = 0
    grown_at_tokens: int = 0
    lr_scale: float = 1.0
    lineage: list[int] = field(default_factory=list)
    """The first model's block that each distinct block descends from."""
    history: list[Point] = field(default_factory=list)
    ledger: Ledger = field(default_factory=Ledger)
    race: Race | None = None
    refused: str | None = None
    """Why the model cannot grow any further."""

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "ledger": self.ledger.as_dict()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "GrowthState":
        race = None if values["race"] is None else Race(**values["race"])
        if race is not None and not is_checkpoint_name(race.origin):
            raise CheckpointError(
                f"a race from {shown(race.origin)}, which is no name of a checkpoint; remove the newest checkpoint"
            )
        history = [Point(**point) for point in values["history"]]
        return cls(**{**values, "race": race, "history": history, "ledger": Ledger.from_dict(values["ledger"])})


@dataclass
class Event:
    """A structural event on its way: from the checkpoint `source` to the one called `name`."""

    name: str
    source: str
    started: float
    """Seconds since the epoch."""
    process: str
    """The process that began it: it is the same one after its restart, another comes after a kill."""
    seconds: dict[str, float] = field(default_factory=dict)

    def folder(self, run_dir: Path) -> Path:
        return run_dir / FOLDER / self.name

    def receipt(self, run_dir: Path) -> Path:
        """Where its receipt is, once it is verified."""
        return self.folder(run_dir) / "receipt.json"

    def begin(self, run_dir: Path, plan: GrowthPlan) -> None:
        """Write down what is about to be done; what an earlier event of the name left is forgotten."""
        folder = self.folder(run_dir)
        shutil.rmtree(folder, ignore_errors=True)
        with os_errors_named(folder):
            folder.mkdir(parents=True)
        write_atomically(folder / "plan.json", plan.to_json().encode())
        self.write(run_dir)

    def write(self, run_dir: Path) -> None:
        write_atomically(self.folder(run_dir) / "event.json", json.dumps(asdict(self), indent=1).encode())

    @classmethod
    def read(cls, run_dir: Path, name: str) -> "Event | None":
        """The event that made the checkpoint `name`, if one did; `CheckpointError` if it is not written down."""
        if "." not in name:
            return None
        path = run_dir / FOLDER / name / "event.json"
        with cannot_be_read(path, name):
            event = cls(**parse_json(path.read_bytes()))
            if event.name != name:
                raise ValueError(f"it is of {shown(event.name)}")
            if not is_checkpoint_name(event.source):
                raise ValueError(f"{shown(event.source)} is no name of a checkpoint")
            if not (isinstance(event.started, float) and isinstance(event.seconds, dict)):
                raise ValueError("its times are none")
            return event

    def plan(self, run_dir: Path) -> GrowthPlan:
        path = self.folder(run_dir) / "plan.json"
        with cannot_be_read(path, self.name):
            return GrowthPlan.from_json(path.read_text(encoding="utf-8"))


def is_checkpoint_name(name: object) -> bool:
    """Whether a file may name a checkpoint so: then the name leads nowhere but into the run's folder."""
    return isinstance(name, str) and CHECKPOINT.fullmatch(name) is not None


@contextmanager
def cannot_be_read(path: Path, checkpoint: str) -> Iterator[None]:
    """Within it what makes a file of the event behind `checkpoint` unreadable becomes a `CheckpointError`."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path}: cannot be read ({error}); remove the checkpoint {checkpoint} to repeat the event that made it"
        ) from None


def this_process() -> str:
    """A name of this process that outlives its restart; process numbers alone come again."""
    return f"{os.getpid()} {psutil.Process().create_time()}"


def probe_path(run_dir: Path, source: str) -> Path:
    """Where the probe of the checkpoint `source` lies while events from it are on their way."""
    return run_dir / FOLDER / f"{source}.npz"


class Decisions:
    """The structural decisions of a run, written down when they are taken; rank 0's."""

    def __init__(self, run_dir: Path, growth: GrowthConfig):
        self.path = run_dir / FOLDER / "decisions.jsonl"
        self._growth = hashlib.sha256(growth.model_dump_json().encode()).hexdigest()[:16]
        self._known = self._read()

    def find(self, checkpoint: str) -> Action | None:
        """What was decided at the checkpoint of that name under the same configuration, if anything was."""
        return self._known.get(checkpoint)

    def note(self, checkpoint: str, action: Action) -> None:
        """Raises `UserError` if it cannot be written."""
        with os_errors_named(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            facts = {"checkpoint": checkpoint, "growth": self._growth, "action": type(action).__name__}
            line = json.dumps({**facts, "values": asdict(action)})
            lines = self.path.read_bytes() if self.path.exists() else b""
            write_atomically(self.path, lines + line.encode() + b"\n")
        self._known[checkpoint] = action

    def _read(self) -> dict[str, Action]:
        known: dict[str, Action] = {}
        for line in self.path.read_bytes().split(b"\n") if self.path.exists() else []:
            try:
                facts = parse_json(line)
                if facts["growth"] == self._growth:
                    known[facts["checkpoint"]] = ACTIONS[facts["action"]](**facts["values"])
            except (ValueError, KeyError, TypeError):  # damaged: decided anew
                continue
        return known
