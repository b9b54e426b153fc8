"""launch/slurm/train.sbatch on a real Slurm: preempted, it saves, waits in the queue, and goes on as if not."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dsllm.training.checkpoints import complete_checkpoints
from dsllm.training.monitor import METRICS, read_metrics
from tests.forked import forked
from tests.multihost.hosts import hosts, missing_requirement
from tests.slurm.cluster import Slurm, missing_slurm, slurm
from tests.test_docs import commands

pytestmark = [pytest.mark.multihost, pytest.mark.slow]

STEPS = 120


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    if reason := missing_requirement() or missing_slurm():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("slurm")
    with hosts(2, folder / "cluster") as cluster, slurm(cluster, folder / "slurm") as jobs:
        yield jobs


def options(recipe: Path, run_dir: Path) -> list[str]:
    often = {"steps": STEPS, "eval_every": 0, "test_samples": 0, "checkpoint_every": 0}
    return [f"--config={recipe}", f"--run_dir={run_dir}", *(f"--train.{key}={value}" for key, value in often.items())]


def losses(run_dir: Path) -> dict[int, float]:
    records = read_metrics(run_dir) if (run_dir / METRICS).exists() else []
    return {record["step"]: record["loss"] for record in records if record["kind"] == "train"}


def wait(reached: Callable[[], bool], seconds: float, jobs: Slurm, job: str) -> None:
    deadline = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < deadline, jobs.log(job)
        time.sleep(0.2)


def test_a_job_that_is_preempted_goes_on_with_the_losses_of_one_that_never_was(jobs, recipe, tmp_path):
    run_dir, other = tmp_path / "run", tmp_path / "undisturbed"
    job = jobs.submit("launch/slurm/train.sbatch", *options(recipe, run_dir))
    wait(lambda: len(losses(run_dir)) > 10, 60, jobs, job)
    urgent = jobs.submit("--partition", "high", "--nodes", 2, "--exclusive", "--wrap", "sleep 3")
    wait(lambda: jobs.state(urgent) == "COMPLETED", 60, jobs, job)
    wait(lambda: jobs.state(job) == "PENDING", 30, jobs, job)
    jobs.call("scontrol", "update", f"JobId={job}", "StartTime=now")  # left alone it waits for two minutes
    wait(lambda: jobs.state(job) == "COMPLETED", 90, jobs, job)
    told = jobs.log(job)
    print(told)
    assert f"job {job}, start 1: 2 ranks on node[1-2]" in told and f"job {job}, start 2: 2 ranks" in told
    assert (
        "stopped by SIGUSR1 at step" in told and f"job {job}: stopped by a signal; it goes back into the queue" in told
    )
    events = [record for record in read_metrics(run_dir) if record["kind"] == "event"]
    assert [event["event"] for event in events] == ["start", "signal", "resume", "end"]
    assert 10 <= events[1]["step"] == events[2]["step"] < STEPS
    forked(["launch/train.py", *options(recipe, other)], ranks=2)
    assert sorted(losses(run_dir)) == list(range(1, STEPS + 1))
    assert losses(run_dir) == pytest.approx(losses(other), rel=1e-6)


def test_the_job_of_the_page_trains_and_when_it_is_cancelled_saves_and_stays_out_of_the_queue(jobs, recipe, tmp_path):
    run_dir = tmp_path / "run"
    (page,) = commands("slurm.md", "sh slurm")
    script = page.index("launch/slurm/train.sbatch")
    asked = dict(zip(page[1:script:2], page[2:script:2], strict=True))
    assert int(asked.pop("--gpus-per-node")) == int(asked["--ntasks-per-node"])  # these two hosts have none
    here = {"--nodes": 2, "--ntasks-per-node": 1, "--cpus-per-task": 1}
    assert [word for word in page[script:] if word.startswith("-")] == ["--config", "--run_dir"]
    given = [word for option in asked.items() for word in (option[0], here.get(*option))]
    job = jobs.submit(*given, page[script], *options(recipe, run_dir))
    wait(lambda: len(losses(run_dir)) > 10, 60, jobs, job)
    jobs.call("scancel", job)
    wait(lambda: jobs.state(job) == "CANCELLED" and complete_checkpoints(run_dir) != [], 40, jobs, job)
    wait(lambda: read_metrics(run_dir)[-1].get("event") == "signal", 20, jobs, job)
    assert complete_checkpoints(run_dir)[-1].name == f"step_{read_metrics(run_dir)[-1]['step']:08d}"
    assert "goes back into the queue" not in jobs.log(job)


def test_a_mistake_ends_the_job_with_its_message(jobs, recipe, tmp_path):
    job = jobs.submit("launch/slurm/train.sbatch", f"--config={recipe}", "--train.stepz=3")
    wait(lambda: jobs.state(job) == "FAILED", 60, jobs, job)
    assert "train.stepz: no such key; did you mean train.steps?" in jobs.log(job)
    assert "Traceback" not in jobs.log(job)


def test_without_slurm_the_script_says_how_it_is_started(jobs):
    done = jobs.cluster.run(["bash", "launch/slurm/train.sbatch"])
    assert done.returncode == 2
    assert done.stdout.startswith("error: launch/slurm/train.sbatch: no command, but a job; start it with: sbatch")
