"""Whole runs through the launcher: every ZeRO stage, one rank and two, stopped and resumed, refused."""

import shlex
import signal
import sys
import time
from pathlib import Path

import psutil
import pytest

from dsllm import load_model
from dsllm.config import RunConfig
from dsllm.training.checkpoints import complete_checkpoints
from dsllm.training.monitor import read_metrics
from tests.launching import needs_fp16, python, run, start, train, train_command


def losses(run_dir: Path) -> dict[int, float]:
    return {record["step"]: record["loss"] for record in read_metrics(run_dir) if record["kind"] == "train"}


def evaluations(run_dir: Path) -> dict[tuple[str, int], float]:
    return {(r["split"], r["step"]): r["loss"] for r in read_metrics(run_dir) if r["kind"] == "eval"}


def test_a_run_leaves_the_files_and_records_of_the_contract(trained_run):
    assert (trained_run / "config.yaml").exists()
    assert [path.name for path in complete_checkpoints(trained_run)] == ["step_00000004", "step_00000008"]
    assert (trained_run / "checkpoints" / "latest").read_text().strip() == "step_00000008"
    assert list((trained_run / "tensorboard").rglob("events*"))
    assert sorted(losses(trained_run)) == list(range(1, 9))
    assert set(evaluations(trained_run)) == {("val", 0), ("val", 4), ("val", 8), ("test", 8)}
    first = next(record for record in read_metrics(trained_run) if record["kind"] == "train")
    names = "step tokens loss lr grad_norm tokens_per_second step_seconds data_wait_seconds memory_bytes flops"
    keys = names.split()
    assert set(keys) <= set(first)
    assert all(isinstance(first[key], (int, float)) for key in keys)
    assert RunConfig.from_file(trained_run / "config.yaml").model.vocab_size == 320


def test_the_first_and_the_last_step_are_recorded_whatever_lies_between(recipe, tmp_path):
    train(recipe, tmp_path / "run", monitor__log_every=3)
    assert [r["step"] for r in read_metrics(tmp_path / "run") if r["kind"] == "train"] == [1, 3, 6, 8]


def test_training_lowers_the_loss(trained_run):
    values = losses(trained_run)
    assert values[1] == pytest.approx(5.77, abs=0.3)  # ln 320: nothing is known at first
    assert values[8] < values[1] - 0.5


STAGES = ["zero0", "zero1", "zero2", "zero3", "zero2_offload", "zero3_offload"]


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_every_zero_configuration_on_two_ranks_gives_the_losses_of_one_process(stage, trained_run, recipe, tmp_path):
    train(recipe, tmp_path, ranks=2, train__ds_config=f"ds_configs/{stage}.json")
    assert losses(tmp_path) == pytest.approx(losses(trained_run), abs=1e-4)
    assert evaluations(tmp_path) == pytest.approx(evaluations(trained_run), abs=1e-4)
    norms = [[r["grad_norm"] for r in read_metrics(d) if r["kind"] == "train"] for d in (tmp_path, trained_run)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-3)
    ours, theirs = load_model(tmp_path).state_dict(), load_model(trained_run).state_dict()
    assert all(ours[name].allclose(theirs[name], atol=1e-4) for name in theirs)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["zero0", "zero3"])
def test_a_run_stopped_by_a_signal_and_resumed_is_bit_equal_to_one_that_never_was(stage, recipe, tmp_path):
    overrides = {"train.ds_config": f"ds_configs/{stage}.json", "train.steps": 40, "train.checkpoint_every": 0}
    undisturbed, stopped = tmp_path / "undisturbed", tmp_path / "stopped"
    keys = {key.replace(".", "__"): value for key, value in overrides.items()}
    train(recipe, undisturbed, ranks=2, **keys)

    process = start(train_command(recipe, stopped, 2, overrides))
    wait_for_step(process, stopped, 5)
    rank_of(process, 1).send_signal(signal.SIGTERM)  # any rank's signal stops all
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 143, output
    assert "stopped by SIGTERM" in output and "Traceback" not in output
    assert len(complete_checkpoints(stopped)) == 1 and max(losses(stopped)) < 40

    output = train(recipe, stopped, ranks=2, **keys)
    assert "resumes at step" in output
    assert losses(stopped) == losses(undisturbed)
    assert evaluations(stopped) == evaluations(undisturbed)
    ours, theirs = load_model(stopped).state_dict(), load_model(undisturbed).state_dict()
    assert all(ours[name].equal(theirs[name]) for name in theirs)


