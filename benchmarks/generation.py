"""Tokens/s of generation: GPT-2 beside transformers' generate with its cache, and convolution attention.

    python benchmarks/generation.py [--repeats 5] [--new 64] [--precision fp32] [--run RUN --data DIR]

Greedy, batch 1 and 16, after 256 and 1,024 tokens of prompt. GPT-2 (12 layers, 192 wide, 6 heads, GPT-2's
vocabulary) has the same weights in both, and their tokens must be the same; convolution attention is the
origin's preset. Decoding is what a further token costs: the time for `--new` tokens less that for one, which is the
prompt's. All take turns.

Single sequences are written with guesses from the text itself, several checked in one step (`dsllm.models.drafting`):
how many come true depends on the text. So both of ours and theirs stand with and without them, and `--run` takes a
trained model, with prompts from the test split of `--data`, in place of random weights and tokens. The run is one of
launch/recipes/origin_gpt2.yaml with --model.context 1280.
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
from dsllm.data.problems import open_samples
from dsllm.machine import default_device
from dsllm.models import skeleton
from dsllm.models.huggingface import huggingface_config, to_huggingface
from dsllm.models.language_model import LanguageModel
from dsllm.training.loading import load_model
from dsllm.training.precision import DTYPES, Precision
from dsllm.training.tensors import initial_values, materialise

PROMPTS, BATCHES = (256, 1024), (1, 16)
CONTEXT = 1024 + 256
TEXTS = 10
Generate = Callable[[Tensor, int], Tensor]


def random_model(recipe: str, dtype: torch.dtype) -> LanguageModel:
    """The recipe's model, with a context that holds every prompt and what follows it, at random weights."""
    overrides = ["run_dir=unused", "data.path=unused", "model.vocab_size=50304", f"model.context={CONTEXT}"]
    model = skeleton(RunConfig.from_file(ROOT / "launch" / "recipes" / recipe, overrides).model)
    materialise(model, initial_values(model, 1), only_missing=True)
    return model.to(default_device(), dtype).eval()


def of_transformers(model: LanguageModel, **options: Any) -> Generate:
    """The same function by transformers."""
    config = transformers.GPT2Config(**huggingface_config(model.config))  # type: ignore[arg-type]
    theirs = transformers.GPT2LMHeadModel(config).to(default_device(), model.head.weight.dtype).eval()
    theirs.load_state_dict(to_huggingface(model.state_dict(), model.config), strict=False)  # the head is tied
    theirs.tie_weights()

    def generate(prompt: Tensor, new: int) -> Tensor:
        settings = {"do_sample": False, "use_cache": True, "pad_token_id": 0, "eos_token_id": None, **options}
        found: Tensor = theirs.generate(
            prompt, attention_mask=torch.ones_like(prompt), min_new_tokens=new, max_new_tokens=new, **settings
        )
        return found

    return generate


def of_ours(model: LanguageModel, draft: bool) -> Generate:
    return lambda prompt, new: model.generate(prompt, new, temperature=0.0, draft=draft)


def contenders(dtype: torch.dtype, run: Path | None) -> dict[str, Generate]:
    """The first is told apart in tokens from the second."""
    gpt2 = random_model("origin_gpt2.yaml", dtype) if run is None else load_model(run).to(default_device(), dtype)
    conv = random_model("origin_conv_attention.yaml", dtype)
    return {
        "dsllm, GPT-2": of_ours(gpt2, draft=True),
        "transformers, GPT-2": of_transformers(gpt2),
        "dsllm, GPT-2, no guesses": of_ours(gpt2, draft=False),
        "transformers, GPT-2, prompt lookup": of_transformers(gpt2, prompt_lookup_num_tokens=10),
        "dsllm, convolution attention": of_ours(conv, draft=True),
    }


def prompts(length: int, batch: int, data: Path | None) -> Tensor:
    """Random tokens, or so many from the beginning of as many samples of the test split; (batch, length)."""
    if data is None:
        random = torch.Generator().manual_seed(length + batch)
        return torch.randint(0, 50257, (batch, length), generator=random)
    source = open_samples(data, "test", length)
    return torch.stack([torch.from_numpy(source.sample(row * len(source) // batch)[:length]) for row in range(batch)])


def seconds(generate: Generate, prompt: Tensor, new: int) -> float:
    begun = time.perf_counter()
    int(generate(prompt, new)[0, -1])  # waits for the device
    return time.perf_counter() - begun


def measured(precision: Precision, repeats: int, new: int, run: Path | None, data: Path | None) -> list[dict[str, Any]]:
    """What each contender did after each prompt, in each batch."""
    found: list[dict[str, Any]] = []
    generators = contenders(DTYPES[precision], run)
    for length in PROMPTS:
        for batch in BATCHES:
            texts = [prompts(length, batch, data)]
            if batch == 1 and data is not None:  # how many guesses come true differs from text to text
                texts = list(prompts(length, TEXTS, data).split(1))
            wrong = 0
            times: dict[str, list[tuple[float, float]]] = {name: [] for name in generators}
            for prompt in (text.to(default_device()) for text in texts):
                takes_part = {n: g for n, g in generators.items() if batch == 1 or "lookup" not in n}
                ours, theirs, *_ = (generate(prompt, new) for generate in takes_part.values())
                wrong += int((ours != theirs).sum())
                for _ in range(repeats if len(texts) == 1 else 1):
                    for name, generate in takes_part.items():
                        times[name].append((seconds(generate, prompt, 1), seconds(generate, prompt, new)))
            for name, of in times.items():
                if not of:
                    continue
                further = [1000 * (whole - first) / (new - 1) for first, whole in of]
                found.append(
                    {
                        "contender": name,
                        "prompt": length,
                        "batch": batch,
                        "tokens_that_differ": wrong,
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
        if row["contender"] == "transformers, GPT-2"
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
    parser.add_argument("--run", type=Path, help="a trained run; random weights without it")
    parser.add_argument("--data", type=Path, help="the folder whose test split gives the prompts")
    arguments = parser.parse_args()
    run, data = arguments.run, arguments.data
    found = measured(arguments.precision, arguments.repeats, arguments.new, run, data)
    about = report.machine("torch", "transformers")
    of = "random weights and prompts" if run is None else f"a trained model, single sequences from {TEXTS} texts"
    text = (
        f"Greedy, {arguments.precision}, {of}, {arguments.new} tokens; {report.described(about)}, transformers "
        f"{about['versions']['transformers']}; median (least–most). Tokens in which the two "
        f"GPT-2 differ: {differing(found)}."
    )
    name = "generation" if run is None else "generation_trained"
    report.write(name, {"machine": about, "arms": found}, f"{text}\n\n{table(found)}")


if __name__ == "__main__":
    main()
