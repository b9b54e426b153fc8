"""The runs of a study are made once, go on where they were stopped, have the best rate on val, and end in a report."""

import itertools
import json
import math
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest

from dsllm.comparison.jobs import Jobs
from dsllm.comparison.record import Diverged, RunRecord
from dsllm.comparison.runner import Runner
from dsllm.comparison.study import Study
from dsllm.errors import UserError
from tests.comparison.test_study import GROWS, TRAIN, written
from tests.launching import python, start


@pytest.mark.slow(seconds=25)
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
    # Nor are the runs themselves taken for those of the other study.
    refused = python(*command[:2], "--out", tmp_path / "other", "--work", tmp_path / "work", expect=2)
    assert "one_seed1: of another study (train.steps was 4, now 6); take another --work" in refused
    assert not list((tmp_path / "other" / "records").iterdir())
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
        self.said = []
        super().__init__(*arguments, say=self.said.append)
        self.record, self.losses, self.trained = record, losses, []

    def _run(self, wanted):
        self.trained.append((wanted.arm, wanted.seed, wanted.rate))
        loss = self.losses[wanted.arm].get(wanted.rate)
        if loss is None:
            raise Diverged("no number")
        points = [self.record.validation[-1].model_copy(update={"loss": loss})]
        train = {**self.record.arm["train"], "lr": wanted.rate}
        model = {**self.record.arm["model"], "arm": wanted.arm}
        arm = {**self.record.arm, "train": train, "model": model}
        update = {"seed": wanted.seed, "validation": points, "arm": arm, "test_loss": -1.0}
        record = self.record.model_copy(update=update)
        if not (self.records / f"{wanted.name}.json").exists():
            self._made(wanted, record)
        return record


LOSSES = {"a": {0.1: 3.0, 0.2: 2.0, 0.4: 1.5}, "b": {0.025: 1.1, 0.05: 0.9, 0.1: 1.0}}  # diverges at other rates


@pytest.mark.parametrize("seed", [1, 0])
def test_one_seed_tries_the_rates_and_the_best_on_val_serves_all(seed, recipe, trained_run, tmp_path):
    more = {"rates": [0.1, 0.2], "tuned_on": seed}
    study = Study.read(written(tmp_path / "s.yaml", recipe, arms={"a": {}, "b": {"model": {"n_layer": 1}}}, **more))
    runner = Pretended(RunRecord.read(trained_run), LOSSES, study, tmp_path / "work", tmp_path / "out", 1)
    arms = runner.compared()
    assert [run.arm["train"]["lr"] for run in arms["a"][None].runs] == [0.4, 0.4]
    assert [run.arm["train"]["lr"] for run in arms["b"][None].runs] == [0.05, 0.05]
    listed = [(arm, seed, rate) for arm in "ab" for rate in (0.1, 0.2)]
    beyond = [("a", seed, 0.4), ("b", seed, 0.05), ("a", seed, 0.8), ("b", seed, 0.025)]
    assert runner.trained[:8] == listed + beyond
    assert runner.trained[8:] == [(arm, of, rate) for of in (1, 2) for arm, rate in (("a", 0.4), ("b", 0.05))]
    assert runner.tried == {"a": {**LOSSES["a"], 0.8: math.inf}, "b": {**LOSSES["b"], 0.2: math.inf}}


@pytest.mark.parametrize(("seed", "counts"), [(1, [5, 5, 6, 6, 6, 6]), (0, [6, 6, 7, 7, 7, 7, 7])])
def test_the_runs_are_counted_with_the_tries_as_far_as_they_are_known(seed, counts, recipe, trained_run, tmp_path):
    """Two seeds of one arm at two budgets; two rates are tried, and a third, as the second is the better."""
    more = {"rates": [0.1, 0.2], "tuned_on": seed, "tuned_at": 1e9, "flops": 1e9, "further": {"a": [4e9]}}
    study = Study.read(written(tmp_path / "s.yaml", recipe, arms={"a": {}}, **more))
    losses = {"a": {0.1: 3.0, 0.2: 2.0, 0.4: 2.5}}
    runner = Pretended(RunRecord.read(trained_run), losses, study, tmp_path / "work", tmp_path / "out", 1)
    runner.all()
    told = [re.search(r"; (\d+) of (\d+) runs", line) for line in runner.said]
    assert [(int(found[1]), int(found[2])) for found in told] == list(enumerate(counts, 1))

    # Taken up again without the last try, it knows those runs that it has not yet chosen the rate of.
    (tmp_path / "out" / "records" / f"a_1e+09flops_lr0.4_seed{seed}.json").unlink()
    again = Pretended(RunRecord.read(trained_run), losses, study, tmp_path / "work", tmp_path / "out", 1)
    again.all()
    assert [line.rpartition("; ")[2] for line in again.said] == [f"{counts[-1]} of {counts[-1]} runs, about 0 min left"]


