"""A real Slurm on two hosts: slurmctld and munged on node1, a slurmd on each.

with slurm(cluster, folder) as jobs:
    job = jobs.submit("launch/slurm/train.sbatch", "--config", recipe)
    jobs.state(job)                                             # "RUNNING"
"""

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from tests.multihost.hosts import Cluster

PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "scontrol")
CONF = """
ClusterName=test
SlurmctldHost=node1({first})
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
SchedulerParameters=batch_sched_delay=1,sched_interval=1,bf_interval=1
KillWait=30
PartitionName=low Nodes=ALL Default=YES PriorityTier=1 GraceTime=60
PartitionName=high Nodes=ALL PriorityTier=10 PreemptMode=OFF
"""


def missing_slurm() -> str | None:
    """Why there can be no Slurm here, or None."""
    absent = [name for name in PROGRAMS if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") is None]
    return f"Slurm needs {', '.join(absent)} (package slurm-wlm)" if absent else None


class Slurm:
    """What a user does with it, on node1."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self.cluster, self.folder = cluster, folder
        self.env = {"SLURM_CONF": str(folder / "slurm.conf")}

    def call(self, *words: object) -> str:
        """Run one of Slurm's commands; fails unless it ends well."""
        done = self.cluster.run([str(word) for word in words], env=self.env)
        assert done.returncode == 0, done.stdout
        return done.stdout

    def submit(self, *words: object) -> str:
        """The number of a new job; its log is in the folder."""
        return self.call("sbatch", "--parsable", "--output", self.folder / "%j.log", *words).strip()

    def state(self, job: str) -> str:
        """PENDING, RUNNING, COMPLETED …"""
        (line,) = (word for word in self.call("scontrol", "show", "job", job).split() if word.startswith("JobState="))
        return line.partition("=")[2]

    def log(self, job: str) -> str:
        path = self.folder / f"{job}.log"
        return path.read_text() if path.exists() else ""


@contextmanager
def slurm(cluster: Cluster, folder: Path) -> Iterator[Slurm]:
    """Slurm on all hosts of a cluster, until the end of the context."""
    folder.mkdir()
    nodes = "".join(f"NodeName={n} NodeAddr={h.address} CPUs=2 State=UNKNOWN\n" for n, h in cluster.hosts.items())
    conf = CONF.format(folder=folder, first=cluster.hosts["node1"].address)
    (folder / "slurm.conf").write_text(conf + nodes)
    (folder / "munge.key").write_bytes(os.urandom(1024))
    (folder / "munge.key").chmod(0o600)
    jobs = Slurm(cluster, folder)
    before = {process.pid for host in cluster.hosts.values() for process in host.processes()}
    files = {"socket": "socket", "key-file": "key", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
    jobs.call("munged", "--force", *(f"--{option}={folder}/munge.{file}" for option, file in files.items()))
    jobs.call("slurmctld")
    for name in cluster.hosts:
        done = cluster.run(["slurmd", "-N", name], on=name, env=jobs.env)
        assert done.returncode == 0, done.stdout
    deadline = time.monotonic() + 30
    while jobs.call("sinfo", "-h", "-p", "low", "-t", "idle", "-o", "%D").strip() != str(len(cluster.hosts)):
        assert time.monotonic() < deadline, (folder / "slurmctld.log").read_text()
        time.sleep(0.5)
    try:
        yield jobs
    finally:
        after = [process for host in cluster.hosts.values() for process in host.processes()]
        for process in (process for process in after if process.pid not in before):
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
