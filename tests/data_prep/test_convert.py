"""Foreign token files to data folders and back."""

from pathlib import Path

import numpy as np
import pytest

from data_prep.convert import convert
from dsllm.data.indexed import IndexedWriter
from dsllm.data.manifest import Manifest
from dsllm.data.verify import verify_folder
from dsllm.errors import DataError
from dsllm.tokenizer import tokenizer_of
from tests.data_prep.corpora import documents

E = 50256


def nanogpt(path: Path, tokens: list[int]) -> Path:
    np.array(tokens, "<u2").tofile(path)
    return path


def test_nanogpt_files_become_a_data_folder_whose_splits_their_names_say(tmp_path: Path):
    files = tmp_path / "files"
    files.mkdir()
    nanogpt(files / "train.bin", [15496, 11, E, E, 995])
    nanogpt(files / "val.bin", [995, E])
    assert convert(files, "megatron", tmp_path / "out") == f"{tmp_path / 'out'}: a data folder of 2 shards, 7 tokens"
    assert documents(tmp_path / "out", "train") == [[15496, 11, E], [995, E]]
    assert documents(tmp_path / "out", "val") == [[995, E]]
    manifest = Manifest.read(tmp_path / "out")
    assert [shard.text_bytes for shard in manifest.shards] == [len("Hello, world"), len(" world")]
    assert manifest.source["counts"] == {"empty": 1}
    assert verify_folder(tmp_path / "out").sound and tokenizer_of(tmp_path / "out").name == "gpt2"


def test_megatron_pairs_become_a_data_folder(tmp_path: Path):
    prefix = tmp_path / "corpus_text_document"
    with IndexedWriter(prefix, np.uint16) as writer:
        for i in range(10_000):
            writer.add(np.array([i % 50, E] if i % 3 else [1, 2, 3, E]))
        writer.finish()
    convert(prefix, "megatron", tmp_path / "out")
    found = documents(tmp_path / "out", "train")
    assert len(found) == 10_000 and found[:2] == [[1, 2, 3, E], [1, E]] and verify_folder(tmp_path / "out").sound


def test_a_pair_without_end_of_text_tokens_is_refused(tmp_path: Path):
    with IndexedWriter(tmp_path / "pair", np.uint16) as writer:
        writer.add(np.array([1, E]))
        writer.add(np.array([1, 2]))
        writer.finish()
    with pytest.raises(DataError, match=r"pair\.bin: document 1 does not end with end-of-text"):
        convert(tmp_path / "pair", "megatron", tmp_path / "out")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["pair.bin", "pair.idx"]


def test_a_token_beyond_the_vocabulary_names_the_file_and_leaves_nothing(tmp_path: Path):
    file = nanogpt(tmp_path / "train.bin", [1, 300, 256])
    with pytest.raises(DataError, match=r"train\.bin: token id 300, but bytes .* ends before"):
        convert(file, "megatron", tmp_path / "out", "bytes")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["train.bin"]


def test_an_out_that_holds_something_is_not_touched(tmp_path: Path):
    file = nanogpt(tmp_path / "train.bin", [1, E])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("x")
    with pytest.raises(DataError, match="exists and is not an empty folder"):
        convert(file, "megatron", tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]


def test_a_data_folder_is_megatrons_already(tmp_path: Path):
    convert(nanogpt(tmp_path / "train.bin", [1, E]), "megatron", tmp_path / "out")
    with pytest.raises(DataError, match=r"are Megatron pairs already; give Megatron the prefix .*train_00000"):
        convert(tmp_path / "out", "megatron", tmp_path / "again")


def test_a_folder_without_token_files_says_so(tmp_path: Path):
    (tmp_path / "files").mkdir()
    with pytest.raises(DataError, match=r"no \.bin in it"):
        convert(tmp_path / "files", "megatron", tmp_path / "out")
    assert not (tmp_path / "out").exists()
