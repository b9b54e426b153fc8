"""Training the origin's baseline: ms per step, tokens/s, model FLOPs utilisation, peak memory.

    python benchmarks/train.py [--repeats 3] [--steps 8]

Each run is `launch/train.py` itself on origin_gpt2 (12 layers, 192 wide, 6 heads, context 256, micro batch 8, GPT-2
vocabulary) in a fresh process, so that data, clipping, the optimizer and DeepSpeed are in the figures; the first two
steps are left out. The runs take turns, so that a machine whose speed drifts slows all of them. Utilisation is against
the best square matrix product that the machine was seen to do in that precision, on all cores, in between the runs.

Needs token shards: `make demo` writes data/demo.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))
import report
from steps import train_steps

from dsllm.training.precision import DTYPES, Precision

BASELINE = "launch/recipes/origin_gpt2.yaml"


def matrix_peak(precision: Precision, size: int = 2048, repeats: int = 10) -> float:
    """FLOP/s of the fastest of some square matrix products, on the GPU or on all cores."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    a, b = (torch.randn(size, size, device=device, dtype=DTYPES[precision]) for _ in range(2))
    best = float("inf")
    for _ in range(repeats):
        begun = time.perf_counter()
        c = a @ b
        float(c[0, 0])  # waits for the device
        best = min(best, time.perf_counter() - begun)
    return 2 * size**3 / best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8, help="measured steps of a run")
    parser.add_argument("--data", default="data/demo")
    arguments = parser.parse_args()
    arms: list[tuple[Precision, int]] = [("fp32", 1), ("bf16", 1), ("fp32", 2), ("bf16", 2)]
    if torch.cuda.is_available():
        arms = [(precision, ranks) for precision, ranks in arms if ranks <= torch.cuda.device_count()]
    runs: dict[tuple[Precision, int], list[dict[str, float]]] = {arm: [] for arm in arms}
    peaks: dict[Precision, float] = {}
    for _ in range(arguments.repeats):
        for arm in arms:
            peaks[arm[0]] = max(peaks.get(arm[0], 0.0), matrix_peak(arm[0]))
            runs[arm].append(train_steps(BASELINE, arguments.data, *arm, arguments.steps))

    facts: dict[str, Any] = {"machine": report.machine("torch", "deepspeed"), "matrix_peak": peaks, "arms": []}
    rows = []
    for (precision, ranks), results in runs.items():
        figures = {key: report.summary([result[key] for result in results]) for key in results[0]}
        utilisation = figures["flops_per_second"]["median"] / peaks[precision]
        facts["arms"].append({"precision": precision, "ranks": ranks, **figures, "utilisation": utilisation})
        cells = [report.spread(figures[key]) for key in ("ms_per_step", "tokens_per_second", "memory_mib")]
        rows.append([precision, ranks, cells[0], cells[1], f"{100 * utilisation:.1f} %", cells[2]])
    header = ["precision", "ranks", "ms per step", "tokens/s", "MFU", "peak MiB per rank"]
    about = facts["machine"]
    text = (
        f"The origin's baseline, 8 × 256 tokens per rank and step, ZeRO 2; {report.described(about)}; "
        f"median (least–most) of {arguments.repeats} runs. Matrix peak: "
        + ", ".join(f"{precision} {peak / 1e9:,.0f} GFLOP/s" for precision, peak in peaks.items())
    )
    report.write("train", facts, f"{text}\n\n{report.table(header, rows)}")


if __name__ == "__main__":
    main()
