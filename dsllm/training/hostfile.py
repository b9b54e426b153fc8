"""The hostfile of `deepspeed --hostfile hosts launch/train.py …`, and the mistakes in it that the launcher lets pass.

    node1 slots=8
    node2 slots=8     # a host's name as ssh knows it, and how many accelerators it lends

`read_hostfile` is stricter than DeepSpeed's launcher, which takes `slots=8x` for 8 and starts nothing on a host of
`slots=0`. When the file is missing the launcher only warns, and trains on this machine alone. It does not hand the
file's name on, so `check_launcher` reads it off the launcher's own command line, two processes up:
deepspeed → deepspeed.launcher.launch → launch/train.py. A line without `slots=` or a host named twice never gets that
far: there DeepSpeed itself ends with a ValueError.
"""

import re
from itertools import pairwise
from pathlib import Path

import psutil

from dsllm.errors import UserError, shown
from dsllm.training.backend import import_deepspeed

# A name is handed to ssh: one that began with a dash would be an option, and ssh has some that run a command.
_LINE = re.compile(r"([\w\[][\w.:@%\[\]-]*)\s+slots=(\d{1,6})(\s.*)?", re.ASCII)
_LAUNCHERS = ("deepspeed", "deepspeed.pt", "ds", "deepspeed.launcher.runner")


def read_hostfile(path: Path) -> dict[str, int]:
    """The hosts by name, in their order, each with its number of slots (processes).

    Raises:
        UserError: the file is missing or names no host, or every line that is malformed or names a host again.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a text file"
        raise UserError(
            f"hostfile {path}: {reason}; write one line for each host, such as `node1 slots=8`, "
            f"or leave --hostfile out to train on this machine alone"
        ) from None
    hosts: dict[str, int] = {}
    problems = []
    for number, line in enumerate(map(str.strip, lines), start=1):
        if not line or line.startswith("#"):
            continue
        match = _LINE.fullmatch(line)
        if match is None:
            problems.append(f"line {number} is {shown(line)}, write it as `HOST slots=8`")
        elif int(match[2]) == 0:
            problems.append(f"line {number} gives {match[1]} slots=0, take the line out or give it at least one")
        elif match[1] in hosts:
            problems.append(f"line {number} names {match[1]} again, keep one line for each host")
        else:
            hosts[match[1]] = int(match[2])
    if problems:
        raise UserError(f"hostfile {path}: {'; '.join(problems)}")
    if not hosts:
        raise UserError(f"hostfile {path}: it names no host; write one line for each, such as `node1 slots=8`")
    return hosts


def check_launcher() -> None:
    """Checks the hostfile given to the DeepSpeed launcher that started this process, if one did and was given any.

    Raises:
        UserError: as `read_hostfile`.
    """
    if (path := _hostfile_of_launcher()) is not None:
        read_hostfile(path)


def _hostfile_of_launcher() -> Path | None:
    """None as well on all hosts but the launching one, which the launcher reaches by ssh only if the file was found."""
    try:
        for process, parent in pairwise(psutil.Process().parents()):
            if "deepspeed.launcher.launch" in process.cmdline():
                return _hostfile_argument(parent)
    except psutil.Error:  # another user's process, or one that just ended
        pass
    return None


def _hostfile_argument(launcher: psutil.Process) -> Path | None:
    import_deepspeed()
    from deepspeed.launcher.runner import DLTS_HOSTFILE, parse_args  # imports most of DeepSpeed

    command = launcher.cmdline()
    start = next((i for i, word in enumerate(command) if Path(word).name in _LAUNCHERS), None)
    if start is None:
        return None
    hostfile = parse_args(command[start + 1 :]).hostfile
    # DeepSpeed's default path is meant to be absent on most machines.
    return None if hostfile == DLTS_HOSTFILE else Path(launcher.cwd(), hostfile)
