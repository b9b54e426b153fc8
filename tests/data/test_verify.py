import numpy as np
import pytest

from dsllm.data.verify import verify_folder
from dsllm.errors import DataError
from tests.data.folders import END, documents, write_folder


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / "data", {"train": [documents(0, 40), documents(1, 40)], "val": [documents(2, 9)]})


def test_a_good_folder_is_sound_and_every_shard_is_reported(folder):
    seen = []
    report = verify_folder(folder, progress=seen.append)
    assert report.sound and report.problems == []
    assert seen == report.manifest.shards


@pytest.mark.parametrize("name", ["train_00001.bin", "val_00000.idx"])
def test_one_flipped_bit_anywhere_is_found(folder, name):
    content = bytearray((folder / name).read_bytes())
    for at in range(0, len(content), 53):
        content[at] ^= 4
        (folder / name).write_bytes(content)
        (problem,) = verify_folder(folder).problems
        assert name in problem and "SHA-256" in problem
        content[at] ^= 4


def test_all_problems_come_at_once(folder):
    (folder / "train_00000.bin").unlink()
    (folder / "val_00000.idx").write_bytes(b"")
    (folder / "stray.bin").write_bytes(b"ab")
    problems = verify_folder(folder).problems
    assert len(problems) == 3
    for name, problem in zip(("train_00000.bin", "val_00000.idx", "stray.bin"), problems, strict=True):
        assert name in problem
    assert "not in the manifest" in problems[2]


@pytest.mark.parametrize(
    ("document", "message"),
    [([5, 6], "document 1 does not end with end-of-text"), ([END + 1, END], f"token id {END + 1}, small")],
)
def test_wrong_tokens_are_found_even_when_checksums_fit(tmp_path, document, message):
    folder = write_folder(tmp_path / "data", {"train": [[np.array([1, END]), np.array(document)]]})
    (problem,) = verify_folder(folder).problems
    assert message in problem


def test_a_half_prepared_folder_is_a_problem(tmp_path):
    folder = write_folder(tmp_path / "data", {"train": [documents(0, 4)]}, complete=False)
    (folder / "train_00001.bin").write_bytes(b"of a set that the journal knows")
    (problem,) = verify_folder(folder).problems
    assert "its preparation did not end; leave its files" in problem


def test_without_a_manifest_there_is_nothing_to_verify(tmp_path):
    with pytest.raises(DataError, match=r"manifest\.json: missing"):
        verify_folder(tmp_path)
