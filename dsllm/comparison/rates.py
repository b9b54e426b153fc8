"""The learning rate of each arm: the best of those tried, found inside of them.

    tried 0.01, 0.02    the best is 0.02, at an end: 0.04 is tried, too
          0.01 … 0.04   the best is still 0.02, inside: so it is

A rate at an end of the list might be far from the best, and an arm would be judged by its list. A single rate is taken
as it is.
"""

import math
from collections.abc import Mapping

from dsllm.comparison.report import Table
from dsllm.errors import UserError

Losses = Mapping[float, float]
"""By rate the last loss on val; infinite where it diverged. The test split is not looked at for that."""

NOTE = (
    "Last loss on val, by learning rate, of the runs that chose it; the best is taken for all seeds and budgets. While "
    "it was the lowest or the highest of those tried, the next one by the same ratio was tried, too."
)


def best_rate(arm: str, losses: Losses) -> float:
    """Raises `UserError` if all diverged."""
    best = min(losses, key=lambda rate: losses[rate])
    if math.isinf(losses[best]):
        raise UserError(f"{arm}: diverged at every rate; try lower ones")
    return best


def next_rate(losses: Losses) -> float | None:
    """The rate to try besides: beyond an end where the best one stands, by the ratio of the two there."""
    rates = sorted(losses)
    finite = [rate for rate in rates if math.isfinite(losses[rate])]
    if len(rates) < 2 or not finite:
        return None
    best = min(finite, key=lambda rate: losses[rate])
    beside = {rates[-1]: rates[-2], rates[0]: rates[1]}.get(best)
    return None if beside is None else float(f"{best * best / beside:.4g}")


def rates_table(tried: Mapping[str, Losses]) -> Table:
    """For a report: an arm a row, the best rate marked."""
    rates = sorted({rate for losses in tried.values() for rate in losses})
    rows = [["arm", *(f"{rate:g}" for rate in rates)]]
    for arm, losses in tried.items():
        best = best_rate(arm, losses)
        cells = {rate: "diverged" if math.isinf(loss) else f"{loss:.4f}" for rate, loss in losses.items()}
        cells[best] += " *"
        rows.append([arm, *(cells.get(rate, "") for rate in rates)])
    return Table("Learning rates tried", rows, f"{NOTE} *: the best.")
