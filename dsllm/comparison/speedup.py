"""How much sooner an arm reaches a loss than the baseline: speedup(L*) = cost of the baseline / cost of the arm - 1.

    baseline   loss 3.0 at 4e12 FLOPs                     L* is the worse of both final losses, so both reach it;
    arm        loss 3.0 at 2.5e12 FLOPs, ends at 2.8      here 3.0, and the speedup 4 / 2.5 - 1 = +60 %

Costs are read off the validation losses, linearly between two of them, at the first that is low enough: all training
steps until then, of small stages too. FLOPs hold the branches that a race lost (docs/records.md), seconds the growth
events. Runs of equal seed are held against each other: the mean, and the least and the most of the pairs.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from dsllm.comparison.arms import Arm, pairs
from dsllm.comparison.record import Point

COSTS = ("tokens", "flops", "seconds")


@dataclass(frozen=True)
class Speedup:
    """Of an arm over the baseline, by one cost: 0.6 is 60 % sooner."""

    loss: float
    """L*, the mean over the pairs."""
    mean: float
    least: float
    most: float


def speedups(arm: Arm, baseline: Arm) -> dict[str, Speedup]:
    """By cost; empty if a run has fewer than two evaluations in training, or an L* is where nothing was spent yet."""
    found = {}
    for cost in COSTS:
        each = [_speedup(ours.validation, other.validation, cost) for ours, other in pairs(arm.runs, baseline.runs)]
        known = [pair for pair in each if pair is not None]
        if known and len(known) == len(each):
            gains = [gain for gain, _ in known]
            loss = statistics.fmean(loss for _, loss in known)
            found[cost] = Speedup(loss, statistics.fmean(gains), min(gains), max(gains))
    return found


def cost_of(loss: float, points: Sequence[Point], cost: str) -> float | None:
    """What had been spent when the loss was first reached; None if it never was."""
    if points and points[0].loss <= loss:
        return float(getattr(points[0], cost))
    for before, after in pairwise(points):
        if after.loss <= loss:
            share = (before.loss - loss) / (before.loss - after.loss)
            return float(getattr(before, cost) + share * (getattr(after, cost) - getattr(before, cost)))
    return None


def _speedup(ours: Sequence[Point], theirs: Sequence[Point], cost: str) -> tuple[float, float] | None:
    if len(ours) < 2 or len(theirs) < 2:
        return None
    loss = max(ours[-1].loss, theirs[-1].loss)
    spent, spent_by_baseline = cost_of(loss, ours, cost), cost_of(loss, theirs, cost)
    return None if not spent or not spent_by_baseline else (spent_by_baseline / spent - 1, loss)
