"""A structural event is whole or never was: kill -9 anywhere between save and first step, and the run ends as if not.

save step_00000002 ─ probe ─ plan ─ write step_00000002.01 ─ exec ─ load ─ verify ─ first gradients ─ receipt ─ step 3
     ✝✝✝✝            ✝✝      ✝              ✝✝✝✝✝            ✝      ✝       ✝            ✝             ✝✝
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from dsllm.store import TensorStore, checksum
from dsllm.training.checkpoints import Checkpoint, complete_checkpoints, incomplete_checkpoints
from dsllm.training.monitor import read_metrics
from tests.sealing import reseal
from tests.training.killing import POINTS, live

pytestmark = pytest.mark.slow


@dataclass
class Run:
    """A run's folder, and the processes that work in it."""

    recipe: Path
    folder: Path
    options: list[str] = field(default_factory=list)
    again: bool = True
    """Whether it goes on after an event as a fork; else as it does for a user."""

    @property
    def path(self) -> Path:
        return self.folder / "run"

    def live(self, stage: int, ranks: int, end: str | None = None) -> list[int]:
        chosen = [f"--run_dir={self.path}", f"--train.ds_config=ds_configs/zero{stage}.json", *self.options]
        again = self.again and not (end or "").startswith("SIGTERM")  # a signal may wait while a process begins anew
        return live([f"--config={self.recipe}", *chosen], self.folder, ranks, end, again)

    def ended(self, stage: int, ranks: int, end: str) -> None:
        """Killed where `end` says; or stopped, and then every rank with 143."""
        codes = self.live(stage, ranks, end)
        signal, rank, _ = end.split("@")
        if signal == "SIGTERM":
            assert codes == [143] * ranks, f"{end}:\n{self.log}"
        else:
            assert codes[int(rank)] == -9, f"{end}:\n{self.log}"

    def killed(self, stage: int, ranks: int, point: str) -> None:
        self.ended(stage, ranks, f"SIGKILL@0@{point}")

    def finished(self, stage: int, ranks: int) -> "Run":
        assert self.live(stage, ranks) == [0] * ranks, self.log
        return self

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()

    def records(self, kind: str) -> list[dict[str, Any]]:
        return [record for record in read_metrics(self.path) if record["kind"] == kind]

    def losses(self) -> list[tuple[int, float]]:
        """Of steps and evaluations, in the order of the records; none is there twice unless it was recorded twice."""
        return [(r["step"], r["loss"]) for kind in ("train", "eval") for r in self.records(kind)]

    def tensors(self) -> TensorStore:
        """What the last checkpoint holds, every file seen to be what its index says."""
        store = TensorStore.read(complete_checkpoints(self.path)[-1])
        store.verify(store.entries.values())
        return store

    def state(self) -> dict[str, Any]:
        """What the trainer remembers at the end, but for how long things took and how many bytes its words are."""
        state = Checkpoint.read(complete_checkpoints(self.path)[-1]).state["trainer"]
        for phase in state["ledger"]["phases"]:
            for key in ("seconds", "growth_seconds", "growth_bytes", "lost_seconds"):
                del phase[key]
        return state

    def receipts(self) -> dict[str, dict[str, Any]]:
        """The receipts by the events' names, but for seconds and bytes."""
        found = {}
        for path in sorted((self.path / "growth").glob("*/receipt.json")):
            receipt = json.loads(path.read_text())
            assert receipt["problems"] == []
            found[path.parent.name] = {k: v for k, v in receipt.items() if k not in ("seconds", "bytes_written")}
        return found


@pytest.fixture(scope="module")
def undisturbed(growing: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int, int], Run]:
    """The run at a ZeRO stage on a number of ranks, from beginning to end in one go."""
    runs: dict[tuple[int, int], Run] = {}

    def run(stage: int, ranks: int) -> Run:
        if (stage, ranks) not in runs:
            run = Run(growing, tmp_path_factory.mktemp("undisturbed"), again=False)
            runs[stage, ranks] = run.finished(stage, ranks)
        return runs[stage, ranks]

    return run


