"""Chains of functions: the state is never shown, and each step needs the one before.

Calibrated for small models: three layers stop at chains of five to six, twelve go beyond ten.
"""

from typing import ClassVar

import numpy as np
from pydantic import Field, NonNegativeInt

from data_prep.reasoning.task import Problems, Task, function_table, permutations


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
    """

    name: ClassVar[str] = "vars_chain"
    values: int = Field(5, ge=2, le=256)
    functions: int = Field(8, ge=1, le=4096)
    names: int = Field(42, ge=2, le=4096)
    """Names to be had: at least chains · (K + 1)."""
    chains: int = Field(2, ge=1, le=64)
    table_seed: NonNegativeInt = 0
    """Draws the functions, permutations of the values; the same ones in every split."""

    @property
    def words(self) -> list[str]:
        functions, names = (f"f{i}" for i in range(self.functions)), (f"x{i}" for i in range(self.names))
        return [*map(str, range(self.values)), *functions, "=", *names]

    @property
    def longest(self) -> int:
        return self.names // self.chains - 1

    def chance(self, length: int) -> float:
        return 1 / self.values

    def generate(self, length: int, count: int, rng: np.random.Generator) -> Problems:
        table = function_table(self.functions, self.values, self.table_seed)
        equals, first_name = self.values + self.functions, self.values + self.functions + 1
        each, total, row = length + 1, (length + 1) * self.chains, np.arange(count)
        chain_of = permutations(count, total, rng) // each  # (count, total): every chain `each` times
        name_of = permutations(count, self.names, rng)[:, :total]
        value = rng.integers(self.values, size=(count, self.chains))
        used = rng.integers(self.functions, size=(count, total))
        newest = np.zeros((count, self.chains), np.int64)
        step = np.zeros((count, self.chains), np.int64)
        problems = Problems.unlabelled(np.zeros((count, 3 * total), np.int64))
        for statement in range(total):
            chain, at = chain_of[:, statement], 3 * statement
            depth, before = step[row, chain], value[row, chain]
            root = depth == 0
            value[row, chain] = np.where(root, before, table[used[:, statement], before])
            problems.tokens[:, at] = first_name + name_of[:, statement]
            problems.tokens[:, at + 1] = np.where(root, equals, self.values + used[:, statement])
            problems.tokens[:, at + 2] = np.where(root, before, first_name + newest[row, chain])
            problems.labels[:, at + 2] = np.where(root, problems.labels[:, at + 2], value[row, chain])
            problems.depths[:, at + 2] = depth
            newest[row, chain] = name_of[:, statement]
            step[row, chain] = depth + 1
        return problems
