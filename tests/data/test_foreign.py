import numpy as np
import pytest

from dsllm.data import foreign
from dsllm.data.foreign import import_flat, is_llmc, read_llmc, read_nanogpt, write_llmc, write_nanogpt
from dsllm.data.indexed import IndexedPair
from dsllm.errors import DataError
from tests.data.folders import END, documents, write_folder, write_shard

SHARDS = [documents(0, 20), documents(1, 20), [np.array([5, END])]]


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / "data", {"train": SHARDS})


def raw(path, tokens):
    np.array(tokens, "<u2").tofile(path)
    return path


def llmc(path, tokens):
    header = np.zeros(256, "<i4")
    header[:3] = 20240520, 1, len(tokens)
    path.write_bytes(header.tobytes() + np.array(tokens, "<u2").tobytes())
    return path


def test_llmc_files_have_the_documented_bytes(tmp_path):
    folder = write_folder(tmp_path / "data", {"train": [[np.array([5, 6, END]), np.array([7, END])]]})
    (tmp_path / "out").mkdir()
    (file,) = write_llmc(folder, "train", tmp_path / "out")
    assert file.read_bytes() == llmc(tmp_path / "expected.bin", [END, 5, 6, END, 7]).read_bytes()
    assert file.stat().st_size == 1024 + 2 * 5


def test_llmc_and_back_gives_the_same_pairs(folder, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    for file in write_llmc(folder, "train", out):
        assert is_llmc(file)
        summary = import_flat(read_llmc(file, END), out / f"{file.stem}_back")
        assert summary.empty_documents == sum(len(d) == 1 for d in SHARDS[int(file.stem[-5:])])
        ours = [d.tolist() for d in SHARDS[int(file.stem[-5:])] if len(d) > 1]
        back = IndexedPair(out / f"{file.stem}_back")
        assert [back.document(i).tolist() for i in range(len(back))] == ours


def test_nanogpt_and_back_gives_the_same_documents(folder, tmp_path):
    write_nanogpt(folder, "train", tmp_path / "train.bin")
    stream = [token for shard in SHARDS for document in shard for token in document]
    assert np.fromfile(tmp_path / "train.bin", "<u2").tolist() == stream
    import_flat(read_nanogpt(tmp_path / "train.bin", END), tmp_path / "back")
    assert IndexedPair(tmp_path / "back").sizes.tolist() == [len(d) for shard in SHARDS for d in shard if len(d) > 1]


@pytest.mark.parametrize("chunk", [1, 2, 3, 5, 1000])
@pytest.mark.parametrize(
    ("stream", "expected", "empty"),
    [
        ([5, 6, END, 7, END], [5, 6, END, 7, END], 0),
        ([5, 6, END, 7], [5, 6, END, 7, END], 0),
        ([END, END, 5, END, END, 6], [5, END, 6, END], 3),
        ([5], [5, END], 0),
    ],
)
def test_a_raw_stream_is_cut_into_documents(tmp_path, monkeypatch, chunk, stream, expected, empty):
    monkeypatch.setattr(foreign, "CHUNK_TOKENS", chunk)
    summary = import_flat(read_nanogpt(raw(tmp_path / "raw.bin", stream), END), tmp_path / "pair")
    assert IndexedPair(tmp_path / "pair").tokens.tolist() == expected
    assert summary.empty_documents == empty


@pytest.mark.parametrize(
    ("stream", "expected"),
    [([END, 5, 6, END, 7], [5, 6, END, 7, END]), ([6, END, 7], [6, END, 7, END]), ([END, 5, END], [5, END])],
)
def test_an_llmc_stream_is_cut_into_documents_also_when_it_begins_or_ends_amid_one(tmp_path, stream, expected):
    import_flat(read_llmc(llmc(tmp_path / "a.bin", stream), END), tmp_path / "pair")
    assert IndexedPair(tmp_path / "pair").tokens.tolist() == expected


def test_document_starts_follow_each_formats_place_of_the_end_of_text(tmp_path):
    ends = read_nanogpt(raw(tmp_path / "raw.bin", [5, 6, END, 7, END, 8]), END)
    begins = read_llmc(llmc(tmp_path / "llmc.bin", [END, 5, 6, END, 7, END, 8]), END)
    assert ends.starts_between(0, 6).tolist() == [3, 5] and ends.starts_between(3, 5).tolist() == []
    assert begins.starts_between(0, 7).tolist() == [3, 5] and begins.starts_between(3, 5).tolist() == []


def test_an_llmc_file_cut_off_at_any_byte_is_refused(tmp_path):
    file = llmc(tmp_path / "a.bin", [END, 5, 6])
    content = file.read_bytes()
    for size in range(len(content)):
        file.write_bytes(content[:size])
        with pytest.raises(DataError, match=r"a\.bin"):
            read_llmc(file)


def test_other_versions_and_magic_numbers_are_refused(tmp_path):
    file = llmc(tmp_path / "a.bin", [END, 5, 6])
    content = bytearray(file.read_bytes())
    content[4] = 7
    file.write_bytes(content)
    with pytest.raises(DataError, match="version 7"):
        read_llmc(file)
    with pytest.raises(DataError, match=r"not a token file of llm\.c"):
        read_llmc(raw(tmp_path / "raw.bin", range(600)))


def test_a_raw_file_of_an_odd_size_or_none_is_refused(tmp_path):
    for content in (b"", b"abc"):
        (tmp_path / "raw.bin").write_bytes(content)
        with pytest.raises(DataError, match="not a whole number of uint16"):
            read_nanogpt(tmp_path / "raw.bin")


def test_a_file_of_end_of_text_only_leaves_no_pair(tmp_path):
    with pytest.raises(DataError, match="no documents"):
        import_flat(read_nanogpt(raw(tmp_path / "raw.bin", [END, END]), END), tmp_path / "pair")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["raw.bin"]


def test_shards_are_not_written_over_by_their_own_conversion(folder):
    before = (folder / "train_00000.bin").read_bytes()
    with pytest.raises(DataError, match="is the data folder itself"):
        write_llmc(folder, "train", folder)
    assert (folder / "train_00000.bin").read_bytes() == before


def test_a_vocabulary_beyond_uint16_is_refused(tmp_path):
    folder = write_folder(tmp_path / "data", {"train": [SHARDS[0]]})
    write_shard(folder, "train", 0, SHARDS[0], "i4")
    with pytest.raises(DataError, match="are int32, these formats hold uint16"):
        write_nanogpt(folder, "train", tmp_path / "train.bin")
    assert not (tmp_path / "train.bin").exists()
