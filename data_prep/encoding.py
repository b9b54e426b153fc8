"""Groups of documents to tokens: several at a time, given back in order.

              group 0 ─▶ thread A ─▶ tokens ┐
    reader ─▶ group 1 ─▶ thread B ─▶ tokens ┼─▶ 0, 1, 2, …
              group 2 ─▶ thread A ─▶ tokens ┘

The encoders compute without Python's lock, so threads are enough, and no document is copied to another process. At
most two groups per thread and two of the reader are in memory, whatever the size of the source.
"""

import re
from collections import deque
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from data_prep.ahead import one_ahead
from data_prep.batches import Batch
from data_prep.fast import BatchEncoder
from data_prep.splits import SplitRule
from dsllm.errors import DataError

MAX_RUN = 1_000_000
"""Characters without white space that are encoded at once: the time for one such run grows faster than its length."""
# From the run's first character on alone: elsewhere each would be tried anew.
LONG_RUN = re.compile(rf"(?<!\S)\S{{{MAX_RUN + 1},}}")


@dataclass(frozen=True)
class SplitTokens:
    """What one group adds to one split."""

    tokens: npt.NDArray[np.integer]
    """Documents one after the other, each with its end-of-text token, shape (sum of sizes,)."""
    sizes: npt.NDArray[np.int64]
    """Shape (documents,)."""
    text_bytes: int


@dataclass(frozen=True)
class EncodedBatch:
    """A group and its tokens by split."""

    batch: Batch
    by_split: dict[str, SplitTokens]
    notes: tuple[str, ...]
    """What the user should hear about single documents."""

    @property
    def tokens(self) -> int:
        return sum(len(part.tokens) for part in self.by_split.values())


def encode_batches(
    batches: Iterable[Batch],
    encoder: BatchEncoder,
    rule: SplitRule,
    *,
    end_of_text: int,
    dtype: np.dtype,
    workers: int,
) -> Generator[EncodedBatch, None, None]:
    """The groups with their tokens, in order; a `DataError` of the source comes after all groups before it.

    Args:
        batches: the groups, read in a thread of their own.
        encoder: safe to call from several threads.
        rule: the split of each document.
        end_of_text: appended to each document.
        dtype: of the tokens.
        workers: threads that encode.
    """

    def encode(batch: Batch) -> EncodedBatch:
        return _encoded(batch, encoder, rule, end_of_text, dtype)

    groups = one_ahead(batches)
    with closing(groups), ThreadPoolExecutor(workers, thread_name_prefix="encode") as pool:
        waiting: deque[Future[EncodedBatch]] = deque()
        try:
            broken = None
            while True:
                try:
                    batch = next(groups, None)
                except DataError as error:
                    broken = error  # what was read before the source broke off is not lost
                    break
                if batch is None:
                    break
                waiting.append(pool.submit(encode, batch))
                while waiting and (len(waiting) >= 2 * workers or waiting[0].done()):
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
            if broken is not None:
                raise broken
        finally:
            for future in waiting:
                future.cancel()


def _encoded(batch: Batch, encoder: BatchEncoder, rule: SplitRule, end_of_text: int, dtype: np.dtype) -> EncodedBatch:
    tokens, sizes, notes = _bounded(batch, encoder)
    ends = np.cumsum(sizes)
    last = np.array([end_of_text], dtype)
    parts: dict[str, tuple[list[npt.NDArray], list[int], list[int]]] = {}
    for text, size, end in zip(batch.texts, sizes.tolist(), ends.tolist(), strict=True):
        content = text.encode()
        pieces, lengths, text_bytes = parts.setdefault(rule.split_of(content), ([], [], []))
        pieces += [tokens[end - size : end], last]
        lengths.append(size + 1)
        text_bytes.append(len(content))
    by_split = {
        split: SplitTokens(np.concatenate(pieces, dtype=dtype, casting="same_kind"), np.array(lengths), sum(text_bytes))
        for split, (pieces, lengths, text_bytes) in parts.items()
    }
    return EncodedBatch(batch, by_split, tuple(notes))


def _bounded(batch: Batch, encoder: BatchEncoder) -> tuple[npt.NDArray[np.integer], npt.NDArray[np.int64], list[str]]:
    """Tokens and sizes of the texts; one with a very long run is encoded in pieces, and named."""
    pieces: list[str] = []
    counts: list[int] = []
    notes = []
    for text, place in zip(batch.texts, batch.places, strict=True):
        cuts = _cuts(text)
        pieces += [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)] if cuts else [text]
        counts.append(len(cuts) + 1)
        if cuts:
            notes.append(
                f"{place}: more than {MAX_RUN:,} characters without white space, encoded in {len(cuts) + 1} pieces"
            )
    tokens, sizes = encoder.encode_batch(pieces)
    if notes:
        sizes = np.add.reduceat(sizes, np.cumsum([0, *counts[:-1]]))
    return tokens, sizes, notes


def _cuts(text: str) -> Sequence[int]:
    """Where to cut a text so that no run without white space is longer than `MAX_RUN`."""
    if len(text) <= MAX_RUN:
        return ()
    return [cut for run in LONG_RUN.finditer(text) for cut in range(run.start() + MAX_RUN, run.end(), MAX_RUN)]
