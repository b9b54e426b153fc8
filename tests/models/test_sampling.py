"""The choice of the next token, and the window on a text longer than the context."""

from collections import Counter
from itertools import pairwise

import pytest
import torch

from dsllm.errors import UserError
from dsllm.models.sampling import Sampler, window_start

PROBABILITIES = torch.tensor([0.1, 0.4, 0.2, 0.3])


def draws(sampler, n=4000):
    return Counter(sampler(PROBABILITIES.log().expand(n, -1)).tolist())


def test_temperature_zero_takes_the_likeliest():
    assert draws(Sampler(temperature=0)) == {1: 4000}


def test_tokens_come_as_often_as_their_probability_says():
    counts = draws(Sampler(seed=0))
    assert [counts[token] / 4000 for token in range(4)] == pytest.approx(PROBABILITIES.tolist(), abs=0.03)


def test_a_low_temperature_sharpens():
    expected = (PROBABILITIES**2 / (PROBABILITIES**2).sum()).tolist()
    counts = draws(Sampler(temperature=0.5, seed=0))
    assert [counts[token] / 4000 for token in range(4)] == pytest.approx(expected, abs=0.03)


@pytest.mark.parametrize(
    "settings, tokens",
    [
        ({"top_k": 1}, {1}),
        ({"top_k": 2}, {1, 3}),
        ({"top_k": 100}, {0, 1, 2, 3}),
        ({"top_p": 0.01}, {1}),
        ({"top_p": 0.5}, {1, 3}),
        ({"top_p": 0.85}, {1, 2, 3}),
        ({"top_p": 1.0}, {0, 1, 2, 3}),
        ({"top_k": 3, "top_p": 0.7}, {1, 3}),
    ],
)
def test_only_the_likeliest_are_left(settings, tokens):
    assert set(draws(Sampler(seed=0, **settings))) == tokens


def test_the_seed_fixes_the_choices():
    first, again, other = (Sampler(seed=seed)(PROBABILITIES.log().expand(50, -1)) for seed in (3, 3, 4))
    assert first.equal(again) and not first.equal(other)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"temperature": -1.0}, "temperature = -1.0: take 0 for the likeliest token, or a positive number"),
        ({"temperature": float("nan")}, "temperature = nan"),
        ({"top_k": 0}, "top_k = 0: at least 1 token must be left"),
        ({"top_p": 0.0}, "top_p = 0.0: a probability above 0 and up to 1"),
        ({"top_p": 1.5}, "top_p = 1.5"),
    ],
)
def test_senseless_settings_are_named(settings, message):
    with pytest.raises(UserError, match=message):
        Sampler(**settings)


@pytest.mark.parametrize("context", [1, 2, 7, 8])
def test_the_window_holds_the_newest_tokens_and_moves_by_half_a_context(context):
    starts = [window_start(length, context) for length in range(1, 40)]
    seen = [length - start for length, start in enumerate(starts, 1)]
    assert starts[:context] == [0] * context
    assert all(context - max(1, context // 2) < n <= context for n in seen[context - 1 :])
    assert {b - a for a, b in pairwise(starts)} <= {0, max(1, context // 2)}
