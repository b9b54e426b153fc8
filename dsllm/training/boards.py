"""What TensorBoard shows of a run: the same points by step and by token, as two runs.

RUN/tensorboard/by_step, by_tokens      what TensorBoard purges on resumption, it purges by one axis
custom scalars                          loss, learning rate, speed, memory at a glance
hparams                                 the configuration beside the last losses, by_step alone, when a run ends
"""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from dsllm.training.progress import Progress

LAYOUT = {
    "training": {
        "loss, nats per token": ["Multiline", ["train/loss", "val/loss"]],
        "learning rate": ["Multiline", ["train/lr"]],
        "tokens per second": ["Multiline", ["train/tokens_per_second"]],
        "memory of rank 0, bytes": ["Multiline", ["train/memory_bytes"]],
        "norm of the gradients": ["Multiline", ["train/grad_norm"]],
        "seconds a step, and of them for data": ["Multiline", ["train/step_seconds", "train/data_wait_seconds"]],
    },
    "growth": {
        "layers that are executed": ["Multiline", ["growth/layers_after"]],
        "divergence of copies": ["Multiline", ["layers/divergence/.*"]],
    },
}


class Boards:
    """Writers for a run from `progress` on."""

    def __init__(self, folder: Path, progress: Progress):
        self._writers: dict[str, SummaryWriter] = {}
        for axis, now in (("step", progress.step), ("tokens", progress.tokens)):
            _date_back(folder / f"by_{axis}")
            self._writers[axis] = SummaryWriter(str(folder / f"by_{axis}"), purge_step=now + 1)
            self._writers[axis].add_custom_scalars(LAYOUT)

    def scalars(self, group: str, progress: Progress, values: Mapping[str, float | None]) -> None:
        """Points of this step, each in the curve `group/name`; None is left out."""
        for axis, writer in self._writers.items():
            for name, value in values.items():
                if value is not None:
                    writer.add_scalar(f"{group}/{name}", value, getattr(progress, axis))
            writer.flush()

    def image(self, name: str, progress: Progress, pixels: np.ndarray) -> None:
        """A picture of this step: (H, W, 3) uint8."""
        for axis, writer in self._writers.items():
            writer.add_image(name, pixels, getattr(progress, axis), dataformats="HWC")
            writer.flush()

    def text(self, name: str, progress: Progress, markdown: str) -> None:
        """A text of this step."""
        for axis, writer in self._writers.items():
            writer.add_text(name, markdown, getattr(progress, axis))
            writer.flush()

    def outcome(self, progress: Progress, asked: Mapping[str, Any], given: Mapping[str, float]) -> None:
        """What was asked for, and what came of it in the end."""
        chosen = {key: value for key, value in asked.items() if value is not None}
        values = {key: value if isinstance(value, (bool, int, float)) else str(value) for key, value in chosen.items()}
        writer = self._writers["step"]
        for summary in hparams(values, dict(given)):
            writer._get_file_writer().add_summary(summary, progress.step)
        for name, value in given.items():
            writer.add_scalar(name, value, progress.step)
        writer.flush()

    def close(self) -> None:
        for writer in self._writers.values():
            writer.close()


def _date_back(folder: Path) -> None:
    """Give files of events that were written after now, the clock having been set back, earlier times in their names.

    TensorBoard reads files by name, events.out.tfevents.TIME.…: a later start must have the last.
    """
    files = sorted(folder.glob("events.out.tfevents.*"))
    now = int(time.time())
    if files and files[-1].name.split(".")[3] >= f"{now:010d}":
        for ago, file in enumerate(reversed(files), start=1):
            words = file.name.split(".")
            file.rename(file.with_name(".".join([*words[:3], f"{now - ago:010d}", *words[4:]])))
