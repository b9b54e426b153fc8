"""Training steps as a user's run takes them: `launch/train.py` in a fresh process, its steady steps measured."""

import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from dsllm.training.monitor import read_metrics
from dsllm.training.precision import Precision

ROOT = Path(__file__).resolve().parent.parent
WARM_UP = 2


def records_of(recipe: str, data: str, ranks: int, *overrides: str) -> list[dict[str, Any]]:
    """What a run recorded. It neither evaluates nor saves in between, unless `overrides` say so."""
    with tempfile.TemporaryDirectory() as run_dir:
        command = ["launch/train.py", f"--config={recipe}", f"--run_dir={run_dir}/run", f"--data.path={data}"]
        command += ["--train.eval_every=0", "--train.test_samples=0", "--train.checkpoint_every=0"]
        command += ["--monitor.log_every=1", "--monitor.tensorboard=false", *overrides]
        binaries = Path(sys.executable).parent
        launcher = [str(binaries / "deepspeed"), "--num_gpus", str(ranks)] if ranks > 1 else [sys.executable]
        environment = {**os.environ, "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}"}
        done = subprocess.run([*launcher, *command], cwd=ROOT, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
        return read_metrics(Path(run_dir, "run"))


def train_steps(
    recipe: str, data: str, precision: Precision, ranks: int, steps: int, sequences: int = 8, *overrides: str
) -> dict[str, float]:
    """The medians of one run's steady steps of `sequences` per rank; the first two steps are left out.

    On a CPU each step's own time; on a GPU, which works behind the program's back, the time of ten steps at once.
    """
    every = 10 if torch.cuda.is_available() else 1
    options = [f"--train.precision={precision}", f"--train.steps={(steps + WARM_UP) * every}"]
    options += [f"--train.micro_batch_size={sequences}", f"--train.global_batch_size={sequences * ranks}"]
    options += [f"--monitor.log_every={every}", *overrides]
    records = [record for record in records_of(recipe, data, ranks, *options) if record["kind"] == "train"]
    seconds = statistics.median(record["step_seconds"] for record in records[WARM_UP:])
    tokens, flops = (records[0][key] / records[0]["step"] for key in ("tokens", "flops"))
    return {
        "ms_per_step": 1000 * seconds,
        "tokens_per_second": tokens / seconds,
        "flops_per_second": flops / seconds,
        "memory_mib": records[-1]["memory_bytes"] / 2**20,
        "loss_of_first_step": records[0]["loss"],
        "first_seconds": records[0]["step_seconds"],
    }
