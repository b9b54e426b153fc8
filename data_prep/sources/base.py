"""What a source is: documents in a fixed order, and a position that it can go on from.

source.documents(None)          the first document, the second, …
source.position                 after the second: {"file": 0, "record": 2}
source.documents(position)      the third, …; also in another process, another day
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from pydantic import JsonValue

from dsllm.errors import DataError, shown


@dataclass(frozen=True)
class Document:
    """One text, or the reason why there is none."""

    text: str | None
    """Of a document with a problem: the text with the problem mended, or None if it cannot be."""
    where: str
    """Its place, for messages: `notes.jsonl:12`."""
    problem: str | None = None
    """What is wrong with it, in one message that names the place."""


class Source(Protocol):
    """Documents in an order that does not change."""

    @property
    def identity(self) -> dict[str, JsonValue]:
        """What tells this content from another under the same name: a commit, sizes, a hash."""

    @property
    def position(self) -> JsonValue:
        """Behind the document that `documents` gave last."""

    def documents(self, position: JsonValue) -> Iterator[Document]:
        """The documents after `position`; None is the beginning."""


class Unreadable(DataError):
    """A file or the rest of it cannot be read; a source turns this into a `Document` with a problem."""


def joined(record: dict[str, object], fields: tuple[str, ...], where: str) -> Document:
    """The document of a record: its fields one after the other, an empty line between; nulls count as empty.

    Raises:
        MissingField: the record lacks a field.
    """
    parts = []
    for field in fields:
        if field not in record:
            raise MissingField(
                f"{where}: no column {field!r}, there are: {', '.join(sorted(record)) or 'none'}; "
                "name one or several with --fields"
            )
        value = record[field]
        if not (value is None or isinstance(value, str)):
            problem = f"{where}: column {field!r} holds {type(value).__name__}, not text; take another with --fields"
            return Document(None, where, problem)
        if value:
            parts.append(value)
    return Document("\n\n".join(parts), where)


def place(position: JsonValue, *keys: str) -> list[int]:
    """The numbers of a position that a journal has kept; zeros for None, the beginning.

    Raises:
        DataError: it is no position of such a source.
    """
    if position is None:
        return [0 for _ in keys]
    found = [position.get(key) for key in keys] if isinstance(position, dict) else []
    numbers = [number for number in found if type(number) is int and 0 <= number < 2**63]
    if not numbers or len(numbers) < len(keys):
        raise DataError(
            f"journal.json: position {shown(position)} is none of this source; start over with --fresh, or take "
            "another --out"
        )
    return numbers


class MissingField(DataError):
    """A record without a field that was asked for."""
