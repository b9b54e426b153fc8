"""What can be known to be wrong before a run begins, so that it does not end in its third hour.

growth.factor = 5: untie shares the uses of each block among its copies, and it does not divide model.uses = 4; …
growth.policy: stage 1, from step 7 to 7 of 20, has no steps; move its growth events apart, or lengthen the run
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from dsllm.config import GrowthConfig, LoRAConfig
from dsllm.errors import ConfigError
from dsllm.growth.decisions import Budget, Policy
from dsllm.growth.operators import Operator
from dsllm.growth.parts import resolve
from dsllm.growth.plan import changed, settled
from dsllm.models import skeleton
from dsllm.models.growable import GrowableConfig
from dsllm.registry import OPERATORS, POLICIES


def growth_problems(model: GrowableConfig, growth: GrowthConfig, tokens: int, steps: int, eval_every: int) -> list[str]:
    """Every reason why a run of `tokens` in `steps` cannot grow as it is configured, a line each.

    Of a policy whose number of growth events is not known the first is looked at.
    """
    policy, options, problems = resolve(POLICIES, growth.policy, "growth.policy")
    if policy is None or problems:
        return problems
    factors = growth.factors(_events(policy, options, tokens, steps) or 1)
    lora = None if growth.preset == "no_diverge" else growth.lora
    for choice in policy.candidates(**options) or [growth.operator]:
        operator, operator_options, wrong = resolve(OPERATORS, choice, "growth.operator")
        problems += wrong
        if operator is not None and not wrong:
            problems += operator_problems(model, operator, operator_options, factors, lora)
    if not problems:
        budget = budget_of(model, growth, tokens, steps)
        problems += timetable_problems(policy, options, budget, growth, _gate_steps(model, growth, factors[0]))
    if policy.reads_losses and not eval_every:
        problems.append(f"train.eval_every = 0: growth.policy = {policy.name} decides by validation losses; take 50")
    return list(dict.fromkeys(problems))


def budget_of(model: GrowableConfig, growth: GrowthConfig, tokens: int, steps: int) -> Budget:
    """What a run may spend, and the parameters that it ends with; `model` is its first, with the vocabulary known.

    Raises `ConfigError` if the model cannot grow as configured.
    """
    policy, options, _ = resolve(POLICIES, growth.policy, "growth.policy")
    assert policy is not None
    choice = next(iter(policy.candidates(**options)), growth.operator)
    operator, operator_options, _ = resolve(OPERATORS, choice, "growth.operator")
    assert operator is not None
    factors = growth.factors(_events(policy, options, tokens, steps) or 1)
    final = final_model(model, operator, operator_options, factors)
    return Budget(tokens, steps, skeleton(final).count_parameters())


def _events(policy: Policy, options: Mapping[str, Any], tokens: int, steps: int) -> int | None:
    """How many growth events there will be, which depends on no model's size."""
    return policy.events(Budget(tokens, steps, 1), **options)


def operator_problems(
    model: GrowableConfig,
    operator: Operator,
    options: Mapping[str, Any],
    factors: Sequence[int],
    lora: LoRAConfig | None,
) -> Iterator[str]:
    """Why the operator cannot grow the model by these factors one after the other; `lora` None: without diverging."""
    try:
        final_model(model, operator, options, factors)
        if lora is not None and operator.takes_adapters:
            changed(model, lora=lora.model_dump())
    except ConfigError as error:
        yield from (line for line in str(error).split("\n  ") if not line.startswith("configuration:"))
    if lora is not None and not operator.takes_adapters:
        yield f"growth.preset: {operator.name} takes no adapters, so its stages cannot diverge; take no_diverge"


def timetable_problems(
    policy: Policy, options: Mapping[str, Any], budget: Budget, growth: GrowthConfig, gate_steps: int = 0
) -> Iterator[str]:
    """Stages, and phases of stages, that would have no steps, or fewer than gates need to open."""
    due = policy.timetable(budget, **options)
    if due is None:
        return
    share = growth.diverge_share
    steps = [0, *(budget.step_at(tokens) for tokens in due), budget.steps]
    for number, (start, end) in enumerate(pairwise(steps)):
        stage = f"stage {number}, from step {start:,} to {end:,} of {budget.steps:,},"
        if end <= start:
            yield f"growth.policy: {stage} has no steps; move its growth events apart, or lengthen the run"
        elif number and gate_steps > end - start:
            yield (
                f"growth.operator.steps = {gate_steps:,}: the gates open over more steps than {stage} has; "
                f"take {end - start:,} or less"
            )
        elif number and growth.preset == "diverge_consolidate" and not 0 < round(share * (end - start)) < end - start:
            yield (
                f"growth.diverge_share = {share:g}: leaves one of the phases of {stage} without steps; "
                f"make the stage longer, or take another growth.preset"
            )


def _gate_steps(model: GrowableConfig, growth: GrowthConfig, factor: int) -> int:
    """Steps over which the configured operator's gates open; 0 if it has none."""
    operator, options, _ = resolve(OPERATORS, growth.operator, "growth.operator")
    assert operator is not None
    gate = operator(settled(model), factor, **options).model.gate
    return 0 if gate is None else gate.steps


def final_model(
    model: GrowableConfig, operator: Operator, options: Mapping[str, Any], factors: Sequence[int]
) -> GrowableConfig:
    """The model's section after growing by each factor in turn, merged in between.

    Raises `ConfigError` if one does not fit.
    """
    for number, factor in enumerate(factors, 1):
        for name, what in model.last.items():
            if getattr(model, name) is not None and number == 1:
                raise ConfigError(f"model.{name}: a model with {what} does not grow; grow before adding one")
            if getattr(model, name) is not None:
                raise ConfigError(f"growth.operator = {operator.name}: {what} ends growth; plan one growth event")
        try:
            model = operator(settled(model), factor, **options).model
        except ConfigError as error:
            raise ConfigError(str(error) if number == 1 else f"{error} (growth event {number})") from None
    return model
