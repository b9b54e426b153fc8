"""Killed at any step of an evaluation, a record, a save or the pruning of checkpoints, a run ends with the same bits.

eval ─ record ─ tensors ─ index ─ marker ─ latest ─ prune
   ✝       ✝          ✝       ✝        ✝        ✝       ✝
"""

from pathlib import Path

import pytest

from dsllm.store import TensorStore
from dsllm.training.checkpoints import Checkpoint, complete_checkpoints, incomplete_checkpoints
from dsllm.training.monitor import read_metrics
from tests.training.killing import PLAIN_POINTS, live

pytestmark = pytest.mark.slow

OPTIONS = ["--train.checkpoint_every=2", "--train.keep_checkpoints=1", "--train.ds_config=ds_configs/zero2.json"]


def train(recipe: Path, folder: Path, ranks: int, end: str | None = None) -> list[int]:
    return live([f"--config={recipe}", f"--run_dir={folder / 'run'}", *OPTIONS], folder, ranks, end)


def outcome(run_dir: Path) -> tuple[object, ...]:
    """What a run leaves: tensors by their checksums, how far it came, and the losses of steps and evaluations."""
    (last,) = complete_checkpoints(run_dir)
    store = TensorStore.read(last)
    store.verify(store.entries.values())
    losses = [(r["kind"], r["step"], r["loss"]) for r in read_metrics(run_dir) if r["kind"] in ("train", "eval")]
    return store.entries, store.steps, Checkpoint.read(last).progress, sorted(losses)


@pytest.fixture(scope="module")
def undisturbed(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[object, ...]:
    folder = tmp_path_factory.mktemp("undisturbed")
    assert train(recipe, folder, 2) == [0, 0]
    return outcome(folder / "run")


@pytest.mark.parametrize("point", PLAIN_POINTS)
def test_a_run_killed_there_ends_with_the_same_bits(point, recipe, undisturbed, tmp_path):
    codes = train(recipe, tmp_path, 2, f"SIGKILL@0@{point}")
    assert codes[0] == -9, (tmp_path / "log").read_text()
    left = [path.name for path in incomplete_checkpoints(tmp_path / "run")]
    assert train(recipe, tmp_path, 2) == [0, 0], (tmp_path / "log").read_text()
    assert all(f"incomplete: {name}" in (tmp_path / "log").read_text() for name in left)
    assert outcome(tmp_path / "run") == undisturbed
