"""What a node with GPUs makes of it: steps, utilisation, memory, the loss in bf16 beside fp32, a growth event.

    python benchmarks/gpu.py [--data data/demo] [--steps 3] [--parts training growth generation parity]

Every figure of training is that of `launch/train.py` in a fresh process on all GPUs of the node (`deepspeed` starts
them if there are several), the loader, clipping, the optimizer and DeepSpeed included. A step's time is the median over
stretches of ten, behind the first two stretches; the first step, with what is compiled in it, is told apart.
Utilisation (MFU) is the model's FLOPs (docs/records.md: what checkpointing recomputes does not count, nor does
causality) over the peak of the data sheet, for dense bf16; and over the best square matrix product seen here.
Generation, on the first GPU, is that of benchmarks/generation.py in bf16. What is done is written down after every
model, and a call for other parts adds to it.

Needs no network; tokens of GPT-2's vocabulary, as `make demo` writes them into data/demo.
"""

import argparse
import json
import re
import statistics
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))
import report
from generation import differing
from generation import measured as generations
from generation import table as generated
from steps import records_of, train_steps
from train import matrix_peak

from dsllm.errors import UserError, user_errors_exit
from dsllm.training.precision import Precision

RECIPES = Path(__file__).resolve().parent.parent / "launch" / "recipes"

DATA_SHEET = {
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "H200": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
}
"""Dense bf16 FLOP/s by what the GPU's name holds, the first that fits: NVIDIA's data sheets, without sparsity."""


class Arm(NamedTuple):
    """A model to be trained for some steps."""

    recipe: str
    sequences: int
    """A rank's, each step."""
    stage: int
    precision: Precision = "bf16"
    overrides: tuple[str, ...] = ()


COMPILED = "--train.compile=true"
OF_350M = ("--model.n_layer=24", "--model.n_head=16", "--model.n_embd=1024", COMPILED)
OF_1300M = ("--model.n_layer=24", "--model.n_head=16", "--model.n_embd=2048", COMPILED)
CONTEXT = "--model.context=1024"

ARMS: dict[str, Arm] = {
    "GPT-2 124M": Arm("gpt2_124m", 16, 1, overrides=("--train.compile=false",)),
    "GPT-2 124M, compiled": Arm("gpt2_124m", 16, 1, overrides=(COMPILED,)),
    "GPT-2 124M, 64 sequences, compiled": Arm("gpt2_124m", 64, 1, overrides=(COMPILED,)),
    "GPT-2 350M, compiled": Arm("gpt2_124m", 32, 1, overrides=OF_350M),
    "GPT-2 1.3B, compiled": Arm("gpt2_124m", 16, 2, overrides=OF_1300M),
    "GPT-2 1.3B, compiled, all blocks recomputed": Arm(
        "gpt2_124m", 32, 2, overrides=(*OF_1300M, "--train.activation_checkpointing=all")
    ),
    "origin_gpt2, compiled": Arm("origin_gpt2", 8, 0, overrides=(COMPILED,)),
    "origin_gpt2, 256 sequences, compiled": Arm("origin_gpt2", 256, 0, overrides=(COMPILED,)),
    "origin_progressive, 256 sequences, compiled": Arm("origin_progressive", 256, 0, overrides=(COMPILED,)),
    "conv_mid, 64 sequences, compiled": Arm("conv_mid", 64, 0, overrides=(COMPILED,)),
    "origin_conv_attention, 64 sequences, compiled": Arm("origin_conv_attention", 64, 0, overrides=(COMPILED,)),
    "GPT-2 124M, ZeRO 0, compiled": Arm("gpt2_124m", 16, 0, overrides=(COMPILED,)),
    "GPT-2 124M, ZeRO 2, compiled": Arm("gpt2_124m", 16, 2, overrides=(COMPILED,)),
    "GPT-2 124M, ZeRO 3": Arm("gpt2_124m", 16, 3, overrides=("--train.compile=false",)),
    "origin_gpt2, fp32": Arm("origin_gpt2", 8, 0, "fp32"),
    "origin_gpt2": Arm("origin_gpt2", 8, 0),
}
PARITY = ("origin_gpt2", "origin_progressive", "origin_conv_attention", "conv_mid")


