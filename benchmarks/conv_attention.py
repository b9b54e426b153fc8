"""What convolution attention costs: size, FLOPs, training, prefill, decoding, cache; beside GPT-2, windowed and not.

    python benchmarks/conv_attention.py [--contexts 256 1024 4096] [--arms gpt2 mid] [--repeats 2]

The baseline is the origin's GPT-2 (12 layers, 192 wide, 6 heads) with rotary positions, the others the presets of
launch/recipes, all with GPT-2's vocabulary. Training is `launch/train.py` itself, as many tokens a step whatever the
context, ZeRO 2 on one rank: 8,192 in fp32, or on a GPU 65,536 in bf16. Decoding is in fp32. A decoded token goes the
way of `generate`: the model with its cache, the head as it is for generation, the likeliest word. Arms take turns, so
that a machine whose speed drifts slows all of them.

Losses are benchmarks/conv_quality.py's affair. Needs token shards: `make demo` writes data/demo.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parent))
import report
from steps import train_steps

from dsllm.config import RunConfig
from dsllm.errors import UserError, user_errors_exit
from dsllm.models import build_model
from dsllm.models.language_model import LanguageModel
from dsllm.training.precision import Precision

RECIPES = Path(__file__).resolve().parent.parent / "launch" / "recipes"
VOCABULARY, DECODED = 50_304, 128
ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if ON_GPU else "cpu")
TOKENS = 65_536 if ON_GPU else 8_192
PRECISION: Precision = "bf16" if ON_GPU else "fp32"

ARMS: dict[str, tuple[str, tuple[str, ...]]] = {
    "gpt2": ("origin_gpt2", ("model.positions=rotary",)),
    "gpt2, window 256": ("origin_gpt2", ("model.positions=rotary", "model.window=256")),
    "faithful": ("origin_conv_attention", ()),
    "equal_parameters": ("conv_equal_parameters", ()),
    "mid": ("conv_mid", ("model.windows=null", "model.read_out=null")),
    "mid, window 256, read 0": ("conv_mid", ("model.windows=[256, null, null]", "model.read_out=[0]")),
    "equal_flops": ("conv_equal_flops", ()),
    "level_0_only, window 256": ("conv_level_0_only", ("model.windows=[256]",)),
}
"""Recipe and overrides by arm; the first is the baseline."""


def model_of(arm: str, context: int) -> LanguageModel:
    recipe, overrides = ARMS[arm]
    fixed = [f"model.context={context}", f"model.vocab_size={VOCABULARY}"]
    torch.manual_seed(0)
    return build_model(RunConfig.from_file(RECIPES / f"{recipe}.yaml", [*overrides, *fixed]).model).eval().to(DEVICE)


def counted_flops(model: LanguageModel, context: int) -> int:
    """Floating-point operations per token of a forward pass over one sequence, as torch counts its products."""
    # Fused attention is one operation that the counter does not know; the plain one is matrix products.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, context, dtype=torch.int64, device=DEVICE))
    return round(counter.get_total_flops() / context)


def tensors_of(thing: Any, seen: set[int] | None = None) -> list[torch.Tensor]:
    """Every tensor that a cache holds."""
    seen = set() if seen is None else seen
    if id(thing) in seen:
        return []
    seen.add(id(thing))
    if isinstance(thing, torch.Tensor):
        return [thing]
    parts = thing if isinstance(thing, list) else vars(thing).values() if hasattr(thing, "__dict__") else ()
    return [tensor for part in parts for tensor in tensors_of(part, seen)]


def now() -> float:
    """Seconds, when the device has done all that it was given."""
    if ON_GPU:
        torch.cuda.synchronize()
    return time.perf_counter()


@torch.no_grad()
def decode(models: dict[str, LanguageModel], prefix: int, batch: int) -> dict[str, dict[str, list[float]]]:
    """Seconds of the prefill, and of each of `DECODED` tokens after it, arm by arm in turns of 16 tokens."""
    ids = torch.randint(VOCABULARY, (batch, prefix), generator=torch.Generator().manual_seed(0)).to(DEVICE)
    times: dict[str, dict[str, list[float]]] = {}
    state = {}
    for name, model in models.items():
        begun = now()
        cache = model.new_cache()
        model.hidden(ids, cache=cache)
        times[name] = {"prefill": [now() - begun], "trunk": [], "token": []}
        score = model.head.for_generation()
        model.hidden(ids[:, -1:], cache=cache)  # what the first step alone does
        held = sum(tensor.untyped_storage().nbytes() for tensor in tensors_of(cache))
        times[name]["cache_bytes"] = [held / batch]
        state[name] = cache, score, ids[:, -1:]
    for _ in range(DECODED // 16):
        for name, model in models.items():
            cache, score, token = state[name]
            for _ in range(16):
                begun = now()
                hidden = model.hidden(token, cache=cache)[:, -1]
                between = now()
                token = score(hidden).argmax(-1, keepdim=True)
                end = now()
                times[name]["trunk"].append(between - begun)
                times[name]["token"].append(end - begun)
            state[name] = cache, score, token
    return times


def measure_decoding(arms: Sequence[str], contexts: Sequence[int], repeats: int) -> dict[str, Any]:
    """By context and arm: ms of the prefill and per token, bytes of cache per token."""
    found: dict[str, Any] = {}
    for context in contexts:
        models = {arm: model_of(arm, context + DECODED + 1) for arm in arms}
        decode(models, 64, 1)  # warms up
        one = [decode(models, context, 1) for _ in range(repeats)]
        many = decode(models, context, 16) if context <= 1024 else decode(models, context, 4)
        rows = 16 if context <= 1024 else 4
        found[str(context)] = {
            arm: {
                "prefill_ms": 1000 * statistics.median(run[arm]["prefill"][0] for run in one),
                **{
                    f"{part}_{label}_ms": 1000 * quantile([t for run in one for t in run[arm][part]], share)
                    for part in ("token", "trunk")
                    for label, share in (("p50", 0.5), ("p99", 0.99))
                },
                "token_mean_ms": 1000 * statistics.fmean(t for run in one for t in run[arm]["token"]),
                "batch": rows,
                "batch_tokens_per_second": rows / statistics.fmean(many[arm]["token"]),
                "cache_bytes_per_token": one[0][arm]["cache_bytes"][0] / (context + DECODED + 1),
            }
            for arm in arms
        }
    return found


def quantile(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def measure_training(
    arms: Sequence[str], contexts: Sequence[int], repeats: int, data: str
) -> Iterator[dict[str, dict[str, dict[str, Any]]]]:
    """By context and arm, what is known after each run."""
    runs: dict[str, dict[str, list[dict[str, float]]]] = {}
    for _ in range(repeats):
        for context in contexts:
            for arm in arms:
                recipe, overrides = ARMS[arm]
                options = [f"--{override}" for override in overrides]
                options += [f"--model.context={context}", "--train.activation_checkpointing=none"]
                file = str(RECIPES / f"{recipe}.yaml")
                figures = train_steps(file, data, PRECISION, 1, 4, TOKENS // context, *options)
                runs.setdefault(str(context), {}).setdefault(arm, []).append(figures)
                yield {
                    context: {
                        arm: {key: report.summary([figures[key] for figures in of_arm]) for key in of_arm[0]}
                        for arm, of_arm in by_arm.items()
                    }
                    for context, by_arm in runs.items()
                }


def size_rows(arms: Sequence[str], contexts: Sequence[int]) -> tuple[list[str], list[list[str]]]:
    """Parameters and FLOPs. Raises `UserError` if the formula of a model without windows is not what torch counts."""
    rows = []
    for arm in arms:
        row = []
        for context in contexts:
            model = model_of(arm, context)
            said = model.forward_flops_per_token(context)
            if "window" not in arm and abs(counted_flops(model, context) / said - 1) > 1e-3:
                raise UserError(f"{arm}, context {context}: {said} FLOPs per token said, not what is counted")
            row.append(f"{said / 1e6:.1f} M")
        sizes = (model.count_parameters(), model.count_parameters(embeddings=False))
        rows.append([arm, *(f"{size / 1e6:.1f} M" for size in sizes), *row])
    return ["arm", "parameters", "without embeddings", *(f"FLOPs per token, {c}" for c in contexts)], rows


def training_rows(found: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    rows = []
    for context, by_arm in found.items():
        base = next(iter(by_arm.values()))
        for arm, figures in by_arm.items():
            speed, memory = figures["tokens_per_second"], figures["memory_mib"]
            ratio = speed["median"] / base["tokens_per_second"]["median"]
            rows.append([context, arm, report.spread(speed), f"{ratio:.2f}×", report.spread(memory)])
    return ["context", "arm", "tokens/s", "of GPT-2's", "peak MiB"], rows


def decoding_rows(found: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    rows = []
    for context, by_arm in found.items():
        base = next(iter(by_arm.values()))
        for arm, f in by_arm.items():
            head = f["token_p50_ms"] - f["trunk_p50_ms"]
            rows.append(
                [
                    context,
                    arm,
                    f"{f['prefill_ms']:,.0f}",
                    f"{f['token_p50_ms']:.2f} / {f['token_p99_ms']:.2f}",
                    f"{base['token_p50_ms'] / f['token_p50_ms']:.2f}×",
                    f"{base['token_p50_ms'] / head:.2f}×",
                    f"{f['trunk_p50_ms']:.2f} / {f['trunk_p99_ms']:.2f}",
                    f"{base['trunk_p50_ms'] / f['trunk_p50_ms']:.2f}×",
                    f"{f['token_mean_ms']:.2f}",
                    f"{base['token_mean_ms'] / f['token_mean_ms']:.2f}×",
                    f"{f['batch_tokens_per_second']:,.0f} ({f['batch']})",
                    f"{f['cache_bytes_per_token']:,.0f}",
                    f"{f['cache_bytes_per_token'] / base['cache_bytes_per_token']:.2f}",
                ]
            )
    header = ["prefix", "arm", "prefill ms", "ms per token p50 / p99", "better", "bound by the head"]
    header += ["trunk alone p50 / p99", "better", "mean ms per token", "better", "tokens/s (batch)"]
    header += ["cache bytes per token", "of GPT-2's"]
    return header, rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--contexts", type=int, nargs="+", default=[256, 1024, 4096])
    parser.add_argument("--arms", nargs="+", default=list(ARMS))
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--data", default="data/demo")
    arguments = parser.parse_args()
    with user_errors_exit():
        for arm in arguments.arms:
            if arm not in ARMS:
                raise UserError(f"--arms {arm}: no such arm; take {', '.join(ARMS)}")
        sizes = report.table(*size_rows(arguments.arms, arguments.contexts))
        decoding = measure_decoding(arguments.arms, arguments.contexts, arguments.repeats)
        text = keep(arguments.repeats, sizes, decoding, {})
        for training in measure_training(arguments.arms, arguments.contexts, arguments.repeats, arguments.data):
            text = keep(arguments.repeats, sizes, decoding, training)
    print(text)


def keep(repeats: int, sizes: str, decoding: dict[str, Any], training: dict[str, Any]) -> str:
    """The tables of what is done so far, written down: a machine that is taken away has left them."""
    about = report.machine("torch", "deepspeed")
    text = (
        f"{report.described(about)}, vocabulary {VOCABULARY:,}, commit {about['commit']}, {about['date']}.\n\n"
        f"{sizes}\n\n"
        f"Training, {PRECISION}, {TOKENS:,} tokens a step, ZeRO 2, one rank; median (least–most) of {repeats}:\n\n"
        f"{report.table(*training_rows(training))}\n\n"
        f"Decoding, fp32, {DECODED} tokens behind each prefix, one sequence, {repeats} times; the bound is what a "
        f"model whose trunk took no time would reach. Steps that run coarse levels are in the mean, rarely in p50:\n\n"
        f"{report.table(*decoding_rows(decoding))}"
    )
    name = "conv_attention_gpu" if ON_GPU else "conv_attention"
    report.keep(name, {"machine": about, "training": training, "decoding": decoding}, text)
    return text


if __name__ == "__main__":
    main()
