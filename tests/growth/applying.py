"""A growth plan carried out in memory, in the plainest way: what the checkpoint's growing must agree with."""

import torch

from dsllm.growth.plan import GrowthPlan, section_of
from dsllm.models import build_model
from dsllm.models.growable import Growable, GrowableConfig

SMALL = {"n_layer": 3, "n_head": 2, "n_embd": 32, "context": 16, "vocab_size": 61}
LEVELS = {"strides": [2, 2], "widths": [8, 16, 24], "encoder": [1, 1], "middle": 2, "decoder": [1, 1]}
SIZES = {"progressive": SMALL, "conv_attention": {**SMALL, "n_layer": None, **LEVELS}}
"""Of each kind of model; one with levels has the blocks A0 B1 C2 D2 E1 F0."""


def section(name: str = "progressive", **changes: object) -> GrowableConfig:
    """The section of a small model."""
    return section_of({"name": name, **SIZES[name], **changes})


def small(**changes: object) -> Growable:
    """A small model, its parameters moved off their initial values, so that none of them is zero."""
    torch.manual_seed(0)
    return moved(build_model(section(**changes)))


def moved(model: Growable) -> Growable:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def grown(plan: GrowthPlan, model: Growable) -> Growable:
    """The target of the plan, its new tensors from its own initialisation."""
    by_name = dict(model.named_parameters())
    torch.manual_seed(1)
    target = build_model(section_of(plan.model_after))
    parameters = dict(target.named_parameters())
    assert list(parameters) == list(plan.tensors)
    with torch.no_grad():
        for name, rule in plan.tensors.items():
            if not rule.is_new:
                parameters[name].copy_(rule.value(by_name.__getitem__))
    return target


@torch.no_grad()
def logits(model: Growable) -> torch.Tensor:
    ids = torch.randint(0, 61, (2, 16), generator=torch.Generator().manual_seed(1))
    model.eval()
    return model(ids).logits