def peak_of(name: str) -> float | None:
    """FLOP/s of a GPU by its name, None if it is in no list of ours."""
    return next((peak for part, peak in DATA_SHEET.items() if re.search(rf"\b{part}\b", name)), None)


def trained(arm: Arm, data: str, steps: int, ranks: int) -> dict[str, float]:
    options = [f"--train.ds_config=ds_configs/zero{arm.stage}.json", "--train.warmup_tokens=0", *arm.overrides]
    options += ["--growth=null"] if "progressive" in arm.recipe else []
    return train_steps(_file(arm.recipe), data, arm.precision, ranks, steps, arm.sequences, *options)


def compared(name: str, data: str, ranks: int = 1, steps: int = 10) -> dict[str, Any]:
    """The largest and the mean difference of ten losses in bf16 from those in fp32, the same batches and weights."""
    losses = {}
    for precision in ("fp32", "bf16"):
        options = [f"--train.steps={steps}", f"--train.global_batch_size={8 * ranks}", "--train.micro_batch_size=8"]
        options += [f"--train.precision={precision}", "--train.ds_config=ds_configs/zero2.json"]
        options += ["--growth=null"] if "progressive" in name else []
        records = records_of(_file(name), data, ranks, *options)
        losses[precision] = [record["loss"] for record in records if record["kind"] == "train"]
    apart = [abs(a - b) for a, b in zip(losses["fp32"], losses["bf16"], strict=True)]
    return {**losses, "first": apart[0], "largest": max(apart), "mean": statistics.fmean(apart)}


def growing(data: str, ranks: int) -> list[dict[str, Any]]:
    """Seconds of the parts of two events of GPT-2 124M's sizes: 6 layers become 12 under adapters; these are merged."""
    sizes = ["--model.n_layer=6", "--model.n_head=12", "--model.n_embd=768", CONTEXT]
    options = ["--train.steps=8", f"--train.global_batch_size={8 * ranks}", "--train.micro_batch_size=8"]
    options += ["--growth.policy={name: schedule, at: [0.5]}", "--growth.watch_every=0", "--train.precision=bf16"]
    records = records_of(_file("origin_progressive_grow"), data, ranks, *sizes, *options)
    keys = ("operator", "parameters", "trainable_parameters", "seconds", "bytes_written")
    return [{key: receipt[key] for key in keys} for receipt in records if receipt["kind"] == "growth"]


def training_row(name: str, figures: dict[str, float], peak: float | None, best: dict[str, float]) -> list[str]:
    """`peak` and `best` of all ranks together, FLOP/s."""
    arm, flops = ARMS[name], figures["flops_per_second"]
    sheet = "" if peak is None or arm.precision != "bf16" else f"{100 * flops / peak:.1f} %"
    about = f"{arm.sequences}, {arm.precision}, {arm.stage}"
    first = f"{figures['first_seconds']:.0f}"
    speed = [f"{figures['ms_per_step']:,.1f}", f"{figures['tokens_per_second']:,.0f}"]
    seen = f"{100 * flops / best[arm.precision]:.1f} %"
    return [name, about, *speed, sheet, seen, f"{figures['memory_mib']:,.0f}", first]


