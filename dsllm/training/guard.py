"""What must not reach the weights: an update of a loss or gradients that are no numbers, or far above the last ones.

    guard.begin(loss)                  the step's mean loss over all ranks
    if guard.allows(norm): update      its gradients' global norm
    why = guard.end(updated)           None, or why the update was left out: told, counted, fatal after many in a row

Both numbers are the same on every rank, and so is the verdict. A spike is a value more than `spike_sigma` standard
deviations above the mean of the last `spike_window` steps, as in OLMo-core's SkipStepOptimizer. The windows see spikes
too, so that a lasting rise is the new level after a few steps; a number that is none they never see.
"""

import math
from collections import deque
from collections.abc import Sequence
from statistics import fmean, pstdev

from dsllm.config import TrainConfig


class Guard:
    """Judges every update of a run; `state` and `load_state` carry the windows over a resumption.

    `scaled`: with fp16's dynamic loss scale gradients overflow while it is found; those do not count as in a row.
    """

    def __init__(self, train: TrainConfig, scaled: bool = False):
        self.sigma, self.max_skips, self.scaled = train.spike_sigma, train.max_skips, scaled
        self.losses = Window(train.spike_window)
        self.norms = Window(train.spike_window)
        self.in_a_row = 0
        """Updates left out, since the last one that was made."""
        self.loss, self.norm = 0.0, math.inf
        self._objection: str | None = None

    def begin(self, loss: float) -> None:
        """A step's mean loss over all ranks is known."""
        self.loss, self.norm, self._objection = loss, math.inf, None

    def allows(self, norm: float) -> bool:
        """Whether this step's update may be made, its gradients having this global norm."""
        self.norm = norm if norm >= 0 else math.inf  # DeepSpeed says -1 for a norm that is no number
        self._objection = (
            _not_finite("loss", self.loss)
            or _not_finite("gradient norm", self.norm)
            or self.losses.objection("loss", self.loss, self.sigma)
            or self.norms.objection("gradient norm", self.norm, self.sigma)
        )
        return self._objection is None

    def end(self, updated: bool) -> str | None:
        """The step is over: why its update was left out, or None."""
        if not updated and self._objection is None:  # DeepSpeed saw a gradient overflow before there was a norm
            self._objection = _not_finite("loss", self.loss) or _not_finite("gradient norm", math.inf)
        self.losses.add(self.loss)
        self.norms.add(self.norm)
        if updated:
            self.in_a_row = 0
        elif not (self.scaled and math.isfinite(self.loss)):
            self.in_a_row += 1
        return self._objection

    def exhausted(self, step: int, samples: Sequence[int]) -> str | None:
        """What to tell if too many updates in a row were left out, the last at `step`, having read `samples`."""
        if self.in_a_row < self.max_skips:
            return None
        shown = ", ".join(map(str, samples[:16])) + (", …" if len(samples) > 16 else "")
        return (
            f"{self.in_a_row} updates in a row were skipped, steps {step + 1 - self.in_a_row} to {step}; the last: "
            f"{self._objection}, samples {shown} of the training split (metrics.jsonl names those of every step). "
            f"Look at them, lower train.lr, or raise train.max_skips; the checkpoints are whole"
        )

    def state(self) -> dict[str, object]:
        """As JSON."""
        return {"losses": list(self.losses), "norms": list(self.norms), "in_a_row": self.in_a_row}

    def load_state(self, losses: Sequence[float] = (), norms: Sequence[float] = (), in_a_row: int = 0) -> None:
        """Go on from what `state` gave."""
        self.losses.extend(losses)
        self.norms.extend(norms)
        self.in_a_row = in_a_row


class Window(deque[float]):
    """The newest `size` values."""

    def __init__(self, size: int):
        super().__init__(maxlen=size)

    def add(self, value: float) -> None:
        """Remember a value, if it is finite: with one that is not, no mean would be a number as long as it stays."""
        if math.isfinite(value):
            self.append(value)

    def objection(self, name: str, value: float, sigma: float) -> str | None:
        """Why a value is a spike; None if it is not, or if half of the window is still empty."""
        assert self.maxlen is not None
        if not sigma or len(self) < max(2, self.maxlen // 2):
            return None
        mean, deviation = fmean(self), pstdev(self)
        if value <= mean + sigma * deviation:
            return None
        return f"its {name} is {value:.4g}, {mean:.4g} ± {deviation:.2g} over the last {len(self)} steps"


def _not_finite(name: str, value: float) -> str | None:
    return None if math.isfinite(value) else f"its {name} is {value}"
