"""One rank of a growing run that writes down what memory it holds: what `benchmarks/growth.py` launches.

Lines of RUN/memory_RANK.jsonl: {"what": "ready", "event": 1, "held": …, "peak": …}, in bytes of resident memory.
"""

import json
import sys
from typing import Any

from resident import forget_peak, resident

from dsllm.errors import Reinitialise
from dsllm.models.language_model import LanguageModel
from dsllm.training.command import run
from dsllm.training.growing import Position
from dsllm.training.progressive import ProgressiveTrainer
from dsllm.training.rates import Outcome


class MeasuredTrainer(ProgressiveTrainer):
    """Measures the parts of each structural event, each beginning, and every step."""

    def build_model(self) -> LanguageModel:
        self._measure_from_here()
        return super().build_model()

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        self._note("ready", before=self.before, peak=resident("VmHWM"))

    def before_step(self) -> None:
        try:
            super().before_step()
        except Reinitialise:
            self._note("grown", before=self.before, peak=resident("VmHWM"))
            raise

    def here(self) -> Position:
        self._measure_from_here()
        position = super().here()
        self._note("saved", before=self.before, peak=resident("VmHWM"))
        return position

    def _probe_before(self, position: Position) -> None:
        self._measure_from_here()
        super()._probe_before(position)
        self._note("probed", before=self.before, peak=resident("VmHWM"))
        self._measure_from_here()  # what follows is growing

    def _measure_from_here(self) -> None:
        self.before = resident("VmRSS")
        forget_peak()

    def after_step(self, outcome: Outcome) -> None:
        super().after_step(outcome)
        self._note("step", step=self.progress.step)

    def _note(self, what: str, **facts: int) -> None:
        line = {"what": what, "stage": self.grown.stage, "phase": self.grown.phase, "held": resident("VmRSS"), **facts}
        with open(self.run_dir / f"memory_{self.world.rank}.jsonl", "a") as file:
            file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    run(MeasuredTrainer, sys.argv[1:])
