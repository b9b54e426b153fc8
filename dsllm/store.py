"""The tensors of a checkpoint by name, one file each: any rank reads any part, and growing is copying files.

    step_00000100/tensors.json                              names, shapes, types, checksums; written last
    step_00000100/weight/blocks.0.attention.qkv.weight.npy  fp32, (3C, C)
    step_00000100/exp_avg/… , exp_avg_sq/…                  AdamW's moments of a parameter that trains

    store = TensorStore.read(folder)
    store["weight", "blocks.0.attention.qkv.weight"]        a view of the mapped file: reading a slice costs that slice

A file belongs to no ZeRO stage and no number of ranks. What does not change from one checkpoint to the next, a frozen
parameter, is linked, not written again.

What an index says is not trusted: its names lead nowhere but into the folder, and a file's header must be, byte for
byte, the one that numpy writes for the type and shape in the index. So no byte of a file is beyond the checks, headers
by `store[...]`, values by `verify`, and nothing that could run code is ever parsed.
"""

import hashlib
import io
import json
import math
import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from dsllm.data.files import inside, sync_to_disk, write_atomically
from dsllm.errors import CheckpointError, DamagedError, DataError, shown
from dsllm.json_file import parse_json

Kind = Literal["weight", "exp_avg", "exp_avg_sq"]
KINDS: tuple[Kind, ...] = ("weight", "exp_avg", "exp_avg_sq")
MOMENTS: tuple[Kind, ...] = ("exp_avg", "exp_avg_sq")
INDEX = "tensors.json"
DTYPES = ("<f4", "<i8", "<i4", "<i2", "|i1", "<u8", "<u4", "<u2", "|u1", "|b1", "<c8", "<c16")
"""Of parameters and buffers, as numpy writes them: floating-point numbers in fp32, others as they are."""


