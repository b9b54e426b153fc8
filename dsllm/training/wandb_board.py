"""A run shown by Weights & Biases, if `monitor.wandb` names a project: the curves, pictures and texts of TensorBoard.

One run there for one run here, however often it is resumed or grows: RUN/wandb/id keeps its name. Its own count of
steps only goes up, and so is not used: every point brings `step` and `tokens`, and curves are drawn by `step`. After a
resumption from an earlier checkpoint the points of the steps that are done twice are there twice.

It shows a run and is no part of it. Whatever fails in it once training has begun, its process killed, its network gone,
is said once, and the run goes on without it.
"""

import html
import secrets
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from dsllm.data.files import write_atomically
from dsllm.errors import ConfigError
from dsllm.training.progress import Progress

UNNAMEABLE = set("/\\#?%:")
"""What no project's name may have, by its own rules, and at most LONGEST characters."""
LONGEST = 128
FINISH_WITHIN = 20.0
"""Seconds that the end of a run, or a growth event, waits for what is still to be sent; `wandb sync` sends the rest."""


def check_wandb(project: str) -> None:
    """Raises `ConfigError` if wandb is not installed, or has no key and is not told to stay offline."""
    if not project or len(project) > LONGEST or UNNAMEABLE & set(project):
        raise ConfigError(
            f"monitor.wandb = {project!r}: not a project's name; take up to {LONGEST} characters without / \\ # ? % :"
        )
    try:
        import wandb
    except ImportError:
        raise ConfigError(
            f"monitor.wandb = {project}: Weights & Biases is not installed; `pip install wandb`, or leave it out"
        ) from None
    try:
        usable = wandb.setup().settings.mode != "online" or wandb.login(prompt=False, verify=False)
    except Exception as error:  # of another project, which raises what it likes
        raise _refused(project, error) from None
    if not usable:
        raise ConfigError(
            f"monitor.wandb = {project}: Weights & Biases has no key; run `wandb login`, or set WANDB_MODE=offline"
        )


def _refused(project: str, error: Exception) -> ConfigError:
    return ConfigError(
        f"monitor.wandb = {project}: {error or type(error).__name__}; set WANDB_MODE=offline to send it later, or "
        f"leave it out"
    )


class WandbBoard:
    """A run of Weights & Biases, begun or gone on with."""

    def __init__(self, run_dir: Path, project: str):
        """Raises `ConfigError` if the server cannot be reached or refuses."""
        import wandb

        self._wandb = wandb
        self._lost = False
        kept = run_dir / "wandb" / "id"
        if not kept.exists():
            kept.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(kept, f"{secrets.token_hex(4)}\n".encode())
        quiet = {"silent": True, "console": "off", "disable_git": True, "save_code": False}
        try:
            self._run = wandb.init(
                project=project,
                name=run_dir.name,
                id=kept.read_text().strip(),
                dir=run_dir,
                resume="allow",
                settings=wandb.Settings(**quiet, finish_timeout=FINISH_WITHIN),
            )
        except Exception as error:
            raise _refused(project, error) from None
        self._try(lambda: self._run.define_metric("tokens"))
        self._try(lambda: self._run.define_metric("*", step_metric="step"))

    @property
    def place(self) -> str:
        return f"wandb sync {self._run.settings.sync_dir}" if self._run.offline else self._run.url or ""

    def scalars(self, group: str, progress: Progress, values: Mapping[str, float]) -> None:
        self._log(progress, lambda: {f"{group}/{name}": value for name, value in values.items()})

    def image(self, name: str, progress: Progress, pixels: np.ndarray) -> None:
        self._log(progress, lambda: {name: self._wandb.Image(pixels)})

    def text(self, name: str, progress: Progress, markdown: str) -> None:
        self._log(progress, lambda: {name: self._wandb.Html(f"<pre>{html.escape(markdown)}</pre>")})

    def outcome(self, progress: Progress, asked: Mapping[str, Any], given: Mapping[str, float]) -> None:
        self._try(lambda: self._run.config.update(dict(asked), allow_val_change=True))
        self._try(lambda: self._run.summary.update(dict(given)))

    def close(self) -> None:
        self._try(lambda: self._run.finish())

    def _log(self, progress: Progress, values: Callable[[], Mapping[str, Any]]) -> None:
        self._try(lambda: self._run.log({**values(), "step": progress.step, "tokens": progress.tokens}))

    def _try(self, show: Callable[[], object]) -> None:
        if self._lost:
            return
        try:
            show()
        except Exception as error:
            self._lost = True
            with suppress(Exception):
                self._wandb.teardown(1)  # else it tries once more when the process ends, with a traceback
            reason = str(error) or type(error).__name__
            print(
                f"Weights & Biases: {reason}; the run goes on without it, and is shown again when it resumes",
                flush=True,
            )
