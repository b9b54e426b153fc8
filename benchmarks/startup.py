"""Seconds from the command to the first step, and what they are spent on.

    python benchmarks/startup.py [--repeats 5]

The command is a user's: demo_gpt2, a small model on data/demo, as `make demo` has it, with one process, without and
with the launcher. `begins` is when the run's first record is written: data, model, engine and optimizer are there. What
is imported until then is told package by package from a run of its own, by `-X importtime`.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
import report
from steps import ROOT

from dsllm.training.monitor import read_metrics

RECIPE = "launch/recipes/demo_gpt2.yaml"
PACKAGES = ("torch", "deepspeed", "transformers", "pydantic", "numpy", "dsllm", "tensorboard")


def command(run_dir: Path, launched: bool, data: str) -> list[str]:
    binaries = Path(sys.executable).parent
    launcher = [str(binaries / "deepspeed"), "--quiet", "--num_gpus", "1"] if launched else [sys.executable]
    options = ["--train.steps=1", "--train.eval_every=0", "--train.test_samples=0", "--train.precision=fp32"]
    return [*launcher, "launch/train.py", f"--config={RECIPE}", f"--run_dir={run_dir}", f"--data.path={data}", *options]


def once(launched: bool, data: str) -> dict[str, float]:
    """Seconds after the command at which it says that it begins, its first step is recorded, and it has ended."""
    with tempfile.TemporaryDirectory() as folder:
        run_dir, begun, wall = Path(folder) / "run", time.perf_counter(), time.time()
        environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
        process = subprocess.Popen(
            command(run_dir, launched, data), cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        first = None
        for line in process.stdout:
            if first is None and line.startswith("step"):
                first = time.perf_counter() - begun
        ended = time.perf_counter() - begun
        if process.wait() or first is None:
            raise SystemExit(f"{' '.join(command(run_dir, launched, data))} failed with {process.returncode}")
        begins = next(record for record in read_metrics(run_dir) if record.get("event") == "start")
        return {
            "begins": datetime.fromisoformat(begins["time"]).timestamp() - wall,
            "first_step": first,
            "ended": ended,
        }


def imports(data: str) -> dict[str, float]:
    """Seconds that the modules of each package take to import, those that they import not counted."""
    with tempfile.TemporaryDirectory() as folder:
        words = command(Path(folder) / "run", False, data)
        done = subprocess.run([words[0], "-X", "importtime", *words[1:]], cwd=ROOT, capture_output=True, text=True)
    found: dict[str, float] = {}
    for line in done.stderr.splitlines():
        if parts := re.match(r"import time:\s+(\d+) \|\s+\d+ \|\s*([\w.]+)", line):
            package = parts[2].partition(".")[0]
            package = package if package in PACKAGES else "others"
            found[package] = found.get(package, 0.0) + int(parts[1]) / 1e6
    return dict(sorted(found.items(), key=lambda of: -of[1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--data", default="data/demo")
    arguments = parser.parse_args()
    once(False, arguments.data)  # files into memory
    found: dict[str, list[dict[str, float]]] = {"python launch/train.py": [], "deepspeed launch/train.py": []}
    for _ in range(arguments.repeats):
        for words, runs in found.items():
            runs.append(once(words.startswith("deepspeed"), arguments.data))
    facts: dict[str, Any] = {"machine": report.machine("torch", "deepspeed"), "commands": {}}
    rows = []
    for words, runs in found.items():
        figures = {key: report.summary([run[key] for run in runs]) for key in runs[0]}
        facts["commands"][words] = figures
        rows.append([words, *(report.spread(of, 1) for of in figures.values())])
    facts["imports"] = imports(arguments.data)
    spent = ", ".join(f"{package} {seconds:.1f}" for package, seconds in facts["imports"].items())
    text = (
        f"{RECIPE}, one process, files in memory, nothing compiled; {report.described(facts['machine'])}; median "
        f"(least–most) of {arguments.repeats}, seconds after the command"
    )
    table = report.table(["command", "begins", "first step", "ended"], rows)
    report.write("startup", facts, f"{text}\n\n{table}\n\nImports, seconds, measured while they are timed: {spent}.")


if __name__ == "__main__":
    main()
