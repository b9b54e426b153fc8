"""Faults of hosts while two of them train, and what to expect of each.

node1   deepspeed ─ pdsh ─ ssh ─┐ launch ─ rank 0
node2                           └ launch ─ rank 1
"""

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import yaml

from dsllm.training.checkpoints import checkpoint_name, complete_checkpoints
from dsllm.training.monitor import read_metrics
from tests.multihost.hosts import REPOSITORY, Cluster, name_of
from tests.multihost.tokens import write_tokens

STEPS, SAVED, LOST_AFTER = 200, 10, 6


def write_recipe(folder: Path) -> Path:
    """A tiny model, long enough to be interrupted."""
    write_tokens(folder / "data")
    train = {"steps": STEPS, "micro_batch_size": 2, "global_batch_size": 8, "lr": 0.01, "precision": "fp32"}
    often = {"eval_every": 0, "test_samples": 0, "checkpoint_every": SAVED, "lost_after": LOST_AFTER}
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

    def disturbed(self, cluster: Cluster, fault: Callable[[Cluster], object]) -> tuple[int, float, str]:
        """Train 25 steps, let the fault happen: exit code, seconds until all has ended, and what was said.

        Where the run was disturbed before, the same command goes on from the newest complete checkpoint.
        """
        before, starts = self.saved(), self.starts()
        process = cluster.start(self.command(cluster))
        wait(lambda: max(self.losses(), default=0) >= before + 25, 60)
        assert self.starts() == starts + [(before, 2)] * (before > 0)
        fault(cluster)
        begun = time.monotonic()
        output, _ = process.communicate(timeout=90)
        wait(lambda: not cluster.jobs(), 60)
        seconds = time.monotonic() - begun
        assert (before + 25) // SAVED * SAVED <= self.saved() < STEPS  # it was disturbed, and not at its end
        return process.returncode, seconds, output

    def goes_on(self, cluster: Cluster, hosts: int) -> float:
        """The same command, on so many hosts, goes on from the newest complete checkpoint to the end.

        Gives the seconds until its first step is recorded.
        """
        saved, starts = self.saved(), self.starts()
        cluster.hostfile.write_text("".join(f"node{number} slots=1\n" for number in range(1, hosts + 1)))
        process, begun = cluster.start(self.command(cluster)), time.monotonic()
        wait(lambda: self.starts() == [*starts, (saved, hosts)] and max(self.losses()) > saved, 60)
        seconds = time.monotonic() - begun
        output, _ = process.communicate(timeout=90)
        assert process.returncode == 0, output
        assert complete_checkpoints(self.run_dir)[-1].name == checkpoint_name(STEPS)
        return seconds

    def saved(self) -> int:
        """The step of the newest complete checkpoint; 0 without one."""
        names = [path.name for path in complete_checkpoints(self.run_dir)]
        return int(names[-1].removeprefix("step_")) if names else 0

    def starts(self) -> list[tuple[int, int]]:
        """Where it went on, and with how many ranks."""
        return [(r["step"], r["world_size"]) for r in read_metrics(self.run_dir) if r.get("event") == "resume"]


def wait(reached: Callable[[], bool], seconds: float) -> None:
    """Until `reached`; fails after so many seconds."""
    deadline = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < deadline, f"not reached within {seconds} s"
        time.sleep(0.1)


def training(cluster: Cluster, host: str) -> psutil.Process:
    """The training process of a host."""
    for process in cluster.hosts[host].processes():
        with suppress(psutil.NoSuchProcess):
            words = process.cmdline()
            if "launch/train.py" in words and "deepspeed.launcher.launch" not in words and "RANK" in process.environ():
                return process
    raise AssertionError(f"nothing trains on {host}")


def kill_launcher(cluster: Cluster) -> None:
    """As when a login node runs out of memory."""
    next(p for p in cluster.hosts["node1"].processes() if name_of(p) == "deepspeed").kill()


def terminate_launcher(cluster: Cluster) -> None:
    next(p for p in cluster.hosts["node1"].processes() if name_of(p) == "deepspeed").terminate()


@dataclass(frozen=True)
class Fault:
    """One fault and what comes of it."""

    name: str
    inject: Callable[[Cluster], object]
    says: str
    """Something that the command prints then."""
    hosts: int = 2
    """With which it goes on."""
    within: float = 60
    """Seconds until nothing runs any more on any host."""


SILENT = f"not been heard for {LOST_AFTER} s"
FAULTS = [
    Fault("a host's network is cut", lambda cluster: cluster.cut("node2"), SILENT, hosts=1),
    Fault("a host loses power", lambda cluster: cluster.kill("node2"), SILENT, hosts=1),
    Fault("a rank is killed", lambda cluster: training(cluster, "node2").kill(), "error: rank 1 on node2", within=30),
    Fault(
        "a rank gets SIGTERM", lambda cluster: training(cluster, "node2").terminate(), "stopped by SIGTERM", within=25
    ),
    Fault("the launcher is killed", kill_launcher, "", within=25),
    Fault("the launcher gets SIGTERM", terminate_launcher, "", within=25),
]
