"""Merging: what a stage added to the weights becomes plain weights, of the same function.

    blocks.1.attention.qkv.weight   +  lora_A, lora_B       →  its own weight + scale · B A
    blocks.1.mlp.up.coefficients    ·  templates            →  its own weight Σ_k c_k T_k
    gates that are open             →  nothing: the blocks are blocks like all others

A block that shared its frozen tensors with others has its own afterwards. No adapter, mixture or gate crosses a growth
event, so this comes first.
"""

from dsllm.config import LoRAConfig
from dsllm.errors import CheckpointError
from dsllm.growth.plan import GrowthPlan, Names, OptimizerState, changed, settled
from dsllm.growth.transforms import Rule
from dsllm.models.growable import PARTS, GrowableConfig


def detach_plan(model: GrowableConfig, source: str, optimizer_state: OptimizerState = "copy") -> GrowthPlan:
    """The plan that takes live adapters off again and leaves the weights under them as they were.

    Raises `CheckpointError` if there are none.
    """
    if model.lora is None:
        raise CheckpointError("nothing to detach: the model has no live adapters")
    after = changed(model, lora=None, bases=None)
    before = Names.of(model)
    return GrowthPlan(
        operator="detach",
        preserves_function=False,
        source=source,
        model_before=model.model_dump(mode="json"),
        model_after=after.model_dump(mode="json"),
        tensors={name: Rule((before.aliases[name],)) for name in Names.of(after).shapes},
        optimizer_state=optimizer_state,
    )


def merge_plan(
    model: GrowableConfig, source: str, optimizer_state: OptimizerState = "copy", step: int = 0
) -> GrowthPlan:
    """The plan that leaves a model of plain blocks, at optimizer step `step`.

    What trained beside the adapters keeps its moments; the merged matrices begin with none. Raises `CheckpointError`
    if there is nothing to merge, or a gate is still on its way.
    """
    if not model.unsettled:
        raise CheckpointError("nothing to merge: the model has no live adapters, mixed blocks or gates")
    if model.gate is not None and model.gate.opening(step) < 1:
        raise CheckpointError(
            f"model.gate: still opening at step {step:,}; merge from step {model.gate.start + model.gate.steps:,} on"
        )
    after = settled(model)
    before = Names.of(model)
    return GrowthPlan(
        operator="merge",
        preserves_function=True,
        source=source,
        model_before=model.model_dump(mode="json"),
        model_after=after.model_dump(mode="json"),
        tensors={name: _rule(name, before, model.lora) for name in Names.of(after).shapes},
        optimizer_state=optimizer_state,
        dead_at_start=after.waiting(step),
    )


def _rule(name: str, before: Names, lora: LoRAConfig | None) -> Rule:
    """How the plain parameter `name` comes from those of the model before."""
    module, _, kind = name.rpartition(".")
    adapter = [f"{module}.lora_A", f"{module}.lora_B"]
    if kind == "weight" and lora is not None and adapter[0] in before.shapes:
        parts = PARTS[module.split(".", 2)[2]]
        return Rule((before.aliases[name], *adapter), "merge_lora", {"scale": lora.scale, "parts": parts})
    if kind == "weight" and f"{module}.coefficients" in before.shapes:
        templates = [alias for alias in before.aliases if alias.startswith(f"{module}.template_")]
        return Rule((f"{module}.coefficients", *(before.aliases[alias] for alias in templates)), "mix")
    return Rule((before.aliases[name],))
