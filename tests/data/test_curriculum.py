"""Chains that lengthen: by the FLOPs spent, and what is not asked for yet counts nowhere."""

import numpy as np
import pytest

from dsllm.config import CurriculumConfig, DataConfig
from dsllm.data.batches import Batch, BatchLoader, chain_lengths
from dsllm.data.curriculum import longest_chain
from dsllm.errors import ConfigError
from dsllm.section import raise_problems, validate

NOT = -100


def test_the_longest_chain_rises_in_a_straight_line_with_the_flops_and_then_stays():
    curriculum = CurriculumConfig(start=2, end=6, flops=4e9)
    lengths = [longest_chain(curriculum, flops) for flops in (0, 0.9e9, 1e9, 2.5e9, 3.9e9, 4e9, 9e9)]
    assert lengths == [2, 2, 3, 4, 5, 6, 6]


def test_a_curriculum_that_does_not_rise_is_refused():
    values = {"path": "d", "curriculum": {"start": 5, "end": 5, "flops": 1e9}}
    with pytest.raises(ConfigError, match=r"data\.curriculum\.end = 5: not longer than data\.curriculum\.start = 5"):
        raise_problems(validate(DataConfig, values, "data")[1])


def test_a_label_belongs_to_the_answer_that_ends_at_it_or_behind_it():
    labels = np.array([NOT, 1, 3, 0, NOT, 5, 7, NOT])
    depths = np.array([0, 1, 2, 3, 0, 0, 9, 0])
    assert chain_lengths(labels, depths).tolist() == [0, 1, 2, 3, 0, 9, 9, 0]


class Chains:
    """Problem i has a chain of i % 4 + 1 steps, each with a label."""

    labelled, context = True, 5

    def indices_at(self, numbers, *, seed):
        return numbers

    def sample(self, i):
        return np.full(6, i)

    def labels(self, i):
        asked = np.arange(5) <= i % 4
        return np.where(asked, 7, NOT), np.where(asked, np.arange(1, 6), 0)


@pytest.mark.parametrize(("world_size", "micro_batch_size"), [(1, 8), (1, 2), (2, 2), (4, 1)])
@pytest.mark.parametrize("longest", [1, 2, 9])
def test_what_is_left_out_weighs_nothing_and_the_rest_the_same_on_all_ranks(longest, world_size, micro_batch_size):
    options = {"seed": 0, "global_batch_size": 8, "micro_batch_size": micro_batch_size, "world_size": world_size}
    batches = [BatchLoader(Chains(), rank=rank, **options).batch(16).upto(longest) for rank in range(world_size)]
    counts = [int((micro != NOT).sum()) for batch in batches for micro in batch.labels]
    weights = [float(weight) for batch in batches for weight in batch.weights]
    assert sum(counts) == 2 * sum(min(length, longest) for length in (1, 2, 3, 4))
    shares = [weight / count / len(weights) for weight, count in zip(weights, counts, strict=True)]
    assert shares == pytest.approx([1 / sum(counts)] * len(shares))


def test_text_has_nothing_to_be_left_out():
    batch = Batch(np.zeros((1, 2, 5), np.int64), None)
    assert batch.upto(3) is batch and batch.weights is None
