"""How fast a run goes: rates over the steps since the last record, waiting and evaluation not hidden in them."""

import resource
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class Outcome:
    """What one optimizer step came to, on every rank alike but for the times."""

    loss: float
    """Mean over the global batch, nats per token."""
    grad_norm: float
    """Global norm of the gradients before clipping; infinite if one is no number."""
    lr: float
    skipped: str | None
    """Why the weights were not updated; None if they were."""
    begun: float
    """`time.perf_counter` before the batch was asked for."""
    data_wait_seconds: float


class Rates:
    """Collects outcomes between two records.

    An accelerator works behind the program's back: a step's update may still be under way when the next one begins. So
    the seconds of single steps mean little there, those of many do.
    """

    def __init__(self, tokens_per_step: int):
        self.tokens_per_step = tokens_per_step
        self._clear()

    def add(self, outcome: Outcome) -> None:
        self._steps += 1
        self._seconds += time.perf_counter() - outcome.begun
        self._waited += outcome.data_wait_seconds

    def take(self) -> dict[str, float | None]:
        """The rates since the last call."""
        seconds = self._seconds / self._steps
        rates: dict[str, float | None] = {
            "tokens_per_second": self.tokens_per_step / seconds,
            "step_seconds": seconds,
            "data_wait_seconds": self._waited / self._steps,
            "memory_bytes": peak_memory_bytes(),
        }
        self._clear()
        return rates

    def _clear(self) -> None:
        self._steps, self._seconds, self._waited = 0, 0.0, 0.0


def peak_memory_bytes() -> int:
    """The most that this program has held: allocated on its GPU, or resident without one."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    if sys.platform == "linux":  # there getrusage also counts what stood in the process before this program: its parent
        line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
