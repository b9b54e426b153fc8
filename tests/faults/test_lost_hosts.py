"""A host, its network, a process or the launcher is lost while two hosts train: all else ends, names it, and goes on.

node1   deepspeed ─ pdsh ─ ssh ─┐ launch ─ rank 0
node2                           └ launch ─ rank 1
"""

import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
import yaml

from dsllm.training.checkpoints import checkpoint_name, complete_checkpoints
from dsllm.training.monitor import read_metrics
from tests.launching import run
from tests.multihost.hosts import REPOSITORY, Cluster, hosts, missing_requirement
from tests.multihost.test_training import write_tokens

pytestmark = [pytest.mark.multihost, pytest.mark.slow]

STEPS, LOST_AFTER = 160, 6


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """Two hosts of this test's own, for it breaks them."""
    if reason := missing_requirement():
        pytest.skip(reason)
    with hosts(2, tmp_path / "cluster") as cluster:
        yield cluster


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model, long enough to be interrupted."""
    folder = tmp_path_factory.mktemp("recipe")
    write_tokens(folder / "data")
    train = {"steps": STEPS, "micro_batch_size": 2, "global_batch_size": 8, "lr": 0.01, "precision": "fp32"}
    often = {"eval_every": 0, "test_samples": 0, "checkpoint_every": 10, "lost_after": LOST_AFTER}
    config = {
        "run_dir": str(folder / "unnamed"),
        "model": {"name": "gpt2", "n_layer": 2, "n_head": 2, "n_embd": 32, "context": 32},
        "data": {"path": str(folder / "data")},
        "train": {**train, **often, "ds_config": str(REPOSITORY / "ds_configs" / "zero2.json")},
        "monitor": {"log_every": 1, "tensorboard": False},
    }
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.fixture(scope="module")
def undisturbed(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, float]:
    """Losses by step of the same run in one process that nothing happens to."""
    job = Run(recipe, tmp_path_factory.mktemp("undisturbed"))
    run([sys.executable, *job.arguments])
    return job.losses()


@dataclass
class Run:
    """A run of two hosts, and what came of it."""

    recipe: Path
    run_dir: Path
    arguments: list[str | Path] = field(init=False)

    def __post_init__(self) -> None:
        self.arguments = ["launch/train.py", "--config", self.recipe, "--run_dir", self.run_dir]

    def losses(self) -> dict[int, float]:
        return {record["step"]: record["loss"] for record in read_metrics(self.run_dir) if record["kind"] == "train"}

    def command(self, cluster: Cluster) -> list[str | Path]:
        master = cluster.hosts["node1"].address
        return ["deepspeed", "--hostfile", cluster.hostfile, "--master_addr", master, *self.arguments]

    def disturbed(self, cluster: Cluster, fault: Callable[[], object]) -> tuple[int, float, str]:
        """Train until step 25, let the fault happen: exit code, seconds until all has ended, and what was said."""
        process = cluster.start(self.command(cluster))
        wait(lambda: max(self.losses(), default=0) >= 25, 60)
        fault()
        begun = time.monotonic()
        output, _ = process.communicate(timeout=90)
        wait(lambda: not cluster.jobs(), 60)
        return process.returncode, time.monotonic() - begun, output

    def goes_on(self, cluster: Cluster, undisturbed: dict[int, float], hosts: int) -> None:
        """The same command, on so many hosts, goes on from the newest complete checkpoint and ends as undisturbed."""
        saved = int(complete_checkpoints(self.run_dir)[-1].name.removeprefix("step_"))
        assert saved >= 20
        cluster.hostfile.write_text("".join(f"node{number} slots=1\n" for number in range(1, hosts + 1)))
        done = cluster.run(self.command(cluster), timeout=90)
        assert done.returncode == 0, done.stdout
        starts = [(r["step"], r["world_size"]) for r in read_metrics(self.run_dir) if r.get("event") == "resume"]
        assert starts == [(saved, hosts)]
        assert complete_checkpoints(self.run_dir)[-1].name == checkpoint_name(STEPS)
        assert self.losses() == pytest.approx(undisturbed, rel=1e-4)


def wait(reached: Callable[[], bool], seconds: float) -> None:
    """Until `reached`; fails after so many seconds."""
    deadline = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < deadline, f"not reached within {seconds} s"
        time.sleep(0.1)


def training(cluster: Cluster, host: str) -> psutil.Process:
    """The training process of a host."""
    found = [p for p in cluster.hosts[host].processes() if "launch/train.py" in p.cmdline()]
    return next(p for p in found if "deepspeed.launcher.launch" not in p.cmdline() and "RANK" in p.environ())


@pytest.mark.parametrize("fault", ["cut", "kill"])
def test_a_host_without_network_or_power_ends_all_and_one_host_goes_on(fault, cluster, recipe, undisturbed, tmp_path):
    job = Run(recipe, tmp_path / "run")
    code, seconds, output = job.disturbed(cluster, lambda: getattr(cluster, fault)("node2"))
    assert code not in (0, 2) and seconds < 60
    assert "on node2 (process " in output and f"not been heard for {LOST_AFTER} s" in output, output
    job.goes_on(cluster, undisturbed, hosts=1)


def test_a_killed_process_ends_all_and_the_same_command_goes_on(cluster, recipe, undisturbed, tmp_path):
    job = Run(recipe, tmp_path / "run")
    code, seconds, output = job.disturbed(cluster, lambda: training(cluster, "node2").kill())
    assert code not in (0, 2) and seconds < 30
    assert "error: rank 1 on node2" in output and "has died" in output, output
    job.goes_on(cluster, undisturbed, hosts=2)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_without_its_launcher_the_run_stops_with_a_complete_checkpoint(number, cluster, recipe, undisturbed, tmp_path):
    job = Run(recipe, tmp_path / "run")

    def end_launcher() -> None:
        processes = cluster.hosts["node1"].processes()
        next(p for p in processes if Path([*p.cmdline(), "", ""][1]).name == "deepspeed").send_signal(number)
        if number == signal.SIGKILL:  # and its session, as when a login node runs out of memory
            for process in processes:
                if process.name() == "pdsh":
                    process.kill()

    _, seconds, output = job.disturbed(cluster, end_launcher)
    assert seconds < 25, output
    job.goes_on(cluster, undisturbed, hosts=2)
