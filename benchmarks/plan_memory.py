"""Planned memory beside what was measured: recorded runs of gpu.py and memory.py, by the formulas of dsllm.planning.

    python benchmarks/plan_memory.py

Nothing is run: the measured figures are those of benchmarks/results.
"""

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
import report
from memory import LORA

from dsllm.config import RunConfig
from dsllm.growth.forecast import models_by_steps
from dsllm.growth.plan import as_growable
from dsllm.models import skeleton
from dsllm.planning import memory
from dsllm.planning.activations import count_activations
from dsllm.planning.memory import Machine, Sizes, by_weights, memory_of
from dsllm.planning.plan import RESERVED
from dsllm.training.ds_config import read_ds_config

ROOT, MIB = Path(__file__).resolve().parent.parent, 2**20
RESULTS = ROOT / "benchmarks" / "results"
OF_350M = ("model.n_layer=24", "model.n_head=16", "model.n_embd=1024")
GPU_RUNS = {
    "origin_gpt2, fp32": ("origin_gpt2", 8, "fp32", 2, ()),
    "origin_gpt2": ("origin_gpt2", 8, "bf16", 2, ()),
    "origin_gpt2, 256 sequences": ("origin_gpt2", 256, "bf16", 2, ()),
    "GPT-2 124M, ZeRO 1": ("gpt2_124m", 16, "bf16", 1, ()),
    "GPT-2 124M, ZeRO 2": ("gpt2_124m", 16, "bf16", 2, ()),
    "GPT-2 124M, ZeRO 3": ("gpt2_124m", 16, "bf16", 3, ()),
    "GPT-2 350M": ("gpt2_124m", 16, "bf16", 2, OF_350M),
    "GPT-2 124M, compiled": ("gpt2_124m", 16, "bf16", 1, ()),
    "GPT-2 124M, 64 sequences, compiled": ("gpt2_124m", 64, "bf16", 1, ()),
}
"""Of gpu.json, and of a day before it, when the head's loss held 2^25 logits at a time."""


def planned(
    recipe: str, sequences: int, precision: str, stage: int, overrides: Any = (), ranks: int = 1, gpu: bool = True
) -> float:
    """The planned peak of a rank in MiB; of a run that grows, with its last model."""
    config = RunConfig.from_file(ROOT / "launch" / "recipes" / f"{recipe}.yaml", overrides)
    section = config.model.model_copy(update={"vocab_size": 50304})
    if config.growth is not None:
        models = models_by_steps(as_growable(section), config.growth, section.context, config.train.steps)
        section = [model for model, steps in models if steps][-1]
    model = skeleton(section)
    zero = read_ds_config(ROOT / "ds_configs" / f"zero{stage}.json").get("zero_optimization", {})
    autocast = precision == "bf16" and not by_weights(zero, precision, gpu)
    kept = count_activations(section, config.train.activation_checkpointing, precision != "fp32", autocast)
    parameters = model.count_parameters()
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    sizes = Sizes(parameters, trainable, 50304 * section.n_embd, 50304, sequences, section.context, kept)
    return memory_of(sizes, Machine(ranks, gpu), zero, precision).peak / MIB


OF_1558M = ("model.n_layer=48", "model.n_head=25", "model.n_embd=1600")
PUBLISHED = {
    "GPT-2 124M, 32 sequences, ZeRO 0": ((), 32, 0, 16_661),
    "GPT-2 124M, 32 sequences, ZeRO 1": ((), 32, 1, 15_593),
    "GPT-2 1,558M, 4 sequences, ZeRO 0": (OF_1558M, 4, 0, 35_975),
    "GPT-2 1,558M, 4 sequences, ZeRO 1": (OF_1558M, 4, 1, 22_601),
}
"""MiB of each of 4 GPUs, by nvidia-smi, as llm.c's author tells them (github.com/karpathy/llm.c, pull request 309)."""


def gpu_rows() -> list[tuple[str, float, float]]:
    """Name, planned and measured MiB."""
    rows = []
    for name, run in GPU_RUNS.items():
        today = "compiled" in name
        facts = json.loads((RESULTS / ("gpu.json" if today else "gpu_2026-11-26.json")).read_text())
        before = memory.LOGITS_HELD["cuda"]
        memory.LOGITS_HELD["cuda"] = before if today else 2**25
        rows.append((name, planned(*run), facts["training"][name]["memory_mib"]))
        memory.LOGITS_HELD["cuda"] = before
    return rows


def cpu_rows() -> list[tuple[str, float, float]]:
    """The same of processes, with the constant that memory.py measured."""
    rows = []
    resident, live = (json.loads((RESULTS / f"{name}.json").read_text())["arms"] for name in ("memory", "memory_live"))
    for arm in [*(arm for arm in resident if arm["context"] < 1024), *live]:
        overrides = [f"model.context={arm['context']}", "model.name=progressive"]
        overrides += ["train.activation_checkpointing=all"] if arm["recomputed"] else []
        overrides += [*LORA, "train.steps=3", "train.schedule=wsd"] if arm["lora"] else []
        ranks = f"{arm['ranks']} rank{'s' * (arm['ranks'] > 1)}"
        name = f"GPT-2 124M, ZeRO {arm['stage']}, {ranks}, context {arm['context']}"
        plan = planned("gpt2_124m", 1, "fp32", arm["stage"], overrides, arm["ranks"], gpu=False)
        more = (", recomputed" if arm["recomputed"] else "") + (
            ", grown to 24 layers under LoRA" if arm["lora"] else ""
        )
        rows.append((name + more, plan + arm["constant_mib"], arm["peak"]["median"]))
    return rows


def published_rows() -> list[tuple[str, float, float]]:
    """The same of runs of llm.c, which is no DeepSpeed: it holds gradients and logits whole, and has no buckets."""
    rows = []
    for name, (overrides, sequences, stage, published) in PUBLISHED.items():
        config = RunConfig.from_file(
            ROOT / "launch" / "recipes" / "gpt2_124m.yaml",
            ["model.positions=learned", "train.activation_checkpointing=none", *overrides],
        )
        section = config.model.model_copy(update={"vocab_size": 50304})
        p, kept = skeleton(section).count_parameters(), count_activations(section, "none", True, False)
        sizes = Sizes(p, p, 50304 * section.n_embd, 50304, sequences, section.context, kept)
        parts = memory_of(sizes, Machine(4, gpu=True), {"stage": 2}, "bf16").forward
        states = (parts["masters"] + parts["moments"]) * (1 if stage else 4)
        whole = 2 * p + 2 * sequences * section.context * 50304
        rows.append(
            (name, (parts["weights"] + states + parts["activations"] + whole) / MIB + 1024 * RESERVED, published)
        )
    return rows


def main() -> None:
    facts = {
        "on a GPU, by torch's allocator": gpu_rows(),
        "on CPUs, resident": cpu_rows(),
        "on four GPUs, others' runs": published_rows(),
    }
    text = []
    for where, rows in facts.items():
        cells = [[name, f"{plan:,.0f}", f"{found:,.0f}", f"{plan / found - 1:+.1%}"] for name, plan, found in rows]
        text.append(f"{where}\n\n{report.table(['run', 'planned MiB', 'measured MiB', 'off'], cells)}")
    report.write("plan_memory", facts, "\n\n".join(text))


if __name__ == "__main__":
    main()
