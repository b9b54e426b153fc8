"""Token files of other projects: read in place, and converted to and from pairs.

Two documents "5 6" and "7", with E for end-of-text:

    our pair                  5 6 E 7 E      and an index
    nanoGPT                   5 6 E 7 E      raw uint16, no header, no index
    llm.c, modded-nanogpt     E 5 6 E 7      after 256 int32: 20240520, version 1, token count, zeros

There E begins a document, so such a file is E followed by our stream without its last token, and the way back moves
that one token again. Files of modded-nanogpt are cut at a fixed number of tokens: one may begin amid a document, the
rest of which then is a document of its own.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dsllm.data.files import inside, mapped, write_stream
from dsllm.data.indexed import IndexedPair, IndexedWriter, PairSummary
from dsllm.data.manifest import Manifest
from dsllm.errors import DataError

GPT2_END_OF_TEXT = 50256
LLMC_MAGIC, LLMC_VERSION = 20240520, 1
LLMC_HEADER_BYTES = 1024
LLMC_MAX_TOKENS = np.iinfo(np.int32).max
UINT16 = np.dtype("<u2")
CHUNK_TOKENS = 1 << 22


@dataclass(frozen=True)
class FlatTokens:
    """A stream without an index: document bounds are found by their end-of-text tokens."""

    path: Path
    tokens: npt.NDArray[np.uint16]
    """The whole stream, shape (tokens,), memory-mapped."""
    end_of_text: int | None
    """None if nobody knows; then there are tokens, but no documents."""
    leading: bool
    """Whether the end-of-text token begins a document (llm.c) or ends it (nanoGPT)."""

    def starts_between(self, start: int, stop: int) -> npt.NDArray[np.int64]:
        """The document starts p with start < p < stop."""
        shift = 0 if self.leading else 1
        window = self.tokens[start + 1 - shift : stop - shift]
        return start + 1 + np.flatnonzero(window == self._known_end_of_text())

    def _known_end_of_text(self) -> int:
        if self.end_of_text is None:
            raise DataError(
                f"{self.path}: its end-of-text token is unknown, and so are its documents; "
                "make a data folder of it with `python -m data_prep convert`"
            )
        return self.end_of_text


def read_nanogpt(path: Path, end_of_text: int | None = None, *, random_access: bool = False) -> FlatTokens:
    """A raw uint16 file as nanoGPT's `prepare.py` writes it; `random_access` as for `IndexedPair`.

    Raises:
        DataError: missing, empty, or of an odd number of bytes.
    """
    return FlatTokens(Path(path), mapped(Path(path), UINT16, random_access=random_access), end_of_text, leading=False)


def is_llmc(path: Path) -> bool:
    """Whether a file begins as llm.c's token files do."""
    try:
        with Path(path).open("rb") as file:
            return file.read(4) == np.array(LLMC_MAGIC, "<i4").tobytes()
    except OSError:
        return False


