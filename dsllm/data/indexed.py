"""Token shards as Megatron's `MMIDIDX` pairs: a `.bin` of tokens and an `.idx` that says where its documents lie.

Two documents, [5, 6, 50256] and [7, 50256], at the prefix `data/train_00000`:

    data/train_00000.bin     05 00 06 00 50 c4 07 00 50 c4         uint16, little endian, no header
    data/train_00000.idx
        0     b"MMIDIDX\\x00\\x00"
        9     uint64      1         version
        17    uint8       8         dtype code (8 = uint16, 4 = int32)
        18    uint64      2         N, sequences
        26    uint64      3         D, documents + 1
        34    int32 × N   3 2       tokens in each sequence
        42    int64 × N   0 6       byte offset of each sequence
        58    int64 × D   0 1 2     sequence at which each document begins; the last is N

We write one sequence per document; the reader also takes pairs by Megatron's own tools with several. The layout is that
of `megatron/core/datasets/indexed_dataset.py`. Its 64-bit part is not aligned, and numpy copies a whole unaligned array
before it searches it: hence `bisect` below, which touches log2(N) entries.
"""

import hashlib
import os
import struct
from array import array
from bisect import bisect_right
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt

from dsllm.data.files import mapped, os_errors_named, sync_to_disk, temporary
from dsllm.errors import DataError

MAGIC = b"MMIDIDX\x00\x00"
HEADER = struct.Struct("<9sQBQQ")
VERSION = 1
DTYPES: dict[int, np.dtype] = {8: np.dtype("<u2"), 4: np.dtype("<i4")}
"""By the code in the header. The codes 6 and 7 mean different types in different stacks, so no file should use them."""

REPREPARE = "prepare the folder again with `python -m data_prep tokenize`"
INDEX_ROWS = 1 << 20
"""Rows of the index that are checked or written at a time, so that its size costs no memory."""


def token_dtype(vocab_size: int) -> np.dtype:
    """The narrowest token type of the format for a vocabulary: uint16 up to 65,536 symbols, else int32."""
    return DTYPES[8] if vocab_size <= 1 << 16 else DTYPES[4]


def bin_path(prefix: Path) -> Path:
    """The tokens of the pair at `prefix`."""
    return prefix.with_name(prefix.name + ".bin")


def idx_path(prefix: Path) -> Path:
    """The index of the pair at `prefix`."""
    return prefix.with_name(prefix.name + ".idx")


@dataclass(frozen=True)
class PairSummary:
    """What was written: counts, and the SHA-256 of both files in hexadecimal."""

    tokens: int
    documents: int
    bin_sha256: str
    idx_sha256: str


