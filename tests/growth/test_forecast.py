"""What a run will spend is what it does spend: a walk through its steps, event by event, comes to the same."""

import pytest

from dsllm.config import GrowthConfig
from dsllm.errors import ConfigError
from dsllm.growth.check import budget_of
from dsllm.growth.decisions import State, decide
from dsllm.growth.forecast import forecast_flops, models_by_steps, steps_for
from dsllm.growth.parts import resolve
from dsllm.growth.phases import GrowNow, MergeNow, TrainOn, next_action
from dsllm.growth.plan import make_plan, section_of, settled
from dsllm.models import skeleton
from dsllm.models.progressive import ProgressiveConfig
from dsllm.registry import OPERATORS, POLICIES

MODEL = ProgressiveConfig(name="progressive", n_layer=3, n_head=2, n_embd=16, context=32, vocab_size=320)
UNTIED = MODEL.model_copy(update={"n_layer": 12, "uses": 4})
TOKENS = 64  # in a step


def walked(model, growth, steps):
    """Training FLOPs, one step after the other, as the trainer decides before each."""
    policy, options, _ = resolve(POLICIES, growth.policy, "policy")
    operator, operator_options, _ = resolve(OPERATORS, growth.operator, "operator")
    budget = budget_of(model, growth, steps * TOKENS, steps)
    due = policy.timetable(budget, **options)
    stage, phase, grown_at, flops = 0, "full", 0, 0.0
    spent = skeleton(model).flops_per_token(model.context)
    for step in range(steps):
        while True:
            state = State(budget, step, step * TOKENS, stage, grown_at, grown_at * TOKENS, phase)
            end = due[stage] if stage < len(due) else None
            decision = decide(policy, options, [], state)
            action = next_action(growth.preset, model, state, decision, end, growth.diverge_share)
            if isinstance(action, TrainOn):
                break
            phase = action.phase
            if isinstance(action, MergeNow):
                model = settled(model)
            elif isinstance(action, GrowNow):
                grown = operator(model, growth.factors(stage + 1)[-1], **operator_options)
                plan = make_plan(grown, model, "", lora=growth.lora if phase == "diverge" else None)
                model, stage, grown_at = section_of(plan.model_after), stage + 1, step
            spent = skeleton(model).flops_per_token(model.context)
        flops += TOKENS * spent
    return flops


@pytest.mark.parametrize("preset", ["no_diverge", "diverge_only", "diverge_consolidate"])
@pytest.mark.parametrize(
    ("model", "operator", "policy"),
    [
        (MODEL, "stack", "schedule"),
        (MODEL, "interpose", {"name": "schedule", "at": [0.17, 0.43]}),
        (MODEL, "zero_init", {"name": "schedule", "tokens": [1000, 2222]}),
        (UNTIED, "untie", {"name": "schedule", "times": 2, "prop_alpha": 1.0}),
    ],
)
@pytest.mark.parametrize("steps", [60, 97])
def test_the_forecast_is_what_the_steps_spend(preset, model, operator, policy, steps):
    growth = GrowthConfig(preset=preset, operator=operator, policy=policy, lora={"rank": 4})
    assert forecast_flops(model, growth, TOKENS, steps) == pytest.approx(walked(model, growth, steps), rel=1e-12)
    assert sum(taken for _, taken in models_by_steps(model, growth, TOKENS, steps)) == steps


@pytest.mark.parametrize("preset", ["no_diverge", "diverge_only", "diverge_consolidate"])
def test_steps_for_a_budget_come_within_one_of_it(preset):
    growth = GrowthConfig(preset=preset, operator="stack", lora={"rank": 4})
    wanted = forecast_flops(MODEL, growth, TOKENS, 300)
    assert steps_for(MODEL, growth, TOKENS, wanted) == 300
    for flops in (1.003 * wanted, 0.4567 * wanted):
        found = forecast_flops(MODEL, growth, TOKENS, steps_for(MODEL, growth, TOKENS, flops))
        assert abs(found - flops) < wanted / 300  # about a step


def test_a_policy_that_decides_in_the_run_has_no_forecast():
    growth = GrowthConfig(preset="no_diverge", policy="plateau")
    with pytest.raises(ConfigError, match=r"growth\.policy = plateau: decides in the run"):
        forecast_flops(MODEL, growth, TOKENS, 300)
