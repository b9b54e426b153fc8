"""Chains that lengthen by the FLOPs spent, and samples of as many problems of a length as fit."""

import numpy as np
import pytest

from data_prep.cli import main
from dsllm.config import CurriculumConfig, DataConfig
from dsllm.data.batches import BatchLoader
from dsllm.data.blend import Blend
from dsllm.data.curriculum import PackedProblems, chain_length, check_lengths
from dsllm.data.problems import ProblemDataset
from dsllm.errors import ConfigError, DataError
from dsllm.section import raise_problems, validate

CONTEXT = 10


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("problems") / "perm"
    lengths = ["--lengths", "1-4", "--documents", "80", "--held_out", "6"]
    main(["reasoning", "--task", "perm_chain", *lengths, "--out", str(out)])
    return out


@pytest.fixture(scope="module")
def problems(folder):
    return ProblemDataset(folder, "train", CONTEXT)


def test_the_length_rises_in_a_straight_line_with_the_flops_and_then_stays():
    curriculum = CurriculumConfig(start=2, end=6, flops=4e9)
    lengths = [chain_length(curriculum, flops) for flops in (0, 0.9e9, 1e9, 2.5e9, 3.9e9, 4e9, 9e9)]
    assert lengths == [2, 2, 3, 4, 5, 6, 6]


@pytest.mark.parametrize(
    ("curriculum", "masked", "words"),
    [
        ({"start": 5, "end": 5, "flops": 1e9}, True, r"data\.curriculum\.end = 5: not longer than .*start = 5"),
        ({"end": 5, "flops": 1e9}, False, r"data\.mask_documents = False: a curriculum puts several problems"),
    ],
)
def test_a_curriculum_that_cannot_be_is_refused(curriculum, masked, words):
    values = {"path": "d", "mask_documents": masked, "curriculum": curriculum}
    with pytest.raises(ConfigError, match=words):
        raise_problems(validate(DataConfig, values, "data")[1])


def test_each_problem_knows_its_longest_chain(problems):
    assert problems.lengths.tolist() == [max(problems.labels(i)[1]) for i in range(len(problems))]
    assert sorted(set(problems.lengths.tolist())) == [1, 2, 3, 4]


@pytest.mark.parametrize("length", [1, 2, 4])
def test_a_sample_holds_as_many_problems_of_the_length_as_fit_each_whole(length, problems):
    packed, size = PackedProblems(problems, length), length + 1
    each = CONTEXT // size
    seen = []
    for i in range(len(packed)):
        tokens, (labels, depths), ids = packed.sample(i), packed.labels(i), packed.document_ids(i)
        assert tokens.shape == (CONTEXT + 1,) and labels.shape == depths.shape == ids.shape == (CONTEXT,)
        assert ids.tolist() == [min(t // size, each) for t in range(CONTEXT)]
        assert (tokens[each * size :] == problems.end_of_text).all() and (labels[each * size :] == -100).all()
        for number in range(each):
            part = slice(number * size, (number + 1) * size)
            assert depths[part].tolist() == list(range(length + 1))
            seen.append((*tokens[part], *labels[part]))
    of_length = [i for i in range(len(problems)) if problems.lengths[i] == length]
    whole = [(*problems.sample(i)[:size], *problems.labels(i)[0][:size]) for i in of_length]
    assert seen == whole[: len(packed) * each] and len(whole) - len(seen) < each


def test_an_epoch_has_every_sample_once_in_an_order_of_the_seed(problems):
    packed = PackedProblems(problems, 2)
    numbers = np.arange(2 * len(packed))
    first, second = packed.indices_at(numbers, seed=1).reshape(2, -1)
    assert sorted(first) == sorted(second) == list(range(len(packed))) and first.tolist() != second.tolist()
    batch = BatchLoader(
        packed, seed=1, global_batch_size=4, micro_batch_size=2, rank=0, world_size=1, mask_documents=True
    ).batch(0)
    assert batch.tokens.shape == (2, 2, CONTEXT + 1) and (batch.tokens[0, 0] == packed.sample(first[0])).all()


def test_lengths_that_are_not_there_and_sources_without_chains_are_refused_in_words(problems):
    check_lengths(CurriculumConfig(start=1, end=4, flops=1.0), problems)
    with pytest.raises(DataError, match=r"has no chains of length 5; make some \(`--lengths 2-6`\)"):
        check_lengths(CurriculumConfig(start=2, end=6, flops=1.0), problems)
    with pytest.raises(DataError, match="needs one folder of problems"):
        check_lengths(CurriculumConfig(start=2, end=4, flops=1.0), Blend([problems, problems], [1, 1]))
    with pytest.raises(DataError, match="0 problems of length 9 in split train"):
        PackedProblems(problems, 9)
