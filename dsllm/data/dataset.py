"""Sample i of a split: a window of context + 1 tokens over the concatenated stream of its shards.

Shards [5 6 E] and [7 E 8 E], context 2:

    stream      5 6 E 7 E 8 E
    sample 0    5 6 E             inputs 5 6, targets 6 E
    sample 1        E 7 E         begins with the last target of sample 0, and crosses the shards
    sample 2            E 8 E

Every token but the first is a target once in an epoch. The files are memory-mapped: a sample copies its own window and
nothing else, so that memory does not grow with the data.
"""

from bisect import bisect_right
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from dsllm.data.manifest import TokenizerInfo
from dsllm.data.order import samples_at
from dsllm.data.shards import open_split
from dsllm.errors import DataError


class SampleSource(Protocol):
    """Numbered samples, and the order in which a run with a seed sees them: one data set, or a blend of several."""

    context: int
    tokenizer: TokenizerInfo | None
    labelled: bool
    """Whether labels say what is to be predicted at each position; else that is the next token."""

    def __len__(self) -> int:
        """Samples that differ."""

    def sample(self, i: int) -> npt.NDArray[np.int64]:
        """The tokens of sample `i`, shape (context + 1,)."""

    def document_ids(self, i: int) -> npt.NDArray[np.int64]:
        """Which document of sample `i` each input token belongs to: 0, 1, 2, …, shape (context,)."""

    def labels(self, i: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Shapes (context,): what is to be predicted at each input token of sample `i`, -100 for nothing; and where an
        answer ends, how long the chain of reasoning up to it is, else 0. Asked for only where `labelled`."""

    def indices_at(self, numbers: npt.NDArray[np.int64], *, seed: int) -> npt.NDArray[np.int64]:
        """The samples that come at these positions of a run, counted from 0 over all epochs; shapes (any,)."""


class TokenDataset:
    """One split of a data folder, or of a token file of another project.

        TokenDataset(Path("data/owm"), "train", context=1024).sample(0)      array of shape (1025,)

    Args:
        path: a folder, a `.bin` file or the prefix of a pair; see `dsllm.data.shards`.
        split: train, val or test.
        context: input tokens of a sample.
        tokenizer: the one that the model expects; None takes any.

    Raises:
        DataError: what `open_split` finds wrong, or fewer tokens than one window.
    """

    labelled = False

    def __init__(self, path: Path, split: str, context: int, tokenizer: TokenizerInfo | None = None) -> None:
        self.path, self.split, self.context = Path(path), split, context
        opened = open_split(self.path, split, tokenizer)
        self._shards, self.tokenizer = opened.shards, opened.tokenizer
        self._starts = [0]
        for shard in self._shards:
            self._starts.append(self._starts[-1] + len(shard.tokens))
        if self.tokens <= context:
            fits = f"take model.context <= {self.tokens - 1} or " if self.tokens > 1 else ""
            raise DataError(
                f"{self.path}: {self.tokens:,} tokens in split {split}, but a sample of context {context} has "
                f"{context + 1:,}; {fits}prepare more text"
            )

    @property
    def tokens(self) -> int:
        """Tokens of the split."""
        return self._starts[-1]

    def __len__(self) -> int:
        """Samples of one epoch."""
        return (self.tokens - 1) // self.context

    def sample(self, i: int) -> npt.NDArray[np.int64]:
        """The tokens of sample `i`, shape (context + 1,).

        Raises:
            IndexError: i is not in range(len(self)).
            DataError: a token id outside the tokenizer's vocabulary: the file is damaged.
        """
        start = self._window(i)
        window = np.empty(self.context + 1, np.int64)
        filled = 0
        while filled < len(window):
            number, at = self._locate(start + filled)
            piece = self._shards[number].tokens[at : at + len(window) - filled]
            window[filled : filled + len(piece)] = piece
            filled += len(piece)
        if self.tokenizer is not None and not (window.min() >= 0 and window.max() < self.tokenizer.size):
            wrong = window.max() if window.min() >= 0 else window.min()
            raise DataError(
                f"{self.path}: token id {wrong} in sample {i} of split {self.split}, but {self.tokenizer} ends at "
                f"{self.tokenizer.size - 1:,}; see `python -m data_prep verify {self.path}`"
            )
        return window

    def document_ids(self, i: int) -> npt.NDArray[np.int64]:
        """Which document each input token of sample `i` belongs to, counted from 0 within it, shape (context,).

        Raises:
            IndexError: i is not in range(len(self)).
            DataError: the files do not say where documents begin, or their index is damaged.
        """
        start = self._window(i)
        stop = start + self.context
        begins = np.zeros(self.context, np.int64)
        number, _ = self._locate(start)
        while number < len(self._shards) and self._starts[number] < stop:
            base = self._starts[number]
            if base > start:
                begins[base - start] = 1
            inside = self._shards[number].starts_between(max(start - base, 0), stop - base)
            begins[inside + base - start] = 1
            number += 1
        return begins.cumsum()

    def labels(self, i: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """The next tokens, and no chains: what a source of problems says of its own; shapes (context,)."""
        return self.sample(i)[1:], np.zeros(self.context, np.int64)

    def indices_at(self, numbers: npt.NDArray[np.int64], *, seed: int) -> npt.NDArray[np.int64]:
        """The samples at these positions of a run: each epoch is a permutation of its own; shapes (any,)."""
        return samples_at(numbers % len(self), n=len(self), seed=seed, epoch=numbers // len(self))

    def _window(self, i: int) -> int:
        if not 0 <= i < len(self):
            raise IndexError(f"sample {i} of {len(self)}")
        return i * self.context

    def _locate(self, token: int) -> tuple[int, int]:
        """The shard that holds a position of the stream, and the position in it."""
        number = bisect_right(self._starts, token) - 1
        return number, token - self._starts[number]
