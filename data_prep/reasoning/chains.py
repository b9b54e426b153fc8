"""Chains of functions: the state is never shown, and each step needs the one before.

Calibrated for small models: three layers stop at chains of five to six, twelve go beyond ten.
"""

from typing import ClassVar

import numpy as np
from pydantic import Field, NonNegativeInt

from data_prep.reasoning.task import Array, Problems, Task, function_table, permutations

NO_TOKEN = -1
"""Fills the place of a token that a compact definition does not have."""


class PermChain(Task):
    """s_0, i_1 … i_K: at each step the state becomes f_i of itself, f_i being one of a few permutations.

    4 f2 f0 f7   →   f2(4), f0(f2(4)), f7(f0(f2(4)))

    A problem begins with all shorter ones, so its split follows from its first four steps: of a held-out problem no
    answer from the fourth step on was trained on. The few that are shorter can only be known.
    """

    name: ClassVar[str] = "perm_chain"
    values: int = Field(5, ge=2, le=256)
    """States: 0 … values - 1."""
    functions: int = Field(16, ge=1, le=4096)
    """Permutations of the states, drawn once."""
    table_seed: NonNegativeInt = 0
    """Draws the permutations; the same ones in every split."""

    @property
    def words(self) -> list[str]:
        return [*map(str, range(self.values)), *(f"f{i}" for i in range(self.functions))]

    @property
    def longest(self) -> int:
        return 4095

    @property
    def split_tokens(self) -> int | None:
        return 1 + 4

    def chance(self, length: int) -> float:
        return 1 / self.values

    def generate(self, length: int, count: int, rng: np.random.Generator) -> Problems:
        table = function_table(self.functions, self.values, self.table_seed)
        state = rng.integers(self.values, size=count)
        steps = rng.integers(self.functions, size=(count, length))
        problems = Problems.unlabelled(np.concatenate([state[:, None], steps + self.values], axis=1))
        for step in range(length):
            state = table[steps[:, step], state]
            problems.labels[:, step + 1] = state
            problems.depths[:, step + 1] = step + 1
        return problems


class VarsChain(Task):
    """Several chains of definitions, shuffled into each other; a definition's label is its value.

    x4 = 3   x9 = 1   x2 f5 x4   x7 f0 x9   x0 f5 x2   →   -  -  f5(3)  f0(1)  f5(f5(3))

    Each definition is three tokens, its label stands at the third. Roots say their value themselves and have no label.
    With `compact`, `x2 f5 x4` is two tokens, `x2` and `f5(x4)`, and the root `x4 = 3` is one: small models learn to
    look names up much sooner.
    """

    name: ClassVar[str] = "vars_chain"
    values: int = Field(5, ge=2, le=256)
    functions: int = Field(8, ge=1, le=4096)
    names: int = Field(42, ge=2, le=4096)
    """Names to be had: at least chains · (K + 1)."""
    chains: int = Field(2, ge=1, le=64)
    table_seed: NonNegativeInt = 0
    """Draws the functions, permutations of the values; the same ones in every split."""
    compact: bool = False
    """Two tokens for a definition and one for a root, in place of three."""

    @property
    def words(self) -> list[str]:
        values, names = [*map(str, range(self.values))], [f"x{i}" for i in range(self.names)]
        functions = [f"f{i}" for i in range(self.functions)]
        if self.compact:
            applied = (f"{function}({name})" for function in functions for name in names)
            return [*values, *names, *applied, *(f"{name}={value}" for name in names for value in values)]
        return [*values, *functions, "=", *names]

    @property
    def longest(self) -> int:
        return self.names // self.chains - 1

    def chance(self, length: int) -> float:
        return 1 / self.values

    def generate(self, length: int, count: int, rng: np.random.Generator) -> Problems:
        table = function_table(self.functions, self.values, self.table_seed)
        each, total, row = length + 1, (length + 1) * self.chains, np.arange(count)
        chain_of = permutations(count, total, rng) // each  # (count, total): every chain `each` times
        name_of = permutations(count, self.names, rng)[:, :total]
        value = rng.integers(self.values, size=(count, self.chains))
        used = rng.integers(self.functions, size=(count, total))
        newest = np.zeros((count, self.chains), np.int64)
        step = np.zeros((count, self.chains), np.int64)
        problems = Problems.unlabelled(np.full((count, total, 3), NO_TOKEN))
        for at in range(total):
            chain, name, function = chain_of[:, at], name_of[:, at], used[:, at]
            depth, before, of = step[row, chain], value[row, chain], newest[row, chain]
            root = depth == 0
            value[row, chain] = np.where(root, before, table[function, before])
            problems.tokens[:, at] = np.where(
                root[:, None], self._root(name, before), self._definition(name, function, of)
            )
            problems.labels[:, at, 2] = np.where(root, problems.labels[:, at, 2], value[row, chain])
            problems.depths[:, at, 2] = depth
            newest[row, chain] = name
            step[row, chain] = depth + 1
        there = problems.tokens != NO_TOKEN  # equally many in each row: all problems have as many roots
        return Problems(*(part[there].reshape(count, -1) for part in problems))

    def _root(self, name: Array, value: Array) -> Array:
        """The tokens of name = value, (count,) each: (count, 3), with `NO_TOKEN` at the places that stay empty."""
        if self.compact:
            first = self.values + self.names + self.functions * self.names
            return _columns(NO_TOKEN, NO_TOKEN, first + name * self.values + value)
        equals = self.values + self.functions
        return _columns(equals + 1 + name, equals, value)

    def _definition(self, name: Array, function: Array, of: Array) -> Array:
        """The tokens of name = function(of), (count,) each: (count, 3), as those of a root."""
        if self.compact:
            return _columns(self.values + name, NO_TOKEN, self.values + self.names + function * self.names + of)
        first_name = self.values + self.functions + 1
        return _columns(first_name + name, self.values + function, first_name + of)


def _columns(*parts: Array | int) -> Array:
    """(count,) each, or one number for all, side by side: (count, len(parts))."""
    return np.stack(np.broadcast_arrays(*parts), axis=1)
