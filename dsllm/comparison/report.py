"""What a comparison says: the main table, the tables below it, and how the figures are to be read."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dsllm.comparison.arms import Arm
from dsllm.comparison.record import UNRECORDED, RunRecord
from dsllm.comparison.speedup import Speedup, speedups

Cell = Callable[[Arm], str]


@dataclass(frozen=True)
class Table:
    """A table below the main one: a row of headings, then an arm a row."""

    title: str
    rows: list[list[str]]
    note: str
    words: bool = False
    """Whether the cells are text, which is read from the left and goes over several lines, not figures."""


@dataclass(frozen=True)
class Report:
    """What a report shows."""

    title: str
    arms: Sequence[Arm]
    """Of the main table; the first is the baseline."""
    plots: Mapping[str, tuple[str, bytes]]
    """By name: a caption, and the picture."""
    tables: Sequence[Table] = ()
    """Below the main one."""
    remarks: Sequence[str] = ()
    """What else is to be known, before the notes on the figures."""
    in_training: bool = True
    """Whether speedups are read off between evaluations in training; False where runs of several budgets say more."""
    others: Sequence[Arm] = ()
    """Further arms whose runs go into results.json."""

    @property
    def main(self) -> list[list[str]]:
        return table(self.arms, self.in_training)

    @property
    def notes(self) -> list[str]:
        return [*self.remarks, *notes(self.arms, self.in_training)]


def figure(arm: Arm, of: Callable[[RunRecord], float | None], form: str) -> str:
    """Mean over the seeds, and the deviation; empty without any."""
    mean, spread = arm.mean(of), arm.spread(of)
    if mean is None:
        return ""
    return format(mean, form) if spread is None else f"{format(mean, form)} ± {format(spread, form)}"


def percent(mean: float, least: float, most: float) -> str:
    """`+60 % (+52 … +71)`, or without the brackets if there is but one."""
    shown, low, high = (f"{whole:+d}" if (whole := round(100 * share)) else "0" for share in (mean, least, most))
    return f"{shown} %" if least == most else f"{shown} % ({low} … {high})"


def _figure(of: Callable[[RunRecord], float | None], form: str) -> Cell:
    return lambda arm: figure(arm, of, form)


def _count(of: Callable[[RunRecord], float], form: str) -> Cell:
    """What runs of an arm mostly share; a deviation only where they do not."""
    return lambda arm: format(of(arm.first), form) if len(set(arm.values(of))) == 1 else figure(arm, of, form)


def _fact(of: Callable[[RunRecord], Any], form: str = "") -> Cell:
    """What all runs of an arm share."""
    return lambda arm: format(of(arm.first), form)


def _speedup_cell(gains: Mapping[str, Mapping[str, Speedup]], cost: str) -> Cell:
    def cell(arm: Arm) -> str:
        found = gains.get(arm.name, {}).get(cost)
        if found is None:
            return ""
        return percent(found.mean, found.least, found.most)

    return cell


def figures(arms: Sequence[Arm], speedup: bool = True) -> list[tuple[str, Cell]]:
    """What is told of each arm; of reasoning and inference only where there are such figures."""
    found: list[tuple[str, Cell]] = [
        ("arm", lambda arm: arm.name),
        ("seeds", lambda arm: str(len(arm.runs))),
        ("model", _fact(lambda run: run.model)),
        ("layers", _fact(lambda run: run.layers)),
        ("heads", _fact(lambda run: run.heads)),
        ("width", _fact(lambda run: run.widths)),
        ("micro batch", _fact(lambda run: run.micro_batch)),
        ("context", _fact(lambda run: run.context, ",")),
        ("steps", _count(lambda run: run.steps, ",.0f")),
        ("tokens", _count(lambda run: run.tokens, ",.0f")),
        ("parameters", _count(lambda run: run.parameters, ",.0f")),
        ("training FLOPs", _count(lambda run: run.flops, ".2e")),
        ("ms per step", _figure(lambda run: run.step_ms, ",.1f")),
        ("tokens/s", _figure(lambda run: run.tokens_per_second, ",.0f")),
        ("peak memory, MiB", _figure(lambda run: run.memory_mib, ",.0f")),
        ("training loss at the end", _figure(lambda run: run.train_loss, ".4f")),
        ("validation loss at the end", _figure(lambda run: run.validation_loss, ".4f")),
        ("test batches", _count(lambda run: run.test_batches, ",.0f")),
        ("test loss, nats per target", _figure(lambda run: run.test_loss, ".4f")),
    ]
    if any(arm.first.accuracy for arm in arms):
        found.append(("H90, steps", _figure(lambda run: run.h90, ".1f")))
        found.append(("mean accuracy", _figure(lambda run: run.area, ".3f")))
        if lengths := sorted({int(length) for arm in arms for run in arm.runs for length in run.beyond}):
            words = f"accuracy at {lengths[0]} steps, beyond training"
            found.append((words, _figure(lambda run: run.next_accuracy, ".3f")))
            words = f"mean accuracy, {lengths[0]} to {lengths[-1]} steps, beyond training"
            found.append((words, _figure(lambda run: run.area_beyond, ".3f")))
    else:
        found.append(("bits per byte", _figure(lambda run: run.bits_per_byte, ".4f")))
    gains = {arm.name: speedups(arm, arms[0]) for arm in arms[1:] if speedup}
    for cost, words in (("tokens", "tokens"), ("flops", "FLOPs"), ("seconds", "seconds")):
        if any(cost in of for of in gains.values()):
            found.append((f"speedup at equal loss, by {words}", _speedup_cell(gains, cost)))
    if any(arm.first.prefill_ms is not None for arm in arms):
        found.append(("prefill ms", _figure(lambda run: run.prefill_ms, ".1f")))
        found.append(("ms per token decoded", _figure(lambda run: run.decode_ms, ".2f")))
    return found


def notes(arms: Sequence[Arm], speedup: bool = True) -> list[str]:
    """How the figures are to be read."""
    scored = arms[0].first.scored
    said = [
        f"Test: {scored.tokens:,} targets ({scored.objective}), in samples of {scored.context:,} tokens, the same for "
        f"all arms; tokenizer {scored.tokenizer_name}.",
        "ms per step, tokens/s: medians of the recorded steps without the first two of each engine, of a run that "
        "grows the mean over its stages. Peak memory: of rank 0, allocated on its GPU or resident without one. "
        "Training loss at the end: mean of the recorded batches in the last tenth of the steps.",
        "FLOPs as in docs/records.md: three times the forward pass, less where matrices are frozen; with probes and "
        "branches that lost.",
    ]
    if any(arm.first.arm["data"].get("curriculum") for arm in arms):
        said.append(
            "With a curriculum the batches at the end are of the longest chains, evaluations are of all lengths."
        )
    if any(run.beyond for arm in arms for run in arm.runs):
        said.append(
            "Chains beyond those trained on were asked with a context that holds them, longer than in training where "
            "need be; H90 and mean accuracy are without them."
        )
        if without := [arm.name for arm in arms if not all(run.beyond for run in arm.runs)]:
            said.append(f"Not asked with all seeds: {', '.join(without)} (positions that end, or older runs).")
    apart = _apart([arm.first.arm for arm in arms])
    if apart:
        said.append(f"Not trained alike: {', '.join(apart)} differ between arms.")
    if speedup and any(speedups(arm, arms[0]) for arm in arms[1:]):
        said.append(
            f"Speedup over {arms[0].name}: how much sooner the worse of both final validation losses is reached, with "
            "the seeds that both have; in brackets the least and the most over them, which is no confidence interval. "
            "A loss in the midst of a schedule has not decayed yet, which counts against the arm that goes on."
        )
    if any(len(arm.runs) > 1 for arm in arms):
        said.append("± is one standard deviation over seeds.")
    single = [arm.name for arm in arms if len(arm.runs) == 1]
    if single:
        said.append(f"One seed only, so no spread: {', '.join(single)}.")
    runs = [run for arm in arms for run in arm.runs]
    if damaged := sum(run.damaged_lines for run in runs):
        said.append(f"Damaged lines in the runs' records, which are left out: {damaged:,}.")
    said.append("Trained on " + _machines(name for run in runs for name in run.trained_on or [UNRECORDED]))
    if any(run.prefill_ms is not None for run in runs):
        said.append(
            "Prefill of half a context, decoding after it, batch 1, fp32, the first seed of each arm, on "
            + _machines(run.inference_on for run in runs if run.inference_on)
        )
    return said


def _machines(names: Iterable[str]) -> str:
    known = sorted(set(names))
    apart = ": not one machine, so the times do not belong together" if len(known) > 1 else ""
    return " and on ".join(known) + apart + "."


def _apart(arms: Sequence[Mapping[str, Any]]) -> list[str]:
    """What differs between configurations, but for the models and their growth."""
    flat = [
        {
            f"{name}.{key}" if key else name: json.dumps(value, sort_keys=True)
            for name, section in arm.items()
            if name not in ("model", "growth")
            for key, value in (section.items() if isinstance(section, dict) else [("", section)])
        }
        for arm in arms
    ]
    return sorted({key for of in flat for key in of if len({other.get(key) for other in flat}) > 1})


def table(arms: Sequence[Arm], speedup: bool = True) -> list[list[str]]:
    """A row for each figure, its name first; a column for each arm. So it stays narrow where arms are few."""
    return [[name, *map(cell, arms)] for name, cell in figures(arms, speedup)]
