from itertools import pairwise
from math import factorial

import numpy as np
import pytest

from dsllm.data.order import derived_seed, sample_at, samples_at


def order(n: int, *, seed: int = 0, epoch: int = 0) -> list[int]:
    return samples_at(np.arange(n), n=n, seed=seed, epoch=np.full(n, epoch)).tolist()


@pytest.mark.parametrize("n", [*range(1, 70), 99, 100, 101, 1000, 1023, 1024, 1025, 65_536, 100_003])
def test_an_epoch_is_every_sample_once(n):
    assert sorted(order(n)) == list(range(n))


@pytest.mark.parametrize("n", [1, 2, 3, 10, 1000, 2**31, 10**13 + 37])
def test_one_by_one_and_all_at_once_give_the_same(n):
    rng = np.random.default_rng(n)
    k, epoch = rng.integers(0, n, 50), rng.integers(0, 5, 50)
    one_by_one = [sample_at(int(a), n=n, seed=7, epoch=int(e)) for a, e in zip(k, epoch, strict=True)]
    assert samples_at(k, n=n, seed=7, epoch=epoch).tolist() == one_by_one
    assert all(0 <= i < n for i in one_by_one)


def test_epochs_and_seeds_have_orders_of_their_own():
    orders = [order(1000, seed=seed, epoch=epoch) for seed in (0, 1, 2, -1, 2**63) for epoch in range(4)]
    for i, a in enumerate(orders):
        for b in orders[:i]:
            assert np.mean(np.equal(a, b)) < 0.02


def test_the_order_stays_what_it_was_because_runs_resume_by_it():
    assert order(10) == [9, 1, 2, 3, 8, 5, 7, 0, 6, 4]
    assert order(10, epoch=1) == [0, 2, 1, 9, 3, 4, 8, 5, 7, 6]
    n = 10**12 + 39
    assert [sample_at(k, n=n, seed=7, epoch=3) for k in (0, 1, 10**12)] == [213806885806, 120697635277, 646448922886]


def assert_even(counts: np.ndarray) -> None:
    """Pearson's chi-squared within five standard deviations of what even chances give."""
    expected, freedom = counts.sum() / counts.size, counts.size - 1
    assert abs(((counts - expected) ** 2 / expected).sum() - freedom) < 5 * np.sqrt(2 * freedom)


@pytest.mark.parametrize("n", [3, 4, 5])
def test_every_order_of_a_few_samples_is_as_likely(n):
    epochs = 200 * factorial(n)
    orders = [samples_at(np.full(epochs, k), n=n, seed=5, epoch=np.arange(epochs)) for k in range(n)]
    _, counts = np.unique(np.stack(orders), axis=1, return_counts=True)
    assert len(counts) == factorial(n)
    assert_even(counts)


@pytest.mark.parametrize("n", [7, 12, 25, 60])
def test_neighbours_land_anywhere(n):
    epochs = 100 * n
    first, second = (samples_at(np.full(epochs, k), n=n, seed=1, epoch=np.arange(epochs)) for k in (0, 1))
    assert_even(np.bincount(first, minlength=n))
    assert_even(np.bincount((second - first) % n, minlength=n)[1:])


def test_a_long_epoch_has_no_trend():
    n = 200_003
    x = np.array(order(n)) / n
    for lag in (1, 2, 447, 448):  # 448 is the side of the grid
        assert abs(np.corrcoef(x[:-lag], x[lag:])[0, 1]) < 5 / np.sqrt(n)
    assert_even(np.histogram2d(np.arange(n), x, bins=20)[0].ravel())


@pytest.mark.parametrize("k", [-1, 10])
def test_a_number_outside_the_epoch_is_a_mistake(k):
    with pytest.raises(ValueError, match="epoch of 10"):
        sample_at(k, n=10, seed=0, epoch=0)
    with pytest.raises(ValueError, match="epoch of 10"):
        samples_at(np.array([k]), n=10, seed=0, epoch=np.array([0]))


def test_derived_seeds_differ():
    seeds = sorted(derived_seed(seed, part) for seed in range(100) for part in range(100))
    assert all(a != b for a, b in pairwise(seeds))
