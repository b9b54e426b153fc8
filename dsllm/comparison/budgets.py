"""What arms come to at several budgets, each run with a schedule of its own, decayed at its end.

budget       1e12   2e12   4e12 FLOPs
12 layers    2.10   1.95   1.85
stacked      2.02   1.90   1.82     its 1.90 at 2e12 is what 12 layers have at 2.9e12: 45 % sooner
3 layers     1.80   1.86   1.88     passed by 12 layers between 2e12 and 4e12

Between budgets a loss is read off linearly over the logarithm of the cost. Losses are those on test; runs of equal
seed are held against each other: the mean, and the least and the most of the pairs. A loss that the baseline has at no
budget gives a bound in place of a figure.
"""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from dsllm.comparison.arms import Arm, pairs
from dsllm.comparison.record import RunRecord
from dsllm.comparison.report import Table, figure, percent
from dsllm.training.sources import BEYOND

ByBudget = Mapping[str, Mapping[float, Arm]]
"""By name an arm at each of its budgets of training FLOPs, rising; the first one is the baseline."""
COSTS: dict[str, Callable[[RunRecord], float]] = {
    "FLOPs": lambda run: run.flops,
    "tokens": lambda run: run.tokens,
    "seconds": lambda run: run.validation[-1].seconds if run.validation else math.nan,
}


LOSSES = (
    "Nats per target; every run has a schedule of its own, which has decayed at its end. Ahead: by the means, read off "
    "between budgets linearly over their logarithm."
)
GAINS = (
    "What the baseline spends until it ends at the arm's final loss, over what the arm has spent, less one; read off "
    "between the baseline's budgets. In brackets the least and the most over the seeds, which is no confidence "
    "interval. ≥ and ≤: some seeds lie outside the baseline's budgets and count as their end; about: on both sides. "
    "Charged are small stages, growth events, probes and branches that lost; not the search for learning rates and for "
    "when to grow."
)


@dataclass(frozen=True)
class Gain:
    """How much sooner an arm reaches its final loss than the baseline: 0.6 is 60 %."""

    mean: float
    least: float
    most: float
    bound: str = ""
    """`≥` or `≤` if the baseline's budgets do not reach that far for some of the pairs; `about` if both."""

    def __str__(self) -> str:
        return f"{self.bound} {percent(self.mean, self.least, self.most)}".strip()


def gain(arm: Arm, baseline: Sequence[Arm], cost: str) -> Gain | None:
    """Of an arm at one budget, by one cost, over the baseline at all its budgets; None without two of them."""
    if len(baseline) < 2:
        return None
    of = COSTS[cost]
    curves = {
        run.seed: [(of(other), other.test_loss) for at in baseline for other in at.runs if other.seed == run.seed]
        for run in baseline[0].runs
    }
    each = [(*_cost_at(run.test_loss, curves[other.seed]), of(run)) for run, other in pairs(arm.runs, baseline[0].runs)]
    gains = [theirs / ours - 1 for theirs, _, ours in each]
    if not all(map(math.isfinite, gains)):
        return None
    bounds = {bound for _, bound, _ in each} - {""}
    bound = "" if not bounds else bounds.pop() if len(bounds) == 1 else "about"
    return Gain(statistics.fmean(gains), min(gains), max(gains), bound)


def crossing(ours: Sequence[float], theirs: Sequence[float], budgets: Sequence[float]) -> float | None:
    """The budget from which on `ours` is the lower of two losses, by budget; None if it is not at the last one."""
    ahead = [b - a for a, b in zip(ours, theirs, strict=True)]
    if ahead[-1] <= 0:
        return None
    if all(lead > 0 for lead in ahead):
        return budgets[0]
    last = max(i for i, lead in enumerate(ahead) if lead <= 0)
    share = -ahead[last] / (ahead[last + 1] - ahead[last])
    return float(budgets[last] * (budgets[last + 1] / budgets[last]) ** share)


def tables(arms: ByBudget) -> list[Table]:
    """For a report: losses, chains and gains by budget; nothing of a single budget."""
    if len(_budgets(arms)) < 2:
        return []
    name, baseline = next(iter(arms.items()))
    found = [Table("Test loss by budget", loss_table(arms), LOSSES)]
    if any(arm.first.accuracy for arm in baseline.values()):
        found.append(
            Table("H90 by budget", _table(arms, lambda run: run.h90, ".1f"), "On test, in steps of the chain.")
        )
        runs = [run for arm in arms.values() for at in arm.values() for run in at.runs]
        if lengths := {int(length) for run in runs for length in run.beyond}:
            title = f"Accuracy at {min(lengths)} steps, beyond training, by budget"
            found.append(Table(title, _table(arms, lambda run: run.next_accuracy, ".3f"), f"On split {BEYOND}."))
    if len(baseline) < 2:
        return found
    return [*found, Table(f"How much sooner than {name}, at equal final loss", gain_table(arms), GAINS)]


def loss_table(arms: ByBudget) -> list[list[str]]:
    """Final losses of each arm by budget, and from where on the baseline is ahead of it."""
    name, baseline = next(iter(arms.items()))
    rows = _table(arms, lambda run: run.test_loss, ".4f")
    rows[0].append(f"{name} is ahead from")
    for row, arm in zip(rows[1:], arms.values(), strict=True):
        shared = [budget for budget in arm if budget in baseline]
        ours, theirs = ([_loss(of[budget]) for budget in shared] for of in (baseline, arm))
        row.append("" if arm is baseline or not shared else _said(crossing(ours, theirs, shared), shared))
    return rows


def gain_table(arms: ByBudget) -> list[list[str]]:
    """How much sooner each arm is than the baseline where it ends, by cost and budget."""
    baseline, *others = arms.items()
    budgets = sorted({budget for _, arm in others for budget in arm})
    rows = [["arm", *(f"by {cost}, at {budget:g}" for cost in COSTS for budget in budgets)]]
    for name, arm in others:
        gains = [
            gain(arm[budget], [*baseline[1].values()], cost) if budget in arm else None
            for cost in COSTS
            for budget in budgets
        ]
        rows.append([name, *("" if found is None else str(found) for found in gains)])
    return rows


def _table(arms: ByBudget, of: Callable[[RunRecord], float | None], form: str) -> list[list[str]]:
    budgets = _budgets(arms)
    rows = [["arm", *(f"{budget:g} FLOPs" for budget in budgets)]]
    for name, arm in arms.items():
        rows.append([name, *(figure(arm[budget], of, form) if budget in arm else "" for budget in budgets)])
    return rows


def _budgets(arms: ByBudget) -> list[float]:
    return sorted({budget for arm in arms.values() for budget in arm})


def _loss(arm: Arm) -> float:
    return statistics.fmean(run.test_loss for run in arm.runs)


def _said(ahead: float | None, budgets: Sequence[float]) -> str:
    if ahead is None:
        return f"not up to {budgets[-1]:g}"
    return f"{budgets[0]:g} or less" if ahead == budgets[0] else f"{ahead:.2g} FLOPs"


def _cost_at(loss: float, curve: Sequence[tuple[float, float]]) -> tuple[float, str]:
    """What a curve of (cost, loss) has spent where it has that loss first; at an end of it with the sign of a bound."""
    if loss >= curve[0][1]:
        return curve[0][0], "" if loss == curve[0][1] else "≤"
    for (cost, before), (more, after) in pairwise(curve):
        if after <= loss:
            share = (before - loss) / (before - after)
            return cost * (more / cost) ** share, ""
    return curve[-1][0], "≥"
