"""Which problems a split has: a function of their tokens alone, so that none is in two.

task ▶ blocks of problems, drawn by (seed, split, length, block) ▶ those whose hash belongs to the split
"""

from collections.abc import Iterator

import numpy as np

from data_prep.reasoning.task import Array, Problems, Task

SHARES = {"train": range(2, 16), "val": range(1), "test": range(1, 2), "beyond": range(2)}
"""By split, the sixteenths of all problems that belong to it. Longer chains are in no other split anyway, but may begin
as those of train do: so beyond, too, takes what train has not."""
BLOCK_TOKENS = 1 << 16
"""Tokens that are made at a time; part of what a seed means."""
PATIENCE = 8
"""Blocks in a row without a new problem, after which there are no more."""


def problems_of(task: Task, seed: int, split: str, length: int, count: int) -> Iterator[Problems]:
    """Up to `count` problems of a split and a chain length, block by block."""
    per_block = max(1, BLOCK_TOKENS // task.generate(length, 1, np.random.default_rng(0)).tokens.shape[1])
    seen, left, dry, block = np.zeros(0, np.uint64), count, 0, 0
    while left and dry < PATIENCE:
        rng = np.random.default_rng([seed, list(SHARES).index(split), length, block])
        made = task.generate(length, per_block, rng)
        hashes, of_split = _hashes(made.tokens), _hashes(made.tokens[:, : task.split_tokens])
        mine = np.isin(of_split >> np.uint64(60), np.array(SHARES[split], np.uint64))
        kept = np.flatnonzero(mine & made.depths.any(axis=1))  # some ask for nothing
        if split != "train":
            first = np.unique(hashes[kept], return_index=True)[1]
            kept = np.sort(kept[first])
            kept = kept[~np.isin(hashes[kept], seen)]
            seen = np.concatenate([seen, hashes[kept[:left]]])
        kept = kept[:left]
        left, block, dry = left - len(kept), block + 1, 0 if len(kept) else dry + 1
        if len(kept):
            yield Problems(*(part[kept] for part in made))


def _hashes(tokens: Array) -> np.ndarray:
    """A number for each row, by its content alone: (rows,) uint64. The end mixes as SplitMix64 does."""
    value = np.zeros(len(tokens), np.uint64)
    for column in tokens.T.astype(np.uint64):
        value = (value ^ (column + np.uint64(1))) * np.uint64(0x9E3779B97F4A7C15)
        value ^= value >> np.uint64(29)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))
