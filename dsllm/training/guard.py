"""What must not reach the weights: an update of a loss or gradients that are no numbers, or far above the last ones.

    guard.begin(loss)                  the step's mean loss over all ranks
    if guard.allows(norm): update      its gradients' global norm
    why = guard.end(updated)           None, or why the update was left out: told, counted, fatal after many in a row

Both numbers are the same on every rank, and so is the verdict. A spike is a value more than `spike_sigma` standard
deviations above the mean of the last `spike_window` steps, as in OLMo-core's SkipStepOptimizer; but norms are judged by
their logarithms, for they spread to one side, and a deviation counts as at least `LEAST`. The windows see spikes, too:
a lasting rise is the new level after a few steps. A number that is none they never see.
"""

import math
from collections import deque
from collections.abc import Sequence
from statistics import fmean, pstdev

from dsllm.config import TrainConfig
from dsllm.errors import TrainingError

LEAST = 0.05
"""Nats of loss, and of a norm a twentieth: in a window that hardly moves every rise would be a spike."""


class Guard:
    """Judges every update of a run; `state` and `load_state` carry the windows over a resumption."""

    def __init__(self, train: TrainConfig):
        self.sigma, self.max_skips = train.spike_sigma, train.max_skips
        self.losses = Window(train.spike_window)
        self.norms = Window(train.spike_window)
        self.level: int | None = None
        self.in_a_row = 0
        """Updates left out, since the last one that was made."""
        self.loss, self.norm = 0.0, math.inf
        self._asked = False
        self._objection: str | None = None

    @property
    def spiked(self) -> bool:
        """Whether this step's update is refused though both its numbers are finite."""
        return self._objection is not None and math.isfinite(self.loss) and math.isfinite(self.norm)

    def begin(self, loss: float, level: int | None = None) -> None:
        """A step's mean loss over all ranks is known. On another `level` of the data, losses are of another height."""
        if level != self.level:
            self.losses.clear()
            self.norms.clear()
        self.loss, self.norm, self.level = loss, math.inf, level
        self._asked, self._objection = False, None

    def allows(self, norm: float) -> bool:
        """Whether this step's update may be made, its gradients having this global norm."""
        self._asked = True
        self.norm = norm if norm >= 0 else math.inf  # DeepSpeed says -1 for a norm that is no number
        self._objection = (
            _not_finite("loss", self.loss)
            or _not_finite("gradient norm", self.norm)
            or self.losses.objection("loss", self.loss, self.sigma)
            or self.norms.objection("log of the gradient norm", _log(self.norm), self.sigma)
        )
        return self._objection is None

    def end(self, updated: bool, scale_sinks: bool = False) -> str | None:
        """The step is over: why its update was left out, or None.

        While fp16's loss scale still sinks to where gradients do not overflow (`scale_sinks`), an overflow does not
        count as one in a row. Raises `TrainingError` for an update that was made unasked: then nothing is guarded.
        """
        if updated and not (self._asked and self._objection is None):
            raise TrainingError(
                "an update was made without looking at its gradients; take train.ds_config from ds_configs/, or tell us"
            )
        overflowed = not updated and not self._asked  # DeepSpeed saw it before there was a norm
        if overflowed:
            self._objection = _not_finite("loss", self.loss) or _not_finite("gradient norm", math.inf)
        self.losses.add(self.loss)
        self.norms.add(_log(self.norm))
        if updated:
            self.in_a_row = 0
        elif not (overflowed and scale_sinks and math.isfinite(self.loss)):
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
        windows = {"losses": list(self.losses), "norms": list(self.norms)}
        return {**windows, "level": self.level, "in_a_row": self.in_a_row}

    def load_state(
        self,
        losses: Sequence[float] = (),
        norms: Sequence[float] = (),
        level: int | None = None,
        in_a_row: int = 0,
    ) -> None:
        """Go on from what `state` gave."""
        self.losses.extend(losses)
        self.norms.extend(norms)
        self.level, self.in_a_row = level, in_a_row


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
        mean, deviation = fmean(self), max(pstdev(self), LEAST)
        if value <= mean + sigma * deviation:
            return None
        return f"its {name} is {value:.4g}, {mean:.4g} ± {deviation:.2g} over the last {len(self)} steps"


def _log(norm: float) -> float:
    """Its logarithm; of zero, that of the smallest number."""
    return math.log(max(norm, 1e-30))


def _not_finite(name: str, value: float) -> str | None:
    return None if math.isfinite(value) else f"its {name} is {value}"