class IndexedWriter:
    """Writes one pair, document by document; the pair gets its name only when it is complete.

        with IndexedWriter(Path("data/train_00000"), np.uint16) as writer:
            writer.add(np.array([5, 6, 50256]))
            summary = writer.finish()

    Leaving the `with` block without `finish`, by an exception or not, removes what was written.

    Raises:
        DataError: an empty document, a token id that `dtype` cannot hold, a full disk, a missing folder.
    """

    def __init__(self, prefix: Path, dtype: npt.DTypeLike, *, signed: bool = False) -> None:
        """`signed`: whether numbers below 0 are meant, as in labels; among tokens they are a mistake."""
        self.prefix = Path(prefix)
        self._least = np.iinfo(dtype).min if signed else 0
        self.dtype = np.dtype(dtype).newbyteorder("<")
        codes = [code for code, known in DTYPES.items() if known == self.dtype]
        if not codes:
            raise DataError(f"{self.prefix}: tokens of type {np.dtype(dtype)}; the format holds uint16 or int32")
        self._code = codes[0]
        self._bin, self._idx = bin_path(self.prefix), idx_path(self.prefix)
        self._sizes = array("i")
        self._tokens = 0
        self._digest = hashlib.sha256()
        with os_errors_named(self._bin):
            self._file = temporary(self._bin).open("wb", buffering=1 << 20)

    def add(self, tokens: npt.NDArray[np.integer]) -> None:
        """Appends one document: its tokens and its end-of-text, shape (n,) with n > 0."""
        self.add_many(tokens, np.array([len(tokens)]))

    def add_many(self, tokens: npt.NDArray[np.integer], sizes: npt.NDArray[np.integer]) -> None:
        """Appends `len(sizes)` documents that lie one after the other in `tokens`, shape (sum of sizes,)."""
        document = len(self._sizes)
        if len(sizes) and sizes.min() < 1:
            empty = document + int(np.argmin(sizes))
            raise DataError(f"{self._bin}: document {empty} is empty; count empty documents and leave them out")
        if int(sizes.sum()) != len(tokens):
            raise DataError(f"{self._bin}: {len(tokens):,} tokens in documents of {int(sizes.sum()):,} in all")
        if not len(tokens):
            return
        if int(sizes.max()) > np.iinfo(np.int32).max:
            raise DataError(f"{self._bin}: a document of {int(sizes.max()):,} tokens; the format holds 2,147,483,647")
        lowest, highest, largest = int(tokens.min()), int(tokens.max()), np.iinfo(self.dtype).max
        if lowest < self._least or highest > largest:
            wrong = lowest if lowest < self._least else highest
            raise DataError(f"{self._bin}: token id {wrong}; {self.dtype.name} holds 0 to {largest}, take int32")
        content = np.ascontiguousarray(tokens, dtype=self.dtype).data.cast("B")
        with os_errors_named(self._bin):
            self._file.write(content)
        self._digest.update(content)
        self._sizes.frombytes(sizes.astype(np.int32).tobytes())
        self._tokens += len(tokens)

    @property
    def tokens(self) -> int:
        """Tokens added so far."""
        return self._tokens

    @property
    def documents(self) -> int:
        """Documents added so far."""
        return len(self._sizes)

    def finish(self) -> PairSummary:
        """Writes the index and gives both files their names, the index last: where it is, the pair is complete."""
        if not self._sizes:
            raise DataError(f"{self._bin}: no documents; a pair holds at least one")
        with os_errors_named(self._bin):
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
        with os_errors_named(self._idx):
            idx_sha256 = self._write_index()
            # An index of an earlier pair must not stand beside the new tokens, not even for a moment.
            self._idx.unlink(missing_ok=True)
            temporary(self._bin).replace(self._bin)
            temporary(self._idx).replace(self._idx)
            sync_to_disk(self.prefix.parent)
        return PairSummary(self._tokens, len(self._sizes), self._digest.hexdigest(), idx_sha256)

    def _write_index(self) -> str:
        sizes = np.frombuffer(self._sizes, dtype=np.int32)
        n, digest = len(sizes), hashlib.sha256()
        with temporary(self._idx).open("wb") as file:

            def write(content: bytes) -> None:
                file.write(content)
                digest.update(content)

            write(HEADER.pack(MAGIC, VERSION, self._code, n, n + 1))
            write(sizes.astype("<i4").tobytes())
            offset = 0
            for start in range(0, n, INDEX_ROWS):
                ends = offset + np.cumsum(sizes[start : start + INDEX_ROWS], dtype="<i8") * self.dtype.itemsize
                write(np.concatenate([[offset], ends[:-1]]).astype("<i8").tobytes())
                offset = int(ends[-1])
            for start in range(0, n + 1, INDEX_ROWS):
                write(np.arange(start, min(start + INDEX_ROWS, n + 1), dtype="<i8").tobytes())
            file.flush()
            os.fsync(file.fileno())
        return digest.hexdigest()

    def abort(self) -> None:
        """Removes what was written under temporary names; a finished pair stays."""
        with suppress(OSError):  # a full disk fails again in the flush of close(); the file goes away in the next line
            self._file.close()
        temporary(self._bin).unlink(missing_ok=True)
        temporary(self._idx).unlink(missing_ok=True)

    def __enter__(self) -> "IndexedWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abort()