def test_the_time_left_goes_by_the_budgets(recipe, trained_run, tmp_path, monkeypatch):
    """The first run takes forty minutes, and costs four times as much as the other."""
    clock = itertools.count()
    monkeypatch.setattr("dsllm.comparison.runner.time.monotonic", lambda: 40 * 60 * next(clock))
    study = Study.read(
        written(tmp_path / "s.yaml", recipe, arms={"a": {}}, rates=[], flops=1e9, further={"a": [4e9]}, seeds=[1])
    )
    runner = Pretended(RunRecord.read(trained_run), {"a": {None: 1.0}}, study, tmp_path / "work", tmp_path / "out", 1)
    runner.all()
    assert [line.rpartition("; ")[2] for line in runner.said] == [
        "1 of 2 runs, about 10 min left",
        "2 of 2 runs, about 0 min left",
    ]


def test_a_single_rate_is_taken_as_it_is(recipe, trained_run, tmp_path):
    study = Study.read(written(tmp_path / "s.yaml", recipe, arms={"a": {}}, rates=[0.2]))
    runner = Pretended(RunRecord.read(trained_run), LOSSES, study, tmp_path / "work", tmp_path / "out", 1)
    runner.all()
    assert runner.trained == [("a", 1, 0.2)] * 2 + [("a", 2, 0.2)]


def test_an_arm_that_diverges_at_every_rate_is_named(recipe, trained_run, tmp_path):
    study = Study.read(written(tmp_path / "s.yaml", recipe, arms={"b": {}}, rates=[0.2, 0.3]))
    runner = Pretended(RunRecord.read(trained_run), LOSSES, study, tmp_path / "work", tmp_path / "out", 1)
    with pytest.raises(UserError, match="b: diverged at every rate; try lower ones"):
        runner.all()


def test_an_arm_that_cannot_grow_so_is_told_before_any_is_trained(recipe, tmp_path):
    wrong = {"model": {"name": "progressive", "n_layer": 4, "uses": 4}, "growth": {"operator": "untie", "factor": 3}}
    study = Study.read(written(tmp_path / "s.yaml", recipe, arms={"a": {}, "b": wrong}, flops=1e9))
    runner = Runner(study, tmp_path / "work", tmp_path / "out", 1)
    with pytest.raises(UserError, match=r"arms\.b: growth\.factor = 3: untie shares the uses"):
        runner.all()
    assert not (tmp_path / "work").exists()


@pytest.mark.slow(seconds=25)
def test_a_run_that_diverges_is_left_out_said_and_not_tried_again(recipe, tmp_path):
    arms = {"good": {}, "bad": {"train": {"lr": 1e30}}}
    study = written(tmp_path / "s.yaml", recipe, arms=arms, seeds=[1])
    command = ("launch/study.py", study, "--out", tmp_path / "out", "--work", tmp_path / "work")
    said = python(*command)
    assert "Diverged, and left out: bad_seed1." in said and "| arm | good |" in said
    shutil.rmtree(tmp_path / "work")
    marker = tmp_path / "out" / "records" / "bad_seed1.diverged"
    older = json.loads(marker.read_text())
    del older["train"]["beta2"]  # as of before the key came
    marker.write_text(json.dumps(older))
    assert "Diverged, and left out: bad_seed1." in python(*command) and not (tmp_path / "work").exists()


def test_after_an_error_nothing_is_begun_any_more(tmp_path):
    jobs, begun, told = Jobs(tmp_path, 1, 2), [], threading.Event()

    def make(run):
        begun.append(run)
        if run == "fails":
            raise UserError("so it is")
        assert told.wait(60)

    threading.Timer(2, told.set).start()
    with pytest.raises(UserError, match="so it is"):
        jobs.side_by_side(make, ["long", "fails", *range(20)])
    assert begun[:2] == ["long", "fails"] and len(begun) <= 3


