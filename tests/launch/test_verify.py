"""launch/verify.py: what is left of a run, part by part, and the exit code of damage."""

import shutil
from pathlib import Path

import pytest

from dsllm.training.checkpoints import complete_checkpoints
from tests.forked import forked
from tests.launching import python


@pytest.fixture
def run(trained_run, tmp_path) -> Path:
    """One that a test may damage."""
    return Path(shutil.copytree(trained_run, tmp_path / "run"))


def flip(path: Path, at: int = -1) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def test_a_whole_run_is_said_to_be_whole(run):
    said = python("launch/verify.py", run).splitlines()
    assert said[0].startswith("step_00000008: ") and said[0].endswith(" MB, whole")
    assert said[1].startswith("metrics.jsonl: ") and said[1].endswith(" records, whole")
    assert len(said) == 2
    every = python("launch/verify.py", run, "--all").splitlines()
    assert [line.partition(":")[0] for line in every] == ["step_00000004", "step_00000008", "metrics.jsonl"]
    one = python("launch/verify.py", run / "checkpoints" / "step_00000004").splitlines()
    assert [line.partition(":")[0] for line in one] == ["step_00000004"]


def test_a_model_that_cannot_be_imported_here_is_no_damage(recipe, tmp_path):
    (tmp_path / "elsewhere.py").write_text("from dsllm.models.gpt2 import GPT2\n\n\nclass Mine(GPT2):\n    pass\n")
    options = ["--config", recipe, "--run_dir", tmp_path / "run", "--model.name", "elsewhere:Mine"]
    forked(["launch/train.py", *options], settings={"PYTHONPATH": str(tmp_path)})
    assert python("launch/verify.py", tmp_path / "run").splitlines()[0].endswith(" MB, whole")


def test_every_damaged_file_is_named_and_the_exit_code_is_2(run):
    older, newer = complete_checkpoints(run)
    damaged = [newer / "config.yaml", newer / "weight" / "wte.weight.npy", older / "COMPLETE"]
    for file in damaged:
        flip(file)
    records = run / "metrics.jsonl"
    lines = records.read_bytes().split(b"\n")
    records.write_bytes(b"\n".join([lines[0], b"{", b"3", *lines[1:]]))
    said = python("launch/verify.py", run, "--all", expect=2)
    for file in damaged:
        assert str(file) in said
    assert f"{records}: 2 damaged lines, the first is line 2" in said
    assert f"error: {run}: 4 damaged files" in said and "Traceback" not in said
    assert "config.yaml" not in python("launch/verify.py", older, expect=2)


def test_incomplete_checkpoints_are_named_as_such_and_are_no_damage(run):
    older, newer = complete_checkpoints(run)
    (newer / "COMPLETE").unlink()
    said = python("launch/verify.py", run)
    assert f"{older.name}: " in said and "whole" in said
    assert f"{newer.name}: incomplete, writing or removing it was interrupted" in said
    assert "latest: names no complete checkpoint" in said


def test_a_checkpoint_that_was_set_aside_is_named_and_is_no_damage(run):
    _, newer = complete_checkpoints(run)
    newer.rename(newer.with_name(f"damaged.{newer.name}"))
    assert f"damaged.{newer.name}: damaged, set aside by a start of the run" in python("launch/verify.py", run)


@pytest.mark.parametrize("words", [["nowhere"], ["launch"], ["--al"], [""]])
def test_what_is_no_run_is_refused(words):
    said = python("launch/verify.py", *words, expect=2)
    assert said.startswith("error: ") and "Traceback" not in said


def test_a_last_line_that_a_kill_cut_short_is_no_damage(run):
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "st')
    assert "records, whole" in python("launch/verify.py", run)
