import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dsllm.data.files import temporary
from dsllm.data.indexed import HEADER, MAGIC, IndexedPair, IndexedWriter, PairSummary, bin_path, idx_path, token_dtype
from dsllm.errors import DataError
from tests.data.folders import documents


def write(prefix: Path, docs: list[np.ndarray], dtype: str = "u2") -> PairSummary:
    with IndexedWriter(prefix, dtype) as writer:
        for document in docs:
            writer.add(document)
        return writer.finish()


def test_the_bytes_are_those_of_the_format(tmp_path):
    write(tmp_path / "a", [np.array([5, 6, 50256]), np.array([7, 50256])])
    assert (tmp_path / "a.bin").read_bytes().hex(" ") == "05 00 06 00 50 c4 07 00 50 c4"
    index = b"MMIDIDX\0\0" + (1).to_bytes(8, "little") + b"\x08" + (2).to_bytes(8, "little") + (3).to_bytes(8, "little")
    index += (
        np.array([3, 2], "<i4").tobytes() + np.array([0, 6], "<i8").tobytes() + np.array([0, 1, 2], "<i8").tobytes()
    )
    assert (tmp_path / "a.idx").read_bytes() == index


@pytest.mark.parametrize("dtype", ["u2", "i4"])
@pytest.mark.parametrize("seed", range(5))
def test_what_is_written_is_read_back(tmp_path, dtype, seed):
    docs = documents(seed, count=1 + 37 * seed)
    summary = write(tmp_path / "a", docs, dtype)
    pair = IndexedPair(tmp_path / "a")
    assert pair.dtype == np.dtype(dtype)
    assert np.array_equal(pair.tokens, np.concatenate(docs))
    assert [len(document) for document in docs] == pair.sizes.tolist()
    assert len(pair) == len(docs) and all(np.array_equal(pair.document(i), docs[i]) for i in range(len(docs)))
    starts = np.cumsum([0, *pair.sizes[:-1]])
    assert np.array_equal(pair.document_starts, starts) and np.array_equal(pair.offsets, starts)
    assert (summary.tokens, summary.documents) == (len(pair.tokens), len(docs))
    assert summary.bin_sha256 == hashlib.sha256((tmp_path / "a.bin").read_bytes()).hexdigest()
    assert summary.idx_sha256 == hashlib.sha256((tmp_path / "a.idx").read_bytes()).hexdigest()


def test_many_documents_at_once_give_the_same_files_as_one_by_one(tmp_path):
    docs = documents(0, count=100)
    one_by_one = write(tmp_path / "a", docs)
    with IndexedWriter(tmp_path / "b", np.uint16) as writer:
        for part in (docs[:60], docs[60:], []):
            writer.add_many(
                np.concatenate([np.array([], int), *part]), np.array([len(document) for document in part], int)
            )
        assert (writer.tokens, writer.documents) == (one_by_one.tokens, 100)
        assert writer.finish() == one_by_one


def test_starts_between_are_the_document_starts_strictly_inside(tmp_path):
    write(tmp_path / "a", documents(3, count=50))
    pair = IndexedPair(tmp_path / "a")
    starts = pair.document_starts
    for start in range(0, len(pair.tokens), 7):
        for stop in (start, start + 1, start + 30, len(pair.tokens)):
            assert pair.starts_between(start, stop).tolist() == [p for p in starts if start < p < stop]


def test_an_index_longer_than_one_piece_of_writing_is_whole(tmp_path):
    n = (1 << 20) + 3
    with IndexedWriter(tmp_path / "a", np.uint16) as writer:
        writer.add_many(np.zeros(n, np.uint16), np.ones(n, np.int64))
        writer.finish()
    pair = IndexedPair(tmp_path / "a")
    assert np.array_equal(pair.document_starts, np.arange(n))
    assert pair.starts_between(1 << 20, n).tolist() == [(1 << 20) + 1, (1 << 20) + 2]


def test_megatron_core_reads_the_pair_unchanged(tmp_path):
    indexed_dataset = pytest.importorskip("megatron.core.datasets.indexed_dataset")
    docs = documents(1, count=64)
    write(tmp_path / "a", docs)
    theirs = indexed_dataset.IndexedDataset(str(tmp_path / "a"))
    assert len(theirs) == len(docs)
    assert all(np.array_equal(theirs[i], docs[i]) for i in range(len(docs)))
    assert theirs.document_indices.tolist() == list(range(len(docs) + 1))


def test_a_pair_that_megatron_core_wrote_with_several_sequences_per_document_is_read(tmp_path):
    indexed_dataset = pytest.importorskip("megatron.core.datasets.indexed_dataset")
    torch = pytest.importorskip("torch")
    builder = indexed_dataset.IndexedDatasetBuilder(str(tmp_path / "a.bin"), dtype=np.int32)
    builder.add_document(torch.tensor([1, 2, 3, 4, 5]), [2, 3])
    builder.add_document(torch.tensor([6]), [1])
    builder.finalize(str(tmp_path / "a.idx"))
    pair = IndexedPair(tmp_path / "a")
    assert pair.document_starts.tolist() == [0, 5] and pair.sizes.tolist() == [2, 3, 1]
    assert pair.document(0).tolist() == [1, 2, 3, 4, 5] and pair.starts_between(0, 6).tolist() == [5]


@pytest.mark.parametrize("suffix", [".bin", ".idx"])
def test_a_file_cut_off_at_any_byte_is_refused(tmp_path, suffix):
    write(tmp_path / "a", documents(2, count=5, longest=6))
    file = tmp_path / f"a{suffix}"
    content = file.read_bytes()
    for size in range(len(content)):
        file.write_bytes(content[:size])
        with pytest.raises(DataError, match=r"a\.(bin|idx)"):
            IndexedPair(tmp_path / "a")
    file.write_bytes(content + b"\0")
    with pytest.raises(DataError):
        IndexedPair(tmp_path / "a")
    file.unlink()
    with pytest.raises(DataError, match=f"a{suffix}"):
        IndexedPair(tmp_path / "a")