def read_llmc(path: Path, end_of_text: int = GPT2_END_OF_TEXT, *, random_access: bool = False) -> FlatTokens:
    """A token file of llm.c or modded-nanogpt; `random_access` as for `IndexedPair`.

    Raises:
        DataError: missing, cut off, not of this format or of another version of it.
    """
    path = Path(path)
    tokens = mapped(path, UINT16, random_access=random_access)
    if 2 * len(tokens) < LLMC_HEADER_BYTES:
        raise DataError(
            f"{path}: {2 * len(tokens):,} bytes, llm.c's header alone has {LLMC_HEADER_BYTES}; it was cut off"
        )
    magic, version, count = (int(value) for value in tokens[:6].view("<i4"))
    if magic != LLMC_MAGIC:
        raise DataError(f"{path}: begins with {magic}, not {LLMC_MAGIC}: not a token file of llm.c or modded-nanogpt")
    if version != LLMC_VERSION:
        raise DataError(f"{path}: version {version} of llm.c's format; version {LLMC_VERSION} (uint16 tokens) is read")
    tokens = tokens[LLMC_HEADER_BYTES // 2 :]
    if count < 1 or count != len(tokens):
        raise DataError(f"{path}: holds {len(tokens):,} tokens, its header counts {count:,}; fetch or write it again")
    return FlatTokens(path, tokens, end_of_text, leading=True)


@dataclass(frozen=True)
class ImportSummary:
    """What became of a foreign file."""

    pair: PairSummary
    empty_documents: int
    """End-of-text tokens with nothing between them, which were left out."""


def import_flat(flat: FlatTokens, prefix: Path) -> ImportSummary:
    """Writes the pair at `prefix` from a foreign file, in constant memory but for its longest document.

    A stream without its last end-of-text token, such as nanoGPT's Shakespeare, is given one.

    Raises:
        DataError: an unknown end-of-text token, no documents, or a disk that is full.
    """
    empty = 0
    with IndexedWriter(prefix, UINT16) as writer:
        for tokens, sizes in _documents(flat):
            keep = sizes > 1
            empty += len(sizes) - int(keep.sum())
            writer.add_many(tokens[np.repeat(keep, sizes)], sizes[keep])
        return ImportSummary(writer.finish(), empty)


def _documents(flat: FlatTokens) -> Iterator[tuple[npt.NDArray[np.uint16], npt.NDArray[np.int64]]]:
    """The stream as runs of whole documents, each with its end-of-text token last, and their sizes."""
    end_of_text = flat._known_end_of_text()
    stream = flat.tokens[1:] if flat.leading and flat.tokens[0] == end_of_text else flat.tokens
    start, reach = 0, CHUNK_TOKENS
    while start < len(stream):
        run = stream[start : start + reach]
        ends = np.flatnonzero(run == end_of_text) + 1
        if start + reach >= len(stream) and (not len(ends) or ends[-1] != len(run)):
            run = np.append(run, np.array(end_of_text, UINT16))
            ends = np.append(ends, len(run))
        if not len(ends):
            reach *= 2
            continue
        yield run[: ends[-1]], np.diff(ends, prepend=0)
        start, reach = start + int(ends[-1]), CHUNK_TOKENS


def write_llmc(folder: Path, split: str, out: Path) -> list[Path]:
    """Writes each shard of a split as an llm.c file `out`/NAME.bin, and gives their paths.

    Raises:
        DataError: no such split, a vocabulary beyond uint16, a shard beyond 2,147,483,647 tokens, or an `out` that is
            the data folder itself or cannot be written to.
    """
    if Path(out).resolve() == Path(folder).resolve():
        raise DataError(f"{out}: is the data folder itself, whose shards it would write over; give another folder")
    pairs, end_of_text = _pairs(folder, split)
    for pair in pairs:
        if len(pair.tokens) > LLMC_MAX_TOKENS:
            raise DataError(
                f"{pair.prefix}.bin: {len(pair.tokens):,} tokens, llm.c counts up to {LLMC_MAX_TOKENS:,} in a file; "
                "prepare the folder with smaller shards"
            )
    paths = []
    for pair in pairs:
        header = np.zeros(LLMC_HEADER_BYTES // 4, "<i4")
        header[:3] = LLMC_MAGIC, LLMC_VERSION, len(pair.tokens)
        first = np.array([end_of_text], UINT16)
        path = Path(out) / f"{pair.prefix.name}.bin"
        write_stream(path, chain([header.tobytes(), first.tobytes()], _chunks(pair.tokens[:-1])))
        paths.append(path)
    return paths


def write_nanogpt(folder: Path, split: str, out: Path) -> None:
    """Writes a split as one raw uint16 file, such as nanoGPT's `train.bin`.

    Raises:
        DataError: no such split, a vocabulary beyond uint16, or an `out` that cannot be written to.
    """
    pairs, _ = _pairs(folder, split)
    write_stream(Path(out), (chunk for pair in pairs for chunk in _chunks(pair.tokens)))


def _pairs(folder: Path, split: str) -> tuple[list[IndexedPair], int]:
    manifest = Manifest.read(folder)
    shards = manifest.shards_of(split, folder)
    for name in (name for shard in shards for name in shard.files):
        inside(Path(folder), name)
    pairs = [IndexedPair(Path(folder) / shard.name) for shard in shards]
    for pair in pairs:
        if pair.dtype != UINT16:
            raise DataError(
                f"{pair.prefix}.bin: tokens of {manifest.tokenizer} are {pair.dtype.name}, these formats hold uint16; "
                "prepare the text with a vocabulary of at most 65,536"
            )
    return pairs, manifest.tokenizer.end_of_text


def _chunks(tokens: npt.NDArray[np.uint16]) -> Iterator[memoryview]:
    for start in range(0, len(tokens), CHUNK_TOKENS):
        yield tokens[start : start + CHUNK_TOKENS].data.cast("B")
