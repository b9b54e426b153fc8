"""What a run's folder holds decides how a run begins."""

import json
from pathlib import Path

import pytest

from dsllm.config import RunConfig
from dsllm.errors import CheckpointError
from dsllm.tokenizer import load_tokenizer
from dsllm.training.checkpoints import Checkpoint, complete_checkpoints, find_checkpoint, incomplete_checkpoints
from dsllm.training.progress import Progress
from dsllm.training.run_folder import check_same_model, check_same_tokenizer, set_aside, write_config


def config(**model) -> RunConfig:
    return RunConfig.from_values({"run_dir": "runs/x", "data": {"path": "data/x"}, "model": {"n_head": 2, **model}})


def write_checkpoint(run_dir: Path, step: int, complete: bool = True) -> Path:
    path = run_dir / "checkpoints" / f"step_{step:08d}"
    path.mkdir(parents=True)
    (path / "config.yaml").write_text(config(n_embd=32).as_yaml())
    if complete:
        facts = {
            "progress": Progress(step=step).as_dict(),
            "world_size": 2,
            "zero_stage": 1,
            "tokenizer": load_tokenizer("bytes").info.model_dump(),
        }
        (path / "COMPLETE").write_text(json.dumps(facts))
    return path


def test_the_newest_complete_checkpoint_is_found_and_incomplete_ones_are_named(tmp_path):
    write_checkpoint(tmp_path, 5)
    write_checkpoint(tmp_path, 10)
    broken = write_checkpoint(tmp_path, 15, complete=False)
    assert find_checkpoint(tmp_path).progress.step == 10
    assert [path.name for path in complete_checkpoints(tmp_path)] == ["step_00000005", "step_00000010"]
    assert incomplete_checkpoints(tmp_path) == [broken]


def test_a_checkpoint_can_be_named_itself(tmp_path):
    path = write_checkpoint(tmp_path, 5)
    write_checkpoint(tmp_path, 10)
    assert find_checkpoint(path) == Checkpoint(path, Progress(step=5), 2, 1, load_tokenizer("bytes").info)


@pytest.mark.parametrize("case, message", [("nothing", "no such run"), ("empty", "no complete checkpoint")])
def test_a_run_without_a_checkpoint_is_refused(tmp_path, case, message):
    run_dir = tmp_path / "run"
    if case == "empty":
        write_checkpoint(run_dir, 5, complete=False)
    with pytest.raises(CheckpointError, match=message):
        find_checkpoint(run_dir)


@pytest.mark.parametrize("marker", ["", "{", "{}", '{"progress": {"steps": 1}, "world_size": 1, "zero_stage": 0}'])
def test_a_damaged_marker_is_named(tmp_path, marker):
    path = write_checkpoint(tmp_path, 5)
    (path / "COMPLETE").write_text(marker)
    with pytest.raises(CheckpointError, match="COMPLETE: cannot be read"):
        find_checkpoint(path)


def test_another_model_is_refused_with_every_difference(tmp_path):
    checkpoint = Checkpoint.read(write_checkpoint(tmp_path, 5))
    check_same_model(checkpoint, config(n_embd=32))
    with pytest.raises(CheckpointError) as raised:
        check_same_model(checkpoint, config(n_embd=64, n_layer=3))
    assert "model.n_layer was 12, now 3; model.n_embd was 32, now 64" in str(raised.value)


def test_data_of_another_tokenizer_is_refused(tmp_path):
    checkpoint = Checkpoint.read(write_checkpoint(tmp_path, 5))
    check_same_tokenizer(checkpoint, load_tokenizer("bytes").info)
    with pytest.raises(CheckpointError, match=r"trained on tokens of bytes .* now holds those of gpt2"):
        check_same_tokenizer(checkpoint, load_tokenizer("gpt2").info)


def test_a_fresh_start_sets_the_former_run_aside_and_loses_nothing(tmp_path):
    write_checkpoint(tmp_path, 5)
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    (tmp_path / "notes.txt").write_text("mine")
    aside = set_aside(tmp_path)
    assert aside is not None
    assert complete_checkpoints(aside) and (aside / "metrics.jsonl").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([aside.name, "notes.txt"])
    assert set_aside(tmp_path) is None


def test_the_configuration_is_saved_and_what_changed_is_told(tmp_path):
    assert write_config(tmp_path, config(n_embd=32)) == []
    assert write_config(tmp_path, config(n_embd=32)) == []
    assert write_config(tmp_path, config(n_embd=64)) == ["model.n_embd was 32, now 64"]
    assert RunConfig.from_file(tmp_path / "config.yaml") == config(n_embd=64)
