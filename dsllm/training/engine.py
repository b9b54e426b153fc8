"""A DeepSpeed engine around a model, and one optimizer step of it."""

from typing import Any

import torch
from torch import nn

from dsllm.config import TrainConfig
from dsllm.training.backend import import_deepspeed, import_muon
from dsllm.training.compiling import hide_hooks
from dsllm.training.world import World


def build_engine(
    model: nn.Module, groups: list[dict[str, Any]], train: TrainConfig, ds_config: dict[str, Any], world: World
) -> Any:
    """The engine around `model`, with AdamW over parameter `groups` (each: params, weight_decay, optionally lr_scale).

    `ds_config` is what `merge` gives. Every parameter that needs a gradient must be in exactly one group.
    """
    deepspeed = import_deepspeed()
    import_muon()
    settings: dict[str, Any] = {"lr": train.lr, "betas": (train.beta1, train.beta2), "eps": train.eps}
    offloaded = "offload_optimizer" in ds_config.get("zero_optimization", {})
    if offloaded and world.device.type == "cuda":
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        optimizer: Any = DeepSpeedCPUAdam(groups, **settings)
    else:
        optimizer = torch.optim.AdamW(groups, fused=True, **settings)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=ds_config, dist_init_required=False)
    if train.compile:
        hide_hooks(model)
    return engine


def set_lr(engine: Any, lr: float) -> None:
    """Set the learning rate of every group, scaled by the group's own `lr_scale`."""
    for group in engine.optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)


SCALER = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


def scaler_state(engine: Any) -> dict[str, float]:
    """Where fp16's dynamic loss scale has got to; nothing without one."""
    scaler = getattr(engine.optimizer, "loss_scaler", None)
    return {key: getattr(scaler, key) for key in SCALER} if getattr(scaler, "dynamic", False) else {}


def set_scaler(engine: Any, state: dict[str, float]) -> None:
    """Go on from what `scaler_state` gave."""
    for key, value in state.items():
        setattr(engine.optimizer.loss_scaler, key, value)


def take_step(engine: Any, grad_clip: float) -> tuple[torch.Tensor | float | None, bool]:
    """Clip to the norm `grad_clip`, if it is above 0, and step, if this was the last micro-batch.

    Gives the gradients' global norm before clipping, and whether it was applied: not if one was no number.
    """
    if not engine.is_gradient_accumulation_boundary() or not isinstance(engine.optimizer, torch.optim.Optimizer):
        engine.step()
        return engine.get_global_grad_norm(), engine.was_step_applied()
    # Stage 0 is the bare optimizer: it keeps no norm and looks at no number, and DeepSpeed's clipping there goes tensor
    # by tensor, which a GPU waits for. The gradients are all-reduced by now, so that every rank decides alike.
    moved = [parameter for parameter in engine.module.parameters() if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in moved])
    if grad_clip:
        torch.nn.utils.clip_grads_with_norm_(moved, grad_clip, norm)
    finite = bool(norm.isfinite())
    if finite:
        engine.step()
    else:
        engine.zero_grad()
        engine.micro_steps += 1  # as `engine.step` counts, to know when gradients are accumulated
    return norm, finite
