"""Runs that differ by their seed alone are an arm; arms whose losses are not of the same thing are not compared."""

import re
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256

from dsllm.comparison.record import Point, RunRecord
from dsllm.errors import UserError

SEED_ALONE = re.compile(r"(seed|s)?[\W_]*\d+", re.IGNORECASE)
SEED_BEHIND = r"(?i)[\W_]+(seed|s)?[\W_]*\d+$"

APART = {
    "data": "trained and scored on other data",
    "tokenizer": "another tokenizer",
    "objective": "another objective",
    "context": "scored in samples of another length",
    "tokens": "other tokens scored",
    "validation_tokens": "other validation samples",
}
"""What must be the same, and what it is called if it is not."""


@dataclass(frozen=True)
class Arm:
    """One configuration, over one or more seeds."""

    name: str
    runs: list[RunRecord]

    @property
    def first(self) -> RunRecord:
        return self.runs[0]

    def at(self, budget: float) -> "Arm":
        """Named with its budget, where the name alone is that of another."""
        return Arm(f"{self.name} at {budget:g} FLOPs", self.runs)

    def values(self, of: Callable[[RunRecord], float | None]) -> list[float]:
        """A figure of every run that has it."""
        return [value for value in map(of, self.runs) if value is not None]

    def mean(self, of: Callable[[RunRecord], float | None]) -> float | None:
        values = self.values(of)
        return statistics.fmean(values) if values else None

    def spread(self, of: Callable[[RunRecord], float | None]) -> float | None:
        """Standard deviation over seeds; None with one."""
        values = self.values(of)
        return statistics.stdev(values) if len(values) > 1 else None

    def curve(self, of: Callable[[Point], float | None]) -> list[tuple[Point, float, float | None]]:
        """A figure of evaluations in training, where all runs have it: what had been spent, the mean, the deviation."""
        by_tokens = [{p.tokens: p for p in run.validation if of(p) is not None} for run in self.runs]
        shared = sorted(set.intersection(*(set(points) for points in by_tokens)))
        found = []
        for tokens in shared:
            points = [points[tokens] for points in by_tokens]
            values = [value for value in map(of, points) if value is not None]
            mean = points[0].model_copy(
                update={cost: statistics.fmean(getattr(p, cost) for p in points) for cost in ("flops", "seconds")}
            )
            found.append((mean, statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None))
        return found


def pairs(ours: Sequence[RunRecord], theirs: Sequence[RunRecord]) -> list[tuple[RunRecord, RunRecord]]:
    """Runs of equal seed, which had the same samples in the same order; each with each if no seeds are equal."""
    alike = [(run, other) for run in ours for other in theirs if run.seed == other.seed]
    return alike or [(run, other) for run in ours for other in theirs]


def arms_of(records: Sequence[RunRecord]) -> list[Arm]:
    """The arms in the order in which they were given, seeds in order.

    Raises:
        UserError: the same run twice, or runs whose losses cannot stand in one column.
    """
    groups = _grouped(records)
    for runs in groups.values():
        seeds = [run.seed for run in runs]
        if len(set(seeds)) < len(seeds):
            twice = next(seed for seed in seeds if seeds.count(seed) > 1)
            names = ", ".join(run.name for run in runs if run.seed == twice)
            raise UserError(f"{names}: one configuration with seed {twice}, more than once; give each run once")
    arms = [Arm(_name(runs), sorted(runs, key=lambda run: run.seed)) for runs in groups.values()]
    if len({arm.name for arm in arms}) < len(arms):  # runs of one name in several folders
        arms = [Arm(f"{arm.name} ({number})", arm.runs) for number, arm in enumerate(arms, 1)]
    _check_comparable(arms)
    return arms


def of_one_data(records: Sequence[RunRecord]) -> list[RunRecord]:
    """Of runs each of whose seeds has data of its own, as of one data: all the seeds' together.

    Raises:
        UserError: two runs of one seed on other data, or an arm that has no seed, and so no data, in common with the
            first.
    """
    of_seed: dict[int, RunRecord] = {}
    for run in records:
        first = of_seed.setdefault(run.seed, run)
        if first.scored.data != run.scored.data:
            raise UserError(
                f"{first.name} and {run.name}: other data with the same seed, {run.seed} ({_said(first, 'data')} and "
                f"{_said(run, 'data')}); prepare that seed's once and train both on it"
            )
    together = sha256(" ".join(of_seed[seed].scored.data for seed in sorted(of_seed)).encode()).hexdigest()
    united = [run.of_data(together) for run in records]
    base, *others = _grouped(united).values()
    for runs in others:
        if not {run.seed for run in base} & {run.seed for run in runs}:
            raise UserError(f"{base[0].name} and {runs[0].name}: no seed in common, so no data; give runs of the same")
    return united


def _grouped(records: Sequence[RunRecord]) -> dict[str, list[RunRecord]]:
    groups: dict[str, list[RunRecord]] = {}
    for record in records:
        groups.setdefault(record.key, []).append(record)
    return groups


def _check_comparable(arms: Sequence[Arm]) -> None:
    base = arms[0].first
    for run in (run for arm in arms for run in arm.runs):
        apart = [
            f"{words} ({_said(base, key)} and {_said(run, key)})"
            for key, words in APART.items()
            if getattr(base.scored, key) != getattr(run.scored, key)
        ]
        if apart:
            raise UserError(
                f"{base.name} and {run.name}: {'; '.join(apart)}: their losses do not belong into one column; "
                f"compare runs on one data folder (or on one for each seed: --data_by_seed), of one context, "
                f"train.test_samples and train.eval_samples"
            )


def _said(record: RunRecord, key: str) -> str:
    value = getattr(record.scored, key)
    if key == "tokenizer":
        return record.scored.tokenizer_name
    return str(value)[:8] if key == "data" else f"{value:,}" if isinstance(value, int) else str(value)


def _name(runs: Sequence[RunRecord]) -> str:
    """What the runs' folders are called, but for the seed: gpt2 of gpt2_seed1 and gpt2_seed2, or of gpt2/1, gpt2/2."""
    if all(SEED_ALONE.fullmatch(run.name) for run in runs):
        return runs[0].group
    if len(runs) == 1:
        return runs[0].name
    for pattern in (SEED_BEHIND, r"\d+$"):
        stems = {re.sub(pattern, "", run.name) for run in runs}
        if len(stems) == 1 and "" not in stems:
            return stems.pop()
    return runs[0].name
