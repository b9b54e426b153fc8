"""launch/grow.py as a user starts it: a run's folder comes of it, or one message, or nothing."""

import runpy
import signal
import sys
from pathlib import Path

import pytest

from dsllm.training.checkpoints import complete_checkpoints, find_checkpoint
from dsllm.training.monitor import read_metrics
from tests.forked import forked
from tests.launching import REPOSITORY, python, start


def losses(run_dir: Path, kind: str) -> dict[int, float]:
    return {r["step"]: r["loss"] for r in read_metrics(run_dir) if r["kind"] == kind and r.get("split") != "test"}


@pytest.mark.slow
def test_a_plan_is_looked_at_first_then_carried_out_and_the_new_run_is_read_like_any(trained_run, tmp_path):
    plan, out = tmp_path / "plan.json", tmp_path / "deep"
    seen = python("launch/grow.py", trained_run, "--operator", "zero_init", "--dry_run", "--save_plan", plan)
    assert "2 distinct blocks, 2 layers executed → 4 distinct blocks, 4 layers executed" in seen
    assert "weights: 43 copied, 8 transformed, 0 new; moments: 86 copied, 16 begin at zero" in seen
    assert "the function is preserved" in seen
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]

    told = python("launch/grow.py", trained_run, "--out", out, "--plan", plan)
    assert seen in told
    assert "(+0.0e+00), KL 0.0e+00, largest change of a logit 0.0e+00: the function is preserved" in told
    assert "Traceback" not in told
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deep", "plan.json"]
    before, after = (python("launch/evaluate.py", d, "--samples", 5).splitlines()[-2] for d in (trained_run, out))
    assert before == after
    text = python("launch/generate.py", out, "--prompt", "def ", "--max_new_tokens", 20, "--seed", 1)
    assert text.startswith("def ") and len(text) > 10


@pytest.mark.slow
@pytest.mark.parametrize(
    "wish", [["--operator", "zero_init"], ["--operator", "interpose", "--diverge", "--lora.rank", 4]]
)
def test_a_grown_run_of_the_plain_gpt2_trains_on_with_two_ranks_at_zero_2(wish, trained_run, tmp_path):
    out = tmp_path / "deep"
    python("launch/grow.py", trained_run, "--out", out, *wish)
    keys = ["--train.steps", 16, "--train.ds_config", "ds_configs/zero2.json"]
    told = forked(["launch/train.py", "--config", out / "config.yaml", *keys], ranks=2)
    assert "resumes at step 8 of 16" in told
    assert complete_checkpoints(out)[-1].name == "step_00000016"
    (record,) = [r for r in read_metrics(out) if r["kind"] == "growth"]
    evaluated = losses(out, "eval")
    trained = losses(out, "train")
    assert sorted(trained) == list(range(9, 17))
    assert trained[16] < trained[9]
    assert evaluated[16] < evaluated[8]
    if record["preserves_function"]:
        assert evaluated[8] == pytest.approx(losses(trained_run, "eval")[8], abs=1e-6)
    else:
        base = find_checkpoint(out).store()
        first = find_checkpoint(out / "checkpoints" / "step_00000012").store()
        frozen = base.entry("weight", "blocks.3.mlp.up.weight")
        assert frozen == first.entry("weight", "blocks.3.mlp.up.weight")
        assert frozen.sha256 == find_checkpoint(trained_run).store().entry("weight", "blocks.1.mlp.up.weight").sha256


KILLED = """
import os, runpy, signal, sys
from pathlib import Path

point = sys.argv.pop(1)

def dies(real):
    def action(path, target):
        real(path, target)
        if Path(target).name == point:
            os.kill(os.getpid(), signal.SIGKILL)
    return action

Path.replace, os.link = dies(Path.replace), dies(os.link)
runpy.run_path("launch/grow.py", run_name="__main__")
"""


@pytest.mark.slow
def test_a_kill_at_any_point_leaves_no_run_and_the_same_command_makes_it(trained_run, tmp_path):
    words = [trained_run, "--operator", "zero_init", "--out", tmp_path / "deep"]
    for point in ("wte.weight.npy", "plan.json", "COMPLETE", "latest"):
        process = start([sys.executable, "-c", KILLED, point, *words])
        output, _ = process.communicate(timeout=120)
        assert process.returncode == -signal.SIGKILL, output
        assert not (tmp_path / "deep").exists()
        assert [path.name for path in tmp_path.iterdir()] == [".deep.growing"]
    python("launch/grow.py", *words)
    assert [path.name for path in tmp_path.iterdir()] == ["deep"]
    assert find_checkpoint(tmp_path / "deep").progress.step == 8


WRONG = [
    (["nowhere", "--operator", "stack", "--out", "{}"], "nowhere: no such run or checkpoint"),
    (["{run}", "--operator", "stack"], "--out: missing"),
    (["{run}", "--out", "{}"], "--operator: missing; take one of "),
    (["{run}", "--operator", "stick", "--out", "{}"], "operator = stick"),
    (["{run}", "--operator", "[1]", "--out", "{}"], "operator = [1]: not a name"),
    (["{run}", "--operator", "[stack", "--out", "{}"], "argument --operator: [stack: no YAML value; quote it"),
    (["{run}", "--operator", "untie", "--factor", "3", "--out", "{}"], "growth.factor = 3: untie shares the uses"),
    (["{run}", "--operator", "stack", "--lora.rank", "4", "--out", "{}"], "--lora.rank: nothing is frozen"),
    (["{run}", "--operator", "stack", "--diverge", "--lora.rank", "x", "--out", "{}"], "lora.rank = 'x'"),
    (["{run}", "--operator", "stack", "--diverge", "--lora.rank", "64", "--out", "{}"], "above the width"),
    (["{run}", "--operator", "stack", "--plan", "p.json", "--out", "{}"], "--operator: the plan of --plan says it"),
    (["{run}", "--plan", "p.json", "--out", "{}"], "p.json: cannot be read"),
    (["{run}", "--operator", "stack", "--out", "{run}"], "there is something already"),
]


@pytest.mark.parametrize("words, message", WRONG, ids=[message[:30] for _, message in WRONG])
def test_what_a_user_gets_wrong_is_one_message_and_exit_code_2(
    words, message, trained_run, tmp_path, monkeypatch, capsys
):
    out = tmp_path / "deep"
    before = sorted(trained_run.rglob("*"))
    monkeypatch.setattr(sys, "argv", ["grow.py", *(word.format(out, run=trained_run) for word in words)])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(REPOSITORY / "launch" / "grow.py"), run_name="__main__")
    told = capsys.readouterr()
    assert ended.value.code == 2
    assert message in told.err
    assert told.err.count("error:") == 1 and "Traceback" not in told.err
    assert not list(tmp_path.iterdir()) and sorted(trained_run.rglob("*")) == before


def test_help_lists_the_operators_with_their_options(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["grow.py", "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(REPOSITORY / "launch" / "grow.py"), run_name="__main__")
    told = capsys.readouterr().out
    assert ended.value.code == 0
    assert "zero_init: After each block" in told
    assert "steps  (int; 500)" in told
    assert "--lora.rank VALUE" in told
