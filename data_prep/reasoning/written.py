"""Problems written out in characters, with the answer behind them: there the label is the next character."""

import math
import string
from typing import ClassVar

import numpy as np
from pydantic import Field

from data_prep.reasoning.task import Array, Problems, Task, permutations

NAMES = string.ascii_letters
DIGITS = string.digits


class Written(Task):
    """Base: every word is a character."""

    written: ClassVar[bool] = True

    @property
    def words(self) -> list[str]:
        return [*DIGITS, *NAMES, *"=;?+-*"]

    def characters(self, rows: list[str]) -> Array:
        """The tokens of texts of one length, a row each."""
        table = np.zeros(128, np.int64)
        table[[ord(word) for word in self.words]] = np.arange(len(self.words))
        return table[np.frombuffer("".join(rows).encode("ascii"), np.uint8).reshape(len(rows), -1)]

    def answered(self, questions: list[str], answers: list[str], length: int) -> Problems:
        """Problems whose answers follow their questions: each character of an answer is asked for one before it."""
        tokens = self.characters([question + answer for question, answer in zip(questions, answers, strict=True)])
        problems, size = Problems.unlabelled(tokens), len(answers[0])
        problems.labels[:, -size - 1 : -1] = tokens[:, -size:]
        problems.depths[:, -2] = length
        return problems


class VariableAssignment(Written):
    """Chains of copies, shuffled into each other: what is the last variable of one of them? (MIDAS, 2409.19044.)

    p=3;c=8;x=p;d=c;k=x;?k3      a chain of two copies
    """

    name: ClassVar[str] = "variable_assignment"
    chains: int = Field(4, ge=2, le=10)
    """With different digits; (K + 1) · chains variables are needed, of the 52 letters."""

    @property
    def longest(self) -> int:
        return len(NAMES) // self.chains - 1

    def chance(self, length: int) -> float:
        return 1 / self.chains

    def generate(self, length: int, count: int, rng: np.random.Generator) -> Problems:
        each, total = length + 1, (length + 1) * self.chains
        orders, names = permutations(count, total, rng) // each, permutations(count, len(NAMES), rng)[:, :total]
        digits, asked = permutations(count, 10, rng)[:, : self.chains], rng.integers(self.chains, size=count)
        questions, answers = [], []
        for order, name, digit, chain in zip(
            orders.tolist(), names.tolist(), digits.tolist(), asked.tolist(), strict=True
        ):
            newest = [DIGITS[d] for d in digit]
            text = []
            for of, letter in zip(order, name, strict=True):
                text.append(f"{NAMES[letter]}={newest[of]};")
                newest[of] = NAMES[letter]
            questions.append(f"{''.join(text)}?{newest[chain]}")
            answers.append(DIGITS[digit[chain]])
        return self.answered(questions, answers, length)


class IgsmLite(Written):
    """Operations modulo 7 that build on each other, in any order: what is the queried variable? (After 2407.20311.)

    c=b+a;a=2+5;d=a*3;b=a-4;?c5      three operations in the ancestry of c: a, b, c; d is not needed

    Each operation of the ancestry takes the one before it and another or a digit; products only by 2 … 6, so that no
    value is likelier than another.
    """

    name: ClassVar[str] = "igsm_lite"
    idle: int = Field(4, ge=0, le=40)
    """Operations that the answer does not need."""
    modulus: ClassVar[int] = 7

    @property
    def longest(self) -> int:
        return len(NAMES) - self.idle

    def chance(self, length: int) -> float:
        return 1 / self.modulus

    def generate(self, length: int, count: int, rng: np.random.Generator) -> Problems:
        questions, answers = [], []
        total = length + self.idle
        names, order = permutations(count, len(NAMES), rng)[:, :total], permutations(count, total, rng)
        kind, drawn = rng.integers(3, size=(count, total)), rng.random((count, total, 3))
        for row in range(count):
            letters, values, texts = [NAMES[i] for i in names[row]], list[int](), list[str]()
            for i in range(total):
                u, v, w = drawn[row, i]
                # Of the ancestry the first stands on digits, each other on the one before; what is idle on anything.
                on = i - 1 if 0 < i < length else int(u * i) if i >= length else None
                left = int(u * self.modulus) if on is None else values[on]
                left_text = DIGITS[left] if on is None else letters[on]
                operator = "+-*"[kind[row, i]]
                earlier = int(w * i) if i else 0
                if operator != "*" and v < 0.5 and i and earlier != on:
                    right, right_text = values[earlier], letters[earlier]
                else:
                    right = 2 + int(w * 5) if operator == "*" else int(w * self.modulus)
                    right_text = DIGITS[right]
                values.append(_applied(operator, left, right) % self.modulus)
                texts.append(f"{letters[i]}={left_text}{operator}{right_text};")
            questions.append("".join(texts[i] for i in order[row]) + f"?{letters[length - 1]}")
            answers.append(DIGITS[values[length - 1]])
        return self.answered(questions, answers, length)


class Addition(Written):
    """The sum of K three-digit numbers, with as many digits as the largest such sum: 123+456+789=1368."""

    name: ClassVar[str] = "addition"

    @property
    def longest(self) -> int:
        return 1000

    def chance(self, length: int) -> float:
        """Of the likeliest sum: 1 / 900 of one number, else that of a normal distribution of its variance."""
        variance = length * (900**2 - 1) / 12
        return 1 / 900 if length == 1 else 1 / math.sqrt(2 * math.pi * variance)

    def generate(self, length: int, count: int, rng: np.random.Generator) -> Problems:
        numbers = rng.integers(100, 1000, size=(count, length))
        digits = len(str(999 * length))
        questions = ["+".join(map(str, row)) + "=" for row in numbers.tolist()]
        return self.answered(questions, [f"{total:0{digits}d}" for total in numbers.sum(1).tolist()], length)


def _applied(operator: str, left: int, right: int) -> int:
    if operator == "+":
        return left + right
    return left - right if operator == "-" else left * right
