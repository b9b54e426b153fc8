"""A DeepSpeed engine around a model, what fills the model before, and one optimizer step of it."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from dsllm.config import TrainConfig
from dsllm.errors import TrainingError
from dsllm.models.language_model import LanguageModel
from dsllm.store import TensorStore
from dsllm.training.backend import import_deepspeed, import_muon
from dsllm.training.compiling import hide_hooks
from dsllm.training.tensors import Fill, groups_by_age, materialise, stored_values
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


def with_weights(
    model: LanguageModel,
    first: Fill | None,
    store: TensorStore | None,
    groups: list[dict[str, Any]],
    ds_config: dict[str, Any],
    world: World,
) -> list[dict[str, Any]]:
    """Give a model its `first` weights, or those in a checkpoint's `store`; gives `groups` of its parameters anew.

    The groups are chosen before, for at ZeRO-3 a parameter has no shape afterwards.
    """
    if first is None:
        assert store is not None
        first = world.together(lambda: stored_values(store, model))
        groups = groups_by_age(groups, model, store.steps)
    made = materialise(model, first, ds_config, only_missing=store is None)
    return [{**group, "params": [made[parameter] for parameter in group["params"]]} for group in groups]


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


def ask_before_updates(engine: Any, allows: Callable[[float], bool]) -> None:
    """Let `allows`, given the gradients' global norm, decide on each update of an engine of ZeRO stage 1, 2 or 3.

    By itself DeepSpeed leaves an update out, and clears what belongs to it, if the norm is no number. So it is told
    that one that is not allowed is none. Stage 0 asks in `take_step`.
    """
    optimizer = engine.optimizer
    if isinstance(optimizer, torch.optim.Optimizer):
        return
    from deepspeed.runtime.utils import combine_grad_norm_groups

    if hasattr(optimizer, "_get_norm_groups"):  # stage 3
        norms = optimizer._get_norm_groups

        def allowed_norms() -> list[torch.Tensor]:
            found: list[torch.Tensor] = norms()
            norm = float(combine_grad_norm_groups(found)) / optimizer.loss_scale
            return found if allows(norm) else [torch.full((), torch.nan, device=engine.device)]

        optimizer._get_norm_groups = allowed_norms
    else:
        whole = optimizer.scaled_global_norm

        def allowed_norm() -> torch.Tensor:
            norm: torch.Tensor = whole()
            return norm if allows(float(norm) / optimizer.loss_scale) else torch.full_like(norm, torch.nan)

        optimizer.scaled_global_norm = allowed_norm


def take_step(engine: Any, grad_clip: float, allows: Callable[[float], bool]) -> bool:
    """Clip to the norm `grad_clip`, if it is above 0, and step, if this was the last micro-batch.

    Gives whether the update was made: not if `allows`, given the gradients' global norm before clipping, is against it.
    """
    if not engine.is_gradient_accumulation_boundary() or not isinstance(engine.optimizer, torch.optim.Optimizer):
        try:
            engine.step()
        except Exception as error:
            if "loss scale already at minimum" not in str(error):  # DeepSpeed has no class for it
                raise
            raise TrainingError(
                "the gradients overflow at fp16's smallest loss scale, so they are no numbers; lower train.lr, or take "
                "train.precision bf16 or fp32. The checkpoints are whole"
            ) from None
        return bool(engine.was_step_applied())
    # Stage 0 is the bare optimizer: it keeps no norm and looks at no number, and DeepSpeed's clipping there goes tensor
    # by tensor, which a GPU waits for. The gradients are all-reduced by now, so that every rank decides alike.
    moved = [parameter for parameter in engine.module.parameters() if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in moved])
    if grad_clip:
        torch.nn.utils.clip_grads_with_norm_(moved, grad_clip, norm)
    allowed = allows(float(norm))
    if allowed:
        engine.step()
    else:
        engine.zero_grad()
        engine.micro_steps += 1  # as `engine.step` counts, to know when gradients are accumulated
    return allowed
