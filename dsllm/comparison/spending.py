"""What a run had spent by each of its records, and how long a step of it took.

step of the record     50    100    120: growth, 3 s    150
seconds of a step     0.2    0.2                        0.3
seconds spent          10     20            24 → 27      36
"""

import statistics
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from dsllm.training.progress import Progress

WARM_UP = 2
"""Records of training steps at the beginning, and after each growth event, whose times are left out."""


def step_seconds(train: Sequence[dict[str, Any]], records: Sequence[dict[str, Any]], steps: int) -> float:
    """A step of each stage by its median, and over the stages the mean by their steps."""
    ends = sorted({record["step"] for record in records if record["kind"] == "growth"} | {steps})
    steady = {id(record) for record in _steady(train, records)}
    weighed = []
    for begin, end in pairwise([0, *ends]):
        stage = [record for record in train if begin < record["step"] <= end]
        timed = [record for record in stage if id(record) in steady] or stage
        if timed:  # else it was shorter than what is recorded
            weighed.append((end - begin, statistics.median(record["step_seconds"] for record in timed)))
    return sum(count * seconds for count, seconds in weighed) / sum(count for count, _ in weighed)


def _steady(train: Sequence[dict[str, Any]], records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Records of steps without those that warm up, at the beginning and after each new engine; all if none is left."""
    starts = [r["step"] for r in records if r["kind"] == "growth" or r.get("event") in ("start", "resume")]
    cold: set[int] = set()
    for start in starts:
        cold |= {id(record) for record in [r for r in train if r["step"] > start][:WARM_UP]}
    return [record for record in train if id(record) not in cold] or list(train)


class Spent:
    """What had been spent by the step of a record: `spent(record)`, between the records of training steps linearly.

    The steps between the last record of a stage and the event that ended it cost what those before them did.
    """

    def __init__(self, train: Sequence[dict[str, Any]], growth: Sequence[dict[str, Any]], end: Progress):
        self._steps, self._flops, self._seconds = [0], [0.0], [0.0]
        of_step = train[0]["flops"] / train[0]["step"]
        last = {"kind": "train", "step": end.step, "flops": end.flops, "step_seconds": train[-1]["step_seconds"]}
        seconds = train[0]["step_seconds"]
        for record in sorted((*train, *growth, last), key=lambda record: (record["step"], record["kind"] == "growth")):
            steps = record["step"] - self._steps[-1]
            if record["kind"] == "growth":
                self._add(steps, self._flops[-1] + steps * of_step, steps * seconds)
                self._add(0, self._flops[-1], sum(record["seconds"].values()))
            elif steps:
                seconds = record["step_seconds"]
                of_step = (record["flops"] - self._flops[-1]) / steps
                self._add(steps, record["flops"], steps * seconds)

    def _add(self, steps: int, flops: float, seconds: float) -> None:
        self._steps.append(self._steps[-1] + steps)
        self._flops.append(flops)
        self._seconds.append(self._seconds[-1] + seconds)

    def __call__(self, record: dict[str, Any]) -> dict[str, Any]:
        flops, seconds = (float(np.interp(record["step"], self._steps, of)) for of in (self._flops, self._seconds))
        return {"tokens": record["tokens"], "flops": flops, "seconds": seconds}
