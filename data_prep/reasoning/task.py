"""What a reasoning task is: problems with a chain of known length, and the answers along it.

    perm_chain, 3 steps     tokens   4    f2   f0   f7       a state, and functions to be applied in turn
                            labels   -    1    3    0        the state so far: what is to be said at each position
                            depths   0    1    2    3        how long the chain is up to there; 0: nothing is asked

A label is not the next token: nothing that a model reads says how far it has got. An answer of several tokens has its
depth at the last of them alone. All arrays are made whole, many problems at a time, by numpy; every task has a
brute-force check of its labels among the tests.
"""

from abc import abstractmethod
from typing import ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt

from dsllm.data.batches import NO_TARGET
from dsllm.section import Section

Array = npt.NDArray[np.int64]


class Problems(NamedTuple):
    """Problems of one chain length, one a row: (count, n) each."""

    tokens: Array
    labels: Array
    """The token to be said at a position, `NO_TARGET` where none is asked for."""
    depths: Array
    """Where an answer ends, the length of its chain, from 1; elsewhere 0, before its end too."""

    @classmethod
    def unlabelled(cls, tokens: Array) -> "Problems":
        """Tokens, and nothing asked for yet."""
        return cls(tokens, np.full_like(tokens, NO_TARGET), np.zeros_like(tokens))


class Task(Section):
    """Base of the tasks; its fields are the task's parameters."""

    name: ClassVar[str]
    written: ClassVar[bool] = False
    """Whether problems are ASCII text, each word a character."""

    @property
    @abstractmethod
    def words(self) -> list[str]:
        """The vocabulary: a token is the index of its word."""

    @property
    @abstractmethod
    def longest(self) -> int:
        """The longest chain that the parameters allow."""

    @property
    def split_tokens(self) -> int | None:
        """From how many of a problem's first tokens its split follows; None: from all."""
        return None

    @abstractmethod
    def chance(self, length: int) -> float:
        """The accuracy, at that chain length, of one who knows the rules but not the chain."""

    @abstractmethod
    def generate(self, length: int, count: int, rng: np.random.Generator) -> Problems:
        """`count` problems whose longest chain is `length`; the same `rng` makes the same ones."""

    def ids(self, words: list[str]) -> Array:
        """The tokens of words, (n,)."""
        index = {word: i for i, word in enumerate(self.words)}
        return np.array([index[word] for word in words], np.int64)


def permutations(count: int, of: int, rng: np.random.Generator) -> Array:
    """Random orders of range(of), a row each: (count, of)."""
    return rng.permuted(np.tile(np.arange(of, dtype=np.int64), (count, 1)), axis=1)


def function_table(functions: int, values: int, seed: int) -> Array:
    """Random permutations of the values, all different as far as there are so many: (functions, values)."""
    rng = np.random.default_rng(seed)
    found: dict[tuple[int, ...], None] = {}
    for _ in range(100 * functions):
        found[tuple(rng.permutation(values).tolist())] = None
        if len(found) == functions:
            return np.array(list(found), np.int64)
    return permutations(functions, values, rng)
