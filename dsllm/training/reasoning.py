"""Accuracy by the length of the chain of reasoning.

    labels   -  1  3  0      depths   0  1  2  3      said   -  1  3  4     right at 1 and 2, wrong at 3
    labels   -  0  5  8      depths   0  0  0  4      said   -  0  5  7     an answer of three tokens, wrong

An answer ends where a depth stands, and the labels before it, back to the answer before, are part of it: it is right if
all of them are. H90 is the longest chain up to which every measured length has an accuracy of at least 0.9.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dsllm.data.batches import NO_TARGET

DEPTHS = 1 << 16
"""Chain lengths that can be told apart."""
Z95 = 1.959964
"""Of a normal distribution, 95 % lie within so many deviations."""


@dataclass(frozen=True)
class ChainAccuracy:
    """Right answers of those asked for, by the length of the chain."""

    right: dict[int, int]
    asked: dict[int, int]
    """Without lengths that nothing was asked of."""

    @classmethod
    def of(cls, counts: npt.NDArray[np.float64]) -> "ChainAccuracy":
        """From counts (2, DEPTHS): right, and asked."""
        lengths = np.flatnonzero(counts[1]).tolist()
        right, asked = ({length: int(row[length]) for length in lengths} for row in counts)
        return cls(right, asked)

    @classmethod
    def of_shares(cls, accuracy: Mapping[str, float], asked: Mapping[str, int]) -> "ChainAccuracy":
        """From what `record` gave."""
        counts = {int(length): count for length, count in asked.items()}
        return cls({length: round(accuracy[str(length)] * count) for length, count in counts.items()}, counts)

    @property
    def lengths(self) -> list[int]:
        """In ascending order."""
        return sorted(self.asked)

    def share(self, length: int) -> float:
        return self.right[length] / self.asked[length]

    def interval(self, length: int) -> tuple[float, float]:
        """Where the accuracy lies with 95 % confidence (Wilson 1927)."""
        n, p = self.asked[length], self.share(length)
        middle = (p + Z95**2 / (2 * n)) / (1 + Z95**2 / n)
        half = Z95 * math.sqrt(p * (1 - p) / n + Z95**2 / (4 * n**2)) / (1 + Z95**2 / n)
        return max(0.0, middle - half), min(1.0, middle + half)

    @property
    def h90(self) -> int:
        """The longest chain up to which all lengths have an accuracy of at least 0.9; 0 if the first has not."""
        reached = 0
        for length in self.lengths:
            if self.share(length) < 0.9:
                break
            reached = length
        return reached

    @property
    def area(self) -> float:
        """Mean accuracy over the lengths: the area under the curve, of the whole."""
        return sum(map(self.share, self.lengths)) / len(self.lengths)

    def record(self) -> dict[str, object]:
        """For metrics.jsonl."""
        return {
            "accuracy": {str(length): self.share(length) for length in self.lengths},
            "asked": {str(length): self.asked[length] for length in self.lengths},
            "h90": self.h90,
            "area": self.area,
        }


def count_answers(
    said: npt.NDArray[np.int64], labels: npt.NDArray[np.int64], depths: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    """Right answers and all, by the length of the chain, shape (2, DEPTHS); the three are (B, T)."""
    wrong = np.cumsum((labels != NO_TARGET) & (said != labels))
    ends = np.flatnonzero(depths)
    right = np.diff(wrong[ends], prepend=0) == 0
    lengths = depths.ravel()[ends]
    counts = [np.bincount(of, minlength=DEPTHS) for of in (lengths[right], lengths)]
    return np.stack(counts).astype(np.float64)


def table(by_split: Mapping[str, ChainAccuracy], chance: Mapping[str, float]) -> str:
    """For a person: accuracy by chain length, its interval, and what guessing is worth where `chance` says so.

    Longer problems ask for short chains on their way; of a further split only those are shown that are longer than the
    first one's.
    """
    lines = [f"{'split':8}{'chain':>6}{'accuracy':>10}  {'95 %':14}{'chance':>7}{'answers':>9}"]
    longest = 0
    for split, chains in by_split.items():
        shown = [length for length in chains.lengths if length > longest]
        for length in shown:
            low, high = chains.interval(length)
            guess = f"{chance[str(length)]:.3f}" if str(length) in chance else ""
            share = f"{chains.share(length):>10.3f}  {f'{low:.3f} – {high:.3f}':14}"
            lines.append(f"{split:8}{length:>6}{share}{guess:>7}{chains.asked[length]:>9,}")
        reached = "" if longest else f"H90 {chains.h90}, "
        mean = sum(map(chains.share, shown)) / max(len(shown), 1)
        over = f"{shown[0]} to {shown[-1]}" if len(shown) > 1 else ", ".join(map(str, shown))
        lines.append(f"{split}: {reached}mean accuracy over chains of {over} {mean:.3f}")
        longest = max([longest, *shown])
    return "\n".join(lines)