def test_any_changed_byte_of_the_index_is_refused(tmp_path):
    write(tmp_path / "a", documents(2, count=5, longest=6))
    content = bytearray((tmp_path / "a.idx").read_bytes())
    for at in range(len(content)):
        for flip in (0x01, 0x80, 0xFF):
            broken = content.copy()
            broken[at] ^= flip
            (tmp_path / "a.idx").write_bytes(broken)
            with pytest.raises(DataError):
                IndexedPair(tmp_path / "a").check_index()


def test_a_damaged_index_is_refused_when_its_documents_are_first_used(tmp_path):
    write(tmp_path / "a", [np.array([1, 2]), np.array([3, 4]), np.array([5, 6])])
    content = bytearray((tmp_path / "a.idx").read_bytes())
    content[HEADER.size] ^= 1
    (tmp_path / "a.idx").write_bytes(content)
    pair = IndexedPair(tmp_path / "a")
    for use in (
        lambda: pair.sizes,
        lambda: pair.document_starts,
        lambda: pair.document(0),
        lambda: pair.starts_between(0, 2),
    ):
        with pytest.raises(DataError, match="sequence 1 has 2 tokens at byte 4"):
            use()


def test_the_append_eod_trap_is_named(tmp_path):
    docs = documents(4, count=9)
    write(tmp_path / "a", [document[:-1] if len(document) > 1 else document for document in docs])
    with (tmp_path / "a.bin").open("ab") as file:
        file.write(b"\x2c\x01" * len(docs))
    with pytest.raises(DataError, match="append-eod"):
        IndexedPair(tmp_path / "a")


@pytest.mark.parametrize("code", [0, 1, 5, 6, 7])
def test_other_token_types_are_refused_by_their_code(tmp_path, code):
    write(tmp_path / "a", documents(0, count=2))
    content = bytearray((tmp_path / "a.idx").read_bytes())
    content[17] = code
    (tmp_path / "a.idx").write_bytes(content)
    with pytest.raises(DataError, match=f"dtype code {code}"):
        IndexedPair(tmp_path / "a")


def test_an_index_without_sequences_is_refused(tmp_path):
    (tmp_path / "a.idx").write_bytes(HEADER.pack(MAGIC, 1, 8, 0, 1) + bytes(8))
    (tmp_path / "a.bin").write_bytes(b"")
    with pytest.raises(DataError, match="nothing to read"):
        IndexedPair(tmp_path / "a")


@pytest.mark.parametrize(
    ("tokens", "sizes", "message"),
    [
        ([], [0], "document 1 is empty"),
        ([1, 2], [2, 0], "document 2 is empty"),
        ([1, 2], [3], "2 tokens in documents of 3"),
        ([65536], [1], "token id 65536"),
        ([-1], [1], "token id -1"),
    ],
)
def test_documents_that_cannot_be_written_are_refused_and_nothing_is_left(tmp_path, tokens, sizes, message):
    with pytest.raises(DataError, match=message), IndexedWriter(tmp_path / "a", np.uint16) as writer:
        writer.add(np.array([9]))
        writer.add_many(np.array(tokens, int), np.array(sizes))
    assert list(tmp_path.iterdir()) == []


def test_a_pair_of_no_documents_is_refused(tmp_path):
    with pytest.raises(DataError, match="no documents"), IndexedWriter(tmp_path / "a", np.uint16) as writer:
        writer.finish()
    assert list(tmp_path.iterdir()) == []


def test_leaving_without_finish_leaves_nothing_and_keeps_an_older_pair(tmp_path):
    write(tmp_path / "a", documents(0, count=3))
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises(KeyboardInterrupt), IndexedWriter(tmp_path / "a", np.uint16) as writer:
        writer.add(np.array([1, 2, 3]))
        raise KeyboardInterrupt
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize("which", [bin_path, idx_path])
def test_a_full_disk_is_named_and_leaves_nothing(tmp_path, which):
    temporary(which(tmp_path / "a")).symlink_to("/dev/full")
    with pytest.raises(DataError, match="No space left"), IndexedWriter(tmp_path / "a", np.uint16) as writer:
        writer.add_many(np.zeros(1 << 20, np.uint16), np.ones(1 << 20, int))
        writer.finish()
    assert list(tmp_path.iterdir()) == []


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(DataError, match=r"absent/a\.bin: No such file"):
        IndexedWriter(tmp_path / "absent" / "a", np.uint16)


def test_a_killed_writer_leaves_no_pair_and_the_next_one_succeeds(tmp_path):
    script = (
        "import sys, numpy as np; from pathlib import Path; from dsllm.data.indexed import IndexedWriter\n"
        "writer = IndexedWriter(Path(sys.argv[1]), np.uint16)\n"
        "writer.add(np.zeros(2**20, int)); print('written', flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "a")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "written\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert os.listdir(tmp_path) == ["a.bin.tmp"]
    write(tmp_path / "a", documents(0, count=3))
    assert sorted(os.listdir(tmp_path)) == ["a.bin", "a.idx"]


def test_a_view_outlives_its_pair(tmp_path):
    write(tmp_path / "a", [np.array([1, 2, 3])])
    view = IndexedPair(tmp_path / "a").tokens[1:]
    assert view.tolist() == [2, 3]


def test_the_token_type_follows_the_vocabulary():
    assert token_dtype(50257) == np.uint16 and token_dtype(65536) == np.uint16 and token_dtype(65537) == np.int32