def assert_same(run: Run, undisturbed: Run) -> None:
    """Bit for bit, and nothing is missing, there twice, or left lying about."""
    ours, theirs = run.tensors(), undisturbed.tensors()
    assert (ours.entries, ours.aliases, ours.steps) == (theirs.entries, theirs.aliases, theirs.steps)
    assert run.losses() == undisturbed.losses()
    assert run.state() == undisturbed.state()
    assert run.receipts() == undisturbed.receipts()
    events = [(r["step"], r["checkpoint"], r["plan"]) for r in undisturbed.records("growth")]
    assert [(r["step"], r["checkpoint"], r["plan"]) for r in run.records("growth")] == events
    assert len(events) == len(run.receipts())
    decisions = [r.path.joinpath("growth", "decisions.jsonl").read_text() for r in (run, undisturbed)]
    assert decisions[0] == decisions[1]
    assert incomplete_checkpoints(run.path) == []
    names = [path.name for path in complete_checkpoints(undisturbed.path)]
    assert [path.name for path in complete_checkpoints(run.path)] == names
    assert sorted(path.name for path in (run.path / "growth").iterdir()) == sorted(
        path.name for path in (undisturbed.path / "growth").iterdir()
    )


def test_the_undisturbed_run_grows_once_and_trains_on(undisturbed):
    run = undisturbed(0, 1)
    assert [path.name for path in complete_checkpoints(run.path)][-2:] == ["step_00000002.01", "step_00000004"]
    assert list(run.receipts()) == ["step_00000002.01"]
    assert [step for step, _ in run.losses()] == [1, 2, 3, 4, 0, 3, 4, 4]


ONE_BY_ONE = [
    "the save is half written",
    "the probe is half written",
    "the grown tensors are half written",
    "the grown checkpoint is not the latest",
    "the grown checkpoint is there",
    "the old process ends",
    "the process begins anew",
    "the grown checkpoint is half loaded",
    "the event is recorded without a receipt",
    "the receipt is written",
]
NOT_IN_TURN = ("the grown checkpoint is there", "the old process ends", "the process begins anew")
"""What the next life does not come by: it goes on from the grown checkpoint."""


@pytest.mark.parametrize("point", ONE_BY_ONE)
def test_a_run_killed_once_ends_with_the_same_bits(point, undisturbed, growing, tmp_path):
    run = Run(growing, tmp_path)
    run.killed(0, 1, point)
    assert_same(run.finished(0, 1), undisturbed(0, 1))


def test_a_run_killed_at_every_point_in_turn_ends_with_the_same_bits(undisturbed, growing, tmp_path):
    run = Run(growing, tmp_path)
    for point in POINTS:
        if point not in NOT_IN_TURN:
            run.killed(0, 1, point)
    assert_same(run.finished(0, 1), undisturbed(0, 1))


ENDS = {
    2: [
        "SIGKILL@1@the grown tensors are half linked",
        "SIGKILL@0@the process begins anew",
        "SIGKILL@1@the gradients are not verified",
    ],
    3: [
        "SIGKILL@1@the save is half written",
        "SIGKILL@0@the grown tensors are half written",
        "SIGTERM@1@the old process ends",
        "SIGKILL@1@the engine is not verified",
    ],
}
"""By ZeRO stage: how one of two ranks ends, one life after the other."""


@pytest.mark.parametrize("stage", ENDS)
def test_two_ranks_of_which_one_is_killed_or_stopped_again_and_again_end_with_the_same_bits(
    stage, undisturbed, growing, tmp_path
):
    run = Run(growing, tmp_path)
    for end in ENDS[stage]:
        run.ended(stage, 2, end)
    assert_same(run.finished(stage, 2), undisturbed(stage, 2))


LIVES = [
    ("the save is half written", 3, 2),
    ("the save is not the latest", 0, 1),
    ("the grown tensors are half linked", 2, 2),
    ("the grown checkpoint is there", 1, 1),
    ("the gradients are not verified", 3, 2),
    ("the receipt is written", 0, 1),
]


def test_a_killed_run_goes_on_with_other_ranks_and_stages_and_ends_near_the_same_weights(
    undisturbed, growing, tmp_path
):
    run, whole = Run(growing, tmp_path), undisturbed(0, 1)
    for point, stage, ranks in LIVES:
        run.killed(stage, ranks, point)
    run.finished(2, 2)
    assert dict(run.losses()) == pytest.approx(dict(whole.losses()), abs=1e-4)
    ours, theirs = run.tensors(), whole.tensors()
    assert ours.entries.keys() == theirs.entries.keys()
    for key in theirs.entries:
        assert ours[key].allclose(theirs[key], rtol=0, atol=1e-4), key
    assert list(run.receipts()) == list(whole.receipts())
    assert len(run.records("growth")) == 1


