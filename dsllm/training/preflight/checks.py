"""What the answers of the hosts come to: problems, which end a launch, and warnings.

torch: 2.13.0 on node1, node3 and 5 more, 2.12.0 on node2; install one version everywhere
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from statistics import median

from dsllm.training.preflight.facts import Host, HostFacts, Launch

Answered = Sequence[tuple[Host, HostFacts]]

CLOCK_SECONDS = 2.0
MEMORY_BYTES = 10**9
"""Of each process, for a small model."""
SHM_BYTES = 256 << 20
"""NCCL's buffers between the GPUs of a host lie in /dev/shm, of which a container has 64 MiB by default."""
DISK_BYTES = 10 * 10**9
MILLISECONDS = 5.0
MEGABYTES_PER_SECOND = 100.0
"""A little less than what Ethernet of 1 Gbit/s carries."""
MISSING = "missing"


def problems_of(hosts: Sequence[Host], launch: Launch) -> list[str]:
    """A line for each thing on which the hosts that answered do not agree, or of which one of them has not enough."""
    answered = [(host, host.facts) for host in hosts if host.facts is not None]
    return [
        *_machines(answered),
        *_versions(answered),
        *_data(answered, launch),
        *_accelerators(answered, launch),
        *_storage(answered, launch),
        *(_network(answered, launch) if launch.master_addr else ()),
    ]


def warnings_of(hosts: Sequence[Host], launch: Launch) -> list[str]:
    """A line for each thing that a launch survives, but may regret."""
    answered = [(host, host.facts) for host in hosts if host.facts is not None]
    return [*_ways(hosts), *_means(answered, launch), *_links(hosts)]


def _machines(answered: Answered) -> Iterator[str]:
    names: dict[str, list[str]] = {}
    for host, facts in answered:
        names.setdefault(facts.machine, []).append(host.name)
    for machine, lines in names.items():
        if len(lines) > 1:
            yield f"{_names(lines)}: one machine, {machine.split()[0]}; keep one line for it, with all its slots"


def _versions(answered: Answered) -> Iterator[str]:
    install = "install one version everywhere"
    yield from _differing("python", {host.name: facts.python for host, facts in answered}, install)
    for package in answered[0][1].versions if answered else ():
        found = {host.name: facts.versions.get(package) for host, facts in answered}
        yield from _differing(package, found, install)
    # The same modules under two commits, or copied without any, are the same code.
    commits = {facts.code: f" (commit {facts.commit})" for _, facts in answered if facts.commit}
    code = {host.name: facts.code and f"code {facts.code}{commits.get(facts.code, '')}" for host, facts in answered}
    yield from _differing("dsllm", code, "bring the repository to one state everywhere")


def _data(answered: Answered, launch: Launch) -> Iterator[str]:
    copy = "copy it anew, or put it on shared storage"
    for path in launch.data:
        found = {host.name: facts.data.get(path) for host, facts in answered}
        manifests = {host: None if entry is None else entry.manifest or "none" for host, entry in found.items()}
        files = {host: None if entry is None else f"hash {entry.files}" for host, entry in found.items()}
        yield from list(_differing(f"data {path}: manifest.json", manifests, copy)) or _differing(
            f"data {path}: names and sizes of token files", files, copy
        )


def _accelerators(answered: Answered, launch: Launch) -> Iterator[str]:
    if launch.on_cpu or not any(facts.gpus for _, facts in answered):
        return
    for host, facts in answered:
        if facts.gpus is not None and host.slots > facts.gpus:
            cure = f"write slots={facts.gpus}" if facts.gpus else "take it out of the hostfile"
            yield f"{host.name}: slots={host.slots}, but {_count(facts.gpus, 'GPU')}; {cure}"


def _storage(answered: Answered, launch: Launch) -> Iterator[str]:
    if launch.run_dir is None:
        return
    own = [host.name for host, facts in answered if not facts.storage.shared]
    if own and len(answered) > 1:
        yield (
            f"run_dir {launch.run_dir}: {_names(own)} {'does' if len(own) == 1 else 'do'} not see what this machine "
            f"writes there, so parts of a checkpoint would be missing; name a folder on storage that all hosts share"
        )
    for host, facts in answered:
        if not facts.storage.writable:
            yield f"{host.name}: {facts.storage.folder} cannot be written to; change its permissions or the run_dir"


