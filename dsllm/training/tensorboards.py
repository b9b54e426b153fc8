"""A run shown by TensorBoard: curves by step and by tokens, pictures, texts, and what came of it.

    tensorboard/by_step       train/loss, …; pictures and texts; custom scalars: loss, rate, speed, memory at a glance;
                              hparams: the configuration beside the last losses, when a run ends
    tensorboard/by_tokens     train_by_tokens/loss, …

Two of its runs, because what it purges on resumption it purges by one axis; under other names, because curves of one
name share their axis.
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
        "the same by tokens": ["Multiline", ["train_by_tokens/loss", "val_by_tokens/loss"]],
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


class TensorBoards:
    """Writers for a run from `progress` on; a `Board`."""

    def __init__(self, folder: Path, progress: Progress):
        self._folder = folder
        self._by_step = _writer(folder / "by_step", progress.step)
        self._by_tokens = _writer(folder / "by_tokens", progress.tokens)
        self._by_step.add_custom_scalars(LAYOUT)

    @property
    def place(self) -> str:
        return f"tensorboard --logdir {self._folder}"

    def scalars(self, group: str, progress: Progress, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._by_step.add_scalar(f"{group}/{name}", value, progress.step)
            self._by_tokens.add_scalar(f"{group}_by_tokens/{name}", value, progress.tokens)
        self._by_step.flush()
        self._by_tokens.flush()

    def image(self, name: str, progress: Progress, pixels: np.ndarray) -> None:
        self._by_step.add_image(name, pixels, progress.step, dataformats="HWC")
        self._by_step.flush()

    def text(self, name: str, progress: Progress, markdown: str) -> None:
        self._by_step.add_text(name, markdown, progress.step)
        self._by_step.flush()

    def outcome(self, progress: Progress, asked: Mapping[str, Any], given: Mapping[str, float]) -> None:
        chosen = {key: value for key, value in asked.items() if value is not None}
        values = {key: value if isinstance(value, (bool, int, float)) else str(value) for key, value in chosen.items()}
        for summary in hparams(values, dict(given)):
            self._by_step._get_file_writer().add_summary(summary, progress.step)
        for name, value in given.items():
            self._by_step.add_scalar(name, value, progress.step)
        self._by_step.flush()

    def close(self) -> None:
        self._by_step.close()
        self._by_tokens.close()


def _writer(folder: Path, now: int) -> SummaryWriter:
    """For what comes after `now` on its axis; what an earlier start wrote after it is purged."""
    _date_back(folder)
    return SummaryWriter(str(folder), purge_step=now + 1)


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
