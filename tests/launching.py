"""Start the launch scripts as a user does: real processes, the real launcher, real files."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.forked import forked

REPOSITORY = Path(__file__).resolve().parent.parent
# Launches of several workers of pytest-xdist go side by side, and must not meet at DeepSpeed's one default port.
_PORT = 29500 + 10 * int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
_BIN = Path(sys.executable).parent
DEEPSPEED = [_BIN / "deepspeed", "--master_port", _PORT]
"""DeepSpeed's launcher."""
HAS_FP16 = torch.ops.mkldnn._is_mkldnn_fp16_supported()  # what DeepSpeed asks on a CPU
needs_fp16 = pytest.mark.skipif(not HAS_FP16, reason="DeepSpeed takes fp16 only on CPUs with instructions for it")


_GIVEN = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(torch.cuda.device_count())))).split(",")
# Kept in the environment, because a worker of pytest-xdist inherits one in which they are hidden already.
_SEEN = os.environ.setdefault("GPUS_OF_THE_TESTS", ",".join(_GIVEN[: torch.cuda.device_count()]))
os.environ["CUDA_VISIBLE_DEVICES"] = ""
GPUS = len(_SEEN.split(",")) if _SEEN else 0
"""Of this machine, which the tests do not see: they run on CPUs, alike everywhere, but for those of GPUs."""


def environment(on_gpu: bool = False) -> dict[str, str]:
    """This process's environment, with one thread for each rank: the tests have two cores."""
    shown = {"CUDA_VISIBLE_DEVICES": _SEEN} if on_gpu else {}
    path = f"{_BIN}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "OMP_NUM_THREADS": "1", "PATH": path, **shown}


def start(command: list[Any], on_gpu: bool = False, **options: Any) -> "subprocess.Popen[str]":
    """Start a command in the repository's folder; both its outputs are in `stdout`."""
    return subprocess.Popen(
        [str(word) for word in command],
        cwd=REPOSITORY,
        env=environment(on_gpu),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        **options,
    )


def run(command: list[Any], expect: int = 0, on_gpu: bool = False) -> str:
    """Run a command to its end and give what it printed; fails unless it exits with `expect`."""
    process = start(command, on_gpu)
    try:
        output, _ = process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode == expect, f"exit code {process.returncode}, expected {expect}:\n{output}"
    return output


def python(script: str, *arguments: Any, expect: int = 0) -> str:
    """Run a script of the repository in one process."""
    return forked([script, *arguments], expect=expect)


def launcher(ranks: int) -> list[Any]:
    """The beginning of a command line that runs a script on `ranks` processes of this machine."""
    return [*DEEPSPEED, "--num_gpus", ranks] if ranks > 1 else [sys.executable]


def train_command(recipe: Path, run_dir: Path, ranks: int, overrides: dict[str, Any]) -> list[Any]:
    """The command that trains on `ranks` processes of this machine."""
    return [*launcher(ranks), "launch/train.py", *train_options(recipe, run_dir, overrides)]


def train_options(recipe: Path, run_dir: Path, overrides: dict[str, Any]) -> list[str]:
    """What `launch/train.py` is told."""
    return [f"--config={recipe}", f"--run_dir={run_dir}", *(f"--{key}={value}" for key, value in overrides.items())]


def train(recipe: Path, run_dir: Path, ranks: int = 1, expect: int = 0, **overrides: Any) -> str:
    """Train, without a launcher; `train__steps=3` stands for --train.steps=3."""
    keys = {key.replace("__", "."): value for key, value in overrides.items()}
    return forked(["launch/train.py", *train_options(recipe, run_dir, keys)], ranks, expect)
