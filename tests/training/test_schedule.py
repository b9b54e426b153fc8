"""The learning rate is a function of tokens alone."""

import pytest

from dsllm.config import TrainConfig
from dsllm.training.schedule import Schedule


def schedule(**fields) -> Schedule:
    return Schedule.of(TrainConfig(steps=1000, lr=1.0, final_lr=0.1, **fields), tokens_per_step=10)


def test_warm_up_rises_to_the_peak():
    rates = [schedule(warmup_tokens=100).lr(tokens) for tokens in (10, 25, 50, 100)]
    assert rates == pytest.approx([0.1, 0.25, 0.5, 1.0])


def test_cosine_is_halfway_between_peak_and_end_in_the_middle_and_ends_at_the_final_rate():
    cosine = schedule(schedule="cosine", warmup_tokens=0)
    assert [cosine.lr(t) for t in (0, 5000, 10000, 20000)] == pytest.approx([1.0, 0.55, 0.1, 0.1])


def test_wsd_is_stable_until_the_last_fifth_and_then_falls_linearly():
    wsd = schedule(schedule="wsd")
    assert wsd.warmup == 200
    assert [wsd.lr(t) for t in (200, 4000, 8000, 9000, 10000)] == pytest.approx([1.0, 1.0, 1.0, 0.55, 0.1])


def test_a_decay_longer_than_the_run_begins_after_the_warm_up():
    wsd = schedule(schedule="wsd", warmup_tokens=1000, decay_tokens=10**9)
    assert wsd.decay == 9000
    assert wsd.lr(1000) == 1.0
    assert wsd.lr(10000) == pytest.approx(0.1)


@pytest.mark.parametrize(("share", "decay"), [(0, 0), (0.33, 3300), (1, 9800)])
def test_a_share_of_the_run_decays_or_as_many_tokens_as_are_named(share, decay):
    assert schedule(schedule="wsd", decay_share=share).decay == decay
    assert schedule(schedule="wsd", decay_share=share, decay_tokens=70).decay == 70


@pytest.mark.parametrize("total", [5, 10, 35, 1234, 99_999, 10**12 + 3])
def test_a_fifth_decays_by_default_and_is_rounded_down(total):
    assert Schedule.of(TrainConfig(steps=total, schedule="wsd", warmup_tokens=0), 1).decay == total // 5


def test_the_default_warm_up_is_a_fiftieth():
    assert schedule().warmup == 200
    assert schedule(warmup_tokens=0).lr(0) == 1.0
