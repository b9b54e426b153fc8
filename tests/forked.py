"""Commands of the repository as forks of a server that has imported everything: real processes, without a launcher.

    forked(["launch/train.py", "--config", recipe], ranks=2)       # what they printed
    forked_ranks(engine_losses, 2, folder)                         # engine_losses(rank, folder) in each

Importing torch and DeepSpeed costs a process three seconds, and DeepSpeed's launcher two processes more. What a fork
does is what `python SCRIPT` does with RANK and the rest set, as launchers set them. When it executes itself anew, as
after a structural event, `forked` gives it another fork, and of `begin` it is an ordinary process from there on. Tests
of launchers, signals to them and imports start the real thing by `tests.launching`.
"""

import ctypes
import json
import multiprocessing
import os
import runpy
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from types import MappingProxyType
from typing import Any

import psutil
import torch.multiprocessing

REPOSITORY = Path(__file__).resolve().parent.parent
NOTHING: Mapping[str, str] = MappingProxyType({})
PRELOADED = ["tests.preloaded"]
PR_SET_PDEATHSIG = 1
"""Of prctl(2): a signal when the parent has died."""


def forked(
    command: Sequence[Any],
    ranks: int = 1,
    expect: int = 0,
    seconds: float = 300,
    folder: Path = REPOSITORY,
    settings: Mapping[str, str] = NOTHING,
) -> str:
    """Run a script, or `-m` and a module, on so many ranks in a folder to its end; `settings` for its environment.

    Fails unless the first of them to fail exits with `expect`.
    """
    with tempfile.NamedTemporaryFile("r", prefix="output.") as log:
        words = [str(word) for word in command]
        code = ended(begin(words, Path(log.name), ranks, folder, again=True, settings=settings), seconds)
        output = log.read()
    assert code == expect, f"exit code {code}, expected {expect}:\n{output}"
    return output


def forked_ranks(function: Callable[..., None], ranks: int, *arguments: Any) -> None:
    """Call a module's function(rank, *arguments) in as many processes; what one of them raises is raised here."""
    multiprocessing.get_context("forkserver").set_forkserver_preload(PRELOADED)
    torch.multiprocessing.start_processes(function, arguments, ranks, start_method="forkserver")


def begin(
    command: Sequence[str],
    log: Path,
    ranks: int = 1,
    folder: Path = REPOSITORY,
    again: bool = False,
    settings: Mapping[str, str] = NOTHING,
) -> list[ForkServerProcess]:
    """Start a script on processes of this machine; what they print is added to `log`.

    `again`: what executes itself anew becomes another fork, and the process that is given here the parent of both.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    processes = []
    for world in worlds(ranks):
        process = context.Process(target=_become, args=(list(command), {**world, **settings}, log, folder, again))
        process.start()
        processes.append(process)
    return processes


def worlds(ranks: int) -> list[dict[str, str]]:
    """What a launcher puts into the environment of each rank; nothing for a single process."""
    if ranks == 1:
        return [{}]
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    common = {"WORLD_SIZE": ranks, "LOCAL_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    each = [{"RANK": rank, "LOCAL_RANK": rank, **common} for rank in range(ranks)]
    return [{key: str(value) for key, value in world.items()} for world in each]


def ended(processes: Sequence[ForkServerProcess], seconds: float) -> int:
    """The exit code of the first process that failed, or 0; after it the others are ended, as a launcher does."""
    running = {process.sentinel: process for process in processes}
    failed, deadline = 0, time.monotonic() + seconds
    while running:
        for sentinel in wait(list(running), timeout=max(0.0, deadline - time.monotonic())):
            process = running.pop(sentinel)  # type: ignore[call-overload]
            process.join()
            if process.exitcode and not failed:
                failed, deadline = process.exitcode, min(deadline, time.monotonic() + 10)
                for other in running.values():
                    other.terminate()
        if running and time.monotonic() >= deadline:
            for process in running.values():
                kill(process)
            failed = failed or -signal.SIGKILL
    return failed


def kill(process: ForkServerProcess) -> None:
    """A process that `begin` gave, and the fork that it is by now; they are gone when it returns."""
    below = []
    with suppress(psutil.NoSuchProcess):
        below = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.join()
    psutil.wait_procs(below, timeout=10)


def _become(command: list[str], world: Mapping[str, str], log: Path, folder: Path, again: bool) -> None:
    """In a fresh fork: become the process that `python COMMAND` would be."""
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1) for number in (1, 2))
    os.chdir(folder)
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        os.environ.pop(name, None)
    os.environ.update(world, OMP_NUM_THREADS="1")
    sys.path[:0] = [str(Path(folder).resolve()) for folder in world.get("PYTHONPATH", "").split(os.pathsep) if folder]
    if again:
        command = _fork_for_each_execution(command)
    sys.orig_argv = [sys.executable, *command]
    if command[0] == "-m":
        sys.argv = command[1:]
        runpy.run_module(command[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = command
        sys.path.insert(0, str(Path(command[0]).resolve().parent))
        runpy.run_path(command[0], run_name="__main__")


def _fork_for_each_execution(command: list[str]) -> list[str]:
    """Returns in a fork, with what it is to run; its parent ends as the last fork does, and passes SIGTERM on to it."""
    while True:
        receive, send = os.pipe()
        child = os.fork()
        if not child:
            os.close(receive)
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            os.execv = partial(_tell, send)  # type: ignore[assignment]
            return command
        os.close(send)
        signal.signal(signal.SIGTERM, partial(_pass_on, child))
        with os.fdopen(receive) as pipe:
            told = pipe.read()
        status = os.waitpid(child, 0)[1]
        if not told:
            if os.WIFSIGNALED(status):
                with suppress(OSError):  # SIGKILL has no handler
                    signal.signal(os.WTERMSIG(status), signal.SIG_DFL)
                os.kill(os.getpid(), os.WTERMSIG(status))
            os._exit(os.waitstatus_to_exitcode(status))
        command, environment = json.loads(told)
        os.environ.clear()
        os.environ.update(environment)


def _pass_on(child: int, *_: object) -> None:
    """SIGTERM, to the fork that runs; one that has just ended for another fork is followed by the end of both."""
    try:
        os.kill(child, signal.SIGTERM)
    except ProcessLookupError:
        os._exit(128 + signal.SIGTERM)


def _tell(pipe: int, program: str, argv: list[str]) -> None:
    """Instead of executing `argv`: let the parent fork for it."""
    with os.fdopen(pipe, "w") as parent:
        json.dump([argv[1:], dict(os.environ)], parent)
    os._exit(0)
