"""Asks all hosts at once what they are, then measures the way from each to the first one.

hostname -I on the first host             the master's address, as DeepSpeed finds it       at most 10 s
host_probe.py on every host               while a file lies in the run's folder to be seen  at most 20 s
link_probe.py on every host that answered                                                   at most 25 s
"""

import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from pydantic import ValidationError

from dsllm.errors import UserError
from dsllm.training.deepspeed_env import deepspeed_env_files, read_deepspeed_env
from dsllm.training.preflight import host_probe, link_probe
from dsllm.training.preflight.asking import CONNECT_SECONDS, NoAnswer, ask, keeps_alive, run_on
from dsllm.training.preflight.checks import problems_of, warnings_of
from dsllm.training.preflight.facts import Host, HostFacts, Launch, Link

PACKAGES = ("torch", "deepspeed", "numpy", "tiktoken", "datasets", "tensorboard", "pydantic", "psutil")
"""Whose versions are compared."""
PROBE_SECONDS, LINK_SECONDS = 20.0, 25.0
MASTER_PORT = 29500
"""DeepSpeed's default."""


@dataclass(frozen=True)
class Survey:
    """What is said of a launch before it."""

    hosts: list[Host]
    warnings: list[str]
    problems: list[str]
    """Each a line with thing, value and cure; with any of them the launch would fail, or worse, not fail."""


def survey(
    slots: Mapping[str, int],
    run_dir: Path | None = None,
    data: Sequence[Path] = (),
    master_addr: str | None = None,
    master_port: int = MASTER_PORT,
    megabytes: int = 64,
) -> Survey:
    """Looks at all hosts of a hostfile; takes a minute at the most, whatever they do.

    Args:
        slots: as `read_hostfile` gives them.
        run_dir: to be on shared storage; the working directory is only looked at.
        data: data folders, to be the same everywhere.
        master_addr: as given to the launcher; None for the address that it would take.
        megabytes: sent from each host to the first one.
    """
    hosts = [Host(name, n) for name, n in slots.items()]
    variables, problems = _variables()
    if len(hosts) > 1 and shutil.which("pdsh") is None:
        problems.append("pdsh: not on this machine, and DeepSpeed starts hosts by it; install the package pdsh")
    launch = Launch(
        run_dir=None if run_dir is None else os.path.abspath(run_dir),
        data=[str(path) for path in data],
        master_addr=_master_addr(hosts[0].name) if master_addr is None else master_addr,
        master_port=master_port,
        on_cpu=variables.get("DS_ACCELERATOR", os.environ.get("DS_ACCELERATOR")) == "cpu",
    )
    with ThreadPoolExecutor(max_workers=64) as pool, _token(launch.run_dir or os.getcwd()) as token:
        unseen = [problem for problem in pool.map(lambda host: _visit(host, launch, token), hosts) if problem]
    problems += unseen
    if launch.master_addr and len(hosts) > 1:
        _measure(hosts, launch.master_addr, megabytes)
    return Survey(hosts, warnings_of(hosts, launch), problems + problems_of(hosts, launch))


def _variables() -> tuple[dict[str, str], list[str]]:
    """What `.deepspeed_env` sets, and what is wrong with it."""
    variables: dict[str, str] = {}
    problems = []
    for path in deepspeed_env_files():
        try:
            variables |= read_deepspeed_env(path)
        except UserError as error:
            problems.append(str(error))
    return variables, problems


def _master_addr(first: str) -> str:
    try:
        return next(iter(run_on(first, "hostname -I", CONNECT_SECONDS + 2).split()), "")
    except NoAnswer:
        return ""  # the next question will tell


@contextmanager
def _token(run_dir: str) -> Iterator[str | None]:
    """A file in `run_dir`, or in the nearest folder above that exists; None if none can be made there."""
    folder = Path(host_probe.storage(run_dir, None)["folder"])
    path = folder / f".preflight-{uuid4().hex}"
    try:
        path.touch()
    except OSError:
        yield None
        return
    try:
        yield str(path)
    finally:
        path.unlink(missing_ok=True)


def _visit(host: Host, launch: Launch, token: str | None) -> str | None:
    """Fills in what the host answers, or returns why it does not."""
    host.keeps_alive = keeps_alive(host.name)
    request = {
        "run_dir": launch.run_dir or os.getcwd(),
        "token": token,
        "data": launch.data,
        "packages": PACKAGES,
        "master_addr": launch.master_addr,
        "master_port": launch.master_port,
    }
    began = time.time()
    try:
        answer = ask(host.name, Path(host_probe.__file__), request, PROBE_SECONDS)
        host.facts = HostFacts.model_validate(answer)
    except NoAnswer as error:
        return str(error)
    except ValidationError as error:
        return f"{host.name}: its answer is not understood ({error.errors()[0]['msg']}); look what runs there"
    # The host looked at its clock at some time in between, so that only what lies outside is a difference.
    host.ahead_seconds = host.facts.clock - min(max(host.facts.clock, began), time.time())
    return None


def _measure(hosts: Sequence[Host], master_addr: str, megabytes: int) -> None:
    """Fills in the links of all hosts that answered, if the first one did."""
    first, others = hosts[0], [host for host in hosts[1:] if host.facts is not None]
    if first.facts is None or first.facts.spare_port is None or not others:
        return
    script = Path(link_probe.__file__)
    common: dict[str, Any] = {"port": first.facts.spare_port, "word": uuid4().hex}
    client = {
        **common,
        "address": master_addr,
        "megabytes": megabytes,
        # All others come in turn, and within the time.
        "transfer_seconds": min(4.0, 15.0 / len(others)),
    }

    def visit(host: Host) -> Link:
        try:
            return Link.model_validate(ask(host.name, script, client, LINK_SECONDS))
        except (NoAnswer, ValidationError) as error:
            return Link(error=str(error))

    with ThreadPoolExecutor(max_workers=len(others) + 1) as pool:
        serving = pool.submit(ask, first.name, script, {**common, "serve": len(others)}, LINK_SECONDS)
        for host, link in zip(others, pool.map(visit, others), strict=True):
            host.link = link
        try:
            serving.result()
        except NoAnswer as error:  # says more than the words of those who waited for it
            for host in others:
                if host.link is not None and host.link.error is not None:
                    host.link = Link(error=str(error))
