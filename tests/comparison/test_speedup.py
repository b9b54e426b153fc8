"""Speedup at equal loss: read off the curves, everything charged, over all pairs of seeds."""

import pytest

from dsllm.comparison.record import Point
from dsllm.comparison.speedup import cost_of, speedups


class Run:
    def __init__(self, *points: tuple[float, float], seed: int = 1):
        self.seed = seed
        self.validation = [Point(tokens=int(x), flops=10 * x, seconds=x / 2, loss=loss) for x, loss in points]


class Arm:
    def __init__(self, *runs: Run):
        self.runs = list(runs)


SCRATCH = Run((0, 10.0), (100, 4.0), (400, 3.0))


def test_the_cost_of_a_loss_lies_between_two_evaluations():
    assert cost_of(4.0, SCRATCH.validation, "tokens") == 100
    assert cost_of(3.5, SCRATCH.validation, "tokens") == pytest.approx(250)
    assert cost_of(7.0, SCRATCH.validation, "flops") == pytest.approx(500)
    assert cost_of(2.9, SCRATCH.validation, "tokens") is None
    assert cost_of(11.0, SCRATCH.validation, "tokens") == 0


def test_a_curve_that_rises_in_between_counts_where_the_loss_was_first_reached():
    grown = Run((0, 10.0), (100, 3.5), (150, 5.0), (300, 3.0))
    assert cost_of(3.5, grown.validation, "tokens") == 100
    assert cost_of(3.2, grown.validation, "tokens") == pytest.approx(285)


def test_an_arm_that_ends_lower_is_measured_at_the_baselines_end():
    gains = speedups(Arm(Run((0, 10.0), (100, 3.5), (250, 3.0), (400, 2.8))), Arm(SCRATCH))
    assert {cost: gain.mean for cost, gain in gains.items()} == pytest.approx(
        {"tokens": 0.6, "flops": 0.6, "seconds": 0.6}
    )
    assert gains["flops"].loss == 3.0


def test_an_arm_that_ends_higher_is_slower_and_measured_at_its_own_end():
    gain = speedups(Arm(Run((0, 10.0), (400, 4.0))), Arm(SCRATCH))["tokens"]
    assert (gain.mean, gain.loss) == (pytest.approx(-0.75), 4.0)


TWO = Arm(SCRATCH, Run((0, 10.0), (100, 4.0), (500, 3.0), seed=2))


def test_runs_of_one_seed_are_held_against_each_other():
    gain = speedups(Arm(Run((0, 10.0), (200, 3.0), seed=2), Run((0, 10.0), (250, 3.0))), TWO)["tokens"]
    assert (gain.least, gain.most) == (pytest.approx(400 / 250 - 1), pytest.approx(500 / 200 - 1))
    assert gain.mean == pytest.approx((0.6 + 1.5) / 2)


def test_where_no_seeds_are_equal_each_run_is_held_against_each():
    gain = speedups(Arm(Run((0, 10.0), (250, 3.0), seed=7), Run((0, 10.0), (200, 3.0), seed=8)), TWO)["tokens"]
    assert gain.mean == pytest.approx((0.6 + 1.0 + 1.0 + 1.5) / 4)


def test_without_evaluations_in_training_there_is_none():
    assert speedups(Arm(Run((400, 3.0))), Arm(SCRATCH)) == {}
    assert speedups(Arm(Run((0, 2.0), (1, 2.0))), Arm(Run((0, 3.0), (1, 2.5)))) == {}
