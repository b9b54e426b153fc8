"""Weights & Biases, if asked for, shows what TensorBoard shows; as one run, however often the run here is resumed.

The real wandb, offline: what it would send stands in files, which are read here as it writes them.
"""

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from dsllm.errors import ConfigError
from dsllm.training.monitor import read_metrics
from dsllm.training.wandb_board import check_wandb
from tests.launching import run, start, train_command

BLOCK, HEADER = 32768, 7
SELDOM = {"train.eval_every": 0, "train.test_samples": 0, "train.checkpoint_every": 0}


def records(path: Path) -> Iterator:
    """What a `.wandb` file says: a header of 7 bytes, then a LevelDB log of protobuf messages."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, place, message = path.read_bytes(), HEADER, b""
    while place + HEADER <= len(content):
        if BLOCK - place % BLOCK < HEADER:
            place += BLOCK - place % BLOCK
            continue
        size, kind = int.from_bytes(content[place + 4 : place + 6], "little"), content[place + 6]
        message += content[place + HEADER : place + HEADER + size]
        place += HEADER + size
        if kind in (1, 4):  # whole, or the last piece
            yield Record.FromString(message)
            message = b""


def history(run_dir: Path) -> list[dict]:
    """The points of all starts of a run, in their order."""
    files = sorted(run_dir.glob("wandb/offline-run-*/*.wandb"))
    told = [
        record.history.item
        for file in files
        for record in records(file)
        if record.WhichOneof("record_type") == "history"
    ]
    return [{".".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items} for items in told]


@pytest.fixture(scope="module")
def resumed(recipe, tmp_path_factory) -> Path:
    """A run that is shown, stopped at step 4 by its length, and gone on with."""
    run_dir = tmp_path_factory.mktemp("wandb") / "shown"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        for steps in (4, 8):
            shown = {"monitor.wandb": "mine", "monitor.tensorboard": "false", "train.steps": steps}
            assert "  wandb sync " in run(train_command(recipe, run_dir, 1, shown))
    return run_dir


def test_it_shows_the_points_of_the_records_with_their_step_and_tokens(resumed):
    shown = {
        (point["step"], point["tokens"], point["train/loss"]) for point in history(resumed) if "train/loss" in point
    }
    assert shown == {(r["step"], r["tokens"], r["loss"]) for r in read_metrics(resumed) if r["kind"] == "train"}
    kept = [r for r in read_metrics(resumed) if r["kind"] == "eval" and r["split"] == "val"]
    assert {r["loss"] for r in kept} <= {point.get("val/loss") for point in history(resumed)}
    assert {point.get("continuations/1._type") for point in history(resumed)} == {None, "html-file"}


def test_two_starts_are_one_run_with_the_configuration_and_the_last_losses(resumed):
    files = sorted(resumed.glob("wandb/offline-run-*/*.wandb"))
    assert len(files) == 2
    told = [list(records(file)) for file in files]
    runs = [next(record.run for record in start if record.WhichOneof("record_type") == "run") for start in told]
    assert {run.run_id for run in runs} == {(resumed / "wandb" / "id").read_text().strip()}
    assert {(run.project, run.display_name) for run in runs} == {("mine", "shown")}
    changes = [item for record in told[1] for item in record.config.update]
    assert {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in changes}["train.lr"] == 0.01
    summary = {item.key: json.loads(item.value_json) for record in told[1] for item in record.summary.update}
    last = {r["split"]: r["loss"] for r in read_metrics(resumed) if r["kind"] == "eval"}
    assert (summary["last/val_loss"], summary["last/test_loss"]) == (last["val"], last["test"])


def test_without_a_key_it_is_refused_before_anything_is_written(recipe, tmp_path, monkeypatch):
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    output = run(train_command(recipe, tmp_path / "run", 1, {"monitor.wandb": "mine"}), expect=2)
    assert "monitor.wandb = mine: Weights & Biases has no key; run `wandb login`, or set WANDB_MODE=offline" in output
    assert "Traceback" not in output and not (tmp_path / "run").exists()


def test_where_it_is_not_installed_the_message_says_how_to_have_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(
        ConfigError, match=r"monitor\.wandb = mine: Weights & Biases is not installed; `pip install wandb`"
    ):
        check_wandb("mine")


@pytest.mark.parametrize("project", ["a/b", "x" * 129, "what?"])
def test_what_is_no_projects_name_is_refused(project):
    with pytest.raises(ConfigError, match="not a project's name; take up to 128 characters without"):
        check_wandb(project)


@pytest.mark.slow
@pytest.mark.parametrize("key", ["abc", "0123456789" * 4])
def test_a_server_that_cannot_be_reached_or_a_key_that_is_none_is_one_message(recipe, tmp_path, monkeypatch, key):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_API_KEY", key)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "5")
    output = run(train_command(recipe, tmp_path / "run", 1, {"monitor.wandb": "mine"}), expect=2)
    assert "error: monitor.wandb = mine: " in output and "set WANDB_MODE=offline to send it later" in output
    assert "Traceback" not in output


def test_a_run_goes_on_without_it_when_its_process_is_killed(recipe, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    process = start(train_command(recipe, tmp_path / "run", 1, {"monitor.wandb": "mine", "train.steps": 150, **SELDOM}))
    while not any(record["kind"] == "train" for record in read_metrics(tmp_path / "run")):
        assert process.poll() is None
        time.sleep(0.05)
    for child in psutil.Process(process.pid).children(recursive=True):
        if "wandb" in child.name():
            child.kill()
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0 and "Traceback" not in output, output
    assert output.count("the run goes on without it") == 1
    assert read_metrics(tmp_path / "run")[-1]["event"] == "end"
