"""Planned memory beside what runs of this repository were measured to take: benchmarks/results."""

import json
from typing import Any

import pytest

from dsllm.config import RunConfig
from dsllm.models import skeleton
from dsllm.planning import memory
from dsllm.planning.activations import count_activations
from dsllm.planning.memory import Machine, Memory, Sizes, by_weights, memory_of
from dsllm.training.ds_config import read_ds_config
from tests.launching import REPOSITORY

MIB = 2**20
RESULTS = REPOSITORY / "benchmarks" / "results"
OF_350M = ("model.n_layer=24", "model.n_head=16", "model.n_embd=1024")
BY_GPU = {
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


def planned(
    recipe: str, sequences: int, precision: str, stage: int, overrides: Any = (), ranks: int = 1, gpu: bool = True
) -> Memory:
    config = RunConfig.from_file(REPOSITORY / "launch" / "recipes" / f"{recipe}.yaml", overrides)
    section = config.model.model_copy(update={"vocab_size": 50304})
    model = skeleton(section)
    zero = read_ds_config(REPOSITORY / "ds_configs" / f"zero{stage}.json").get("zero_optimization", {})
    autocast = precision == "bf16" and not by_weights(zero, precision, gpu)
    kept = count_activations(section, config.train.activation_checkpointing, precision != "fp32", autocast)
    parameters = model.count_parameters()
    sizes = Sizes(parameters, parameters, 50304 * section.n_embd, 50304, sequences, section.context, kept)
    return memory_of(sizes, Machine(ranks, gpu), zero, precision)


@pytest.mark.parametrize("name", BY_GPU)
def test_a_plan_is_within_a_tenth_of_what_a_gpu_allocated(name, monkeypatch):
    recipe, *options = BY_GPU[name]
    if "compiled" in name:
        measured = json.loads((RESULTS / "gpu.json").read_text())["training"][name]["memory_mib"]
    else:
        measured = json.loads((RESULTS / "gpu_2026-11-26.json").read_text())["training"][name]["memory_mib"]
        monkeypatch.setitem(memory.LOGITS_HELD, "cuda", 2**25)  # as the head had it on that day
    assert planned(recipe, *options).peak / MIB == pytest.approx(measured, rel=0.1)


RESIDENT, LIVE = (json.loads((RESULTS / f"{name}.json").read_text())["arms"] for name in ("memory", "memory_live"))
ARMS = [*(arm for arm in RESIDENT if arm["context"] < 1024 and not arm["lora"]), *LIVE]
"""With a long context a process stays resident with what it has freed, unless it is made to give that back."""


@pytest.mark.parametrize(
    "arm", ARMS, ids=lambda a: f"zero{a['stage']}, {a['ranks']} ranks, {a['context']}, {a['recomputed']}"
)
def test_a_plan_is_within_a_tenth_of_what_a_process_was_resident_with(arm):
    overrides = [f"model.context={arm['context']}", "model.name=progressive"]
    overrides += ["train.activation_checkpointing=all"] if arm["recomputed"] else []
    plan = planned("gpt2_124m", 1, "fp32", arm["stage"], overrides, arm["ranks"], gpu=False)
    assert plan.peak / MIB + arm["constant_mib"] == pytest.approx(arm["peak"]["median"], rel=0.1)
