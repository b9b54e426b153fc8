"""A run shown by Weights & Biases, if `monitor.wandb` names a project: the curves, pictures and texts of TensorBoard.

One run there for one folder here, however often it is resumed or begun anew: RUN/wandb/id keeps its name. Its own
count of steps only goes up, and so is not used: every point brings `step` and `tokens`, and curves are drawn by
`step`. After a resumption from an earlier checkpoint the points of the steps that are done twice are there twice.
"""

import html
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dsllm.data.files import write_atomically
from dsllm.errors import ConfigError, TrainingError
from dsllm.training.progress import Progress


def check_wandb(project: str) -> None:
    """Raises `ConfigError` if wandb is not installed, or has no key and is not told to stay offline."""
    try:
        import wandb
    except ImportError:
        raise ConfigError(
            f"monitor.wandb = {project}: Weights & Biases is not installed; `pip install wandb`, or leave it out"
        ) from None
    mode = wandb.setup().settings.mode
    if mode == "online" and not wandb.login(prompt=False):
        raise ConfigError(
            f"monitor.wandb = {project}: Weights & Biases has no key; run `wandb login`, or set WANDB_MODE=offline"
        )


class WandbBoard:
    """A run of Weights & Biases, begun or gone on with."""

    def __init__(self, run_dir: Path, project: str):
        """Raises `TrainingError` if the server cannot be reached or refuses."""
        import wandb

        self._wandb = wandb
        kept = run_dir / "wandb" / "id"
        if not kept.exists():
            kept.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(kept, f"{secrets.token_hex(4)}\n".encode())
        try:
            self._run = wandb.init(
                project=project,
                name=run_dir.name,
                id=kept.read_text().strip(),
                dir=run_dir,
                resume="allow",
                settings=wandb.Settings(silent=True, console="off", disable_git=True, save_code=False),
            )
        except wandb.Error as error:
            raise TrainingError(
                f"monitor.wandb = {project}: {error}; set WANDB_MODE=offline to send it later, or leave it out"
            ) from None
        self._run.define_metric("tokens")
        self._run.define_metric("*", step_metric="step")

    @property
    def place(self) -> str:
        return f"wandb sync {self._run.settings.sync_dir}" if self._run.offline else str(self._run.url)

    def scalars(self, group: str, progress: Progress, values: Mapping[str, float]) -> None:
        self._log(progress, {f"{group}/{name}": value for name, value in values.items()})

    def image(self, name: str, progress: Progress, pixels: np.ndarray) -> None:
        self._log(progress, {name: self._wandb.Image(pixels)})

    def text(self, name: str, progress: Progress, markdown: str) -> None:
        self._log(progress, {name: self._wandb.Html(f"<pre>{html.escape(markdown)}</pre>")})

    def outcome(self, progress: Progress, asked: Mapping[str, Any], given: Mapping[str, float]) -> None:
        self._run.config.update(dict(asked), allow_val_change=True)
        self._run.summary.update(dict(given))

    def close(self) -> None:
        self._run.finish()

    def _log(self, progress: Progress, values: Mapping[str, Any]) -> None:
        self._run.log({**values, "step": progress.step, "tokens": progress.tokens})