@pytest.mark.slow
@pytest.mark.parametrize("before, after", [(("zero3", 2), ("zero0", 1)), (("zero1", 1), ("zero3", 2))])
def test_a_run_goes_on_with_other_ranks_and_another_stage(before, after, trained_run, recipe, tmp_path):
    train(recipe, tmp_path, ranks=before[1], train__ds_config=f"ds_configs/{before[0]}.json")
    (complete_checkpoints(tmp_path)[-1] / "COMPLETE").unlink()
    train(recipe, tmp_path, ranks=after[1], train__ds_config=f"ds_configs/{after[0]}.json")
    assert losses(tmp_path) == pytest.approx(losses(trained_run), rel=1e-4)


def test_control_c_saves_and_exits_130_and_the_same_command_goes_on(recipe, tmp_path):
    process = start(train_command(recipe, tmp_path, 1, {"train.steps": 2000, "train.eval_every": 0}))
    wait_for_step(process, tmp_path, 3)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert "Traceback" not in output
    step = max(losses(tmp_path))
    assert complete_checkpoints(tmp_path)[-1].name == f"step_{step:08d}"


def test_a_signal_does_not_wait_for_the_end_of_a_long_step(recipe, tmp_path):
    overrides = {"train.global_batch_size": 100_000, "train.steps": 3, "train.eval_every": 1}
    process = start(train_command(recipe, tmp_path, 1, overrides))  # a step of minutes
    deadline = time.monotonic() + 120
    while ("val", 0) not in evaluations(tmp_path):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(1)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 143, output
    assert "stopped by SIGTERM at step 0" in output and "Traceback" not in output


def test_a_finished_run_started_again_does_nothing_more(trained_run, recipe):
    before = (trained_run / "metrics.jsonl").read_text().splitlines()
    train(recipe, trained_run, ranks=1, train__ds_config="ds_configs/zero0.json")
    after = list(read_metrics(trained_run)[len(before) :])
    assert {record["kind"] for record in after} == {"event"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "stage, precision",
    [("zero0", "bf16"), ("zero1", "bf16"), ("zero3", "bf16"), pytest.param("zero2", "fp16", marks=needs_fp16)],
)
def test_half_precision_follows_the_losses_of_fp32(stage, precision, trained_run, recipe, tmp_path):
    train(recipe, tmp_path, train__ds_config=f"ds_configs/{stage}.json", train__precision=precision)
    assert losses(tmp_path) == pytest.approx(losses(trained_run), abs=0.01)


@pytest.mark.slow
def test_bf16_activation_checkpointing_masking_and_a_blend_run_together(recipe, data_folder, tmp_path):
    train(
        recipe,
        tmp_path,
        ranks=2,
        train__precision="bf16",
        train__activation_checkpointing="all",
        train__ds_config="ds_configs/zero2.json",
        data__mask_documents="true",
        data__path=f"[{data_folder}, {data_folder}]",
        data__weights="[2, 1]",
        train__schedule="wsd",
    )
    values = losses(tmp_path)
    assert values[8] < values[1] - 0.4


def test_evaluate_and_generate_read_a_run(trained_run):
    output = python("launch/evaluate.py", trained_run, "--split", "test", "--samples", 7)
    assert f"loss {evaluations(trained_run)['test', 8]:.4f}" in output
    texts = [
        python("launch/generate.py", trained_run, "--prompt", "def ", "--max_new_tokens", 60, "--seed", 1)
        for _ in range(2)
    ]
    assert texts[0] == texts[1]
    assert texts[0].startswith("def ") and len(texts[0]) > 20


REFUSED = [
    ({"model.n_layers": 3}, "model.n_layers: no such key; did you mean model.n_layer?"),
    ({"model.n_embd": 33}, "model.n_embd = 33: not divisible by model.n_head = 2"),
    ({"data.path": "nowhere"}, "nowhere"),
    ({"model.vocab_size": 100}, "model.vocab_size = 100: smaller than the 257 tokens of bytes"),
    ({"model.context": 10**7}, "context"),
    ({"train.ds_config": "ds_configs/zero9.json"}, "zero9.json: cannot be read"),
    ({"train.global_batch_size": 7}, "take 6 or 8"),
    ({"train.activation_checkpointing": "[2]"}, "no block 2; the model executes 0 to 1"),
]


