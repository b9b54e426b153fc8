"""The documents within one file.

    notes.jsonl, notes.jsonl.gz, notes.jsonl.zst    one JSON object a line, one document each
    notes.parquet                                   one row, one document
    notes.txt, notes.md.gz, notes.py, anything      the file is the document

A position within a file is a count of lines or rows: lines before it are read past, parquet's row groups are skipped.
"""

import gzip
import json
import os
import zlib
from collections.abc import Iterator
from pathlib import Path

import zstandard

from data_prep.sources.base import Document, MissingField, Unreadable, joined
from dsllm.errors import DataError

JSON_LINES = (".jsonl", ".ndjson", ".json")
PARQUET = ".parquet"
COMPRESSED = (".gz", ".zst")
CHUNK_BYTES = 1 << 20
BYTE_ORDER_MARK = "\ufeff"
PARQUET_ROWS = 1 << 10


def content_suffix(path: Path) -> str:
    """The suffix that says what is in a file, in lower case, behind that of a compression."""
    name = path.name.lower()
    for suffix in COMPRESSED:
        name = name.removesuffix(suffix)
    return os.path.splitext(name)[1]


def documents_of(path: Path, fields: tuple[str, ...], start: int) -> Iterator[tuple[int, Document]]:
    """The documents of a file from line or row `start` on, each with the position behind it.

    Raises:
        DataError: the very first record lacks a field, or it is parquet without that column.
        Unreadable: the file ends too early, is damaged or may not be read.
    """
    suffix = content_suffix(path)
    try:
        if suffix in JSON_LINES:
            yield from _json_lines(path, fields, start)
        elif suffix == PARQUET:
            yield from _rows(path, fields, start)
        elif start == 0:
            yield 1, _text(path)
    except EOFError:
        raise Unreadable(f"{path}: the compressed data end too early; fetch the file again") from None
    except (zlib.error, gzip.BadGzipFile, zstandard.ZstdError) as error:
        raise Unreadable(f"{path}: damaged compressed data ({error}); fetch the file again") from None
    except OSError as error:
        raise Unreadable(f"{path}: {error.strerror or error}; check the path and its permissions") from None


def _chunks(path: Path) -> Iterator[bytes]:
    """The file's content, decompressed."""
    suffix = path.suffix.lower()
    if suffix == ".zst":
        yield from _zstd_chunks(path)
        return
    with gzip.open(path, "rb") if suffix == ".gz" else path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk


def _zstd_chunks(path: Path) -> Iterator[bytes]:
    # Frame by frame: the package's stream_reader takes the end of a cut-off file for the end of the data.
    decompressor = zstandard.ZstdDecompressor()
    frame, begun = decompressor.decompressobj(), False
    with path.open("rb") as file:
        while compressed := file.read(CHUNK_BYTES):
            while compressed:
                begun = True
                yield frame.decompress(compressed)
                compressed = b""
                if frame.eof:
                    compressed, frame, begun = frame.unused_data, decompressor.decompressobj(), False
    if begun:
        raise EOFError


def _lines(path: Path) -> Iterator[bytes]:
    rest: list[bytes] = []
    for chunk in _chunks(path):
        *lines, last = chunk.split(b"\n")
        if lines:
            yield b"".join([*rest, lines[0]])
            yield from lines[1:]
            rest = []
        rest.append(last)
    if last_line := b"".join(rest):
        yield last_line


def _json_lines(path: Path, fields: tuple[str, ...], start: int) -> Iterator[tuple[int, Document]]:
    byte, first = 0, start == 0
    for number, line in enumerate(_lines(path), start=1):
        begin, byte = byte, byte + len(line) + 1
        if number <= start or not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            document = _json_document(line, fields, where, begin)
        except MissingField as error:
            # A wrong name shows in the first record; a later record without the field is a flaw of its own.
            if first:
                raise DataError(str(error)) from None
            document = Document(None, where, str(error))
        first = False
        yield number, document


def _json_document(line: bytes, fields: tuple[str, ...], where: str, begin: int) -> Document:
    text, problem = _decoded(line, where, begin)
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        return Document(None, where, f"{where}: not JSON ({error})")
    if not isinstance(record, dict):
        kind = type(record).__name__
        return Document(None, where, f"{where}: a JSON {kind}, not an object; one object a line is read")
    document = joined(record, fields, where)
    return Document(document.text, where, document.problem or problem)


def _rows(path: Path, fields: tuple[str, ...], start: int) -> Iterator[tuple[int, Document]]:
    # Imported where it is needed: pyarrow takes longer to load than a small corpus takes to prepare.
    import pyarrow as arrow
    import pyarrow.parquet as parquet
    from pyarrow.types import is_large_string, is_string, is_string_view

    try:
        file = parquet.ParquetFile(path)
        there = {field.name: field.type for field in file.schema_arrow}
        for field in fields:
            if field not in there:
                raise DataError(
                    f"{path}: no column {field!r}, there are: {', '.join(sorted(there))}; "
                    "name one or several with --fields"
                )
            # What pandas calls a category is a dictionary here: each row a number, each number a string.
            kind = there[field].value_type if arrow.types.is_dictionary(there[field]) else there[field]
            if not (is_string(kind) or is_large_string(kind) or is_string_view(kind)):
                raise DataError(f"{path}: column {field!r} holds {there[field]}, not text; take another with --fields")
        row = 0
        for group in range(file.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            if row + rows <= start:
                row += rows
                continue
            for batch in file.iter_batches(PARQUET_ROWS, row_groups=[group], columns=list(fields)):
                for record in batch.to_pylist():
                    row += 1
                    if row > start:
                        yield row, joined(record, fields, f"{path}: row {row}")
    except arrow.ArrowException as error:
        reason = str(error).splitlines()[0]
        raise Unreadable(f"{path}: not a whole parquet file ({reason}); fetch it again") from None


def _text(path: Path) -> Document:
    # A small file costs its opening: read_bytes asks for its size and reads once.
    packed = path.name.lower().endswith(COMPRESSED)
    text, problem = _decoded(b"".join(_chunks(path)) if packed else path.read_bytes(), str(path), 0)
    return Document(text, str(path), problem)


def _decoded(content: bytes, where: str, begin: int) -> tuple[str, str | None]:
    """The text without a byte order mark, and what was wrong with it if U+FFFD stand in it."""
    try:
        return content.decode().removeprefix(BYTE_ORDER_MARK), None
    except UnicodeDecodeError as error:
        problem = f"{where}: byte {begin + error.start:,} is not UTF-8 ({error.reason})"
        return content.decode(errors="replace").removeprefix(BYTE_ORDER_MARK), problem
