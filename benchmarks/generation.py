"""Tokens/s of generation: GPT-2 beside transformers' generate with its cache, and convolution attention.

    python benchmarks/generation.py [--repeats 5] [--new 64] [--precision fp32]

Greedy, batch 1 and 16, after 256 and 1,024 tokens of prompt. GPT-2 (12 layers, 192 wide, 6 heads, GPT-2's
vocabulary) has the same random weights in both, and their tokens must be the same; convolution attention is the
origin's preset. Decoding is what a further token costs: the time for `--new` tokens less that for one, which is the
prompt's. All take turns.
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent))
import report
from steps import ROOT

from dsllm.config import RunConfig
from dsllm.machine import default_device
from dsllm.models import skeleton
from dsllm.models.huggingface import huggingface_config, to_huggingface
from dsllm.models.language_model import LanguageModel
from dsllm.training.precision import DTYPES, Precision
from dsllm.training.tensors import initial_values, materialise

PROMPTS, BATCHES = (256, 1024), (1, 16)
CONTEXT = 1024 + 256
Generate = Callable[[Tensor, int], Tensor]


def model_of(recipe: str, dtype: torch.dtype) -> LanguageModel:
    """The recipe's model, with a context that holds every prompt and what follows it, at random weights."""
    overrides = ["run_dir=unused", "data.path=unused", "model.vocab_size=50304", f"model.context={CONTEXT}"]
    model = skeleton(RunConfig.from_file(ROOT / "launch" / "recipes" / recipe, overrides).model)
    materialise(model, initial_values(model, 1), only_missing=True)
    return model.to(default_device(), dtype).eval()


def of_transformers(model: LanguageModel) -> Generate:
    """The same function by transformers."""
    config = transformers.GPT2Config(**huggingface_config(model.config))  # type: ignore[arg-type]
    theirs = transformers.GPT2LMHeadModel(config).to(default_device(), model.head.weight.dtype).eval()
    theirs.load_state_dict(to_huggingface(model.state_dict(), model.config.n_layer))

    def generate(prompt: Tensor, new: int) -> Tensor:
        options = {"do_sample": False, "use_cache": True, "pad_token_id": 0, "eos_token_id": None}
        found: Tensor = theirs.generate(
            prompt, attention_mask=torch.ones_like(prompt), min_new_tokens=new, max_new_tokens=new, **options
        )
        return found

    return generate


def of_ours(model: LanguageModel) -> Generate:
    return lambda prompt, new: model.generate(prompt, new, temperature=0.0)


def contenders(dtype: torch.dtype) -> dict[str, Generate]:
    gpt2 = model_of("origin_gpt2.yaml", dtype)
    conv = model_of("origin_conv_attention.yaml", dtype)
    return {
        "dsllm, GPT-2": of_ours(gpt2),
        "transformers, GPT-2": of_transformers(gpt2),
        "dsllm, convolution attention": of_ours(conv),
    }


def seconds(generate: Generate, prompt: Tensor, new: int) -> float:
    begun = time.perf_counter()
    int(generate(prompt, new)[0, -1])  # waits for the device
    return time.perf_counter() - begun


def measured(precision: Precision, repeats: int, new: int) -> list[dict[str, Any]]:
    """What each contender did after each prompt, in each batch."""
    found: list[dict[str, Any]] = []
    generators = contenders(DTYPES[precision])
    for length in PROMPTS:
        for batch in BATCHES:
            random = torch.Generator().manual_seed(length + batch)
            prompt = torch.randint(0, 50257, (batch, length), generator=random).to(default_device())
            ours, theirs, _ = (generate(prompt, new) for generate in generators.values())
            times: dict[str, list[tuple[float, float]]] = {name: [] for name in generators}
            for _ in range(repeats):
                for name, generate in generators.items():
                    times[name].append((seconds(generate, prompt, 1), seconds(generate, prompt, new)))
            facts = {"prompt": length, "batch": batch, "tokens_that_differ": int((ours != theirs).sum())}
            for name, of in times.items():
                further = [1000 * (whole - first) / (new - 1) for first, whole in of]
                found.append(
                    {
                        "contender": name,
                        **facts,
                        "prefill_ms": report.summary([1000 * first for first, _ in of]),
                        "token_ms": report.summary(further),
                        "tokens_per_second": report.summary([batch * new / whole for _, whole in of]),
                    }
                )
    return found


def table(found: list[dict[str, Any]]) -> str:
    """What `measured` gave, for people."""
    theirs = {
        (row["prompt"], row["batch"]): row["tokens_per_second"]["median"]
        for row in found
        if row["contender"].startswith("transformers")
    }
    rows = []
    for row in found:
        times = row["tokens_per_second"]["median"] / theirs[row["prompt"], row["batch"]]
        cells = [row["prompt"], row["batch"], row["contender"], report.spread(row["prefill_ms"], 1)]
        cells += [report.spread(row["token_ms"], 2), report.spread(row["tokens_per_second"]), f"{times:.2f}×"]
        rows.append(cells)
    header = [
        "prompt",
        "batch",
        "contender",
        "prompt, ms",
        "a further token, ms",
        "tokens/s",
        "of transformers' tokens/s",
    ]
    return report.table(header, rows)


def differing(found: list[dict[str, Any]]) -> int:
    """Tokens in which the two GPT-2 differed."""
    return sum(row["tokens_that_differ"] for row in found if row["contender"] == "dsllm, GPT-2")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--new", type=int, default=64, help="tokens after the prompt")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    arguments = parser.parse_args()
    found = measured(arguments.precision, arguments.repeats, arguments.new)
    about = report.machine("torch", "transformers")
    text = (
        f"Greedy, {arguments.precision}, {arguments.new} tokens; {report.described(about)}, transformers "
        f"{about['versions']['transformers']}; median (least–most) of {arguments.repeats}. Tokens in which the two "
        f"GPT-2 differ: {differing(found)}."
    )
    report.write("generation", {"machine": about, "arms": found}, f"{text}\n\n{table(found)}")


if __name__ == "__main__":
    main()
