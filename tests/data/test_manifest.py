import json

import pytest

from dsllm.data.manifest import Manifest, write_rates
from dsllm.errors import DataError
from tests.data.folders import documents, write_folder


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / "data", {"train": [documents(0, 4), documents(1, 4)], "val": [documents(2, 4)]})


def test_a_manifest_is_read_back_as_written(folder):
    manifest = Manifest.read(folder)
    content = (folder / "manifest.json").read_bytes()
    manifest.write(folder)
    assert (folder / "manifest.json").read_bytes() == content
    assert manifest.splits == ["train", "val"]
    assert [shard.name for shard in manifest.shards_of("train", folder)] == ["train_00000", "train_00001"]


def test_speeds_stay_out_of_the_manifest(folder):
    content = (folder / "manifest.json").read_bytes()
    write_rates(folder, {"tokens_per_second": 1.5})
    assert json.loads((folder / "rates.json").read_text()) == {"tokens_per_second": 1.5}
    assert (folder / "manifest.json").read_bytes() == content


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 2}, "install a newer dsllm"),
        ({"shards": None}, "shards: "),
        ({"unknown": 1}, "unknown: "),
    ],
)
def test_a_manifest_of_another_form_is_refused(folder, change, message):
    record = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(record | change))
    with pytest.raises(DataError, match=message):
        Manifest.read(folder)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"format_version": "x"}'])
def test_what_is_no_manifest_is_refused(folder, content):
    (folder / "manifest.json").write_bytes(content)
    with pytest.raises(DataError, match="data_prep tokenize"):
        Manifest.read(folder)


def test_a_manifest_cut_off_at_any_byte_is_refused(folder):
    content = (folder / "manifest.json").read_bytes().rstrip()
    for size in range(len(content)):
        (folder / "manifest.json").write_bytes(content[:size])
        with pytest.raises(DataError):
            Manifest.read(folder)


def test_a_missing_manifest_or_folder_is_named(tmp_path):
    with pytest.raises(DataError, match=r"manifest\.json: missing"):
        Manifest.read(tmp_path)
    with pytest.raises(DataError, match="absent: no such folder"):
        Manifest.read(tmp_path / "absent")


def test_shards_outside_the_folder_are_refused(folder):
    content = (folder / "manifest.json").read_text().replace("train_00000", "../train_00000")
    (folder / "manifest.json").write_text(content)
    with pytest.raises(DataError, match=r"shards\.0\.name"):
        Manifest.read(folder)


def test_a_split_that_is_not_there_is_named_with_those_that_are(folder):
    with pytest.raises(DataError, match="no split 'test', there are: train, val"):
        Manifest.read(folder).shards_of("test", folder)


def test_a_folder_still_in_preparation_gives_no_shards(tmp_path):
    folder = write_folder(tmp_path / "data", {"train": [documents(0, 4)]}, complete=False)
    with pytest.raises(DataError, match="run the same `data_prep` command again"):
        Manifest.read(folder).shards_of("train", folder)


def test_a_pair_of_files_is_no_folder_and_the_message_names_the_one_that_it_lies_in(folder, tmp_path):
    with pytest.raises(DataError, match=rf"a pair of files, not a data folder; give .* that it lies in, {folder}"):
        Manifest.read(folder / "train_00000")
    for suffix in (".bin", ".idx"):
        (tmp_path / f"alone{suffix}").write_bytes((folder / f"train_00000{suffix}").read_bytes())
    with pytest.raises(DataError, match=r"convert .*alone --to megatron --tokenizer NAME --out FOLDER` makes one of"):
        Manifest.read(tmp_path / "alone")
