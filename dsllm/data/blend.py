"""Several data sets mixed by weight, where the k-th sample is known without the ones before it.

With weights 3 : 1 the first eight samples come from A A B A A A B A. No table is kept: of the first k samples

    floor(k · 3/4 + 1/2) = 0 1 2 2 3 4 5 5 6      are of A, and the rest of B,

so sample k is of A where that count grows from k to k + 1, and the count is its number within A. More than two sources
are halved again and again: the first half of them is one side with the sum of its weights, and the same rule shares out
what came to it. The counts are exact in integers: they never leave the proportions by more than half a sample per
halving, over any prefix of any length. Each source walks its own epochs in an order of its own.
"""

from collections.abc import Sequence
from fractions import Fraction
from itertools import accumulate
from math import lcm

import numpy as np
import numpy.typing as npt

from dsllm.data.dataset import SampleSource
from dsllm.data.order import derived_seed
from dsllm.errors import ConfigError, DataError


class Blend:
    """A mixture of sources, itself a source: its samples are numbered through, source after source.

    Args:
        sources: with the same context and tokenizer.
        weights: one for each source, above 0; only their proportions count. Written decimals are taken as they are
            written, so that 0.7 is seven tenths exactly.

    Raises:
        ConfigError: weights that are missing, not finite or not above 0.
        DataError: sources of different contexts or tokenizers.
    """

    def __init__(self, sources: Sequence[SampleSource], weights: Sequence[float]) -> None:
        if not sources or len(sources) != len(weights):
            raise ConfigError(f"{len(weights)} weights for {len(sources)} data sets; give each data set one weight")
        wrong = [weight for weight in weights if not 0 < weight < float("inf")]
        if wrong:
            raise ConfigError(f"weight {wrong[0]} of a data set; weights are above 0: leave out what is not to be read")
        first = sources[0]
        if len({source.labelled for source in sources}) > 1:
            raise DataError(
                "problems with labels and plain text in one blend; train on them in turn, or make one folder"
            )
        for source in sources[1:]:
            if source.context != first.context:
                raise DataError(f"contexts {first.context} and {source.context} in one blend; open all with the same")
            if (a := first.tokenizer) and (b := source.tokenizer) and not a.same_as(b):
                raise DataError(f"tokenizers {a} and {b} in one blend; prepare all folders with the same")
        self.sources = list(sources)
        self.context, self.tokenizer, self.labelled = first.context, first.tokenizer, first.labelled
        exact = [Fraction(repr(float(weight))) for weight in weights]
        scale = lcm(*(weight.denominator for weight in exact))
        self._weight_before = [0, *accumulate(int(weight * scale) for weight in exact)]
        self._start = [0, *accumulate(len(source) for source in sources)]

    def __len__(self) -> int:
        """Samples of all sources together."""
        return self._start[-1]

    def sample(self, i: int) -> npt.NDArray[np.int64]:
        """The tokens of sample `i`, shape (context + 1,)."""
        source, inside = self._locate(i)
        return self.sources[source].sample(inside)

    def document_ids(self, i: int) -> npt.NDArray[np.int64]:
        """Which document of sample `i` each input token belongs to, shape (context,)."""
        source, inside = self._locate(i)
        return self.sources[source].document_ids(inside)

    def labels(self, i: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """What is to be predicted at each input token of sample `i`, and the depths; shapes (context,)."""
        source, inside = self._locate(i)
        return self.sources[source].labels(inside)

    def indices_at(self, numbers: npt.NDArray[np.int64], *, seed: int) -> npt.NDArray[np.int64]:
        """The samples at these positions of a run; shapes (any,)."""
        assigned = np.array([self.assign(int(number)) for number in numbers], np.int64).reshape(-1, 2)
        indices = np.empty(len(numbers), np.int64)
        for number, source in enumerate(self.sources):
            mine = np.flatnonzero(assigned[:, 0] == number)
            own_order = derived_seed(seed, number)
            indices[mine] = self._start[number] + source.indices_at(assigned[mine, 1], seed=own_order)
        return indices

    def assign(self, k: int) -> tuple[int, int]:
        """The source of the k-th sample of a run, and how many samples of that source came before it."""
        low, high = 0, len(self.sources)
        while high - low > 1:
            middle = (low + high) // 2
            left = self._weight_before[middle] - self._weight_before[low]
            both = self._weight_before[high] - self._weight_before[low]
            before = _share(k, left, both)
            if _share(k + 1, left, both) > before:
                k, high = before, middle
            else:
                k, low = k - before, middle
        return low, k

    def _locate(self, i: int) -> tuple[int, int]:
        if not 0 <= i < len(self):
            raise IndexError(f"sample {i} of {len(self)}")
        source = int(np.searchsorted(self._start, i, side="right")) - 1
        return source, i - self._start[source]


def _share(k: int, part: int, whole: int) -> int:
    """k · part / whole, rounded to the nearest integer."""
    return (2 * k * part + whole) // (2 * whole)
