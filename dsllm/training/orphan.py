"""A process whose launcher has died stops as if it had been told to.

    deepspeed ─ deepspeed.launcher.launch ─ launch/train.py            on one machine
    pdsh ─ ssh ┄ sshd ─ bash ─ deepspeed.launcher.launch ─ …           on each host

A launcher that is killed (out of memory, `kill -9`, a host that restarts) takes none of its processes with it: they
would train on behind the user's back, and hold the run's folder against the next start.
"""

import os
import signal
import sys
import threading
from itertools import takewhile
from types import TracebackType

import psutil

LOOK = 1.0
"""Seconds between two looks."""
NODE_LAUNCHER = "deepspeed.launcher.launch"
SHELLS = ("bash", "sh", "dash", "zsh")


class OrphanWatch:
    """Within it this process gets a SIGTERM once a process that launched it is gone; started by hand it has none."""

    def __init__(self) -> None:
        self.launchers = launchers() if os.environ.get("RANK") else []
        self.alone = already_alone()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="orphan watch", daemon=True)

    def __enter__(self) -> "OrphanWatch":
        if self.launchers or self.alone:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.set()

    def _watch(self) -> None:
        while not self._closing.wait(LOOK):
            if self.alone or not all(map(_runs, self.launchers)):
                if os.environ.get("LOCAL_RANK", "0") == "0":
                    print("the launcher of this run has died: the run stops", file=sys.stderr, flush=True)
                os.kill(os.getpid(), signal.SIGTERM)
                return


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE  # dead, and not asked for its code yet
    except psutil.Error:
        return False


def launchers() -> list[psutil.Process]:
    """Which processes' death is this one's end: its parent, unless that is a shell, which may leave its children.

    Under DeepSpeed's node launcher also what started that: directly, or by a shell for this one command; and if that
    was ssh from this very host, what called ssh: an ssh whose pdsh is gone lives on.
    """
    try:
        parents = psutil.Process().parents()
        if not parents or NODE_LAUNCHER not in parents[0].cmdline():
            return [parent for parent in parents[:1] if parent.name() not in SHELLS and parent.pid != 1]
        found = parents[:1]
        for parent in parents[1:]:
            if parent.name() not in SHELLS:
                return [*found, parent, *_callers()]
            if "-c" not in parent.cmdline():
                break
        return found
    except psutil.Error:  # one that ended just now; or another user's
        return []


def _callers() -> list[psutil.Process]:
    """On the launching host: the ssh at the other end of the connection by which this process came, pdsh, deepspeed."""
    words = os.environ.get("SSH_CONNECTION", "").split()  # the client's address and port, and the server's
    for connection in psutil.net_connections("tcp") if len(words) == 4 else []:
        ports = [str(end.port) for end in (connection.laddr, connection.raddr) if end]
        if ports == [words[1], words[3]] and connection.pid:
            ssh = psutil.Process(connection.pid)
            above = takewhile(lambda p: p.name() == "pdsh" or any("deepspeed" in w for w in p.cmdline()), ssh.parents())
            return [ssh, *above]
    return []


def already_alone() -> bool:
    """Whether DeepSpeed's node launcher started this process and is gone: then a process of the system adopted it."""
    try:
        parents = psutil.Process().parents()
        return "CROSS_SIZE" in os.environ and not (parents and NODE_LAUNCHER in parents[0].cmdline())
    except psutil.Error:
        return False
