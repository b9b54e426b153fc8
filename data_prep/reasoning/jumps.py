"""Chains of lookups in what was read: pointers, and induction by several hops."""

from collections.abc import Iterator
from typing import ClassVar

import numpy as np
from pydantic import Field

from data_prep.reasoning.task import Array, Problems, Task, permutations
from dsllm.data.batches import NO_TARGET


class PointerChase(Task):
    """A cycle through all nodes, told pair by pair in any order, and a start: where does one get to, step by step?

    n2 n0  n1 n2  n0 n1  ?  n2  .  .   →   at the dots n0, n1
    """

    name: ClassVar[str] = "pointer_chase"
    nodes: int = Field(24, ge=4, le=4096)
    """Nodes of the cycle; a chain goes half round at most, for beyond that it is shorter backwards."""

    @property
    def words(self) -> list[str]:
        return [*(f"n{i}" for i in range(self.nodes)), "?", "."]

    @property
    def longest(self) -> int:
        return self.nodes // 2

    def chance(self, length: int) -> float:
        return 1 / (self.nodes - 1)  # any but the start

    def generate(self, length: int, count: int, rng: np.random.Generator) -> Problems:
        cycle, told = permutations(count, self.nodes, rng), permutations(count, self.nodes, rng)
        follows = np.empty_like(cycle)
        np.put_along_axis(follows, cycle, np.roll(cycle, -1, axis=1), axis=1)
        pairs = np.stack([told, np.take_along_axis(follows, told, axis=1)], axis=2).reshape(count, -1)
        here = rng.integers(self.nodes, size=count)
        question, dot = np.full((count, 1), self.nodes), np.full((count, length), self.nodes + 1)
        problems = Problems.unlabelled(np.concatenate([pairs, question, here[:, None], dot], axis=1))
        for step in range(length):
            here = follows[np.arange(count), here]
            at = 2 * self.nodes + 2 + step
            problems.labels[:, at] = here
            problems.depths[:, at] = step + 1
        return problems


class PHop(Task):
    """Induction by p hops (Saunshi et al., 2502.17416, section 4): p is said first, then come random letters.

    From position i one hops to find(i) = max {j ≤ i : v_{j-1} = v_i}, the place behind the newest earlier copy of its
    letter, and so p times; the label at i is the letter one ends at, where there is such a place. Unlike there no
    letter follows itself: from a repeated one a hop would stay where it is, and p hops be none.
    """

    name: ClassVar[str] = "p_hop"
    letters: int = Field(4, ge=3, le=256)
    sequence: int = Field(128, ge=2, le=1 << 16)
    """Letters of a problem."""
    hops: int = Field(64, ge=1, le=4096)
    """The most hops for which there is a word."""

    @property
    def words(self) -> list[str]:
        return [*map(_letter, range(self.letters)), *(f"p{i}" for i in range(1, self.hops + 1))]

    @property
    def longest(self) -> int:
        return min(self.hops, self.sequence // 2)

    def chance(self, length: int) -> float:
        return 1 / (self.letters - 1)  # not the letter that one hopped by

    def generate(self, length: int, count: int, rng: np.random.Generator) -> Problems:
        steps = rng.integers(1, self.letters, size=(count, self.sequence))
        letters = (rng.integers(self.letters, size=(count, 1)) + steps.cumsum(axis=1)) % self.letters
        hop = _hops(letters, self.letters)
        place = np.tile(np.arange(self.sequence), (count, 1))
        for _ in range(length):
            place = np.where(place < 0, -1, np.take_along_axis(hop, np.maximum(place, 0), axis=1))
        found = np.take_along_axis(letters, np.maximum(place, 0), axis=1)
        said = np.full((count, 1), self.letters + length - 1)
        problems = Problems.unlabelled(np.concatenate([said, letters], axis=1))
        problems.labels[:, 1:] = np.where(place < 0, NO_TARGET, found)
        problems.depths[:, 1:] = np.where(place < 0, 0, length)
        return problems


def _hops(letters: Array, different: int) -> Array:
    """Where each position hops to, -1 where its letter is new: (count, n)."""
    behind = np.full((len(letters), different), -1, np.int64)  # the place behind the newest copy of each letter
    row, hops = np.arange(len(letters)), np.empty_like(letters)
    for i in range(letters.shape[1]):
        hops[:, i] = behind[row, letters[:, i]]
        behind[row, letters[:, i]] = i + 1
    return hops


def _letter(i: int) -> str:
    """a, b, …, z, aa, ab, …"""
    return "".join(reversed(list(_digits(i))))


def _digits(i: int) -> Iterator[str]:
    while i >= 0:
        yield chr(ord("a") + i % 26)
        i = i // 26 - 1
