"""Before a launch: does every host of a hostfile answer, with the same interpreter and the same folder?

    ssh node2 'test -x …/.venv/bin/python || exit 3; cd …/dsllm || exit 4'

DeepSpeed asks only the first host, and learns of the others when they fail to come.
"""

import shlex
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

TIMEOUT = 20
"""Seconds that a host may take to answer."""


def problems_of(hosts: Iterable[str]) -> list[str]:
    """A line for each host that cannot take part, with the cure; all hosts are asked at once."""
    names = list(hosts)
    with ThreadPoolExecutor(max_workers=64) as pool:
        return [problem for problem in pool.map(_problem, names) if problem]


def _problem(host: str) -> str | None:
    python, folder = sys.executable, Path.cwd()
    test = f"test -x {shlex.quote(python)} || exit 3; cd {shlex.quote(str(folder))} || exit 4"
    options = ["-o", "BatchMode=yes", "-o", f"ConnectTimeout={TIMEOUT}"]
    try:
        done = subprocess.run(["ssh", *options, host, test], capture_output=True, text=True, timeout=2 * TIMEOUT)
    except FileNotFoundError:
        return f"{host}: no ssh on this machine; install an ssh client"
    except subprocess.TimeoutExpired:
        return f"{host}: no answer within {2 * TIMEOUT} s; look whether it is up"
    if done.returncode == 3:
        return f"{host}: no {python}; install dsllm there at the same path as here"
    if done.returncode == 4:
        return f"{host}: no folder {folder}; put the repository there at the same path as here"
    if done.returncode:
        said = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
        return f"{host}: cannot be reached ({said}); `ssh {host}` must work without a password"
    return None
