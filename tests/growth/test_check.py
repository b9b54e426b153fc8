"""What is wrong with a growth that has not begun."""

import pytest

from dsllm.config import GrowthConfig
from dsllm.growth.check import budget_of, final_model, growth_problems
from dsllm.models import skeleton
from dsllm.models.progressive import ProgressiveConfig
from dsllm.registry import OPERATORS
from tests.growth.applying import SMALL

ORIGIN = {"n_layer": 12, "uses": 4}


def problems(model=ORIGIN, rank=4, eval_every=10, **growth) -> list[str]:
    growth = GrowthConfig(**{"operator": "untie", "lora": {"rank": rank}, **growth})
    return growth_problems(ProgressiveConfig(**{**SMALL, **model}), growth, 1000, 100, eval_every)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"model": {}, "operator": "interpose", "preset": "diverge_consolidate"},
        {"model": {}, "operator": {"name": "mixture", "coefficients": "random"}, "preset": "no_diverge"},
        {"operator": "zero_init", "policy": {"name": "plateau", "times": 4}},
        {"policy": "race"},
    ],
)
def test_what_fits_has_no_problems(changes):
    assert problems(**changes) == []


@pytest.mark.parametrize(
    "changes, lines",
    [
        ({"factor": 3}, ["growth.factor = 3: untie"]),
        ({"factor": [4, 2]}, ["growth.factor = 2: untie"]),
        ({"policy": {"name": "schedule", "times": 3}}, ["growth.factor = 2: untie"]),
        ({"policy": {"name": "plateau", "times": 3}}, ["growth.factor = 2: untie"]),
        ({"policy": "plateau", "eval_every": 0}, ["train.eval_every = 0: growth.policy = plateau decides by"]),
        ({"rank": 99}, ["model.lora.rank = "]),
        ({"rank": 99, "preset": "no_diverge"}, []),
        ({"operator": "mixture"}, ["growth.preset: mixture takes no adapters"]),
        (
            {"operator": "lateral", "preset": "no_diverge"},
            ["growth.operator = lateral: a second column ends growth"],
        ),
        (
            {"policy": {"name": "schedule", "at": [0.501, 0.502]}},
            ["growth.policy: stage 1, from step 51 to 51 of 100,"],
        ),
        ({"policy": {"name": "schedule", "tokens": [2000]}}, ["growth.policy: stage 1, from step 200 to 100 of 100,"]),
        ({"policy": {"name": "schedule", "tokens": [1000]}}, ["growth.policy: stage 1, from step 100 to 100 of 100,"]),
        (
            {"policy": {"name": "schedule", "at": [0.5, 0.98]}, "preset": "diverge_consolidate"},
            ["growth.diverge_share = 0.25: leaves one of the phases of stage 2, from step 98 to 100 of 100,"],
        ),
        (
            {"policy": {"name": "race", "candidates": ["untie", "stack", {"name": "middle", "group": 9}]}, "factor": 3},
            ["growth.factor = 3: untie", "growth.operator.group = 9: the model has 3 distinct blocks"],
        ),
    ],
)
def test_what_does_not_fit_is_said_with_a_cure(changes, lines):
    found = problems(**changes)
    assert len(found) == len(lines), found
    for problem, line in zip(found, lines, strict=True):
        assert problem.startswith(line)
        assert ";" in problem


def test_a_model_that_has_a_second_column_is_named_itself():
    (line,) = problems(model={"lateral": {"n_embd": 8, "n_head": 1, "rank": 2}}, operator="interpose")
    assert line == "model.lateral: a model with a second column does not grow; grow before adding one"


def test_a_later_growth_event_that_does_not_fit_is_named():
    (line,) = problems(policy={"name": "schedule", "times": 3})
    assert line.endswith("(growth event 3)")


def test_the_final_model_is_what_all_growth_events_make():
    section = ProgressiveConfig(**SMALL)
    assert final_model(section, OPERATORS["stack"], {}, [2, 2]).n_layer == 12
    assert final_model(section, OPERATORS["mixture"], {}, [2, 2]).mixture.templates == 6


def test_the_budget_counts_the_parameters_of_the_final_model():
    section = ProgressiveConfig(**SMALL)
    grown = skeleton(ProgressiveConfig(**{**SMALL, "n_layer": 12}))
    assert budget_of(section, GrowthConfig(), 1000, 100).final_parameters == grown.count_parameters()
    once = GrowthConfig(policy="g_stack", factor=4, preset="no_diverge")
    assert budget_of(section, once, 1000, 100).final_parameters == grown.count_parameters()