def test_kills_at_a_merge_and_the_growth_that_follows_it_at_once_leave_no_trace(growing, tmp_path_factory):
    two_events = ["--growth.policy={name: schedule, at: [0.25, 0.5]}"]
    run, whole = (Run(growing, tmp_path_factory.mktemp(name), two_events) for name in ("killed", "whole"))
    whole.finished(0, 1)
    assert list(whole.receipts()) == ["step_00000001.01", "step_00000002.01", "step_00000002.02"]
    for point in [
        "the process begins anew",  # after the first growth
        "the grown tensors are half written",  # by the merge, and so on
        "the process begins anew",
        "the event is recorded without a receipt",
        "the grown tensors are half linked",  # by the second growth, and so on
        "the grown checkpoint is there",
    ]:
        run.killed(0, 1, point)
    assert_same(run.finished(0, 1), whole)


def test_a_signal_at_a_growth_event_stops_with_143_and_nothing_is_lost(undisturbed, growing, tmp_path):
    run, whole = Run(growing, tmp_path), undisturbed(0, 1)
    for point in ["the old process ends", "the engine is not verified", "the gradients are not verified"]:
        run.ended(0, 1, f"SIGTERM@0@{point}")
    assert "Traceback" not in run.log
    run.finished(0, 1)
    assert run.tensors().entries == whole.tensors().entries
    assert run.losses() == whole.losses()
    assert run.receipts() == whole.receipts()


def test_fresh_starts_over_with_the_small_model_and_grows_once(undisturbed, growing, tmp_path):
    whole = undisturbed(0, 1)
    run = Run(growing, tmp_path)
    shutil.copytree(whole.path, run.path)
    Run(growing, tmp_path, ["--fresh"]).finished(0, 1)
    assert [r["event"] for r in run.records("event")] == ["start", "grow", "resume", "end"]
    assert (run.path / "set_aside.1" / "growth").exists()
    assert_same(run, whole)


def flip_a_bit(path: Path) -> None:
    """In a file of its own: it may be linked into other checkpoints."""
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.unlink()
    path.write_bytes(content)


GROWN_TENSORS = pytest.mark.parametrize("name", ["blocks.2.mlp.up.weight", "blocks.3.attention.qkv.lora_A"])


@GROWN_TENSORS
def test_a_grown_checkpoint_that_is_damaged_is_set_aside_and_the_event_repeated(name, undisturbed, growing, tmp_path):
    run = Run(growing, tmp_path)
    run.killed(0, 1, "the old process ends")
    grown = run.path / "checkpoints" / "step_00000002.01"
    flip_a_bit(grown / "weight" / f"{name}.npy")
    run.finished(0, 1)
    assert f"damaged: {grown.name}, now damaged.{grown.name}" in run.log
    assert f"{name}.npy: its checksum is not the one that was written" in run.log
    assert run.tensors().entries == undisturbed(0, 1).tensors().entries
    assert run.losses() == undisturbed(0, 1).losses()
    assert run.receipts() == undisturbed(0, 1).receipts()


@GROWN_TENSORS
def test_a_grown_checkpoint_that_is_not_what_was_planned_is_refused_and_the_event_can_be_repeated(
    name, undisturbed, growing, tmp_path
):
    run = Run(growing, tmp_path)
    run.killed(0, 1, "the old process ends")
    grown = run.path / "checkpoints" / "step_00000002.01"
    flip_a_bit(grown / "weight" / f"{name}.npy")
    store = TensorStore.read(grown)  # now as if it had been grown wrong: the index agrees with the file
    entry = store.entries["weight", name]
    store.entries["weight", name] = replace(entry, sha256=checksum(store["weight", name]))
    store.finish()
    reseal(grown)
    assert run.live(0, 1) == [2], run.log
    assert f"weight of {name} is not what the plan makes of" in run.log
    assert "remove step_00000002.01 to repeat the event" in run.log
    assert "Traceback" not in run.log

    before = TensorStore.read(run.path / "checkpoints" / "step_00000002")
    before.verify(before.entries.values())
    shutil.rmtree(grown)
    run.finished(0, 1)
    assert run.tensors().entries == undisturbed(0, 1).tensors().entries
