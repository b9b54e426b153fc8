"""Before the first step every rank shows what it works with, and a difference ends the run.

    node1   torch 2.13.0   code 5f0c91d2   train.lr 0.001   data/demo 8d1e…
    node2   torch 2.12.1   code 5f0c91d2   train.lr 0.001   data/demo 8d1e…
            ^^^^^^^^^^^^

Hosts read their own copies of program, configuration and data. Where those differ, ranks wait in different collective
operations for ever, or train on other tokens than they count.
"""

import socket
import sys
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from platform import python_version

import torch

import dsllm
from dsllm.config import RunConfig
from dsllm.data.manifest import MANIFEST_NAME
from dsllm.errors import UserError
from dsllm.section import leaves
from dsllm.tokenizer import Tokenizer
from dsllm.training.sources import sample_order
from dsllm.training.world import World

PACKAGES = ("torch", "deepspeed", "numpy", "tiktoken", "pydantic")
SHOWN = 8
"""Differences that are told; more have the same cause."""


def facts_of(config: RunConfig, tokenizer: Tokenizer) -> dict[str, str]:
    """All that must be the same on every rank, each value by its name."""
    return {
        **_program(),
        **{key: str(value) for key, value in leaves(config.model_dump(mode="json")).items()},
        **_data(config, tokenizer),
    }


def check_agreement(world: World, facts: dict[str, str]) -> None:
    """Raises `UserError` on every rank, naming host, rank and value, if a rank's facts are not those of rank 0."""
    everyones = world.everyone((socket.gethostname(), facts))
    first_host, first = everyones[0]
    told = []
    for rank, (host, its) in enumerate(everyones):
        for key in {**first, **its}:
            ours, theirs = first.get(key, "none"), its.get(key, "none")
            if ours != theirs:
                told.append(f"{key}: {theirs} at rank {rank} on {host}, {ours} at rank 0 on {first_host}")
    if told:
        more = [f"and {len(told) - SHOWN} more"] if len(told) > SHOWN else []
        raise UserError(
            f"the ranks do not agree: {'; '.join([*told[:SHOWN], *more])}; "
            f"put the same program, configuration and data on every host"
        )


def _program() -> dict[str, str]:
    """Versions of Python and of the packages that decide what is computed, and checksums of the code."""
    cuda = {} if torch.version.cuda is None else {"CUDA of torch": torch.version.cuda}
    facts = {"python": python_version(), **cuda, **{package: _version(package) for package in PACKAGES}}
    script = Path(sys.argv[0])
    if script.is_file():
        facts[f"code of {script.name}"] = _checksum(script)
    return {**facts, "code of dsllm": code_checksum(Path(dsllm.__file__).parent)}


def code_checksum(package: Path) -> str:
    """Of all source files of a package and their names."""
    files = sorted(package.rglob("*.py"))
    lines = (f"{file.relative_to(package)} {sha256(file.read_bytes()).hexdigest()}\n" for file in files)
    return sha256("".join(lines).encode()).hexdigest()[:12]


def _data(config: RunConfig, tokenizer: Tokenizer) -> dict[str, str]:
    """What is read: the vocabulary, DeepSpeed's file, the data by their manifests, which name the shards' checksums."""
    facts = {"tokenizer": str(tokenizer.info)}
    facts |= {f"content of {config.train.ds_config}": _checksum(config.train.ds_config)}
    facts |= {key: str(value) for key, value in sample_order(config).items()}
    for path in map(Path, config.data.paths):
        manifest = path / MANIFEST_NAME
        if manifest.exists():
            facts[f"data.path {path} (its {MANIFEST_NAME})"] = _checksum(manifest)
    return facts


def _checksum(file: Path) -> str:
    return sha256(file.read_bytes()).hexdigest()[:12] if file.is_file() else "none"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"
