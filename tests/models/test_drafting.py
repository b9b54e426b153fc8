"""Guessing ahead: what is guessed, and that no token of any model changes by it."""

import pytest
import torch

from dsllm.models.drafting import LONGEST, LookUp


def test_what_followed_the_last_three_tokens_before_is_guessed():
    assert LookUp([1, 2, 3, 4, 5, 6, 7, 9, 2, 3, 8, 1, 2, 3]).guess(2) == [4, 5]


def test_two_tokens_are_looked_up_where_three_have_not_stood_together_and_the_newest_place_counts():
    assert LookUp([7, 2, 3, 4, 4, 4, 8, 2, 3, 5, 5, 5, 9, 2, 3]).guess(3) == [5, 5, 5]


def test_nothing_is_guessed_of_a_text_without_repetition_or_without_room():
    assert LookUp([1, 2, 3, 4, 5]).guess(4) == []
    assert LookUp([1]).guess(4) == []
    assert LookUp([]).guess(4) == []
    assert LookUp([1, 2, 1, 2]).guess(0) == []


def test_a_loop_shorter_than_the_guess_goes_on():
    assert LookUp([1, 2, 3, 1, 2, 3]).guess(8) == [1, 2, 3, 1]
    text = LookUp([1, 2, 3, 1, 2, 3])
    text.learn(4, right=4)
    assert text.guess(8) == [1, 2, 3, 1, 2, 3, 1, 2]
    text.append(1)
    assert text.guess(4) == [2, 3, 1, 2]


def test_as_many_are_guessed_as_lately_came():
    text = LookUp([])
    text.learn(4, right=4)
    assert text.count == 8
    text.learn(8, right=8)
    text.learn(16, right=16)
    assert text.count == LONGEST
    text.learn(16, right=2)
    assert text.count == 3
    text.learn(3, right=0)
    assert text.count == 1


@pytest.fixture
def looping(small):
    """A model whose likeliest next token is, by its embedding alone, mostly the one at hand: its texts run in loops."""
    model = small()
    with torch.no_grad():
        model.wte.weight.mul_(3)
    return model


@pytest.mark.parametrize(
    "settings",
    [{"temperature": 0}, {"temperature": 0.7, "seed": 5}, {"temperature": 0.9, "top_k": 8, "top_p": 0.9, "seed": 6}],
    ids=["greedy", "sampled", "narrowed"],
)
@pytest.mark.parametrize("prompt", [1, 5, 15, 16, 17])
@pytest.mark.parametrize("new", [1, 2, 50])
def test_no_token_changes_by_guessing_even_past_the_context(looping, ids, settings, prompt, new):
    drafted = looping.generate(ids[:1, :prompt], new, **settings)
    assert drafted.shape == (1, prompt + new)
    assert looping.generate(ids[:1, :prompt], new, draft=False, **settings).equal(drafted)
    assert looping.generate(ids[:1, :prompt], new, use_cache=False, **settings).equal(drafted)


def test_confirmed_tokens_take_no_step_of_their_own(looping, ids):
    steps = []
    looping.blocks[0].register_forward_pre_hook(lambda _, inputs: steps.append(inputs[0].shape[1]))
    looping.generate(ids[:1, :4], 12, temperature=0)
    assert len(steps) < 12
    assert max(steps[1:]) > 1


def test_the_text_ends_at_a_stop_token_among_guessed_ones(looping, ids):
    free = looping.generate(ids[:1, :4], 40, temperature=0)
    for stop in free[0, 4:].unique().tolist():
        ended = looping.generate(ids[:1, :4], 40, temperature=0, stop_token=stop)
        length = 4 + (free[0, 4:] == stop).int().argmax().item() + 1
        assert ended.equal(free[:, :length])


def test_a_window_cannot_be_rewound_and_nothing_is_guessed(small, ids):
    model, steps = small(window=4), []
    assert not model.rewind(model.new_cache(), 0)
    model.blocks[0].register_forward_pre_hook(lambda _, inputs: steps.append(inputs[0].shape[1]))
    model.generate(ids[:1, :4], 12, temperature=0)
    assert steps == [4, *[1] * 11]
