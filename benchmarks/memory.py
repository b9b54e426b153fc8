"""Peak memory of a process beside what a formula predicts, over ZeRO stages, ranks, checkpointing and LoRA, on CPUs.

    python benchmarks/memory.py [--repeats 1] [--live]

A model of 124M parameters in fp32 trains three steps of one sequence a rank; the figure is the most that rank 0 was
resident with (VmHWM). Predicted, in bytes, of P parameters of which T train, on N ranks:

    stage   weights   gradients   moments   DeepSpeed's own copy of the weights
    0       4 P       4 T         8 T       -
    1       4 P       4 T         8 T / N   4 T / N
    2       4 P       4 T         8 T / N   4 T / N        gradients of a step live until the last is there
    3       4 P / N   4 T / N     8 T / N   4 T / N

on top of it buffers, V · E being the embedding's entries, tied to the head:

    all     12 V E      the head's gradient by the weights, the same scaled, and the embedding's
    1, 2    4 T / N     the rank's part of the gradients, flat
    3       4 T / N + 4 P + 4 T, and 4 T more on several ranks:
                        the same; the weights gathered (DeepSpeed keeps up to 10^9 live); its bucket (up to 5 · 10^8
                        numbers); and what gloo scatters from

and one constant: what the process holds with hardly a model (a run of a tiny one, at each number of ranks). Which
buffers there are was inferred from what the first formula lacked, and from DeepSpeed's defaults; they were not traced
one by one. Activations are in no formula: the rows at a context of 1,024 show them. In LoRA's phase 12 layers have
grown to 24 whose copies share their frozen bases; only the adapters, embeddings and norms train.

A process stays resident with memory that it has freed: C's allocator keeps pieces below 32 MiB, as activations are.
With --live the rows at a context of 1,024 are measured with an allocator that gives them back at once
(MALLOC_MMAP_THRESHOLD_=65536), which is what a GPU's figure means, too.
"""

import argparse
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
import report
from steps import records_of

MIB = 2**20
VOCABULARY, WIDTH = 50304, 768
SIZES = {
    "124M": ("model.n_layer=12", "model.n_head=12", "model.n_embd=768"),
    "tiny": ("model.n_layer=1", "model.n_head=1", "model.n_embd=8"),
}
LORA = (
    "growth.preset=diverge_only",
    "growth.operator=interpose",
    "growth.policy={name: schedule, at: [0.34]}",
    "growth.lora.rank=32",
    "growth.watch_every=0",
    "growth.probe_samples=2",
)


@dataclass(frozen=True)
class Arm:
    """A run to be measured."""

    stage: int
    ranks: int
    context: int = 64
    recomputed: bool = False
    lora: bool = False


ARMS = [
    *(Arm(stage, ranks) for ranks in (1, 2) for stage in range(4)),
    *(Arm(0, 1, 1024, recomputed) for recomputed in (False, True)),
    *(Arm(stage, 2, lora=True) for stage in (0, 2, 3)),
]


def run(arm: Arm, size: str, data: str) -> dict[str, Any]:
    """What a run recorded last: its peak, and how many parameters it has and trains."""
    options = ["model.name=progressive", *SIZES[size], f"model.context={arm.context}", "train.micro_batch_size=1"]
    options += [f"train.global_batch_size={arm.ranks}", "train.steps=3", "train.precision=fp32", "train.schedule=wsd"]
    options += [f"train.ds_config=ds_configs/zero{arm.stage}.json", *(LORA if arm.lora else ())]
    options += [f"train.activation_checkpointing={'all' if arm.recomputed else 'none'}"]
    records = records_of("launch/recipes/gpt2_124m.yaml", data, arm.ranks, *(f"--{option}" for option in options))
    began = [record for record in records if record.get("event") in ("start", "resume")][-1]
    grown = [record for record in records if record["kind"] == "growth"]
    parameters = grown[-1]["parameters"] if grown else began["parameters"]
    trainable = grown[-1]["trainable_parameters"] if grown else parameters
    peak = [record for record in records if record["kind"] == "train"][-1]["memory_bytes"]
    return {"parameters": parameters, "trainable": trainable, "peak_mib": peak / MIB}


def predicted_mib(arm: Arm, parameters: int, trainable: int) -> float:
    """Weights, gradients, moments and DeepSpeed's copy of what trains."""
    n, stage = arm.ranks, arm.stage
    weights = 4 * parameters / (n if stage == 3 else 1)
    gradients = 4 * trainable / (n if stage == 3 else 1)
    moments = 8 * trainable / (n if stage else 1)
    copy = 4 * trainable / n if stage else 0
    return (weights + gradients + moments + copy) / MIB


def buffers_mib(arm: Arm, parameters: int, trainable: int) -> float:
    """What comes on top for a while: gradients of the tied embedding, DeepSpeed's flat gradients, its buckets."""
    own = 12 * VOCABULARY * WIDTH + (4 * trainable / arm.ranks if arm.stage else 0)
    gathered = 4 * parameters + 4 * trainable * min(arm.ranks, 2) if arm.stage == 3 else 0
    return (own + gathered) / MIB


def table(found: list[dict[str, Any]]) -> str:
    """What was measured beside what is predicted."""
    rows = []
    for row in found:
        arm = Arm(*(row[key] for key in ("stage", "ranks", "context", "recomputed", "lora")))
        states = predicted_mib(arm, row["parameters"], row["trainable"])
        buffers = buffers_mib(arm, row["parameters"], row["trainable"])
        peak, constant = row["peak"]["median"], row["constant_mib"]
        rows.append(
            [
                arm.stage,
                arm.ranks,
                arm.context,
                "LoRA" if arm.lora else "full",
                "all" if arm.recomputed else "none",
                f"{row['parameters'] / 1e6:.0f} M, {row['trainable'] / 1e6:.0f} M",
                f"{states:,.0f} + {constant:,.0f}",
                f"{buffers:,.0f}",
                report.spread(row["peak"]),
                f"{peak / (states + constant) - 1:+.0%}",
                f"{peak / (states + constant + buffers) - 1:+.0%}",
            ]
        )
    columns = ["ZeRO", "ranks", "context", "phase", "recomputed", "parameters, that train", "states + constant MiB"]
    return report.table([*columns, "buffers MiB", "peak MiB", "off without buffers", "off with them"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--data", default="data/demo")
    parser.add_argument("--live", action="store_true")
    arguments = parser.parse_args()
    if arguments.live:
        os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"
    constant = {ranks: run(Arm(0, ranks), "tiny", arguments.data)["peak_mib"] for ranks in (1, 2)}
    found: list[dict[str, Any]] = []
    for arm in (arm for arm in ARMS if arm.context == 1024 or not arguments.live):
        runs = [run(arm, "124M", arguments.data) for _ in range(arguments.repeats)]
        facts = {**vars(arm), "parameters": runs[0]["parameters"], "trainable": runs[0]["trainable"]}
        peak = report.summary([of["peak_mib"] for of in runs])
        found.append({**facts, "constant_mib": constant[arm.ranks], "peak": peak})
    about = report.machine("torch", "deepspeed")
    report.write(
        "memory_live" if arguments.live else "memory",
        {"machine": about, "arms": found},
        f"{report.described(about)}\n\n{table(found)}",
    )


if __name__ == "__main__":
    main()
