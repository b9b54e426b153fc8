"""What the contenders' workers share: reading the problem, the clock, and the answer as one line of JSON.

Needs torch, numpy and safetensors, nothing of this project: a contender may live in an environment of its own.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file


class Worker:
    """A contender's command line, its problem and its clock."""

    def __init__(self, *, checkout: bool = False):
        parser = argparse.ArgumentParser()
        parser.add_argument("problem", type=Path)
        parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
        parser.add_argument("--compile", action="store_true")
        if checkout:
            parser.add_argument("--checkout", type=Path, required=True)
        self.arguments = parser.parse_args()
        folder = self.arguments.problem
        self.settings: dict[str, Any] = json.loads((folder / "problem.json").read_text())
        self.weights = load_file(folder / "weights.safetensors")
        self.batches = torch.from_numpy(np.load(folder / "batches.npy").astype(np.int64))  # (steps, B, T + 1)
        self._seconds: list[float] = []
        self._losses: list[float] = []

    def step(self, begun: float, loss: float) -> None:
        """A step is over that began at `time.perf_counter() == begun`."""
        self._seconds.append(time.perf_counter() - begun)
        self._losses.append(loss)

    def answer(self) -> None:
        """Print what was measured. Memory is the most that this process has been resident with."""
        line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
        facts = {"step_seconds": self._seconds, "losses": self._losses, "memory_mib": int(line.split()[1]) / 1024}
        print(json.dumps(facts | {"versions": {"torch": torch.__version__}, "threads": torch.get_num_threads()}))
