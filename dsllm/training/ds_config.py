"""DeepSpeed's configuration: its own file, and what the run says.

ds_configs/zero2.json says how DeepSpeed is to work (stage, offload, overlap); how to train is said once, in the run's
own configuration, and merged in here:

    {"zero_optimization": {"stage": 2}}  +  train.micro_batch_size = 8, train.precision = bf16, …
    ->  {"zero_optimization": {"stage": 2}, "train_micro_batch_size_per_gpu": 8, "bf16": {"enabled": true}, …}

A key that says otherwise than the run is an error in words, never silently one or the other.
"""

import copy
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from dsllm.config import TrainConfig
from dsllm.errors import ConfigError
from dsllm.json_file import parse_json
from dsllm.section import raise_problems
from dsllm.training.backend import import_deepspeed
from dsllm.training.precision import Precision

SECTIONS = ("zero_optimization", "bf16", "fp16", "torch_autocast", "data_types", "activation_checkpointing")
KEYS = (
    *SECTIONS, "train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping",
    "optimizer", "scheduler", "communication_data_type", "prescale_gradients", "gradient_predivide_factor", "aio",
    "zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer", "wall_clock_breakdown", "memory_breakdown",
    "steps_per_print", "dump_state", "flops_profiler", "comms_logger", "sparse_gradients", "checkpoint",
)  # fmt: skip
"""Keys of DeepSpeed's file that a mistyped one may have meant."""

OURS = {
    "optimizer": "train.lr, train.beta1, train.beta2, train.eps and train.weight_decay",
    "scheduler": "train.schedule, train.warmup_tokens and train.decay_tokens",
}


def read_ds_config(path: Path) -> dict[str, Any]:
    """DeepSpeed's JSON as it stands in the file; raises `ConfigError` if it cannot be read."""
    try:
        config = parse_json(path.read_bytes())
    except OSError as error:
        raise ConfigError(
            f"train.ds_config = {path}: cannot be read ({error.strerror}); name a file as in ds_configs/"
        ) from None
    except ValueError as error:
        raise ConfigError(f"train.ds_config = {path}: not JSON ({error}); mend the file") from None
    if not isinstance(config, dict):
        raise ConfigError(f"train.ds_config = {path}: not a JSON object; see ds_configs/ for the form")
    return config


def complete_ds_config(train: TrainConfig, world_size: int, precision: Precision, device: str) -> dict[str, Any]:
    """DeepSpeed's whole configuration for a run on `world_size` ranks; raises `ConfigError` with all that is wrong."""
    config = merge(read_ds_config(train.ds_config), train, world_size, precision, device)
    check_by_deepspeed(config, train)
    return config


def merge(
    given: dict[str, Any], train: TrainConfig, world_size: int, precision: Precision, device: str
) -> dict[str, Any]:
    """DeepSpeed's complete configuration, from the file's keys `given` and the run's, for a device of type `device`.

    Raises `ConfigError` with every key of `given` that is mistyped or says otherwise than `train`.
    """
    merged: dict[str, Any] = {
        "train_batch_size": train.global_batch_size,
        "train_micro_batch_size_per_gpu": train.micro_batch_size,
        "gradient_accumulation_steps": train.global_batch_size // (train.micro_batch_size * world_size),
        "gradient_clipping": train.grad_clip,
        "bf16": {"enabled": precision == "bf16"},
        "fp16": {"enabled": precision == "fp16"},
    }
    problems = [*_unknown(given), *_contradictions(given, merged)]
    stage = _section(given, "zero_optimization").get("stage", 0)
    if precision == "fp16" and stage == 0:
        # Its optimizer there divides gradients by a loss scale that the loss was never multiplied by (0.19).
        problems.append(
            "zero_optimization.stage = 0: does not work with train.precision fp16; take zero1.json, or bf16"
        )
    raise_problems([f"train.ds_config = {train.ds_config}: {problem}" for problem in problems])
    for key in ("bf16", "fp16"):
        merged[key] = {**_section(given, key), **merged[key]}
    if stage == 0:
        merged["gradient_clipping"] = 0.0  # by `engine.take_step`
    if precision == "bf16":
        merged |= _bf16(stage, device)
    # The optimizer is torch's; DeepSpeed's own for offloading compiles a kernel, which a CPU does not need.
    return {"steps_per_print": 2**31, "zero_force_ds_cpu_optimizer": False, **given, **merged}