class IndexedPair:
    """A pair, memory-mapped: `pair.tokens[a:b]` reads those tokens and no others.

    Opening checks headers, the sizes of both files and the ends of the index, in constant time; the index's inside is
    checked when it is first used, once. Arrays given out keep the map alive, so it is never closed under them.

    Args:
        prefix: the path of both files without their suffixes.
        random_access: whether the tokens will be read in small windows here and there, not from end to end.

    Raises:
        DataError: a file is missing, truncated or of another kind, or the two do not belong together.
    """

    def __init__(self, prefix: Path, *, random_access: bool = False) -> None:
        self.prefix = Path(prefix)
        self._bin, self._idx = bin_path(self.prefix), idx_path(self.prefix)
        index = mapped(self._idx, np.dtype(np.uint8))
        if len(index) < HEADER.size:
            raise DataError(f"{self._idx}: {len(index)} bytes, its header alone has {HEADER.size}; {REPREPARE}")
        magic, version, code, n, d = HEADER.unpack(index[: HEADER.size].tobytes())
        if magic != MAGIC:
            raise DataError(f"{self._idx}: begins with {magic!r}, not {MAGIC!r}: not a Megatron index; {REPREPARE}")
        if version != VERSION:
            raise DataError(f"{self._idx}: version {version}, this reads version {VERSION}; {REPREPARE}")
        if code not in DTYPES:
            raise DataError(f"{self._idx}: dtype code {code}; only 8 (uint16) and 4 (int32) are read; {REPREPARE}")
        expected = HEADER.size + 12 * n + 8 * d
        if len(index) != expected:
            raise DataError(f"{self._idx}: {len(index):,} bytes, its header counts {expected:,}; {REPREPARE}")
        if n < 1 or d < 2:
            raise DataError(f"{self._idx}: {n} sequences in {max(d - 1, 0)} documents: nothing to read; {REPREPARE}")
        self.dtype = DTYPES[code]
        self._sizes = index[HEADER.size :][: 4 * n].view("<i4")
        self._offsets = index[HEADER.size + 4 * n :][: 8 * n].view("<i8")
        self._document_index = index[HEADER.size + 12 * n :].view("<i8")
        self._checked = False
        self._check_ends()
        self.tokens = mapped(self._bin, self.dtype, random_access=random_access)
        """The whole stream, shape (tokens,)."""

    def _check_ends(self) -> None:
        n = len(self._sizes)
        if self._document_index[0] != 0 or self._document_index[-1] != n:
            first, last = self._document_index[0], self._document_index[-1]
            raise DataError(f"{self._idx}: documents from sequence {first} to {last}, not 0 to {n}; {REPREPARE}")
        counted = int(self._offsets[-1]) + int(self._sizes[-1]) * self.dtype.itemsize
        with os_errors_named(self._bin):
            actual = self._bin.stat().st_size
        if actual != counted:
            one_each = actual - counted == self.documents * self.dtype.itemsize
            trap = " (one token more per document: Megatron-DeepSpeed's --append-eod leaves it out of the index)"
            hint = trap if one_each else ""
            raise DataError(f"{self._bin}: {actual:,} bytes, but its index counts {counted:,}{hint}; {REPREPARE}")

    def check_index(self) -> None:
        """Checks every row of the index, in constant memory, unless that was done before.

        Raises:
            DataError: sizes, offsets or documents that contradict each other.
        """
        if self._checked:
            return
        n, itemsize, offset = len(self._sizes), self.dtype.itemsize, 0
        for start in range(0, n, INDEX_ROWS):
            sizes = self._sizes[start : start + INDEX_ROWS].astype(np.int64)
            offsets = self._offsets[start : start + INDEX_ROWS]
            expected = offset + (np.cumsum(sizes) - sizes) * itemsize
            wrong = np.flatnonzero((sizes < 1) | (offsets != expected))
            if len(wrong):
                row, size, found = start + wrong[0], sizes[wrong[0]], offsets[wrong[0]]
                raise DataError(
                    f"{self._idx}: sequence {row} has {size} tokens at byte {found}, "
                    f"the sequences before it end at {expected[wrong[0]]}; {REPREPARE}"
                )
            offset = int(expected[-1] + sizes[-1] * itemsize)
        for start in range(0, len(self._document_index) - 1, INDEX_ROWS):
            begins = self._document_index[start : start + INDEX_ROWS + 1]
            steps = np.diff(begins)
            if steps.min() < 1 or begins.min() < 0 or begins.max() > n:  # a difference of int64 may go round
                document = start + int(np.argmin(steps))
                raise DataError(f"{self._idx}: document {document} holds {steps.min()} sequences; {REPREPARE}")
        self._checked = True

    @property
    def sizes(self) -> npt.NDArray[np.int32]:
        """Tokens in each sequence, shape (N,)."""
        self.check_index()
        return self._sizes

    @property
    def offsets(self) -> npt.NDArray[np.int64]:
        """Position in `tokens` of each sequence's first token, shape (N,)."""
        self.check_index()
        return self._offsets // self.dtype.itemsize

    @property
    def document_starts(self) -> npt.NDArray[np.int64]:
        """Position in `tokens` of each document's first token, shape (documents,)."""
        return self.offsets[self._document_index[:-1]]

    @property
    def documents(self) -> int:
        """Documents in the pair."""
        return len(self._document_index) - 1

    def starts_between(self, start: int, stop: int) -> npt.NDArray[np.int64]:
        """The document starts p with start < p < stop, without reading the rest of the index."""
        self.check_index()

        def position(document: int) -> int:
            return int(self._offsets[self._document_index[document]]) // self.dtype.itemsize

        first = bisect_right(range(self.documents), start, key=position)
        last = bisect_right(range(self.documents), stop - 1, key=position)
        return self._offsets[self._document_index[first:last]] // self.dtype.itemsize

    def document_ends(self, first: int, last: int) -> npt.NDArray[np.int64]:
        """One past the last token of the documents first to last - 1, shape (at most last - first,)."""
        self.check_index()
        final = self._document_index[first + 1 : last + 1] - 1
        return self._offsets[final] // self.dtype.itemsize + self._sizes[final]

    def document(self, i: int) -> npt.NDArray[np.integer]:
        """The tokens of document `i`, shape (n,), a view of the map."""
        self.check_index()
        start = int(self._offsets[self._document_index[i]]) // self.dtype.itemsize
        return self.tokens[start : self.document_ends(i, i + 1)[0]]

    def __len__(self) -> int:
        """Documents."""
        return self.documents
