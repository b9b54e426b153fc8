"""What a run's folder holds decides how a run begins."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from dsllm.config import RunConfig
from dsllm.errors import CheckpointError
from dsllm.tokenizer import load_tokenizer
from dsllm.training.checkpoints import (
    Checkpoint,
    Origin,
    checkpoint_name,
    complete_checkpoints,
    find_checkpoint,
    incomplete_checkpoints,
)
from dsllm.training.loading import load_tokenizer_of
from dsllm.training.progress import Progress
from dsllm.training.run_folder import check_resumable, check_same_tokenizer, clear_for, set_aside, write_config

ORDER = {"train.seed": 1, "model.context": 256, "data.weights": None, "data.path (checksums)": ["abc"]}
ORIGIN = Origin(2, 1, "fp32", load_tokenizer("bytes").info, ORDER)


def config(**model) -> RunConfig:
    return RunConfig.from_values({"run_dir": "runs/x", "data": {"path": "data/x"}, "model": {"n_head": 2, **model}})


def write_checkpoint(run_dir: Path, step: int, complete: bool = True) -> Path:
    path = run_dir / "checkpoints" / f"step_{step:08d}"
    path.mkdir(parents=True)
    (path / "config.yaml").write_text(config(n_embd=32).as_yaml())
    if complete:
        facts = {
            "progress": asdict(Progress(step=step, consumed_samples=8 * step)),
            "origin": {**asdict(ORIGIN), "tokenizer": ORIGIN.tokenizer.model_dump()},
            "asked": config(n_embd=32).model.model_dump(mode="json"),
            "state": {"trainer": {}, "scaler": {}},
            "files": {"weight/part.npy": 5},
        }
        (path / "weight").mkdir()
        (path / "weight" / "part.npy").write_bytes(b"12345")
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
    found = find_checkpoint(path)
    assert (found.path, found.progress, found.origin) == (path, Progress(step=5, consumed_samples=40), ORIGIN)


def test_what_a_structural_event_made_of_a_step_is_newer_than_the_step(tmp_path):
    path = write_checkpoint(tmp_path, 5)
    path.rename(path.with_name(checkpoint_name(5, event=1)))
    write_checkpoint(tmp_path, 5)
    assert [path.name for path in complete_checkpoints(tmp_path)] == ["step_00000005", "step_00000005.01"]


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
    check_resumable(checkpoint, config(n_embd=32), ORIGIN)
    with pytest.raises(CheckpointError) as raised:
        check_resumable(checkpoint, config(n_embd=64, n_layer=3), ORIGIN)
    assert "model.n_layer was 12, now 3; model.n_embd was 32, now 64" in str(raised.value)


@pytest.mark.parametrize(
    "now, message",
    [
        ({"order": {**ORDER, "train.seed": 2}}, "its samples came in another order: train.seed was 1, now 2"),
        ({"order": {**ORDER, "data.path (checksums)": ["x"]}}, "data.path (checksums) was ['abc'], now ['x']"),
        ({"precision": "bf16"}, "train.precision was fp32, now bf16"),
    ],
)
def test_a_run_that_could_not_go_on_exactly_is_refused(tmp_path, now, message):
    checkpoint = Checkpoint.read(write_checkpoint(tmp_path, 5))
    with pytest.raises(CheckpointError) as raised:
        check_resumable(checkpoint, config(n_embd=32), replace(ORIGIN, **now))
    assert message in str(raised.value)


def test_a_run_that_has_read_nothing_yet_may_read_other_data_in_any_precision(tmp_path):
    checkpoint = replace(
        Checkpoint.read(write_checkpoint(tmp_path, 5)), progress=Progress(), origin=replace(ORIGIN, precision=None)
    )
    check_resumable(checkpoint, config(n_embd=32), replace(ORIGIN, order={"train.seed": 2}, precision="bf16"))


def test_any_number_of_ranks_and_any_stage_may_go_on(tmp_path):
    checkpoint = Checkpoint.read(write_checkpoint(tmp_path, 5))
    check_resumable(checkpoint, config(n_embd=32), replace(ORIGIN, zero_stage=3, world_size=3))


@pytest.mark.parametrize("damage", [lambda part: part.write_bytes(b"123"), lambda part: part.unlink()])
def test_a_checkpoint_with_a_damaged_part_is_named(tmp_path, damage):
    path = write_checkpoint(tmp_path, 5)
    damage(path / "weight" / "part.npy")
    with pytest.raises(
        CheckpointError, match=r"part\.npy: (3|not there, 5) bytes(, 5)? were written; remove the folder to go on"
    ):
        Checkpoint.read(path)


def test_another_configurations_records_are_set_aside_and_ones_own_are_kept(tmp_path):
    mine, other = (config(n_embd=width).model_copy(update={"run_dir": tmp_path}) for width in (32, 64))
    assert clear_for(mine, fresh=False) is None
    write_config(tmp_path, mine)
    assert clear_for(mine, fresh=False) is None
    aside = clear_for(other, fresh=False)
    assert aside is not None and RunConfig.from_file(aside / "config.yaml") == mine
    write_config(tmp_path, other)
    assert clear_for(other, fresh=True) is not None


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


def test_a_runs_tokenizer_is_found_once_its_data_has_gone(tmp_path):
    checkpoint = Checkpoint.read(write_checkpoint(tmp_path, 5))
    assert not Path(checkpoint.config().data.paths[0]).exists()
    assert load_tokenizer_of(checkpoint).decode([104, 105]) == "hi"
