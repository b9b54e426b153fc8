"""What is known of a host: its line of the hostfile, and its answers to the two probes."""

from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import BaseModel


class Storage(BaseModel):
    """Where a host has, or would make, the run's folder."""

    folder: str
    """The nearest one that exists."""
    free: int
    """Bytes."""
    writable: bool
    shared: bool
    """Whether a file is seen there that the launching host has just made."""


class DataFolder(BaseModel):
    """What lies at a data path; of each SHA-256 the first 12 digits."""

    manifest: str | None
    """SHA-256 of manifest.json, if it is there."""
    files: str
    """SHA-256 over the names and sizes of token files."""


class HostFacts(BaseModel):
    """The answer of host_probe.py."""

    machine: str
    """Its own name for itself, and a word that no other machine has."""
    python: str
    versions: dict[str, str | None]
    """Of packages by name; None for one that is not installed."""
    code: str | None
    """Checksum of the modules of dsllm; None without any."""
    commit: str | None
    gpus: int | None
    """None: nvidia-smi fails."""
    cores: int
    memory: int | None
    """Bytes available to processes."""
    shm: int | None
    """Bytes that /dev/shm may hold."""
    storage: Storage
    data: dict[str, DataFolder | None]
    """By path; None where nothing lies."""
    interface: str | None
    """That leads to the master's address."""
    master_port_free: bool
    spare_port: int | None
    """Free, for a test."""
    clock: float
    """Seconds since 1970, there."""


class Link(BaseModel):
    """The answer of link_probe.py: the way to the first host."""

    milliseconds: float = 0.0
    """Median round trip."""
    megabytes_per_second: float = 0.0
    error: str | None = None
    """Why it was not measured."""


@dataclass
class Host:
    """A line of the hostfile, and what came of it."""

    name: str
    slots: int
    facts: HostFacts | None = None
    """None: no answer."""
    link: Link | None = None
    """None for the first host, and for those that were not measured."""
    ahead_seconds: float = 0.0
    """By how much its clock is ahead of this machine's, at the least."""
    keeps_alive: bool = True
    """Whether ssh from here notices when it dies."""


@dataclass(frozen=True)
class Launch:
    """What is about to be launched."""

    run_dir: str | None
    data: Sequence[str]
    master_addr: str
    """Empty while it is not known, because the first host does not answer."""
    master_port: int
    on_cpu: bool
    """DS_ACCELERATOR=cpu: slots are processes, and GPUs do not matter."""
