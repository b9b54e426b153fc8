"""Sample i of a split of problems: one problem, from its first token, and what is to be said at its positions.

    4 f2 f0 E, context 5        tokens  4 f2 f0 E E E      padded with end-of-text
                                labels  - 1  3  - -        from the stream beside the tokens; `-` is -100
                                depths  0 1  2  0 0        how long the chain is where an answer ends; see reasoning

A problem that were cut anywhere could not be solved, so none is: the context must hold the longest.
"""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dsllm.data.batches import NO_TARGET
from dsllm.data.dataset import SampleSource, TokenDataset
from dsllm.data.indexed import IndexedPair
from dsllm.data.manifest import DEPTHS, LABELS, MANIFEST_NAME, Manifest, TokenizerInfo
from dsllm.data.order import samples_at
from dsllm.data.shards import open_split
from dsllm.errors import DataError, TooLongError


def open_samples(path: Path, split: str, context: int) -> SampleSource:
    """One split of a data folder, or of another project's token file: problems, where labels go with the tokens.

    Raises:
        DataError: what the source finds wrong.
    """
    kind = ProblemDataset if holds_problems(Path(path)) else TokenDataset
    return kind(Path(path), split, context)


def holds_problems(path: Path) -> bool:
    """Whether labels go with the tokens of a data folder."""
    return (path / MANIFEST_NAME).exists() and any(LABELS in shard.parallel for shard in Manifest.read(path).shards)


def chance_of(path: Path) -> dict[str, float]:
    """By the length of the chain, what guessing is worth in a folder of problems; empty for another source."""
    path = Path(path)
    chance = Manifest.read(path).source.get("chance") if (path / MANIFEST_NAME).exists() else None
    return {str(length): float(str(share)) for length, share in chance.items()} if isinstance(chance, dict) else {}


def longest_problem(path: Path, split: str) -> int:
    """Tokens of the longest problem of a split, without end-of-text."""
    return _longest([shard for shard in open_split(path, split).shards if isinstance(shard, IndexedPair)])


def _longest(pairs: Sequence[IndexedPair]) -> int:
    return max(int(pair.sizes.max()) for pair in pairs) - 1


class ProblemDataset:
    """One split of a folder of problems (`python -m data_prep reasoning`); a `SampleSource`.

    Args:
        path: the folder.
        split: train, val, test or beyond.
        context: input tokens of a sample.
        tokenizer: the one that the model expects; None takes any.

    Raises:
        DataError: what `open_split` finds wrong, a missing stream, or a problem longer than the context.
    """

    labelled = True

    def __init__(self, path: Path, split: str, context: int, tokenizer: TokenizerInfo | None = None) -> None:
        self.path, self.split, self.context = Path(path), split, context
        opened = open_split(self.path, split, tokenizer)
        assert opened.tokenizer is not None
        self.tokenizer: TokenizerInfo | None = opened.tokenizer
        self._symbols, self.end_of_text = opened.tokenizer.size, opened.tokenizer.end_of_text
        self._tokens = [shard for shard in opened.shards if isinstance(shard, IndexedPair)]
        self._labels, self._depths = ([self._beside(pair, name) for pair in self._tokens] for name in (LABELS, DEPTHS))
        self._starts = np.cumsum([0, *(pair.documents for pair in self._tokens)])
        longest = _longest(self._tokens)
        if longest > context:
            raise TooLongError(
                f"{self.path}: problems of up to {longest:,} tokens in split {split}, model.context = {context}; "
                f"take at least {longest}, or make shorter ones"
            )

    def _beside(self, tokens: IndexedPair, name: str) -> IndexedPair:
        pair = IndexedPair(tokens.prefix.with_name(f"{tokens.prefix.name}.{name}"), random_access=True)
        if len(pair.tokens) != len(tokens.tokens) or pair.documents != tokens.documents:
            raise DataError(f"{pair.prefix}.bin: not as many numbers as {tokens.prefix}.bin has tokens; make it anew")
        return pair

    def __len__(self) -> int:
        """Problems."""
        return int(self._starts[-1])

    def sample(self, i: int) -> npt.NDArray[np.int64]:
        """The tokens of problem `i`, padded with end-of-text, shape (context + 1,)."""
        return self._row(self._tokens, i, self.context + 1, self.end_of_text)

    def labels(self, i: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """What is to be said at each token of problem `i`, and the chain's length up to there; shapes (context,)."""
        labels = self._row(self._labels, i, self.context, NO_TARGET)
        if labels.max() >= self._symbols:
            raise DataError(
                f"{self.path}: label {labels.max()} in problem {i} of split {self.split}, but {self.tokenizer} ends "
                f"before; see `python -m data_prep verify {self.path}`"
            )
        return labels, self._row(self._depths, i, self.context, 0)

    def document_ids(self, i: int) -> npt.NDArray[np.int64]:
        """0 for the problem, 1 for what pads it, shape (context,)."""
        size = self._document(self._tokens, i).size
        return (np.arange(self.context) >= size).astype(np.int64)

    def indices_at(self, numbers: npt.NDArray[np.int64], *, seed: int) -> npt.NDArray[np.int64]:
        """The problems at these positions of a run: each epoch is a permutation of its own; shapes (any,)."""
        return samples_at(numbers % len(self), n=len(self), seed=seed, epoch=numbers // len(self))

    @cached_property
    def lengths(self) -> npt.NDArray[np.int64]:
        """The longest chain of each problem, shape (problems,)."""
        found = [np.maximum.reduceat(pair.tokens, np.cumsum([0, *pair.sizes[:-1]])) for pair in self._depths]
        return np.concatenate(found).astype(np.int64)

    def size(self, i: int) -> int:
        """Tokens of problem `i`, without end-of-text."""
        return self._document(self._tokens, i).size - 1

    def _document(self, pairs: list[IndexedPair], i: int) -> npt.NDArray[np.integer]:
        if not 0 <= i < len(self):
            raise IndexError(f"problem {i} of {len(self)}")
        shard = int(np.searchsorted(self._starts, i, side="right")) - 1
        return pairs[shard].document(i - int(self._starts[shard]))

    def _row(self, pairs: list[IndexedPair], i: int, size: int, padding: int) -> npt.NDArray[np.int64]:
        row = np.full(size, padding, np.int64)
        document = self._document(pairs, i)[:size]
        row[: document.size] = document
        return row
