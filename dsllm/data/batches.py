"""The samples of one rank in one step, from `consumed_samples` alone.

Global batch 8, micro batch 2, after 40 consumed samples: the step takes the samples 40 to 47, whatever the world size.

    1 rank     rank 0    40 41 | 42 43 | 44 45 | 46 47      4 micro batches
    2 ranks    rank 0    40 42 | 44 46                      2 micro batches each
               rank 1    41 43 | 45 47

A run's place in its data is therefore one integer, and a run may go on with other ranks and another accumulation.
"""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType

import numpy as np
import numpy.typing as npt

from dsllm.data.dataset import SampleSource
from dsllm.errors import ConfigError

NO_TARGET = -100
"""A target that is not scored, as torch's cross_entropy has it."""


@dataclass(frozen=True)
class Batch:
    """What one rank trains on in one optimizer step."""

    tokens: npt.NDArray[np.int64]
    """Shape (micro_batches, B, T + 1): inputs are [..., :-1]."""
    document_ids: npt.NDArray[np.int64] | None
    """Shape (micro_batches, B, T): tokens of different ids must not attend to each other; None without masking."""
    labels: npt.NDArray[np.int64] | None = None
    """Shape (micro_batches, B, T), -100 for nothing; None where the next token is to be predicted."""

    weights: npt.NDArray[np.float64] | None = None
    """Shape (micro_batches,), with labels: by which the mean loss of each is multiplied, so that the mean over micro
    batches and ranks is that over all labels of the global batch."""

    @property
    def targets(self) -> npt.NDArray[np.int64]:
        """What is to be predicted, shape (micro_batches, B, T)."""
        return self.tokens[..., 1:] if self.labels is None else self.labels


@dataclass(frozen=True)
class EvaluationBatch:
    """What one rank evaluates in one forward pass."""

    tokens: npt.NDArray[np.int64]
    """Shape (B, T + 1)."""
    document_ids: npt.NDArray[np.int64] | None
    """Shape (B, T), or None without masking."""
    valid: npt.NDArray[np.bool_]
    """Shape (B,): False where the row is padding, whose targets must not count."""
    labels: npt.NDArray[np.int64] | None = None
    """Shape (B, T), -100 for nothing; None where the next token is to be predicted."""
    depths: npt.NDArray[np.int64] | None = None
    """Shape (B, T), with labels: where an answer ends, the length of its chain, else 0."""

    @property
    def targets(self) -> npt.NDArray[np.int64]:
        """What is to be predicted, shape (B, T); -100 for nothing, and all over rows of padding."""
        targets = self.tokens[:, 1:] if self.labels is None else self.labels
        return np.where(self.valid[:, None], targets, NO_TARGET)


def micro_batches(*, global_batch_size: int, micro_batch_size: int, world_size: int) -> int:
    """Forward passes of a rank per optimizer step, the gradient accumulation.

    Raises:
        ConfigError: they do not come out whole.
    """
    together = micro_batch_size * world_size
    if global_batch_size < 1 or global_batch_size % together:
        ranks = "1 rank" if world_size == 1 else f"{world_size} ranks"
        raise ConfigError(
            f"train.global_batch_size = {global_batch_size}: with {ranks} and micro_batch_size {micro_batch_size} "
            f"it must be a multiple of {together}"
        )
    return global_batch_size // together


