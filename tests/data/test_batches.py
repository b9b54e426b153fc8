import threading

import numpy as np
import pytest

from dsllm.data.batches import BatchLoader, Prefetcher, evaluation_batches
from dsllm.data.blend import Blend
from dsllm.data.dataset import TokenDataset
from dsllm.errors import ConfigError, DataError
from tests.data.folders import documents, write_folder

T, GLOBAL = 16, 24


@pytest.fixture(params=["one folder", "blend"])
def source(request, tmp_path):
    one = TokenDataset(write_folder(tmp_path / "a", {"train": [documents(0, 50), documents(1, 30)]}), "train", T)
    if request.param == "one folder":
        return one
    other = TokenDataset(write_folder(tmp_path / "b", {"train": [documents(2, 25)]}), "train", T)
    return Blend([one, other], [0.7, 0.3])


def loader(source, rank=0, world_size=1, micro_batch_size=4, **options):
    options = {"seed": 5, "global_batch_size": GLOBAL} | options
    return BatchLoader(source, rank=rank, world_size=world_size, micro_batch_size=micro_batch_size, **options)


def global_batch(source, world_size, micro_batch_size, consumed):
    """Rows of all ranks, back in the order of their numbers."""
    rows = np.empty((GLOBAL, T + 1), np.int64)
    for rank in range(world_size):
        tokens = loader(source, rank, world_size, micro_batch_size).batch(consumed).tokens
        assert tokens.shape == (GLOBAL // world_size // micro_batch_size, micro_batch_size, T + 1)
        rows[rank::world_size] = tokens.reshape(-1, T + 1)
    return rows


@pytest.mark.parametrize(
    ("world_size", "micro_batch_size"),
    [(w, b) for w in (1, 2, 3, 4) for b in (1, 2, 3, 6) if GLOBAL % (w * b) == 0],
)
def test_global_batches_are_the_same_for_every_world_size_and_accumulation(source, world_size, micro_batch_size):
    for consumed in (0, GLOBAL, 10 * GLOBAL, 1_000_001):
        expected = global_batch(source, 1, GLOBAL, consumed)
        assert np.array_equal(global_batch(source, world_size, micro_batch_size, consumed), expected)


def test_an_epoch_of_batches_is_every_sample_once(tmp_path):
    dataset = TokenDataset(
        write_folder(tmp_path / "a", {"train": [[np.arange(299) % 300, *documents(1, 10)]]}), "train", 1
    )
    n = len(dataset) // GLOBAL * GLOBAL
    seen = np.concatenate([loader(dataset).batch(k).tokens.reshape(-1, 2) for k in range(0, n + GLOBAL, GLOBAL)])
    every = np.stack([dataset.sample(i) for i in range(len(dataset))])
    assert sorted(seen[: len(dataset)].tolist()) == sorted(every.tolist())


def test_a_run_goes_on_with_another_world_size_and_global_batch(source):
    whole = np.concatenate([loader(source).batch(k).tokens.reshape(-1, T + 1) for k in (0, 24, 48)])
    resumed = loader(source, global_batch_size=48, micro_batch_size=48).batch(24).tokens.reshape(-1, T + 1)
    assert np.array_equal(whole[24:], resumed)


def test_another_seed_is_another_order(source):
    assert not np.array_equal(loader(source).batch(0).tokens, loader(source, seed=6).batch(0).tokens)


def test_document_ids_come_with_the_tokens_when_asked_for(source):
    assert loader(source).batch(0).document_ids is None
    batch = loader(source, 1, 2, 3, mask_documents=True).batch(GLOBAL)
    assert batch.document_ids.shape == (4, 3, T)
    indices = source.indices_at(np.arange(GLOBAL + 1, 2 * GLOBAL, 2), seed=5)
    expected = np.stack([source.document_ids(int(i)) for i in indices])
    assert np.array_equal(batch.document_ids.reshape(-1, T), expected) and expected.max() > 0


@pytest.mark.parametrize(
    ("size", "world_size", "words"), [(20, 2, "2 ranks"), (8, 2, "2 ranks"), (12, 1, "1 rank"), (0, 1, "1 rank")]
)
def test_batch_sizes_that_contradict_each_other_are_refused(source, size, world_size, words):
    message = (
        f"global_batch_size = {size}: with {words} and micro_batch_size 8 it must be a multiple of {8 * world_size}"
    )
    with pytest.raises(ConfigError, match=message):
        loader(source, 0, world_size, 8, global_batch_size=size)


def test_prefetching_changes_no_batch_in_any_order_of_calls(source):
    plain = loader(source)
    with Prefetcher(plain) as ahead:
        for consumed in (0, 24, 48, 0, 0, 24, 240, 48):
            assert np.array_equal(ahead.batch(consumed).tokens, plain.batch(consumed).tokens)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("batches")]


def test_prefetching_raises_the_readers_errors(tmp_path):
    folder = write_folder(tmp_path / "a", {"train": [documents(0, 50)]})
    with (folder / "train_00000.bin").open("r+b") as file:
        file.write(b"\xff" * 2000)
    with (
        Prefetcher(loader(TokenDataset(folder, "train", T))) as ahead,
        pytest.raises(DataError, match="token id 65535"),
    ):
        ahead.batch(0)


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize("micro_batch_size", [1, 4, 7])
@pytest.mark.parametrize("samples", [1, 2, 13, 30, None, 10**6])
def test_evaluation_counts_evenly_spaced_samples_once_and_every_rank_makes_as_many_passes(
    source, world_size, micro_batch_size, samples
):
    n = len(source)
    wanted = n if samples is None else min(samples, n)
    ranks = [
        list(
            evaluation_batches(
                source, samples=samples, micro_batch_size=micro_batch_size, rank=rank, world_size=world_size
            )
        )
        for rank in range(world_size)
    ]
    assert len({len(batches) for batches in ranks}) == 1
    assert len(ranks[0]) == -(-wanted // (world_size * micro_batch_size))
    assert all(
        b.tokens.shape == (micro_batch_size, T + 1) and b.document_ids is None for batches in ranks for b in batches
    )
    counted = np.concatenate([batch.tokens[batch.valid] for batches in ranks for batch in batches])
    expected = np.stack([source.sample(j * n // wanted) for j in range(wanted)])
    assert sorted(counted.tolist()) == sorted(expected.tolist())


def test_evaluation_gives_document_ids_when_asked_for(source):
    (batch,) = evaluation_batches(source, samples=3, micro_batch_size=4, rank=0, world_size=1, mask_documents=True)
    assert batch.valid.tolist() == [True, True, True, False]
    assert np.array_equal(batch.document_ids[1], source.document_ids(len(source) // 3))
