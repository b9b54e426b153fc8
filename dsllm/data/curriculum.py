"""Chains that lengthen as training goes on, so that a model learns the first step before the tenth.

    start 2, end 24, flops 2e12:    length of the chains    2     3    …    24    24
                                    training FLOPs          0   9e10   …   2e12  4e12

The length is a function of the FLOPs that a run has spent, not of what it can do by then, so that all arms of a
comparison see the same at the same expense. A sample holds as many problems of that length as fit, kept apart by
their document ids, so that short ones cost no padding:

    4 f2 f0 | 1 f7 f7 | 3 f0 f2 | E        context 10, three problems of two steps
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from dsllm.config import CurriculumConfig
from dsllm.data.batches import NO_TARGET
from dsllm.data.dataset import SampleSource
from dsllm.data.order import samples_at
from dsllm.data.problems import ProblemDataset
from dsllm.errors import DataError


def chain_length(curriculum: CurriculumConfig, flops: float) -> int:
    """The length of the chains in the step after so many training FLOPs."""
    done = min(flops / curriculum.flops, 1.0)
    return curriculum.start + int(done * (curriculum.end - curriculum.start))


def check_lengths(curriculum: CurriculumConfig, source: SampleSource) -> None:
    """Raises `DataError` if a source is no data set of problems, or has none of some length that will be asked for."""
    if not isinstance(source, ProblemDataset):
        raise DataError(
            "data.curriculum: needs one folder of problems with chains, see `python -m data_prep reasoning`"
        )
    missing = sorted(set(range(curriculum.start, curriculum.end + 1)).difference(source.lengths.tolist()))
    if missing:
        raise DataError(
            f"data.curriculum: {source.path} has no chains of length {missing[0]}; make some "
            f"(`--lengths {curriculum.start}-{curriculum.end}`), or take other bounds"
        )


class PackedProblems:
    """The problems of a data set whose longest chain is of one length, several in a sample; a `SampleSource`.

    Raises `DataError` if there are too few for a sample.
    """

    labelled = True

    def __init__(self, problems: ProblemDataset, length: int) -> None:
        self._problems, self.context, self.tokenizer = problems, problems.context, problems.tokenizer
        self._chosen = np.flatnonzero(problems.lengths == length)
        self._size = max((problems.size(int(i)) for i in self._chosen), default=1)
        self._each = self.context // self._size
        if len(self) < 1:
            raise DataError(
                f"{problems.path}: {len(self._chosen)} problems of length {length} in split {problems.split}, a sample "
                f"holds {self._each}; make more"
            )

    def __len__(self) -> int:
        """Samples that differ."""
        return len(self._chosen) // self._each

    def sample(self, i: int) -> npt.NDArray[np.int64]:
        """The tokens of sample `i`, padded with end-of-text, shape (context + 1,)."""
        return self._packed([self._problems.sample(p) for p in self._of(i)], self._problems.end_of_text, 1)

    def labels(self, i: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """What is to be said at each token of sample `i`, and the chain's length up to there; shapes (context,)."""
        labels, depths = zip(*(self._problems.labels(p) for p in self._of(i)), strict=True)
        return self._packed(labels, NO_TARGET), self._packed(depths, 0)

    def document_ids(self, i: int) -> npt.NDArray[np.int64]:
        """Which problem of sample `i` a token belongs to, shape (context,); what pads it is one more."""
        return np.minimum(np.arange(self.context) // self._size, self._each).astype(np.int64)

    def indices_at(self, numbers: npt.NDArray[np.int64], *, seed: int) -> npt.NDArray[np.int64]:
        """The samples at these positions of a run: each epoch is a permutation of its own; shapes (any,)."""
        return samples_at(numbers % len(self), n=len(self), seed=seed, epoch=numbers // len(self))

    def _of(self, i: int) -> list[int]:
        if not 0 <= i < len(self):
            raise IndexError(f"sample {i} of {len(self)}")
        return [int(p) for p in self._chosen[i * self._each : (i + 1) * self._each]]

    def _packed(self, rows: Sequence[npt.NDArray[np.int64]], padding: int, more: int = 0) -> npt.NDArray[np.int64]:
        packed = np.full(self.context + more, padding, np.int64)
        for number, row in enumerate(rows):
            packed[number * self._size : (number + 1) * self._size] = row[: self._size]
        return packed
