"""One rank of a run that times its beginning and its saves: what `benchmarks/checkpoints.py` launches.

Lines of RUN/times.jsonl, by rank 0: {"what": "begun", "seconds": …}; {"what": "saved", "seconds": …, "bytes": …};
{"what": "stepped", "seconds": …}.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

from dsllm.training.command import run
from dsllm.training.rates import Outcome
from dsllm.training.trainer import BaseTrainer


class TimedTrainer(BaseTrainer):
    """A trainer with a clock."""

    def __init__(self, *arguments: Any, **options: Any):
        begun = time.perf_counter()
        super().__init__(*arguments, **options)
        self._note("begun", begun)

    def save(self) -> Path:
        self.world.barrier()
        begun = time.perf_counter()
        path = super().save()
        self._note("saved", begun, bytes=sum(file.stat().st_size for file in path.rglob("*") if file.is_file()))
        return path

    def step(self) -> Outcome | None:
        begun = time.perf_counter()
        outcome = super().step()
        self._note("stepped", begun)
        return outcome

    def _note(self, what: str, begun: float, **facts: int) -> None:
        self.world.barrier()
        if self.world.is_main:
            with open(self.run_dir / "times.jsonl", "a") as file:
                file.write(json.dumps({"what": what, "seconds": time.perf_counter() - begun, **facts}) + "\n")


if __name__ == "__main__":
    run(TimedTrainer, sys.argv[1:])
