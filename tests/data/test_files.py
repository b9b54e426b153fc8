import hashlib

import pytest

from dsllm.data.files import os_errors_named, sha256_of, temporary, write_atomically, write_stream
from dsllm.errors import DataError


def test_a_content_replaces_the_old_one_and_leaves_no_draft(tmp_path):
    file = tmp_path / "a"
    write_atomically(file, b"old")
    write_stream(file, iter([b"n", b"ew"]))
    assert file.read_bytes() == b"new" and list(tmp_path.iterdir()) == [file]
    assert sha256_of(file) == hashlib.sha256(b"new").hexdigest()


def test_a_failure_midway_keeps_the_old_content_and_leaves_no_draft(tmp_path):
    file = tmp_path / "a"
    write_atomically(file, b"old")

    def chunks():
        yield b"half"
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write_stream(file, chunks())
    temporary(file).symlink_to("/dev/full")
    with pytest.raises(DataError, match="No space left on device; free space"):
        write_atomically(file, b"new")
    assert file.read_bytes() == b"old" and list(tmp_path.iterdir()) == [file]


def test_a_folder_in_the_way_is_named(tmp_path):
    with pytest.raises(DataError, match="Is a directory"):
        sha256_of(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="name another folder"), os_errors_named(tmp_path / "file"):
        (tmp_path / "file").mkdir()
    with pytest.raises(DataError, match="absent/a: No such file"):
        write_atomically(tmp_path / "absent" / "a", b"")
