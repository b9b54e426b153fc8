"""How fast a run goes: rates over the steps since the last record, waiting and evaluation not hidden in them."""

import resource
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class Outcome:
    """What one optimizer step came to, on this rank."""

    loss: torch.Tensor
    """Mean over the rank's micro-batches, nats per token; a scalar on the device."""
    grad_norm: torch.Tensor | float | None
    """Global norm of the gradients before clipping."""
    lr: float
    applied: bool
    """False if the update was skipped, a gradient not being finite."""
    begun: float
    """`time.perf_counter` before the batch was asked for."""
    data_wait_seconds: float


class Rates:
    """Collects outcomes between two records.

    An accelerator works behind the program's back: the seconds of single steps mean little there, those of many steps
    do, once the loss of the last has been read.
    """

    def __init__(self, tokens_per_step: int):
        self.tokens_per_step = tokens_per_step
        self._clear()

    def add(self, outcome: Outcome) -> None:
        self._steps += 1
        self._seconds += time.perf_counter() - outcome.begun
        self._waited += outcome.data_wait_seconds

    def take(self, synchronised_seconds: float) -> dict[str, float | None]:
        """The rates since the last call; `synchronised_seconds` were spent on reading the last loss."""
        seconds = (self._seconds + synchronised_seconds) / self._steps
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