def _network(answered: Answered, launch: Launch) -> Iterator[str]:
    another = "pass --master_addr with an address of the first host that every host reaches"
    for host, facts in answered:
        if facts.interface is None:
            if facts.versions.get("psutil") is not None:  # without it nothing can be said
                yield f"{host.name}: no interface leads to the master's address {launch.master_addr}; {another}"
        elif facts.interface == "lo" and len(answered) > 1 and host is not answered[0][0]:
            yield f"{host.name}: the master's address {launch.master_addr} is a loopback address; {another}"
        elif host.link is not None and host.link.error is not None:
            yield (
                f"{host.name}: cannot send to {launch.master_addr} ({host.link.error}); "
                f"open all ports between the hosts, compare their MTU, or {another}"
            )
    if answered and not answered[0][1].master_port_free:
        first = answered[0][0].name
        yield (
            f"{first}: port {launch.master_port}, where the ranks meet, is taken; end what holds it "
            f"(`ss -ltnp` on {first}), or pass another --master_port, here and to deepspeed"
        )


def _ways(hosts: Sequence[Host]) -> Iterator[str]:
    if deaf := [host.name for host in hosts if not host.keeps_alive]:
        yield (
            f"ssh to {_names(deaf)} would wait for ever for a host that has died, and the launcher with it; "
            "put `ServerAliveInterval 10` and `ServerAliveCountMax 3` into ~/.ssh/config"
        )
    for host in hosts:
        if abs(host.ahead_seconds) > CLOCK_SECONDS:
            side = "ahead of" if host.ahead_seconds > 0 else "behind"
            yield f"{host.name}: its clock is {abs(host.ahead_seconds):.0f} s {side} this machine's; set it by NTP"


def _means(answered: Answered, launch: Launch) -> Iterator[str]:
    for host, facts in answered:
        if facts.gpus is None and not launch.on_cpu:
            yield f"{host.name}: nvidia-smi fails there; look at its driver"
        if launch.on_cpu and host.slots > facts.cores:
            yield f"{host.name}: slots={host.slots} for {_count(facts.cores, 'core')}; processes will take turns"
        if facts.memory is not None and facts.memory < host.slots * MEMORY_BYTES:
            yield f"{host.name}: {facts.memory / 1e9:.1f} GB of memory for {_count(host.slots, 'process')}; free some"
        if facts.shm is not None and facts.shm < SHM_BYTES and host.slots > 1:
            yield f"{host.name}: /dev/shm holds {facts.shm >> 20} MiB; start its container with --shm-size=8g"
        if facts.storage.free < DISK_BYTES:
            yield (
                f"{host.name}: {facts.storage.free / 1e9:.1f} GB of disk at {facts.storage.folder}; a checkpoint takes "
                f"12 bytes for each parameter that trains, 1.5 GB for GPT-2's 124 million"
            )


def _links(hosts: Sequence[Host]) -> Iterator[str]:
    measured = [(host, host.link) for host in hosts if host.link is not None and host.link.error is None]
    usual = median([link.megabytes_per_second for _, link in measured]) if measured else 0.0
    for host, link in measured:
        if link.milliseconds > MILLISECONDS:
            yield (
                f"{host.name}: {link.milliseconds:.1f} ms to {hosts[0].name} and back; "
                f"hosts that train together belong into one network, where it is well below 1 ms"
            )
        rate = link.megabytes_per_second
        if rate < MEGABYTES_PER_SECOND:
            yield (
                f"{host.name}: {rate:.3g} MB/s to {hosts[0].name}; the gradients of GPT-2's 124 million parameters, "
                f"0.25 GB in bf16, take {250 / rate:.3g} s of each step"
            )
        elif rate < usual / 2:
            yield f"{host.name}: {rate:.0f} MB/s to {hosts[0].name}, others {usual:.0f}; all wait for the slowest"


def _differing(thing: str, found: Mapping[str, str | None], cure: str) -> Iterator[str]:
    """One line if the hosts' values, by host, differ or one is missing: the value of most hosts first."""
    groups: dict[str | None, list[str]] = {}
    for host, value in found.items():
        groups.setdefault(value, []).append(host)
    if len(groups) > 1 or None in groups:
        largest_first = sorted(groups.items(), key=lambda group: -len(group[1]))
        words = (f"{value or MISSING} on {_names(hosts)}" for value, hosts in largest_first)
        yield f"{thing}: {', '.join(words)}; {cure}"


def _names(hosts: Iterable[str]) -> str:
    """node1; node1 and node2; node1, node2 and 61 more"""
    names = list(hosts)
    if len(names) > 3:
        names = [*names[:2], f"{len(names) - 2} more"]
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _count(number: int, thing: str) -> str:
    plural = "es" if thing.endswith("s") else "s"
    return f"{number or 'no'} {thing}{plural * (number != 1)}"