class BatchLoader:
    """Gives a rank its part of any global batch; it keeps no state.

    Args:
        source: a data set or a blend.
        seed: of the order of the samples.
        global_batch_size: samples per optimizer step over all ranks.
        micro_batch_size: samples per rank in one forward pass.
        rank: this process among those that share the batch, from 0.
        world_size: how many they are.
        mask_documents: also give the document of each token.

    Raises:
        ConfigError: batch sizes that contradict each other.
    """

    def __init__(
        self,
        source: SampleSource,
        *,
        seed: int,
        global_batch_size: int,
        micro_batch_size: int,
        rank: int,
        world_size: int,
        mask_documents: bool = False,
    ) -> None:
        self.micro_batches = micro_batches(
            global_batch_size=global_batch_size, micro_batch_size=micro_batch_size, world_size=world_size
        )
        self.source, self.seed, self.mask_documents = source, seed, mask_documents
        self.global_batch_size, self.micro_batch_size = global_batch_size, micro_batch_size
        self.rank, self.world_size = rank, world_size

    def batch(self, consumed_samples: int) -> Batch:
        """This rank's part of the global batch that follows `consumed_samples`."""
        numbers = np.arange(consumed_samples + self.rank, consumed_samples + self.global_batch_size, self.world_size)
        indices = self.source.indices_at(numbers, seed=self.seed)
        shape = (self.micro_batches, self.micro_batch_size, -1)
        tokens = np.stack([self.source.sample(int(i)) for i in indices]).reshape(shape)
        ids = labels = None
        if self.mask_documents:
            ids = np.stack([self.source.document_ids(int(i)) for i in indices]).reshape(shape)
        if self.source.labelled:
            labels = np.stack([self.source.labels(int(i))[0] for i in indices]).reshape(shape)
        return Batch(tokens, ids, labels, None if labels is None else self._weights(labels, consumed_samples))

    def _weights(self, labels: npt.NDArray[np.int64], consumed_samples: int) -> npt.NDArray[np.float64]:
        """Of each micro batch, by the labels that it has of those of the global batch, other ranks' included."""
        numbers = np.arange(consumed_samples, consumed_samples + self.global_batch_size)
        everyones = (self.source.labels(int(i))[0] for i in self.source.indices_at(numbers, seed=self.seed))
        total = sum(int((of != NO_TARGET).sum()) for of in everyones)
        return (labels != NO_TARGET).sum((1, 2)) * self.micro_batches * self.world_size / max(total, 1)


class Prefetcher:
    """Reads the batch after the one asked for in a thread, while the step computes.

    It gives what the loader gives, in any order of calls; only the wait differs.
    """

    def __init__(self, loader: BatchLoader) -> None:
        self.loader = loader
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="batches")
        self._ahead: dict[int, Future[Batch]] = {}

    def batch(self, consumed_samples: int) -> Batch:
        """As `BatchLoader.batch`; errors of the thread are raised here, when the broken batch is asked for."""
        ready = self._ahead.pop(consumed_samples, None) or self._submit(consumed_samples)
        batch = ready.result()
        following = consumed_samples + self.loader.global_batch_size
        self._ahead = {following: self._submit(following)}
        return batch

    def _submit(self, consumed_samples: int) -> "Future[Batch]":
        return self._pool.submit(self.loader.batch, consumed_samples)

    def close(self) -> None:
        """Ends the thread; the batch that it is reading is dropped."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> "Prefetcher":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def evaluation_batches(
    source: SampleSource,
    *,
    samples: int | None,
    micro_batch_size: int,
    rank: int,
    world_size: int,
    mask_documents: bool = False,
) -> Iterator[EvaluationBatch]:
    """Evenly spaced samples of a source, each counted once over all ranks.

    Every rank makes the same number of passes, as collective operations in the model need; rows of padding are zeros
    and not `valid`.

    Args:
        samples: how many; None, or more than there are, takes all.
    """
    available = len(source)
    wanted = available if samples is None else min(samples, available)
    mine = range(rank, wanted, world_size)
    passes = -(-wanted // (world_size * micro_batch_size))
    for start in range(0, passes * micro_batch_size, micro_batch_size):
        rows = mine[start : start + micro_batch_size]
        tokens = np.zeros((micro_batch_size, source.context + 1), np.int64)
        ids, labels, depths = (
            np.zeros((micro_batch_size, source.context), np.int64) if wanted else None
            for wanted in (mask_documents, source.labelled, source.labelled)
        )
        for row, number in enumerate(rows):
            i = number * available // wanted
            tokens[row] = source.sample(i)
            if ids is not None:
                ids[row] = source.document_ids(i)
            if labels is not None and depths is not None:
                labels[row], depths[row] = source.labels(i)
        yield EvaluationBatch(tokens, ids, np.arange(micro_batch_size) < len(rows), labels, depths)
