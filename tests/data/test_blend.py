import numpy as np
import pytest

from dsllm.data.blend import Blend
from dsllm.data.dataset import TokenDataset
from dsllm.errors import ConfigError, DataError
from tests.data.folders import TOKENIZER, documents, write_folder


@pytest.fixture
def sources(tmp_path):
    sizes = (5, 40, 11, 90, 23)
    return [
        TokenDataset(write_folder(tmp_path / f"d{i}", {"train": [documents(i, size)]}), "train", 16)
        for i, size in enumerate(sizes)
    ]


@pytest.mark.parametrize(
    "weights", [[1], [3, 1], [0.7, 0.3], [1, 1, 1], [0.001, 5, 2.5], [8, 4, 2, 1, 1], [1e-9, 1, 1, 1, 0.5]]
)
def test_each_source_gets_its_samples_in_turn_and_in_proportion_over_every_prefix(sources, weights):
    blend = Blend(sources[: len(weights)], weights)
    given = np.zeros(len(weights), int)
    shares = np.array(weights) / sum(weights)
    for k in range(3000):
        source, number = blend.assign(k)
        assert number == given[source]
        given[source] += 1
        assert np.abs(given - (k + 1) * shares).max() < 1.5


def test_the_pattern_of_the_docstring(sources):
    blend = Blend(sources[:2], [3, 1])
    assert "".join("AB"[blend.assign(k)[0]] for k in range(8)) == "AABAAABA"


def test_far_positions_are_exact_and_as_cheap(sources):
    blend = Blend(sources[:3], [0.7, 0.2, 0.1])
    far = 10**18
    counts = np.bincount([blend.assign(far + k)[0] for k in range(1000)])
    assert counts.tolist() == [700, 200, 100]
    source, number = blend.assign(far)
    assert abs(number - far * [7, 2, 1][source] // 10) <= 1


def test_every_source_walks_its_own_epochs(sources):
    blend = Blend(sources[:2], [1, 3])
    k = np.arange(40 * max(len(source) for source in sources[:2]))
    indices = blend.indices_at(k, seed=3)
    first = len(sources[0])
    for low, high in ((0, first), (first, len(blend))):
        mine = indices[(indices >= low) & (indices < high)] - low
        n = high - low
        epochs = [mine[start : start + n] for start in range(0, len(mine) - n, n)]
        assert len(epochs) > 2 and all(sorted(epoch) == list(range(n)) for epoch in epochs)
    assert np.array_equal(blend.indices_at(k[77:99], seed=3), indices[77:99])


def test_the_same_folder_twice_is_read_in_two_orders(sources):
    blend = Blend([sources[3], sources[3]], [1, 1])
    indices = blend.indices_at(np.arange(2 * len(sources[3])), seed=0)
    mine, other = indices[indices < len(sources[3])], indices[indices >= len(sources[3])] - len(sources[3])
    assert sorted(mine) == sorted(other) and not np.array_equal(mine, other)


def test_samples_are_those_of_the_sources(sources):
    blend = Blend(sources, [1] * 5)
    assert len(blend) == sum(len(source) for source in sources) and blend.tokenizer == TOKENIZER
    expected = [(source, i) for source in sources for i in range(len(source))]
    for number, (source, i) in enumerate(expected):
        assert np.array_equal(blend.sample(number), source.sample(i))
        assert np.array_equal(blend.document_ids(number), source.document_ids(i))
    with pytest.raises(IndexError):
        blend.sample(len(blend))


@pytest.mark.parametrize("weights", [[1], [1, 0], [1, -2], [1, float("nan")], [1, float("inf")]])
def test_weights_that_make_no_sense_are_refused(sources, weights):
    with pytest.raises(ConfigError, match="weight"):
        Blend(sources[:2], weights)


def test_sources_that_do_not_fit_together_are_refused(sources, tmp_path):
    with pytest.raises(DataError, match="contexts 16 and 8"):
        Blend([sources[0], TokenDataset(tmp_path / "d1", "train", 8)], [1, 1])
    other = TOKENIZER.model_copy(update={"vocab_sha256": "b" * 64})
    foreign = write_folder(tmp_path / "other", {"train": [documents(0, 9)]}, tokenizer=other)
    with pytest.raises(DataError, match="tokenizers small"):
        Blend([sources[0], TokenDataset(foreign, "train", 16)], [1, 1])