def keep(facts: dict[str, Any]) -> str:
    """The tables of what is done so far, written down."""
    about, peak, best = facts["machine"], facts["data_sheet_peak"], facts["matrix_peak"]
    sheet = "not known" if peak is None else f"{peak / 1e12:,.0f} TFLOP/s"
    products = ", ".join(f"{precision} {flops / 1e12:,.0f} TFLOP/s" for precision, flops in best.items())
    text = [
        f"{report.described(about)}, DeepSpeed {about['versions']['deepspeed']}, commit {about['commit']}, "
        f"{about['date']}; bf16 peak of the data sheet {sheet}; best matrix product {products}"
    ]
    if facts["training"]:
        rows = [training_row(name, figures, peak, best) for name, figures in facts["training"].items()]
        header = ["model", "sequences a rank, precision, ZeRO", "ms per step", "tokens/s", "MFU"]
        text.append(report.table([*header, "of the best product", "peak MiB per rank", "first step, s"], rows))
    if facts["parity"]:
        text.append("How far the losses of ten steps in bf16 are from those in fp32, nats per token:")
        keys = ("first", "mean", "largest")
        rows = [[name, *(f"{figures[key]:.1e}" for key in keys)] for name, figures in facts["parity"].items()]
        text.append(report.table(["model", "first step", "mean", "largest"], rows))
    if facts["generation"]:
        text.append(
            f"Generation, greedy, bf16; tokens in which the two GPT-2 differ: {differing(facts['generation'])}."
        )
        text.append(generated(facts["generation"]))
    if facts["growth"]:
        text.append("Growth events of GPT-2 124M's width, seconds of their parts:")
        rows = []
        for event in facts["growth"]:
            seconds = [f"{value:.1f}" for value in event["seconds"].values()]
            rows.append([event["operator"], f"{event['parameters'] / 1e6:.0f} M", *seconds])
        text.append(report.table(["operator", "parameters after it", *facts["growth"][0]["seconds"]], rows))
    report.keep("gpu", facts, "\n\n".join(text))
    return "\n\n".join(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="data/demo")
    parser.add_argument("--steps", type=int, default=3, help="measured stretches of ten steps")
    parser.add_argument("--arms", default=";".join(ARMS), help="of the training part, separated by semicolons")
    parts = ["training", "growth", "generation", "parity"]
    parser.add_argument("--parts", nargs="+", default=parts, choices=parts)
    arguments = parser.parse_args()
    with user_errors_exit():
        if not torch.cuda.is_available():
            raise UserError("torch finds no GPU here; on a CPU take benchmarks/train.py and benchmarks/growth.py")
        arms = arguments.arms.split(";")
        for name in arms:
            if name not in ARMS:
                raise UserError(f"--arms {name}: no such arm; take {'; '.join(ARMS)}")
    ranks, data = torch.cuda.device_count(), arguments.data
    about = report.machine("torch", "deepspeed")
    peak = peak_of(about["gpus"][0])
    best = {precision: ranks * matrix_peak(precision, 8192) for precision in ("fp32", "bf16")}
    torch.cuda.empty_cache()  # for the processes to come
    facts: dict[str, Any] = {"machine": about, "data_sheet_peak": peak and ranks * peak, "matrix_peak": best}
    facts |= {part: {} for part in parts}
    earlier = report.RESULTS / "gpu.json"
    if earlier.exists() and (before := json.loads(earlier.read_text()))["machine"] == about:
        facts |= {part: before[part] for part in parts}  # of the same commit, machine and day
    for name in arms if "training" in arguments.parts else ():
        try:
            facts["training"][name] = trained(ARMS[name], data, arguments.steps, ranks)
        except SystemExit as failed:  # a smaller GPU has not the memory for all of them
            print(f"{name}: {failed}", file=sys.stderr, flush=True)
        keep(facts)
    if "growth" in arguments.parts:
        facts["growth"] = growing(data, ranks)
        keep(facts)
    if "generation" in arguments.parts:
        facts["generation"] = generations("bf16", repeats=3, new=64)
        keep(facts)
    if "parity" in arguments.parts:
        # Nothing is timed here; several launches of the launcher would meet at one port.
        with ThreadPoolExecutor(len(PARITY) if ranks == 1 else 1) as side_by_side:
            found = side_by_side.map(lambda name: compared(name, data, ranks), PARITY)
        facts["parity"] = dict(zip(PARITY, found, strict=True))
        keep(facts)
    print(keep(facts))


def _file(recipe: str) -> str:
    return str(RECIPES / f"{recipe}.yaml")


if __name__ == "__main__":
    main()
