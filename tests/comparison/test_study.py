"""A study makes its runs once, goes on where it was stopped, chooses rates on val, and ends in a report."""

import json
import shutil

import pytest
import yaml

from dsllm.comparison.record import RunRecord
from dsllm.comparison.study import Runner, Study
from dsllm.errors import ConfigError, UserError
from tests.launching import python

TRAIN = {"steps": 4, "eval_every": 2, "checkpoint_every": 2, "ds_config": "ds_configs/zero0.json"}


def written(path, base, **values):
    path.write_text(yaml.safe_dump({"base": str(base), "set": {"train": TRAIN}, "seeds": [1, 2], **values}))
    return path


@pytest.mark.slow
def test_runs_are_made_once_a_broken_one_is_resumed_and_the_report_stands(recipe, tmp_path):
    arms = {"one": {"model": {"n_layer": 1}}, "two": {}}
    study = written(tmp_path / "small_study.yaml", recipe, arms=arms)
    command = ("launch/study.py", study, "--out", tmp_path / "out", "--work", tmp_path / "work")
    said = python(*command)
    assert "two_seed2: test loss" in said and "4 of 4 runs" in said and "# small study" in said
    assert sorted(file.name for file in (tmp_path / "out" / "records").iterdir()) == [
        f"{arm}_seed{seed}.json" for arm in ("one", "two") for seed in (1, 2)
    ]
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert {arm: [run["seed"] for run in runs] for arm, runs in results.items()} == {"one": [1, 2], "two": [1, 2]}
    assert (tmp_path / "out" / "report.html").exists()

    study.write_text(study.read_text().replace("steps: 4", "steps: 6"))
    refused = python(*command, expect=2)
    assert "one_seed1.json: of another study (train.steps was 4, now 6)" in refused and "Traceback" not in refused
    study.write_text(study.read_text().replace("steps: 6", "steps: 4"))

    # As after a kill: one run has no record, and its last checkpoint is not there.
    (tmp_path / "out" / "records" / "two_seed2.json").unlink()
    shutil.rmtree(tmp_path / "work" / "two_seed2" / "checkpoints" / "step_00000004")
    shutil.rmtree(tmp_path / "work" / "one_seed1")  # on another machine finished runs are not there
    again = python(*command)
    assert "test loss" in again and again.count("test loss") == 1 + again.count("test loss, nats")
    assert "resumes at step 2 of 4" in (tmp_path / "work" / "two_seed2.log").read_text()
    assert json.loads((tmp_path / "out" / "results.json").read_text()).keys() == results.keys()


class Pretended(Runner):
    """Trains nothing: a record is that of a run, with the loss that a rate would give."""

    def __init__(self, record, losses, *arguments):
        super().__init__(*arguments)
        self.record, self.losses, self.trained = record, losses, []

    def _run(self, arm, seed, rate):
        kept = self.records / f"{arm}_{rate}_{seed}.json"
        if not kept.exists():
            self.trained.append((arm, seed, rate))
            points = [self.record.validation[-1].model_copy(update={"loss": self.losses[arm, rate]})]
            train = {**self.record.arm["train"], "lr": rate}
            update = {"seed": seed, "validation": points, "arm": {**self.record.arm, "train": train}, "test_loss": -1.0}
            self.record.model_copy(update=update).write(kept)
        return RunRecord.read(kept)


def test_the_first_seed_tries_the_rates_and_the_best_on_val_serves_all(recipe, trained_run, tmp_path):
    study = Study.read(written(tmp_path / "s.yaml", recipe, arms={"a": {}, "b": {}}, rates=[0.1, 0.2]))
    losses = {("a", 0.1): 3.0, ("a", 0.2): 2.0, ("b", 0.1): 1.0, ("b", 0.2): 4.0}
    runner = Pretended(RunRecord.read(trained_run), losses, study, tmp_path / "work", tmp_path / "out", 1)
    arms = runner.all()
    assert [run.arm["train"]["lr"] for run in arms["a"]] == [0.2, 0.2]
    assert [run.arm["train"]["lr"] for run in arms["b"]] == [0.1, 0.1]
    tries = [(arm, 1, rate) for arm in "ab" for rate in (0.1, 0.2)]
    assert runner.trained == [*tries, ("a", 2, 0.2), ("b", 2, 0.1)]


def test_flops_give_each_arm_its_steps(recipe, tmp_path):
    arms = {"small": {"model": {"n_layer": 1}}, "large": {"model": {"n_layer": 8}}}
    study = Study.read(written(tmp_path / "s.yaml", recipe, arms=arms, flops=1e9))
    steps = {arm: study.with_steps(study.config(arm, 1, None, tmp_path / arm)).train.steps for arm in arms}
    assert steps["small"] > 1.5 * steps["large"] > 0
    with pytest.raises(ConfigError, match="not one step"):
        tiny = Study.read(written(tmp_path / "t.yaml", recipe, arms=arms, flops=10.0))
        tiny.with_steps(tiny.config("small", 1, None, tmp_path / "x"))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"arms": {}}, "arms"),
        ({"arms": {"a": {}}, "sedes": [1]}, "sedes: no such key; did you mean seeds?"),
        (
            {"arms": {"a": {"model": {"n_layers": 2}}}},
            "arms.a: model.n_layers: no such key; did you mean model.n_layer?",
        ),
        ({"arms": {"a/b": {}}}, "arms.a/b: a name of letters"),
        ({"arms": {"a": {"model": {"name": "gpt3"}}}}, "arms.a:"),
        (
            {"arms": {"a": {"model": {"name": "progressive"}, "growth": {"policy": "schedule"}}}, "flops": 1e9},
            "arms.a: grows, so flops does not say its steps",
        ),
    ],
)
def test_a_wrong_study_is_told_before_anything_is_trained(values, words, recipe, tmp_path):
    with pytest.raises(ConfigError) as refused:
        Study.read(written(tmp_path / "s.yaml", recipe, **values))
    assert words in str(refused.value)


@pytest.mark.slow
def test_a_run_that_fails_is_named_with_its_log(recipe, tmp_path):
    study = Study.read(written(tmp_path / "s.yaml", recipe, arms={"a": {"data": {"path": str(tmp_path / "absent")}}}))
    runner = Runner(study, tmp_path / "work", tmp_path / "out", 1)
    with pytest.raises(UserError, match=r"a_seed1: training ended with exit code 2, see .*a_seed1\.log") as failed:
        runner.all()
    assert "no such folder" in str(failed.value)
