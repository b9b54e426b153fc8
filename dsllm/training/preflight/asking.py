"""A host over ssh: a script that stands alone goes there on standard input, and a line of JSON comes back.

    ssh node2 'test -x …/.venv/bin/python || exit 3; cd …/dsllm || exit 4; exec …/.venv/bin/python - REQUEST' < script

The same interpreter and the same folder as here, as for a launch. Nothing needs to be installed there beside them, and
nothing is left there: a script that is not done in time is given up here, and ends by itself there.
"""

import json
import shlex
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

CONNECT_SECONDS = 8
"""For which a host may take to accept a connection."""


class NoAnswer(Exception):
    """A host cannot take part; the message names it, the reason and the cure."""


def ask(host: str, script: Path, request: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    """Runs a script of this package on a host with `request` as its argument, and gives what it answers.

    Raises:
        NoAnswer: not reachable, no such interpreter or folder there, or no answer within `seconds`.
    """
    python, folder = shlex.quote(sys.executable), shlex.quote(str(Path.cwd()))
    argument = shlex.quote(json.dumps({**request, "seconds": seconds}))
    command = f"test -x {python} || exit 3; cd {folder} || exit 4; exec {python} - {argument}"
    printed = run_on(host, command, seconds, script.read_text(encoding="utf-8"))
    try:
        # The shell's own start-up files may have printed before.
        answer = json.loads(printed.rstrip().rpartition("\n")[2])
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise NoAnswer(f"{host}: its answer is {printed[-200:]!r}; a start-up file of its shell must not print or exit")
    return answer


def run_on(host: str, command: str, seconds: float, script: str = "") -> str:
    """What a command prints on a host, given `script` on standard input.

    Raises:
        NoAnswer: as `ask`, or the command fails.
    """
    options = ["-o", "BatchMode=yes", "-o", f"ConnectTimeout={CONNECT_SECONDS}"]
    try:
        done = subprocess.run(
            ["ssh", *options, host, command], input=script, capture_output=True, text=True, errors="replace",
            timeout=seconds,
        )  # fmt: skip
    except FileNotFoundError:
        raise NoAnswer(f"{host}: no ssh on this machine; install an ssh client") from None
    except subprocess.TimeoutExpired:
        raise NoAnswer(
            f"{host}: no answer within {seconds:g} s; look whether it is up, and whether `ls` of its folders returns"
        ) from None
    if done.returncode == 3:
        raise NoAnswer(f"{host}: no {sys.executable}; install dsllm there at the same path as here")
    if done.returncode == 4:
        raise NoAnswer(f"{host}: no folder {Path.cwd()}; put the repository there at the same path as here")
    if done.returncode == 255:  # ssh itself
        raise NoAnswer(f"{host}: cannot be reached ({_flat(done.stderr)}); {_cure(host)}")
    if done.returncode:
        # A traceback says most in its last line.
        said = _flat(done.stderr.rstrip().rpartition("\n")[2]) or f"exit code {done.returncode}"
        raise NoAnswer(f"{host}: `{command.split()[0]} …` fails there ({said}); try `ssh {host}` by hand")
    return done.stdout


def keeps_alive(host: str) -> bool:
    """Whether ssh, as it is set up here, notices that this host has died. It does not by default."""
    try:
        done = subprocess.run(["ssh", "-G", host], capture_output=True, text=True, errors="replace", timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return True  # what ails it comes out when the host is asked
    interval = [line.split()[-1] for line in done.stdout.splitlines() if line.startswith("serveraliveinterval ")]
    return done.returncode != 0 or interval != ["0"]


def _cure(host: str) -> str:
    if host in ("localhost", "127.0.0.1", "::1", socket.gethostname()):
        return "start its ssh server, or leave --hostfile out to train on this machine alone"
    return f"`ssh {host}` must work without a password"


def _flat(text: str) -> str:
    return " ".join(text.split())
