"""Where the curves, pictures and texts of a run are shown, besides its records: TensorBoard, Weights & Biases.

What is shown is named alike everywhere, `group/name`. A board shows; what a run is resumed and judged by stands in
metrics.jsonl alone.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from dsllm.config import MonitorConfig
from dsllm.training.progress import Progress


class Board(Protocol):
    """Shows a run, from the step on at which it was opened."""

    @property
    def place(self) -> str:
        """Where a person looks at it: a command or an address; empty if there is none."""

    def scalars(self, group: str, progress: Progress, values: Mapping[str, float]) -> None:
        """Points of this step, each in the curve `group/name`."""

    def image(self, name: str, progress: Progress, pixels: np.ndarray) -> None:
        """A picture of this step: (H, W, 3) uint8."""

    def text(self, name: str, progress: Progress, markdown: str) -> None:
        """A text of this step."""

    def outcome(self, progress: Progress, asked: Mapping[str, Any], given: Mapping[str, float]) -> None:
        """What was asked for, by the dotted keys of the configuration, and what came of it in the end."""

    def close(self) -> None:
        """Nothing comes any more."""


def check_boards(config: MonitorConfig) -> None:
    """Raises `ConfigError` if a board that is asked for cannot be had; touches nothing."""
    if config.wandb is not None:
        from dsllm.training.wandb_board import check_wandb

        check_wandb(config.wandb)


def open_boards(run_dir: Path, config: MonitorConfig, progress: Progress) -> list[Board]:
    """The boards that a run asks for, to go on after `progress`."""
    boards: list[Board] = []
    if config.tensorboard:
        from dsllm.training.tensorboards import TensorBoards

        boards.append(TensorBoards(run_dir / "tensorboard", progress))
    if config.wandb is not None:
        from dsllm.training.wandb_board import WandbBoard

        boards.append(WandbBoard(run_dir, config.wandb))
    return boards