@dataclass(frozen=True)
class Entry:
    """One tensor's file."""

    kind: Kind
    name: str
    shape: tuple[int, ...]
    sha256: str
    """Of the values' bytes, so of the tensor whatever holds it."""
    dtype: str = "<f4"
    """Of the values; an index that an older dsllm wrote does not say it."""

    @classmethod
    def of(cls, facts: Any) -> "Entry":
        """What `asdict` made of one. Raises `ValueError`, `KeyError` or `TypeError` if it is no such thing."""
        entry = cls(**{**facts, "shape": tuple(facts["shape"])})
        wrong = [
            entry.kind not in KINDS,
            not isinstance(entry.name, str) or not entry.name.isprintable() or "/" in entry.name,
            not all(type(size) is int and 0 <= size < 2**63 for size in entry.shape) or len(entry.shape) > 32,
            not isinstance(entry.sha256, str),
            entry.dtype not in DTYPES,
        ]
        if any(wrong):
            raise ValueError(f"{shown(facts)} is no tensor of a checkpoint")
        return entry

    @property
    def file(self) -> str:
        return f"{self.kind}/{self.name}.npy"

    @property
    def header(self) -> bytes:
        """What the file begins with."""
        begin = io.BytesIO()
        description = {"descr": self.dtype, "fortran_order": False, "shape": self.shape}
        np.lib.format.write_array_header_1_0(begin, description)
        return begin.getvalue()

    @property
    def nbytes(self) -> int:
        """Of the values."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


@dataclass
class TensorStore:
    """The tensors in a folder; `names` are those of parameters, and of persistent buffers, in the model's order."""

    folder: Path
    entries: dict[tuple[str, str], Entry]
    aliases: dict[str, str] = field(default_factory=dict)
    """Other names of shared parameters: `head.weight` for `wte.weight`."""
    steps: dict[str, int] = field(default_factory=dict)
    """Updates that a parameter's moments have seen, for Adam's bias correction."""

    @classmethod
    def read(cls, folder: Path) -> "TensorStore":
        """Raises `CheckpointError` if the index is missing or damaged."""
        path = folder / INDEX
        try:
            facts = parse_json(inside(folder, INDEX).read_bytes())
            entries: dict[tuple[str, str], Entry] = {(e.kind, e.name): e for e in map(Entry.of, facts["entries"])}
            aliases, steps = dict(facts["aliases"]), dict(facts["steps"])
            if len(entries) < len(facts["entries"]):
                raise ValueError("a tensor stands twice")
            for kind, name in entries:
                weight = entries.get(("weight", name))
                if weight is None or weight.shape != entries[kind, name].shape:
                    raise ValueError(f"{kind} of {shown(name)} has no weight of its shape")
            for alias, name in aliases.items():
                if ("weight", name) not in entries:
                    raise ValueError(f"{shown(alias)} stands for {shown(name)}, which is no tensor of it")
            for name, count in steps.items():
                if type(count) is not int or not 0 <= count < 2**63:
                    raise ValueError(f"{shown(name)} has seen {shown(count)} updates")
            return cls(folder, dict(entries), aliases, steps)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, DataError) as error:
            told = CheckpointError if isinstance(error, (OSError, DataError)) else DamagedError
            raise told(
                f"{path}: cannot be read ({shown(error)}); take an older checkpoint, or start over with --fresh"
            ) from None

    @classmethod
    def of(
        cls, folder: Path, entries: Iterable[Entry], aliases: dict[str, str], steps: dict[str, int]
    ) -> "TensorStore":
        """The store of files that were just written; `finish` makes it readable."""
        return cls(folder, {(e.kind, e.name): e for e in entries}, aliases, steps)

    def finish(self) -> None:
        """Write the index."""
        facts = {"entries": [asdict(e) for e in self.entries.values()], "aliases": self.aliases, "steps": self.steps}
        write_atomically(self.folder / INDEX, json.dumps(facts).encode())

    def names(self, kind: Kind = "weight") -> Iterator[str]:
        return (name for of, name in self.entries if of == kind)

    def entry(self, kind: Kind, name: str) -> Entry | None:
        """What is known of a tensor, by any of its names."""
        return self.entries.get((kind, self.aliases.get(name, name)))

    def __contains__(self, key: tuple[Kind, str]) -> bool:
        return self.entry(*key) is not None

    def __getitem__(self, key: tuple[Kind, str]) -> Tensor:
        """The tensor, mapped: its memory is the file's until it is written to, and then the process's own.

        Raises `CheckpointError` if there is none, or its file is not what the index says.
        """
        entry = self.entry(*key)
        if entry is None:
            raise CheckpointError(f"{self.folder}: holds no {key[0]} of {key[1]}; take a checkpoint of this model")
        path, header = self.folder / entry.file, entry.header
        try:
            with inside(self.folder, entry.file).open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                if file.read(len(header)) != header or size != len(header) + entry.nbytes:
                    raise ValueError(f"its header or its size is not that of {entry.dtype} of shape {entry.shape}")
                return torch.from_numpy(np.memmap(file, entry.dtype, "c", len(header), entry.shape))
        except DataError as error:
            raise CheckpointError(str(error)) from None
        except (OSError, ValueError) as error:
            told = CheckpointError if isinstance(error, OSError) else DamagedError
            raise told(
                f"{path}: cannot be read ({error}); remove the folder to go on from the checkpoint before it"
            ) from None

    def digest(self, names: Iterable[str] | None = None) -> str:
        """A checksum of all weights, or of those named: it names a base."""
        chosen = sorted(self.aliases.get(name, name) for name in (self.names() if names is None else names))
        lines = [f"{name} {entry.sha256}\n" for name in chosen if (entry := self.entry("weight", name))]
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def bytes_written(self) -> int:
        """Bytes of its files that are no links to those of another store."""
        states = [(self.folder / entry.file).stat() for entry in self.entries.values()]
        return sum(state.st_size for state in states if state.st_nlink == 1)

    def verify(self, entries: Iterable[Entry]) -> None:
        """Raises `CheckpointError` if a tensor is not the one that was written."""
        for entry in entries:
            if checksum(self[entry.kind, entry.name]) != entry.sha256:
                raise DamagedError(
                    f"{self.folder / entry.file}: its checksum is not the one that was written; "
                    f"remove the folder to go on from the checkpoint before it"
                )


def checksum(tensor: Tensor) -> str:
    """SHA-256 of a tensor's values."""
    return hashlib.sha256(_bytes(tensor)).hexdigest()


def write_tensor(folder: Path, kind: Kind, name: str, tensor: Tensor) -> Entry:
    """Write one tensor into a store's folder, down to the disk; floating-point numbers in fp32."""
    if tensor.is_floating_point():
        tensor = tensor.float()
    array = tensor.detach().cpu().contiguous().numpy()
    entry = Entry(kind, name, tuple(array.shape), hashlib.sha256(_bytes(tensor)).hexdigest(), array.dtype.str)
    path = folder / entry.file
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        np.lib.format.write_array(file, array, allow_pickle=False)
        file.flush()
        os.fsync(file.fileno())
    return entry


def link_tensor(folder: Path, entry: Entry, source: Path, name: str | None = None) -> Entry:
    """Put the file of `entry` in the store at `source` into another store, under another name if given.

    Linked where the file system can, else copied: a written file is never changed.
    """
    linked = replace(entry, name=name or entry.name)
    path = folder / linked.file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    try:
        os.link(source / entry.file, path)
    except OSError:
        shutil.copyfile(source / entry.file, path)
        sync_to_disk(path)
    return linked


def _bytes(tensor: Tensor) -> Any:
    array: Any = tensor.detach().cpu().contiguous().numpy()
    return array.reshape(-1).view(np.uint8)
