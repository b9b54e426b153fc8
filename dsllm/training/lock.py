"""One run at a time in a folder, and one folder for all ranks.

    RUN/.lock       "node1 4711 5f0c…": the host and process of rank 0, and a word that every rank must find there

The lock is the kernel's, on the open file: a dead owner holds nothing, and nothing has to be cleaned up.
"""

import fcntl
import os
import socket
import time
from pathlib import Path
from typing import IO
from uuid import uuid4

from dsllm.errors import CheckpointError
from dsllm.training.world import World

PATIENCE = 60.0
"""Seconds for which a shared file system may hide a new file from another host."""


class RunLock:
    """Makes the run's folder and holds it until the process ends; made by all ranks together.

    Raises `CheckpointError` if the folder cannot be made, if another run is at work in it, or if a rank sees another
    folder of that name, on a disk of its own: its part of a checkpoint would be missing.
    """

    def __init__(self, run_dir: Path, world: World):
        self._file: IO[str] | None = None
        self.path = run_dir / ".lock"
        word = world.from_main(self._take)
        world.together(lambda: self._find(word))

    def release(self) -> None:
        """Let go of the folder before the process ends."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _take(self) -> str:
        self._file, word = take(self.path)
        return word

    def _find(self, word: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while not (self.path.exists() and word in self.path.read_text(encoding="utf-8")):
            if time.monotonic() > deadline:
                raise CheckpointError(
                    f"run_dir = {self.path.parent}: {socket.gethostname()} has a folder of its own there; "
                    f"all hosts must see the same one, take a path on shared storage"
                )
            time.sleep(0.2)


def take(path: Path) -> tuple[IO[str], str]:
    """Make a folder with the lock file `path` in it and hold that: the open file, and the word written into it.

    Raises `CheckpointError` if that cannot be done, or if another process holds it.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+", encoding="utf-8")
    except OSError as error:
        raise CheckpointError(f"{path.parent}: cannot be written to ({error.strerror}); name another folder") from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        host, pid, *_ = (*file.read().split(), "?", "?")
        raise CheckpointError(
            f"{path.parent}: process {pid} on {host} is at work in it; wait for its end, or take another folder"
        ) from None
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot be locked ({error.strerror}); take a folder on a file system that has locks"
        ) from None
    word = uuid4().hex
    try:
        file.truncate(0)
        file.write(f"{socket.gethostname()} {os.getpid()} {word}\n")
        file.flush()
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot be written ({error.strerror}); free disk space, or take another folder"
        ) from None
    return file, word
