"""A DeepSpeed engine from a run's configuration.

ds_configs/zero2.json says how DeepSpeed is to work (stage, offload, overlap); how to train is said once, in the run's
own configuration, and merged in here:

    {"zero_optimization": {"stage": 2}}  +  train.micro_batch_size = 8, train.precision = bf16, …
    ->  {"zero_optimization": {"stage": 2}, "train_micro_batch_size_per_gpu": 8, "bf16": {"enabled": true}, …}

A key that says otherwise than the run is an error in words, never silently one or the other.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dsllm.config import TrainConfig
from dsllm.errors import ConfigError
from dsllm.section import raise_problems
from dsllm.training.backend import import_deepspeed
from dsllm.training.precision import Precision
from dsllm.training.world import World

OURS = {
    "optimizer": "train.lr, train.beta1, train.beta2, train.eps and train.weight_decay",
    "scheduler": "train.schedule, train.warmup_tokens and train.decay_tokens",
}


def read_ds_config(path: Path) -> dict[str, Any]:
    """DeepSpeed's JSON as it stands in the file; raises `ConfigError` if it cannot be read."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"train.ds_config = {path}: cannot be read ({error.strerror}); name a file as in ds_configs/"
        ) from None
    except ValueError as error:
        raise ConfigError(f"train.ds_config = {path}: not JSON ({error}); mend the file") from None
    if not isinstance(config, dict):
        raise ConfigError(f"train.ds_config = {path}: not a JSON object; see ds_configs/ for the form")
    return config


def merge(given: dict[str, Any], train: TrainConfig, world_size: int, precision: Precision) -> dict[str, Any]:
    """DeepSpeed's complete configuration, from the file's keys `given` and the run's.

    Raises `ConfigError` with every key of `given` that says otherwise than `train`.
    """
    merged: dict[str, Any] = {
        "train_batch_size": train.global_batch_size,
        "train_micro_batch_size_per_gpu": train.micro_batch_size,
        "gradient_accumulation_steps": train.global_batch_size // (train.micro_batch_size * world_size),
        "gradient_clipping": train.grad_clip,
        "bf16": {"enabled": precision == "bf16"},
        "fp16": {"enabled": precision == "fp16"},
    }
    raise_problems([f"{train.ds_config}: {line}" for line in _contradictions(given, merged)])
    for key in ("bf16", "fp16"):
        merged[key] = {**given.get(key, {}), **merged[key]}
    if given.get("zero_optimization", {}).get("stage", 0) == 0:
        merged |= _half_precision_without_zero(train, precision)
    # The optimizer is torch's; DeepSpeed's own for offloading compiles a kernel, which a CPU does not need.
    return {"steps_per_print": 2**31, "zero_force_ds_cpu_optimizer": False, **given, **merged}


def build_engine(
    model: nn.Module, groups: list[dict[str, Any]], train: TrainConfig, ds_config: dict[str, Any], world: World
) -> Any:
    """The engine around `model`, with AdamW over parameter `groups` (each: params, weight_decay, optionally lr_scale).

    `ds_config` is what `merge` gives. Every parameter that needs a gradient must be in exactly one group.
    """
    deepspeed = import_deepspeed()
    settings: dict[str, Any] = {"lr": train.lr, "betas": (train.beta1, train.beta2), "eps": train.eps}
    offloaded = "offload_optimizer" in ds_config.get("zero_optimization", {})
    if offloaded and world.device.type == "cuda":
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        optimizer: Any = DeepSpeedCPUAdam(groups, **settings)
    else:
        optimizer = torch.optim.AdamW(groups, fused=True, **settings)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=ds_config, dist_init_required=False)
    return engine


def set_lr(engine: Any, lr: float) -> None:
    """Set the learning rate of every group, scaled by the group's own `lr_scale`."""
    for group in engine.optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)


def take_step(engine: Any) -> torch.Tensor | float | None:
    """Clip and step, if this was the last micro-batch; gives the gradients' global norm before clipping, else None."""
    norm = None
    if engine.is_gradient_accumulation_boundary() and isinstance(engine.optimizer, torch.optim.Optimizer):
        # Stage 0 in fp32: the bare optimizer keeps no norm, but the gradients are all-reduced by now.
        norm = torch.nn.utils.get_total_norm([p.grad for p in engine.module.parameters() if p.grad is not None])
    engine.step()
    return engine.get_global_grad_norm() if norm is None else norm


def _half_precision_without_zero(train: TrainConfig, precision: Precision) -> dict[str, Any]:
    """bf16 by autocast over fp32 weights, at stage 0.

    DeepSpeed's own half precision there is wrong at 0.19: its optimizer takes a step of zero gradients when it is made,
    which puts Adam's bias correction one step off and decays the weights once at the peak rate; and in fp16 it divides
    the gradients by a loss scale that the loss was never multiplied by.
    """
    if precision == "fp16":
        raise_problems(
            [
                f"train.precision = fp16: does not work at ZeRO stage 0 as in {train.ds_config}; "
                f"take --train.ds_config ds_configs/zero1.json, or bf16 or fp32"
            ]
        )
    if precision == "fp32":
        return {}
    return {"bf16": {"enabled": False}, "torch_autocast": {"enabled": True, "dtype": "bfloat16"}}


def _contradictions(given: dict[str, Any], merged: dict[str, Any]) -> Iterator[str]:
    for key, where in OURS.items():
        if key in given:
            yield f"{key}: comes from {where}; take it out of this file"
    for key, value in merged.items():
        if isinstance(value, dict):
            stated = given.get(key, {}).get("enabled", "auto")
            value, key = value["enabled"], f"{key}.enabled"
        else:
            stated = given.get(key, "auto")
        if stated not in ("auto", value):
            yield f"{key} = {stated}: the run says {value}; take it out of this file or write auto"
