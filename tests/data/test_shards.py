import numpy as np
import pytest

from dsllm.data.dataset import TokenDataset
from dsllm.data.foreign import write_llmc, write_nanogpt
from dsllm.errors import DataError
from tests.data.folders import END, TOKENIZER, documents, write_folder

DOCS = [documents(0, 20), documents(1, 20)]
STREAM = np.concatenate(DOCS[0] + DOCS[1])


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / "data", {"train": DOCS, "val": DOCS[:1]})


def first_sample(path, split="train", tokenizer=None):
    return TokenDataset(path, split, 100, tokenizer).sample(0).tolist()


def test_a_prefix_or_the_bin_of_a_pair_opens_the_pair(folder):
    for path in (folder / "train_00001", folder / "train_00001.bin"):
        assert first_sample(path) == np.concatenate(DOCS[1])[:101].tolist()
        assert TokenDataset(path, "train", 8).document_ids(0).tolist()


def test_a_folder_of_megatron_pairs_without_manifest_opens_by_file_names(folder):
    (folder / "manifest.json").unlink()
    assert TokenDataset(folder, "train", 8).tokens == len(STREAM)
    assert TokenDataset(folder, "val", 8).tokens == sum(map(len, DOCS[0]))
    with pytest.raises(DataError, match=r"no test\.bin"):
        TokenDataset(folder, "test", 8)


def test_a_nanogpt_folder_opens_and_finds_documents_by_the_expected_end_of_text(folder, tmp_path):
    (tmp_path / "nano").mkdir()
    write_nanogpt(folder, "train", tmp_path / "nano" / "train.bin")
    assert first_sample(tmp_path / "nano") == STREAM[:101].tolist()
    ours = TokenDataset(folder, "train", 50)
    theirs = TokenDataset(tmp_path / "nano", "train", 50, TOKENIZER)
    assert all(np.array_equal(ours.document_ids(i), theirs.document_ids(i)) for i in range(len(ours)))


def test_a_raw_file_whose_end_of_text_nobody_knows_has_tokens_but_no_documents(folder, tmp_path):
    write_nanogpt(folder, "train", tmp_path / "train.bin")
    dataset = TokenDataset(tmp_path / "train.bin", "train", 50)
    assert dataset.sample(0).tolist() == STREAM[:51].tolist()
    with pytest.raises(DataError, match="end-of-text token is unknown"):
        dataset.document_ids(0)


def test_a_modded_nanogpt_folder_opens(folder, tmp_path):
    (tmp_path / "llmc").mkdir()
    for i, file in enumerate(write_llmc(folder, "train", tmp_path / "llmc")):
        file.rename(tmp_path / "llmc" / f"fineweb_train_{i:06d}.bin")
    assert first_sample(tmp_path / "llmc") == [END, *STREAM[:100]]
    assert TokenDataset(tmp_path / "llmc", "train", 8).tokens == len(STREAM)


def test_one_file_is_no_split_but_train_or_the_one_that_it_names(folder, tmp_path):
    write_nanogpt(folder, "train", tmp_path / "val.bin")
    assert first_sample(tmp_path / "val.bin", "train") == first_sample(tmp_path / "val.bin", "val")
    with pytest.raises(DataError, match=r"no split 'test'.*test\.bin"):
        TokenDataset(tmp_path / "val.bin", "test", 8)
    (tmp_path / "val.bin").rename(tmp_path / "interval.bin")
    with pytest.raises(DataError, match="no split 'val'"):
        TokenDataset(tmp_path / "interval.bin", "val", 8)
