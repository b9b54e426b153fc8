"""Documents in groups, which are the unit of work, and what becomes of documents that cannot be used.

A group ends when it reaches a number of bytes or of documents; where it ends depends on the text alone, never on speed
or on the number of workers. Shards end with a group, so a run can go on from the position behind any shard.

    a.txt (600 KB), b.txt (700 KB), c.txt (10 KB, broken), …      batch_bytes 1 MB
    Batch(texts=[a, b], position=behind b)   Batch(texts=[…], skipped=1, …)
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Literal, get_args

from pydantic import JsonValue

from data_prep.sources.base import Document, Source
from dsllm.errors import DataError

MAX_DOCUMENTS = 1 << 12

ErrorPolicy = Literal["strict", "replace", "skip"]
ERROR_POLICIES: tuple[str, ...] = get_args(ErrorPolicy)


@dataclass
class Batch:
    """Texts with something in them, and the position behind them."""

    texts: list[str] = field(default_factory=list)
    places: list[str] = field(default_factory=list)
    """Where each text comes from."""
    position: JsonValue = None
    text_bytes: int = 0
    """UTF-8 bytes of all texts."""
    read: int = 0
    """Documents that went into this group, unusable ones included."""
    empty: int = 0
    """Documents of white space alone, which are left out."""
    skipped: int = 0
    """Documents that could not be used, left out because the policy says so."""


def batches(
    source: Source, position: JsonValue, *, batch_bytes: int, limit: int | None, errors: ErrorPolicy
) -> Iterator[Batch]:
    """The documents of a source from a position on.

    Args:
        source: where they come from.
        position: of an earlier batch, or None.
        batch_bytes: a group ends with the document that reaches this number.
        limit: read at most so many documents.
        errors: strict stops at the first unusable document, skip leaves it out, replace puts U+FFFD where bytes are no
            UTF-8 and stops where that is no cure.

    Raises:
        DataError: an unusable document, by the policy; or what the source raises.
    """
    batch = Batch()
    for document in islice(source.documents(position), limit):
        batch.read += 1
        text = _usable(document, errors)
        if text is None:
            batch.skipped += 1
        elif not text or text.isspace():
            batch.empty += 1
        else:
            batch.texts.append(text)
            batch.places.append(document.where)
            batch.text_bytes += len(text) if text.isascii() else len(text.encode())
        if batch.text_bytes >= batch_bytes or batch.read >= MAX_DOCUMENTS:
            batch.position = source.position
            yield batch
            batch = Batch()
    if batch.read:
        batch.position = source.position
        yield batch


def _usable(document: Document, errors: ErrorPolicy) -> str | None:
    text, problem = document.text, document.problem
    if text is not None and not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            # JSON can spell half of a surrogate pair, which no UTF-8 file can hold.
            problem = f"{document.where}: character {error.start:,} is a lone surrogate, no text"
            text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if problem is None or (errors == "replace" and text is not None):
        return text
    if errors == "skip":
        return None
    cure = "mend it, or take --errors skip" if text is None else "mend it, or take --errors replace or --errors skip"
    raise DataError(f"{problem}; {cure}")
