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
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="orphan watch", daemon=True)

    def __enter__(self) -> "OrphanWatch":
        if self.launchers:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.set()

    def _watch(self) -> None:
        while not self._closing.wait(LOOK):
            gone = next((process for process in self.launchers if not _runs(process)), None)
            if gone is not None:
                if os.environ.get("LOCAL_RANK", "0") == "0":
                    print(f"the launcher (process {gone.pid}) has died: the run stops", file=sys.stderr, flush=True)
                os.kill(os.getpid(), signal.SIGTERM)
                return


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE  # dead, and not asked for its code yet
    except psutil.Error:
        return False


def launchers() -> list[psutil.Process]:
    """This process's parent; under DeepSpeed's node launcher, that one's parents too, up to what is no shell."""
    try:
        parents = psutil.Process().parents()
        if not parents or NODE_LAUNCHER not in parents[0].cmdline():
            return parents[:1]
        beyond = next((at for at, parent in enumerate(parents[1:], 1) if parent.name() not in SHELLS), len(parents))
        return parents[: beyond + 1]
    except psutil.Error:  # one that ended just now; or another user's
        return []
