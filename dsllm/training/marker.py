"""The file that makes a checkpoint complete, in which no byte can change unseen.

    step_00000100/COMPLETE
        {
          "progress": {"step": 100, …}, "origin": {…}, "asked": {…}, "state": {…},
          "files": {"config.yaml": 1234, "tensors.json": 5678, "weight/wte.weight.npy": 81920, …},
          "sha256": {"config.yaml": "5f0c…", "tensors.json": "77ab…"},
          "checksum": "9a1b…"                                             of the text above it
        }

It vouches for `tensors.json`, and that for every tensor. A marker without the last two keys is of an older dsllm: then
the sizes of files and the values of tensors are all that can be checked. Any other marker whose text is not exactly
what its checksum says was damaged, or edited by hand, and is refused: nobody knows what else was changed.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter

from dsllm.data.files import inside, sha256_of
from dsllm.errors import CheckpointError, DamagedError, DataError, shown
from dsllm.json_file import parse_json
from dsllm.store import INDEX

MARKER = "COMPLETE"
CONFIG = "config.yaml"
KEYS = frozenset(("progress", "origin", "asked", "state", "files"))
"""Of every marker."""

T = TypeVar("T")


@dataclass(frozen=True)
class Marker:
    """What a marker says."""

    path: Path
    """The checkpoint's folder."""
    facts: dict[str, Any]

    @property
    def sealed(self) -> bool:
        """Whether it vouches for its own text and for the small files; one by an older dsllm does not."""
        return "sha256" in self.facts

    @classmethod
    def read(cls, path: Path) -> "Marker":
        """The marker in a checkpoint's folder; raises `CheckpointError` if there is none, or it is not as written."""
        try:
            content = inside(path, MARKER).read_bytes()
            facts = parse_json(content)
            if not isinstance(facts, dict):
                raise ValueError("no JSON object")
            if facts.keys() != KEYS:
                checksum = facts.pop("checksum", None)
                if checksum is None or sealed(facts) != content:
                    raise ValueError("its text is not the one that was written")
            return cls(path, facts)
        except FileNotFoundError:
            raise CheckpointError(f"{path}: not a complete checkpoint, its file {MARKER} is missing") from None
        except (OSError, DataError) as error:
            raise unreadable(path, error) from None
        except (ValueError, RecursionError) as error:
            raise DamagedError(str(unreadable(path, error))) from None

    def mapping(self, key: str) -> dict[str, Any]:
        """One of its parts that is an object of any keys; raises `CheckpointError` if it is none."""
        value = self.facts.get(key)
        if not isinstance(value, dict):
            raise unreadable(self.path, ValueError(f"{key} is {shown(value)}"))
        return dict(value)

    def part(self, key: str, kind: type[T]) -> T:
        """One of its parts as the dataclass that it was; raises `CheckpointError` if it is none."""
        try:
            kind(**self.facts[key])  # a key too many or too few, which pydantic would let pass
            return TypeAdapter(kind).validate_json(json.dumps(self.facts[key]), strict=True)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise unreadable(self.path, error) from None

    def problems(self) -> Iterator[CheckpointError]:
        """An error for each file that is not as it was written; of tensors the size is looked at, not the values."""
        checksums = self.mapping("sha256") if self.sealed else {}
        for name, size in self.mapping("files").items():
            try:
                file = inside(self.path, name)
                if not file.is_file():  # perhaps this host does not see it yet
                    yield CheckpointError(f"{file}: not there, {shown(size)} bytes were written")
                elif file.stat().st_size != size:
                    yield DamagedError(f"{file}: {file.stat().st_size} bytes, {shown(size)} were written")
                elif name in checksums and checksums[name] != sha256_of(file):
                    yield DamagedError(f"{file}: its checksum is not the one that was written")
            except (DataError, OSError) as error:
                yield CheckpointError(str(error))


def sealed(facts: dict[str, Any]) -> bytes:
    """The text of a marker that says `facts`."""
    checksum = sha256(json.dumps(facts, indent=2).encode()).hexdigest()
    return json.dumps({**facts, "checksum": checksum}, indent=2).encode()


def files_in(path: Path) -> dict[str, Any]:
    """What a marker says of the other files of its folder: the bytes of each, and checksums of those without one."""
    files = (file for file in sorted(path.rglob("*")) if file.is_file() and file.name != MARKER)
    sizes = {str(file.relative_to(path)): file.stat().st_size for file in files}
    return {"files": sizes, "sha256": {name: sha256_of(path / name) for name in (CONFIG, INDEX)}}


def unreadable(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"{path / MARKER}: cannot be read ({shown(error)}), damaged, edited or of another version of dsllm; "
        f"remove the folder to go on from the one before it, or start over with --fresh"
    )