@pytest.mark.parametrize("overrides, message", REFUSED)
def test_what_a_user_gets_wrong_is_one_message_and_exit_code_2(overrides, message, recipe, tmp_path):
    run_dir = tmp_path / "run"
    output = python(*train_command(recipe, run_dir, 1, overrides)[1:], expect=2)
    assert message in output
    assert "Traceback" not in output
    assert output.count("error:") == 1
    assert not run_dir.exists()


def test_a_checkpoint_of_another_model_is_refused_and_left_alone(trained_run, recipe):
    before = sorted(path.name for path in trained_run.rglob("*"))
    changed = {"model.n_layer": 3, "train.ds_config": "ds_configs/zero0.json"}
    output = python(*train_command(recipe, trained_run, 1, changed)[1:], expect=2)
    assert "a checkpoint of another model: model.n_layer was 2, now 3" in output
    assert "Traceback" not in output
    assert sorted(path.name for path in trained_run.rglob("*")) == before


def test_a_second_run_in_the_same_folder_is_refused_while_the_first_goes_on(recipe, tmp_path):
    command = train_command(recipe, tmp_path, 1, {"train.steps": 100000, "train.eval_every": 0})
    first = start(command)
    try:
        wait_for_step(first, tmp_path, 1)
        output = python(*command[1:], expect=2)
        assert f"error: {tmp_path}: process {first.pid} on " in output
        assert first.poll() is None
    finally:
        first.kill()
    first.wait()
    train(recipe, tmp_path, train__steps=2, train__eval_every=0)  # a dead owner holds nothing


def test_a_full_disk_ends_the_run_with_a_message_and_keeps_the_checkpoint_before(recipe, tmp_path):
    train(recipe, tmp_path, train__steps=4)
    words = shlex.join(map(str, train_command(recipe, tmp_path, 1, {})))
    output = run(["bash", "-c", f"ulimit -f 30; exec {words}"], expect=2)
    assert "step_00000008: cannot be written" in output and "Traceback" not in output
    assert [path.name for path in (tmp_path / "checkpoints").glob("step_*")] == ["step_00000004"]
    train(recipe, tmp_path)
    assert complete_checkpoints(tmp_path)[-1].name == "step_00000008"


@pytest.mark.parametrize("stage", ["zero0", "zero2"])
def test_a_gradient_that_is_no_number_is_skipped_and_training_goes_on(stage, recipe, tmp_path):
    script = tmp_path / "poisoned.py"
    script.write_text(POISONED)
    python(script, "--config", recipe, "--run_dir", tmp_path, f"--train.ds_config=ds_configs/{stage}.json")
    events = [(r["event"], r["step"]) for r in read_metrics(tmp_path) if r["kind"] == "event"]
    assert events == [("start", 0), ("skipped step", 3), ("end", 8)]
    values = losses(tmp_path)
    assert values.pop(3) is None
    assert values[8] < values[1] - 0.5


POISONED = """
import sys
from dsllm import BaseTrainer
from dsllm.training.command import run

class Poisoned(BaseTrainer):
    def loss(self, batch):
        return super().loss(batch) * (float("nan") if self.progress.step == 2 else 1.0)

run(Poisoned, sys.argv[1:])
"""


@pytest.mark.slow
def test_two_ranks_say_what_is_wrong_once(recipe, tmp_path):
    output = train(recipe, tmp_path / "run", ranks=2, expect=2, train__global_batch_size=6)
    assert "with 2 ranks and micro_batch_size 2 it must be a multiple of 4" in output
    assert output.count("error:") == 1
    assert "Traceback" not in output


def wait_for_step(process, run_dir: Path, step: int) -> None:
    """Until the run has recorded this step, or two minutes have passed."""
    deadline = time.monotonic() + 120
    while not any(done >= step for done in losses(run_dir)):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)


def rank_of(process, rank: int) -> psutil.Process:
    """The process of a rank among the descendants of a launcher."""
    for child in psutil.Process(process.pid).children(recursive=True):
        if f"--local_rank={rank}" in child.cmdline() and sys.executable in child.cmdline()[0]:
            return child
    raise AssertionError(f"no process of rank {rank}")