@pytest.mark.slow(seconds=25)
def test_several_budgets_side_by_side_with_an_arm_that_grows(recipe, tmp_path):
    arms = {"scratch": {"model": {"n_layer": 2}}, "grown": {**GROWS, "growth": {**GROWS["growth"], "watch_every": 0}}}
    seldom = {"train": {**TRAIN, "eval_every": 10, "checkpoint_every": 10}}
    more = {"flops": [2e9, 3e9], "further": {"scratch": [5e9]}, "seeds": [1], "set": seldom}
    study = written(tmp_path / "growing.yaml", recipe, arms=arms, **more)
    said = python(*("launch/study.py", study, "--out", tmp_path / "out", "--work", tmp_path / "work", "--jobs", 2))
    assert "5 of 5 runs" in said and "How much sooner than scratch, at equal final loss" in said
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    spent = {name: runs[0]["flops"] for name, runs in results.items()}
    budgets = {"scratch": 3e9, "grown": 3e9, "scratch at 2e+09 FLOPs": 2e9, "grown at 2e+09 FLOPs": 2e9}
    budgets["scratch at 5e+09 FLOPs"] = 5e9
    assert spent == pytest.approx(budgets, rel=0.1)  # in whole steps, with the probes of growth
    assert len(results["grown"][0]["growth"]) == 2 and results["scratch"][0]["decode_ms"] > 0


@pytest.mark.slow(seconds=25)
def test_a_study_of_problems_has_data_for_each_seed_and_asks_for_longer_chains_than_it_trains(recipe, tmp_path):
    data = f"{tmp_path}/perm_{{seed}}"
    task = "reasoning --task perm_chain --lengths 1-3 --beyond 4-5 --documents 400 --held_out 20"
    more = {
        "prepare": [f"{task} --seed {{seed}} --options table_seed={{seed}} --out {data}"],
        "set": {"data": {"path": data}, "model": {"n_layer": 1, "context": 4}, "train": {"eval_samples": 20}},
    }
    study = written(tmp_path / "chains.yaml", recipe, arms={"a": {}}, **more)
    said = python("launch/study.py", study, "--out", tmp_path / "out", "--work", tmp_path / "work")
    assert "mean accuracy, 4 to 5 steps, beyond training" in said
    (runs,) = json.loads((tmp_path / "out" / "results.json").read_text()).values()
    assert [set(run["beyond"]) for run in runs] == [{"4", "5"}] * 2
    kept = [RunRecord.read(tmp_path / "out" / "records" / f"a_seed{seed}.json") for seed in (1, 2)]
    assert kept[0].scored.data != kept[1].scored.data  # each seed has its own


@pytest.mark.slow(seconds=25)
def test_a_study_that_is_stopped_ends_its_runs_and_goes_on(recipe, tmp_path):
    study = written(tmp_path / "long.yaml", recipe, arms={"a": {}}, seeds=[1, 2])
    study.write_text(study.read_text().replace("steps: 4", "steps: 100000"))
    command = [sys.executable, "launch/study.py", study, "--out", tmp_path / "out", "--work", tmp_path / "work"]
    process = start([*command, "--ranks", 2, "--jobs", 2])  # two launchers, four ranks
    records = [tmp_path / "work" / f"a_seed{seed}" / "metrics.jsonl" for seed in (1, 2)]
    for _ in range(600):
        if all(file.exists() and '"train"' in file.read_text() for file in records):
            break
        time.sleep(0.1)
    second = python(*command[1:], "--ranks", 2, "--jobs", 2, expect=2)
    assert f"{tmp_path / 'work'}: process {process.pid} on" in second and "take another folder" in second
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 130 and "the same command goes on" in said and "Traceback" not in said
    assert not subprocess.run(["pgrep", "-f", str(tmp_path / "work")], capture_output=True).stdout
    for seed in (1, 2):
        assert list((tmp_path / "work" / f"a_seed{seed}" / "checkpoints").glob("step_*"))


@pytest.mark.slow(seconds=25)
def test_a_run_that_fails_is_named_with_its_log(recipe, tmp_path):
    study = Study.read(written(tmp_path / "s.yaml", recipe, arms={"a": {"data": {"path": str(tmp_path / "absent")}}}))
    runner = Runner(study, tmp_path / "work", tmp_path / "out", 1)
    with pytest.raises(UserError, match=r"a_seed1: training ended with exit code 2, see .*a_seed1\.log") as failed:
        runner.all()
    assert "no such folder" in str(failed.value)
