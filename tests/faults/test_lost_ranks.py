"""A rank that dies, stands still or fails ends the others with its name; a launcher that dies stops the run."""

import os
import re
import signal
import time
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import psutil
import pytest

from dsllm.training.checkpoints import complete_checkpoints
from dsllm.training.monitor import METRICS, read_metrics
from tests.forked import REPOSITORY, begin
from tests.launching import start, train, train_command

pytestmark = pytest.mark.slow(seconds=14)

FAILING = """
import os, signal, sys
from dsllm import BaseTrainer
from dsllm.training.command import run

class Failing(BaseTrainer):
    def after_step(self, outcome):
        if self.progress.step == 5 and self.world.rank == 1:
            {fault}

run(Failing, sys.argv[1:])
"""

FAULTS = {
    "killed": ("os.kill(os.getpid(), signal.SIGKILL)", -9, r"rank 1 on \S+ \(process \d+\) has died: killed"),
    "stands still": ("signal.raise_signal(signal.SIGSTOP)", None, r"rank 1 on \S+ \(process \d+\) has not been heard"),
    "fails": ("raise ValueError('nothing adds up')", 1, r"rank 1 on .* ended with ValueError: nothing adds up"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_others_end_with_its_name_and_the_run_goes_on_with_fewer(fault, recipe, tmp_path):
    action, code, words = FAULTS[fault]
    script, log = tmp_path / "failing.py", tmp_path / "log"
    script.write_text(FAILING.format(fault=action))
    options = ["--train.global_batch_size=12", "--train.lost_after=4"]
    command = [str(script), f"--config={recipe}", f"--run_dir={tmp_path / 'run'}", *options]
    ranks, begun = begin(command, log, ranks=3), time.monotonic()
    for process in (ranks[0], ranks[2]):
        process.join(60)
    assert [ranks[0].exitcode, ranks[2].exitcode] == [75, 75], log.read_text()
    if code is None:
        ranks[1].kill()
    ranks[1].join(30)
    assert code is None or ranks[1].exitcode == code
    assert time.monotonic() - begun < 60
    said = [line for line in log.read_text().splitlines() if line.startswith("error: ")]
    assert len(said) == 1 and re.search(words, said[0]), log.read_text()
    train(recipe, tmp_path / "run", ranks=2, train__global_batch_size=12)
    assert [r["step"] for r in read_metrics(tmp_path / "run") if r["kind"] == "train"] == list(range(1, 9))


def test_a_run_that_was_suspended_as_a_whole_goes_on(recipe, tmp_path):
    run_dir = tmp_path / "run"
    options = ["--train.lost_after=3", "--train.steps=150", "--train.eval_every=0", "--train.test_samples=0"]
    command = ["launch/train.py", f"--config={recipe}", f"--run_dir={run_dir}", *options]
    ranks, deadline = begin(command, tmp_path / "log", ranks=2), time.monotonic() + 60
    while not ((run_dir / METRICS).exists() and '"step": 9' in (run_dir / METRICS).read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    for number, pause in ((signal.SIGSTOP, 8), (signal.SIGCONT, 0)):
        for process in ranks:
            os.kill(process.pid, number)
        time.sleep(pause)
    for process in ranks:
        process.join(120)
    assert [process.exitcode for process in ranks] == [0, 0], (tmp_path / "log").read_text()


KILLING = REPOSITORY / "tests" / "training" / "killing.py"


@pytest.fixture
def between(growing: Path, tmp_path: Path):
    """Two ranks, of which rank 1 is killed when both begin anew after a structural event, so that rank 0 is alone."""

    def begun(**options: float) -> tuple[ForkServerProcess, Path]:
        words = [f"--config={growing}", f"--run_dir={tmp_path / 'run'}", "--end=SIGKILL@1@the process begins anew"]
        chosen = [f"--train.{key}={value}" for key, value in options.items()]
        ranks = begin([str(KILLING), *words, *chosen], tmp_path / "log", ranks=2)
        ranks[1].join(120)
        assert ranks[1].exitcode == -signal.SIGKILL
        return ranks[0], tmp_path / "log"

    return begun


def test_a_rank_lost_while_the_ranks_meet_anew_ends_the_others_and_the_run_goes_on(between, growing, tmp_path):
    waiting, log = between(meet_within=5)
    waiting.join(60)
    assert waiting.exitcode == 75, log.read_text()
    assert re.search(r"error: rank 1 has not come to rank 0 on \S+ \(process \d+\) within 5 s", log.read_text())
    train(growing, tmp_path / "run", ranks=1)
    assert [r["step"] for r in read_metrics(tmp_path / "run") if r["kind"] == "train"] == [1, 2, 3, 4]


def test_a_rank_that_waits_for_a_lost_one_heeds_a_signal(between):
    waiting, log = between(meet_within=300)
    os.kill(waiting.pid, signal.SIGTERM)
    waiting.join(30)
    assert waiting.exitcode == 143, log.read_text()
    assert "stopped by SIGTERM before the ranks had met" in log.read_text()


@pytest.mark.parametrize("which", ["deepspeed", "deepspeed.launcher.launch"])
def test_a_run_whose_launcher_was_killed_stops_with_a_complete_checkpoint(which, recipe, tmp_path):
    run_dir = tmp_path / "run"
    process = start(train_command(recipe, run_dir, 2, {"train.steps": 3000, "train.checkpoint_every": 0}))
    launcher = psutil.Process(process.pid)
    deadline = time.monotonic() + 60
    while not ((run_dir / METRICS).exists() and '"step": 9' in (run_dir / METRICS).read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    children = launcher.children(recursive=True)
    ranks = [child for child in children if "launch/train.py" in child.cmdline() and "LOCAL_RANK" in child.environ()]
    assert len(ranks) == 2
    killed = launcher if which == "deepspeed" else launcher.children()[0]
    os.kill(killed.pid, signal.SIGKILL)
    _, alive = psutil.wait_procs(ranks, timeout=25)
    for left in alive:
        left.kill()
    process.communicate()
    assert not alive
    (saved,) = complete_checkpoints(run_dir)
    assert read_metrics(run_dir)[-1]["event"] == "signal"
    assert read_metrics(run_dir)[-1]["signal"] == "SIGTERM"
    assert saved.name == f"step_{read_metrics(run_dir)[-1]['step']:08d}"
