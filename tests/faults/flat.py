"""One long run: do memory, file descriptors and threads stay flat?

    python tests/faults/flat.py [--minutes 30] [--ranks 2] [--out FILE]

A tiny model, with an evaluation each 20 steps and a checkpoint each 10. Every ten seconds a rank's own memory (USS),
its open files and its threads are counted; printed is what they grow by in an hour, by least squares over the
second half, beside the first and the last count.
"""

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY))

from tests.faults.soak_faults import prepare_text  # noqa: E402
from tests.launching import environment, launcher  # noqa: E402

EVERY = 10.0
COUNTS = {"memory, MiB": lambda p: p.memory_full_info().uss / 2**20, "files": psutil.Process.num_fds}
COUNTS["threads"] = psutil.Process.num_threads


def recipe(folder: Path) -> Path:
    """Text and a configuration with more steps than there is time for."""
    data = prepare_text(folder)
    path = folder / "flat.yaml"
    path.write_text(
        f"""run_dir: {folder / "run"}
model: {{name: gpt2, n_layer: 2, n_head: 2, n_embd: 64, context: 128}}
data: {{path: {data}}}
train: {{steps: 1000000, micro_batch_size: 2, global_batch_size: 8, precision: fp32, eval_every: 20, eval_samples: 8,
        test_samples: 0, checkpoint_every: 10, schedule: wsd}}
monitor: {{log_every: 1}}
"""
    )
    return path


def ranks_of(process: psutil.Process) -> list[psutil.Process]:
    """The training processes below a launcher, or the one itself."""
    found = [child for child in process.children(recursive=True) if "--config" in " ".join(child.cmdline())]
    return [child for child in found if "LOCAL_RANK" in child.environ()] or [process]


def slope(seconds: list[float], values: list[float]) -> float:
    """Growth in an hour, over the second half."""
    half = len(values) // 2
    return float(np.polyfit(seconds[half:], values[half:], 1)[0] * 3600)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "flat.md")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="flat."))
    script = ["launch/train.py", f"--config={recipe(folder)}"]
    words = [str(word) for word in [*launcher(arguments.ranks), *script]]
    log = (folder / "log").open("w")
    started = subprocess.Popen(words, cwd=REPOSITORY, env=environment(), stdout=log, stderr=log)
    metrics = folder / "run" / "metrics.jsonl"
    while not metrics.exists() or '"step": 40,' not in metrics.read_text():
        time.sleep(1)
    ranks, begun = ranks_of(psutil.Process(started.pid)), time.monotonic()
    seconds: list[float] = []
    counted: dict[tuple[int, str], list[float]] = {}
    while time.monotonic() - begun < 60 * arguments.minutes:
        seconds.append(time.monotonic() - begun)
        for rank, process in enumerate(ranks):
            for name, count in COUNTS.items():
                counted.setdefault((rank, name), []).append(float(count(process)))
        time.sleep(EVERY)
    for process in ranks:
        process.send_signal(signal.SIGTERM)
    started.wait(60)
    steps = json.loads(metrics.read_text().splitlines()[-1])["step"]
    lines = [
        f"{arguments.minutes:g} minutes, {arguments.ranks} ranks, {steps:,} steps, {steps // 10:,} checkpoints, "
        f"{steps // 20:,} evaluations; a count every {EVERY:g} s.",
        "",
        "| rank | what | first | last | growth in an hour, over the second half |",
        "| --- | --- | --- | --- | --- |",
    ]
    for (rank, name), values in counted.items():
        lines.append(f"| {rank} | {name} | {values[0]:,.0f} | {values[-1]:,.0f} | {slope(seconds, values):+,.1f} |")
    text = "\n".join(lines) + "\n"
    arguments.out.parent.mkdir(exist_ok=True)
    arguments.out.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
