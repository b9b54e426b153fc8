"""Which sample comes k-th: a permutation that is computed, not stored.

With n = 10 samples, the numbers 0 to 11 are the cells of a grid of 4 rows and 3 columns, the smallest near-square one
that holds them. A round adds a hash of the row to the column, or a hash of the column to the row, modulo the grid's
sides; it can be undone, so twelve of them are a permutation of the cells, here for seed 0 and epoch 0:

    k        0   1   2   3   4   5   6   7   8   9  10  11
    cell    10   1   2   3   8  11   7   0   6   4   9   5
    sample   9   1   2   3   8   5   7   0   6   4              0 → 10 → 9 and 5 → 11 → 5

A result outside 0..9 goes through the rounds again until it falls inside ("cycle walking"): following the cycles of a
permutation of the cells to the next one below 10 is a permutation of those 10.

Method: J. Black and P. Rogaway, Ciphers with Arbitrary Finite Domains (CT-RSA 2002), sections 4 (cycle walking) and 5
(generalised Feistel); the hash is the finaliser of splitmix64. It shuffles; it does not encrypt.
"""

from math import isqrt
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

ROUNDS = 12
"""With 4 or 8 the orders of a small n are visibly unequal in number; with 12 all 120 orders of 5 samples are alike."""
_WORD = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15

Number = TypeVar("Number", int, npt.NDArray[Any])
"""The same arithmetic on one Python integer or on an array of uint64, which wraps at 64 bits by itself."""


def sample_at(k: int, *, n: int, seed: int, epoch: int) -> int:
    """Index of the k-th sample of an epoch: a permutation of range(n) by a Feistel network with cycle walking.

    O(1) time and memory, so a run seeks to any step of any data set, and every world size sees the same global batches.

    Raises:
        ValueError: k is not in range(n).
    """
    if not 0 <= k < n:
        raise ValueError(f"sample {k} of an epoch of {n}")
    key = _key(seed, epoch)
    x = _rounds(k, n, key)
    while x >= n:
        x = _rounds(x, n, key)
    return x


def samples_at(k: npt.NDArray[np.int64], *, n: int, seed: int, epoch: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """`sample_at` of each k[i] in epoch[i], shape (any,), several times faster than one by one.

    Raises:
        ValueError: a k is not in range(n).
    """
    if len(k) and (k.min() < 0 or k.max() >= n):
        raise ValueError(f"samples {k.min()} to {k.max()} of an epoch of {n}")
    key = _key(seed, epoch.astype(np.uint64))
    x = _rounds(k.astype(np.uint64), n, key)
    while len(outside := np.flatnonzero(x >= n)):
        x[outside] = _rounds(x[outside], n, key[outside])
    return x.astype(np.int64)


def derived_seed(seed: int, *parts: int) -> int:
    """A seed of its own for a part of a run, such as one source of a blend."""
    for part in parts:
        seed = _key(seed, part)
    return seed


def _key(seed: int, epoch: Number) -> Number:
    return _mix(epoch ^ _mix((seed + _GOLDEN) & _WORD))


def _rounds(x: Number, n: int, key: Number) -> Number:
    rows = isqrt(n - 1) + 1
    columns = -(-n // rows)
    row, column = x // columns, x % columns
    for i in range(ROUNDS):
        key = (key + _GOLDEN) & _WORD
        if i % 2:
            row = (row + _mix(key ^ column) % rows) % rows
        else:
            column = (column + _mix(key ^ row) % columns) % columns
    return row * columns + column


def _mix(z: Number) -> Number:
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _WORD
    return z ^ (z >> 31)
