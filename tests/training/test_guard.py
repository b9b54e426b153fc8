"""Which updates are left out, and when a run has had too many of those."""

import json
import math
import random

import pytest

from dsllm.config import TrainConfig
from dsllm.errors import ConfigError, TrainingError
from dsllm.section import raise_problems, validate
from dsllm.training.guard import Guard

NAN, INF = math.nan, math.inf


def guard(**settings):
    return Guard(TrainConfig(**settings))


def step(guard, loss, norm):
    """One step as an engine takes it: the update is made if it is allowed. Gives why it was not."""
    guard.begin(loss)
    return guard.end(guard.allows(norm))


def calm(guard, steps=64):
    """Losses around 5 and norms around 1, with deviations of a tenth of them."""
    for number in range(steps):
        sign = (-1) ** number
        assert step(guard, 5 + 0.5 * sign, 1 + 0.1 * sign) is None


@pytest.mark.parametrize(
    ("loss", "norm", "reason"),
    [
        (NAN, 1.0, "its loss is nan"),
        (INF, 1.0, "its loss is inf"),
        (5.0, NAN, "its gradient norm is inf"),
        (5.0, INF, "its gradient norm is inf"),
        (5.0, -1.0, "its gradient norm is inf"),
    ],
)
def test_a_number_that_is_none_is_left_out_from_the_first_step_on(loss, norm, reason):
    assert step(guard(), loss, norm) == reason


def test_a_spike_of_loss_or_gradients_is_left_out_and_a_step_within_six_deviations_is_not():
    watched = guard()
    calm(watched)
    assert step(watched, 7.9, 1.5) is None
    assert "its loss is 9, 5.0" in step(watched, 9.0, 1.0)
    assert "its log of the gradient norm is 0.7885, " in step(watched, 5.0, 2.2)
    assert step(watched, 0.1, 0.01) is None  # a fall is no spike


def test_nothing_is_a_spike_before_half_of_the_window_is_there_or_without_sigma():
    early, never = guard(), guard(spike_sigma=0.0)
    calm(early, 63)
    calm(never)
    assert step(early, 500.0, 100.0) is None
    assert step(never, 500.0, 100.0) is None
    assert step(never, NAN, 1.0) == "its loss is nan"


def test_what_is_not_finite_leaves_the_windows_alone():
    watched = guard()
    calm(watched)
    before = watched.state()
    for loss, norm in [(NAN, NAN), (INF, INF), (NAN, -1.0)]:
        step(watched, loss, norm)
    assert {**watched.state(), "in_a_row": 0} == before
    assert step(watched, 5.0, 1.0) is None


def test_a_lasting_rise_becomes_the_new_level_before_the_run_ends():
    for window, sigma in [(128, 6.0), (64, 3.0), (16, 6.0)]:
        watched = guard(spike_window=window, spike_sigma=sigma)
        calm(watched, window)
        skipped = [step(watched, 1e6, 1.0) for _ in range(12)]
        assert skipped[0] is not None and skipped[-1] is None
        assert watched.exhausted(99, [1]) is None
        assert watched.in_a_row == 0


def test_too_many_in_a_row_are_told_with_steps_and_samples():
    watched = guard(max_skips=5)
    for number in range(4):
        step(watched, NAN, 1.0)
        assert watched.exhausted(number + 1, [7]) is None
    step(watched, INF, 1.0)
    words = watched.exhausted(5, list(range(20)))
    assert words.startswith("5 updates in a row were skipped, steps 1 to 5; the last: its loss is inf, samples 0, 1, ")
    assert "15, … of the training split" in words


def test_an_update_that_is_made_ends_the_row():
    watched = guard(max_skips=5)
    for loss in [NAN, NAN, NAN, NAN, 5.0, NAN, NAN, NAN, NAN]:
        step(watched, loss, 1.0)
        assert watched.exhausted(1, []) is None


def overflow(guard, scale_sinks):
    """A step of fp16 in which DeepSpeed sees an overflow before there is a norm."""
    guard.begin(5.0)
    return guard.end(updated=False, scale_sinks=scale_sinks)


def test_overflows_while_fp16_looks_for_its_scale_are_left_out_but_not_counted():
    watched = guard(max_skips=5)
    for _ in range(20):
        assert overflow(watched, scale_sinks=True) == "its gradient norm is inf"
    assert watched.in_a_row == 0
    for _ in range(5):
        overflow(watched, scale_sinks=False)
    assert watched.exhausted(25, [1]) is not None


def test_a_spike_is_told_from_an_overflow():
    watched = guard()
    calm(watched)
    step(watched, 5.0, 2.2)
    assert watched.spiked
    overflow(watched, scale_sinks=True)
    assert not watched.spiked
    step(watched, NAN, 1.0)
    assert not watched.spiked


def test_a_window_that_hardly_moves_takes_no_small_rise_for_a_spike():
    watched = guard()
    for _ in range(64):
        assert step(watched, 0.0, 1e-9) is None
    assert step(watched, 0.2, 1.2e-9) is None
    assert "its loss is 0.4" in step(watched, 0.4, 1e-9)


def test_norms_that_spread_over_powers_of_ten_are_no_spikes():
    draw = random.Random(1)
    watched = guard()
    skipped = [step(watched, 5.0, draw.lognormvariate(0, 1)) for _ in range(5000)]
    assert not any(skipped)


def test_on_another_level_of_the_data_losses_are_of_another_height():
    watched = guard()
    calm(watched)
    watched.begin(50.0, level=3)
    assert watched.end(watched.allows(1.0)) is None
    watched.begin(5.0, level=3)
    assert watched.end(watched.allows(1.0)) is None


def test_an_update_that_nobody_asked_about_ends_the_run():
    watched = guard()
    watched.begin(5.0)
    with pytest.raises(TrainingError, match="without looking at its gradients"):
        watched.end(updated=True)


def test_a_resumed_guard_judges_as_the_one_before():
    first, second = guard(), guard()
    calm(first, 80)
    step(first, NAN, 1.0)
    second.load_state(**json.loads(json.dumps(first.state())))
    for loss, norm in [(9.0, 1.0), (5.0, 1.2), (5.1, 3.0), (8.0, 1.0)]:
        assert step(first, loss, norm) == step(second, loss, norm)
        assert first.state() == second.state()


def test_a_limit_that_a_lasting_rise_would_reach_is_refused_with_the_least_that_is_not():
    _, problems = validate(TrainConfig, {"spike_window": 1000}, "train")
    with pytest.raises(ConfigError, match=r"train.max_skips = 10: .* skips 28 updates.* take at least 29"):
        raise_problems(problems)
    assert validate(TrainConfig, {"spike_window": 1000, "max_skips": 29}, "train")[1] == []
    assert validate(TrainConfig, {"spike_window": 1000, "spike_sigma": 0}, "train")[1] == []
