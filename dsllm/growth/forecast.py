"""What a run that grows will spend, known before it begins where its policy has a timetable.

3 → 6 → 12 layers, grown at a third and two thirds of 90 steps, diverge_consolidate with a share of a quarter:

    steps    1 … 30    31 … 38           39 … 60    61 … 68            69 … 90
    model    3 layers  6 with adapters   6          12 with adapters   12

A step costs what the model that makes it costs. So runs of several arms can be given equal FLOPs in place of steps.
"""

from collections.abc import Iterator

from dsllm.config import GrowthConfig
from dsllm.errors import ConfigError
from dsllm.growth.check import budget_of, growth_problems
from dsllm.growth.parts import resolve
from dsllm.growth.plan import make_plan, section_of, settled
from dsllm.models import skeleton
from dsllm.models.growable import GrowableConfig
from dsllm.registry import OPERATORS, POLICIES
from dsllm.section import raise_problems


def forecast_flops(model: GrowableConfig, growth: GrowthConfig, tokens_per_step: int, steps: int) -> float:
    """Training FLOPs of a run of so many steps, as its records will count them; `model` is its first one.

    Raises `ConfigError` if the model cannot grow as configured, or if only the run will tell when it grows.
    """
    return sum(
        taken * tokens_per_step * skeleton(of).flops_per_token(of.context)
        for of, taken in models_by_steps(model, growth, tokens_per_step, steps)
    )


def models_by_steps(
    model: GrowableConfig, growth: GrowthConfig, tokens_per_step: int, steps: int
) -> Iterator[tuple[GrowableConfig, int]]:
    """The models that make the steps, in order, and how many each makes."""
    raise_problems(growth_problems(model, growth, steps * tokens_per_step, steps, eval_every=1))
    budget = budget_of(model, growth, steps * tokens_per_step, steps)
    policy, options, _ = resolve(POLICIES, growth.policy, "growth.policy")
    operator, operator_options, _ = resolve(OPERATORS, growth.operator, "growth.operator")
    assert policy is not None and operator is not None
    due = policy.timetable(budget, **options)
    if due is None or policy.candidates(**options):
        raise ConfigError(f"growth.policy = {policy.name}: decides in the run, so its FLOPs cannot be known before")
    ends = [budget.step_at(tokens) for tokens in (*due, budget.tokens)]
    yield model, ends[0]
    for number, factor in enumerate(growth.factors(len(due))):
        grown = operator(model, factor, **operator_options)
        diverges = growth.preset != "no_diverge" and operator.takes_adapters
        plan = make_plan(grown, model, "", lora=growth.lora if diverges else None)
        model = settled(grown.model)
        start, end = ends[number : number + 2]
        turn = end if diverges else start
        if diverges and growth.preset == "diverge_consolidate":
            stage_end = due[number + 1] if number + 1 < len(due) else budget.tokens
            begun = start * tokens_per_step
            turn = budget.step_at(begun + round(growth.diverge_share * (stage_end - begun)))
        yield section_of(plan.model_after), turn - start
        yield model, end - turn


def steps_for(model: GrowableConfig, growth: GrowthConfig, tokens_per_step: int, flops: float) -> int:
    """The steps whose FLOPs come to `flops` within about one of them; at least 1. Raises as `forecast_flops` does."""
    dearest = max(skeleton(of).flops_per_token(of.context) for of, _ in models_by_steps(model, growth, 1, 1 << 20))
    steps = max(1, round(flops / (dearest * tokens_per_step)))
    tried: dict[int, float] = {}
    while steps not in tried:  # FLOPs are nearly in proportion to steps, so a few rounds find them
        tried[steps] = forecast_flops(model, growth, tokens_per_step, steps)
        steps = max(1, round(steps * flops / tried[steps]))
    return min(tried, key=lambda steps: abs(tried[steps] - flops))