def check_by_deepspeed(config: dict[str, Any], train: TrainConfig) -> None:
    """Let DeepSpeed read the merged configuration; raises `ConfigError` with what it says of it, or of the machine."""
    import_deepspeed()
    from deepspeed.accelerator import get_accelerator
    from deepspeed.runtime.config import DeepSpeedConfig

    if config["fp16"]["enabled"] and not get_accelerator().is_fp16_supported():
        raise ConfigError("train.precision = fp16: DeepSpeed finds that this processor cannot; take bf16, fp32 or auto")

    try:
        # On copies: it changes what it is given.
        DeepSpeedConfig(copy.deepcopy(config))
    except (ValueError, TypeError, KeyError, AttributeError, AssertionError, RuntimeError) as error:
        reason = " ".join(str(error).partition("For further information")[0].split())
        raise ConfigError(f"train.ds_config = {train.ds_config}: DeepSpeed does not take it: {reason}") from None


def _bf16(stage: int, device: str) -> dict[str, Any]:
    """How to multiply in bf16 and keep what must be exact in fp32.

    On a GPU, at stages 2 and 3, by DeepSpeed's bf16 weights with fp32 masters, gradients summed over micro-batches in
    fp32. On a CPU by autocast over fp32 weights: there torch sums the gradients of embeddings and norms in the
    weights' own type, and in bf16 such a sum stops growing after a few hundred tokens (32 % off for a norm's bias at
    2,048 tokens). At stage 0 by autocast too: DeepSpeed's optimizer there takes a step of zero gradients when it is
    made (0.19), which puts Adam's bias correction one step off and decays the weights once at the peak rate. And at
    stage 1, where it would either sum micro-batches in bf16 or write checkpoints that its own tool for joining them
    does not read.
    """
    if stage in (0, 1) or device == "cpu":
        return {"bf16": {"enabled": False}, "torch_autocast": {"enabled": True, "dtype": "bfloat16"}}
    return {"data_types": {"grad_accum_dtype": "fp32"}}


def _section(given: dict[str, Any], key: str) -> dict[str, Any]:
    value = given.get(key, {})
    return value if isinstance(value, dict) else {}


def _unknown(given: dict[str, Any]) -> Iterator[str]:
    """DeepSpeed ignores a key that it does not know, and so a mistyped one would train without ZeRO."""
    for key, value in given.items():
        if key in SECTIONS and not isinstance(value, dict):
            yield f"{key} = {value!r}: an object of keys and values is needed here"
        close = get_close_matches(key, KEYS, n=1, cutoff=0.8)
        if key not in KEYS and close:
            yield f"{key}: no such key; did you mean {close[0]}?"


# What would hide from `guard` that gradients are no numbers.
NEEDED = {("zero_optimization", "compute_grad_norm"): True, ("bf16", "check_grad_overflow"): True}


def _contradictions(given: dict[str, Any], merged: dict[str, Any]) -> Iterator[str]:
    for key, where in OURS.items():
        if key in given:
            yield f"{key}: comes from {where}; take it out of this file"
    for (section, key), needed in NEEDED.items():
        if _section(given, section).get(key, needed) is not needed:
            yield f"{section}.{key}: updates are judged by it before they are made; take it out of this file"
    for key, value in merged.items():
        if isinstance(value, dict):
            stated = _section(given, key).get("enabled", "auto")
            value, key = value["enabled"], f"{key}.enabled"
        else:
            stated = given.get(key, "auto")
        if stated not in ("auto", value):
            yield f"{key} = {stated}: the run says {value}; take it out of this file or write auto"
