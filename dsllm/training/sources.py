"""A run's data: its splits, opened and checked against its model."""

from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dsllm.config import RunConfig
from dsllm.data.batches import Batch, BatchLoader, Prefetcher
from dsllm.data.blend import Blend
from dsllm.data.curriculum import PackedProblems, chain_length, check_lengths
from dsllm.data.dataset import SampleSource, TokenDataset
from dsllm.data.manifest import MANIFEST_NAME, Manifest
from dsllm.data.problems import ProblemDataset, longest_problem, open_samples
from dsllm.errors import DataError, TooLongError
from dsllm.tokenizer import Tokenizer, tokenizer_of

BEYOND = "beyond"
"""The split of chains longer than those trained on."""


@dataclass(frozen=True)
class MicroBatch:
    """What one forward pass of training sees, on the device."""

    input_ids: torch.Tensor
    """(B, T) int64."""
    targets: torch.Tensor
    """(B, T) int64: what is to be predicted at each token, the next one or a label; -100 for nothing."""
    document_ids: torch.Tensor | None
    """(B, T) int64 with data.mask_documents, else None."""

    @classmethod
    def of(cls, batch: Batch, index: int, device: torch.device) -> "MicroBatch":
        """One of a rank's batch; the copies to a GPU do not wait for it."""
        tokens = torch.from_numpy(batch.tokens[index]).to(device, non_blocking=True)  # (B, T + 1)
        ids, labels = (
            None if part is None else torch.from_numpy(part[index]).to(device, non_blocking=True)
            for part in (batch.document_ids, batch.labels)
        )
        return cls(tokens[:, :-1], tokens[:, 1:] if labels is None else labels, ids)


def resolve_vocabulary(config: RunConfig) -> tuple[RunConfig, Tokenizer]:
    """The configuration with `model.vocab_size` filled in, and the tokenizer of the data.

    Raises `DataError` if the vocabulary is smaller than the tokenizer's, or the folders' tokenizers differ.
    """
    tokenizer = tokenizer_of(Path(config.data.paths[0]))
    for path in config.data.paths[1:]:
        other = tokenizer_of(Path(path))
        if other.vocab_sha256 != tokenizer.vocab_sha256:
            raise DataError(
                f"data.path: {path} holds tokens of {other.name}, {config.data.paths[0]} of {tokenizer.name}; "
                f"blend folders of one tokenizer"
            )
    size = config.model.vocab_size
    if size is None:
        size = (tokenizer.size + 63) // 64 * 64  # matrix units want multiples; the rows beyond are never a target
    elif size < tokenizer.size:
        raise DataError(
            f"model.vocab_size = {size}: smaller than the {tokenizer.size} tokens of {tokenizer.name} in "
            f"{config.data.paths[0]}; leave it out, or take at least {tokenizer.size}"
        )
    return config.model_copy(update={"model": config.model.model_copy(update={"vocab_size": size})}), tokenizer


def sample_order(config: RunConfig) -> dict[str, Any]:
    """What the order of samples follows from, besides their number so far; a run resumes exactly if it is the same.

    Folders may move: what counts is the tokens of their training split, by the checksums of its shards.
    """
    tokens = []
    for path in map(Path, config.data.paths):
        if (path / MANIFEST_NAME).exists():
            shards = Manifest.read(path).shards_of("train", path)
            beside = (stream.bin_sha256 for shard in shards for stream in shard.parallel.values())
            sums = [*(shard.bin_sha256 for shard in shards), *beside]
            tokens.append(sha256("".join(sums).encode()).hexdigest()[:16])
        else:
            tokens.append(f"{TokenDataset(path, 'train', config.model.context).tokens} tokens")
    curriculum = config.data.curriculum
    return {
        "train.seed": config.train.seed,
        "model.context": config.model.context,
        "data.weights": config.data.weights,
        "data.path (checksums of its training shards)": tokens,
        **({} if curriculum is None else {"data.curriculum": curriculum.model_dump(mode="json")}),
    }


class Batches:
    """The training batches of one rank, read ahead; with a curriculum, of the chains that are due.

    Raises `UserError` if the batch sizes do not come out whole.
    """

    def __init__(self, config: RunConfig, source: SampleSource, rank: int, world_size: int):
        self._config, self._source, self._rank, self._world_size = config, source, rank, world_size
        self.chains: int | None = None
        """Of a curriculum: how long those of the last batch were."""
        self._ahead = self._of(source)

    def batch(self, consumed_samples: int, flops: float) -> Batch:
        """This rank's part of the global batch that follows so many samples, and so many training FLOPs."""
        curriculum = self._config.data.curriculum
        if curriculum is not None and self.chains != chain_length(curriculum, flops):
            self.chains = chain_length(curriculum, flops)
            self._ahead.close()
            assert isinstance(self._source, ProblemDataset)  # as `check_lengths` has seen
            self._ahead = self._of(PackedProblems(self._source, self.chains))
        return self._ahead.batch(consumed_samples)

    def again(self, consumed_samples: int) -> Batch:
        """A batch that was there before; of a curriculum, one with the chains of now."""
        return self._ahead.loader.batch(consumed_samples)

    def numbers(self, consumed_samples: int) -> list[int]:
        """The numbers, in the training split, of the samples of the whole global batch that follows so many."""
        loader = self._ahead.loader
        places = np.arange(consumed_samples, consumed_samples + loader.global_batch_size)
        return [int(index) for index in loader.source.indices_at(places, seed=loader.seed)]

    def close(self) -> None:
        """Ends reading ahead."""
        self._ahead.close()

    def _of(self, source: SampleSource) -> Prefetcher:
        train = self._config.train
        loader = BatchLoader(
            source,
            seed=train.seed,
            global_batch_size=train.global_batch_size,
            micro_batch_size=train.micro_batch_size,
            rank=self._rank,
            world_size=self._world_size,
            mask_documents=self._config.data.mask_documents,
        )
        return Prefetcher(loader)


def open_splits(config: RunConfig) -> dict[str, SampleSource]:
    """The splits that the run reads: train, and val, test and what is `beyond` where it evaluates on them."""
    wanted = {"train": True, "val": config.train.eval_every > 0, "test": config.train.test_samples != 0}
    splits = {split: open_split(config, split) for split, needed in wanted.items() if needed}
    if wanted["test"] and splits["test"].labelled and has_beyond(config):
        with suppress(TooLongError):
            splits[BEYOND] = open_beyond(config)
    if config.data.curriculum is not None:
        check_lengths(config.data.curriculum, splits["train"])
    return splits


def open_split(config: RunConfig, split: str) -> SampleSource:
    """One split of the run's data folder, or the blend of it from several."""
    data = config.data
    folders = [open_samples(Path(path), split, config.model.context) for path in data.paths]
    return folders[0] if len(folders) == 1 else Blend(folders, data.weights or [1.0] * len(folders))


def has_beyond(config: RunConfig) -> bool:
    """Whether the run's data, problems, have some with longer chains than those trained on."""
    return all(BEYOND in Manifest.read(Path(path)).splits for path in config.data.paths)


def open_beyond(config: RunConfig) -> SampleSource:
    """Problems with longer chains than those trained on, in a context that holds them.

    Raises `DataError` if there are none, or if the model's positions end before the problems do.
    """
    if has_beyond(config) and config.model.any_length:
        longest = max(longest_problem(Path(path), BEYOND) for path in config.data.paths)
        context = max(longest, config.model.context)
        config = config.model_copy(update={"model": config.model.model_copy(update={"context": context})})
    return open_split(config, BEYOND)
