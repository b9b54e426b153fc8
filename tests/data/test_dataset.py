import subprocess
import sys

import numpy as np
import pytest

from dsllm.data.dataset import TokenDataset
from dsllm.errors import DataError
from tests.data.folders import END, TOKENIZER, documents, write_folder

SHARDS = [documents(0, 30), documents(1, 1, longest=1), documents(2, 2, longest=3), documents(3, 30)]


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / "data", {"train": SHARDS, "val": [documents(9, 5)]})


@pytest.mark.parametrize("context", [1, 2, 7, 64, 500])
def test_samples_are_the_windows_of_the_stream_over_all_shards(folder, context):
    stream = np.concatenate([document for shard in SHARDS for document in shard])
    dataset = TokenDataset(folder, "train", context)
    assert dataset.tokens == len(stream) and len(dataset) == (len(stream) - 1) // context
    for i in range(len(dataset)):
        sample = dataset.sample(i)
        assert sample.dtype == np.int64
        assert np.array_equal(sample, stream[i * context : i * context + context + 1])


@pytest.mark.parametrize("context", [1, 2, 7, 64, 500])
def test_document_ids_rise_after_each_end_of_text_also_across_shards(folder, context):
    dataset = TokenDataset(folder, "train", context)
    for i in range(len(dataset)):
        ends = dataset.sample(i)[:-1] == END
        assert dataset.document_ids(i).tolist() == np.cumsum([0, *ends[:-1]]).tolist()


def test_positions_of_a_run_walk_through_epoch_after_epoch(folder):
    dataset = TokenDataset(folder, "train", 16)
    n = len(dataset)
    run = dataset.indices_at(np.arange(3 * n), seed=1).reshape(3, n)
    assert all(sorted(epoch) == list(range(n)) for epoch in run.tolist())
    assert not np.array_equal(run[0], run[1]) and not np.array_equal(run[1], run[2])
    assert np.array_equal(dataset.indices_at(np.array([n + 3, 2]), seed=1), [run[1, 3], run[0, 2]])


def test_the_tokenizer_comes_with_the_data(folder):
    assert TokenDataset(folder, "train", 8).tokenizer == TOKENIZER
    renamed = TOKENIZER.model_copy(update={"name": "path/to/tokenizer.json"})
    assert TokenDataset(folder, "train", 8, renamed).tokenizer == TOKENIZER


@pytest.mark.parametrize("update", [{"vocab_sha256": "b" * 64}, {"end_of_text": 0}])
def test_data_of_another_tokenizer_is_refused(folder, update):
    with pytest.raises(DataError, match=r"made with the tokenizer small .* not with other"):
        TokenDataset(folder, "train", 8, TOKENIZER.model_copy(update={"name": "other", **update}))


def test_data_shorter_than_a_window_is_refused_with_the_context_that_fits(folder):
    tokens = TokenDataset(folder, "val", 1).tokens
    assert len(TokenDataset(folder, "val", tokens - 1)) == 1
    with pytest.raises(DataError, match=rf"{tokens} tokens in split val.*take model.context <= {tokens - 1} or"):
        TokenDataset(folder, "val", tokens)


def test_one_token_fits_no_window_at_all(tmp_path):
    folder = write_folder(tmp_path / "data", {"train": [[np.array([END])]]})
    with pytest.raises(DataError, match="a sample of context 4 has 5; prepare more text"):
        TokenDataset(folder, "train", 4)


def test_a_missing_split_or_folder_is_named(folder, tmp_path):
    with pytest.raises(DataError, match="no split 'test', there are: train, val"):
        TokenDataset(folder, "test", 8)
    with pytest.raises(DataError, match="absent: no such folder or token file"):
        TokenDataset(tmp_path / "absent", "train", 8)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no manifest\.json and no train\.bin"):
        TokenDataset(tmp_path / "empty", "train", 8)


def test_a_shard_that_is_whole_but_not_the_manifests_is_refused(folder):
    for suffix in (".bin", ".idx"):
        (folder / f"train_00000{suffix}").write_bytes((folder / f"val_00000{suffix}").read_bytes())
    with pytest.raises(DataError, match=r"train_00000\.bin: \d+ tokens, the manifest counts"):
        TokenDataset(folder, "train", 8)


def test_a_token_id_outside_the_vocabulary_is_refused_when_it_is_read(folder):
    with (folder / "train_00000.bin").open("r+b") as file:
        file.seek(2 * 40)
        file.write(b"\xff\xff")
    dataset = TokenDataset(folder, "train", 8)
    with pytest.raises(DataError, match=r"token id 65535 in sample 5 of split train.*data_prep verify"):
        dataset.sample(5)


@pytest.mark.parametrize("i", [-1, 10**9])
def test_a_sample_that_is_not_there_is_a_mistake(folder, i):
    dataset = TokenDataset(folder, "train", 8)
    with pytest.raises(IndexError):
        dataset.sample(i)
    with pytest.raises(IndexError):
        dataset.document_ids(i)


@pytest.mark.parametrize(
    ("hard", "outcome"), [(4096, "99"), (64, "Too many open files; raise the limit with `ulimit -n`")]
)
def test_more_shards_than_open_files_are_allowed_raise_the_limit_or_say_so(tmp_path, hard, outcome):
    folder = write_folder(tmp_path / "data", {"train": [[np.array([1, END])] for _ in range(50)]})
    script = """if True:
        import resource, sys
        from pathlib import Path
        from dsllm.data.dataset import TokenDataset
        from dsllm.errors import user_errors_exit
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, int(sys.argv[2])))
        with user_errors_exit():
            print(len(TokenDataset(Path(sys.argv[1]), "train", 1)))
    """
    done = subprocess.run([sys.executable, "-c", script, str(folder), str(hard)], capture_output=True, text=True)
    assert outcome in done.stdout + done.stderr and done.returncode == (0 if outcome == "99" else 2)
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_does_not_grow_with_the_data(tmp_path):
    with (tmp_path / "huge.bin").open("wb") as file:
        try:
            file.truncate(1 << 40)
        except OSError:
            pytest.skip("this file system holds no sparse file of a tebibyte")
    script = """if True:
        import re, sys, numpy as np
        from pathlib import Path
        from dsllm.data.dataset import TokenDataset
        def own_memory(): return int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) // 1024
        np.stack([np.arange(9)]).cumsum()
        before = own_memory()
        dataset = TokenDataset(Path(sys.argv[1]), "train", 1024)
        for i in dataset.indices_at(np.arange(0, 10**9, 10**6), seed=0): dataset.sample(int(i))
        print(len(dataset), own_memory() - before)
    """
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "huge.bin")], capture_output=True, text=True, check=True
    )
    samples, mebibytes = map(int, done.stdout.split())
    assert samples == ((1 << 39) - 1) // 1024
    assert mebibytes < 16
