"""Files that appear whole or not at all, and their checksums.

    train_00000.bin.tmp  ── fsync ── rename ──▶  train_00000.bin  ── fsync of the folder

A temporary name lies in the folder of the final one, because a rename is atomic only within a file system. Its name is
fixed, so the next run of a killed command writes over what was left.
"""

import errno
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dsllm.errors import DataError

CHUNK_BYTES = 1 << 22


def temporary(path: Path) -> Path:
    """Where `path` is written before it gets its name."""
    return path.with_name(path.name + ".tmp")


@contextmanager
def os_errors_named(path: Path) -> Iterator[None]:
    """Within it an `OSError` becomes a `DataError` that names `path` and the cure."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        cure = "free space there or write to another folder" if full else "check the path and its permissions"
        raise DataError(f"{path}: {error.strerror or error}; {cure}") from error


def sync_folder(folder: Path) -> None:
    """Makes the renames in `folder` survive a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: Path, content: bytes) -> None:
    """Replaces `path` by `content`; a kill at any moment leaves the old file or the new one.

    Raises:
        DataError: the folder is missing, read-only or full; nothing half-written is left.
    """
    draft = temporary(path)
    with os_errors_named(path):
        try:
            with draft.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            draft.replace(path)
        except BaseException:
            draft.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file, read in pieces.

    Raises:
        DataError: the file cannot be read.
    """
    digest = hashlib.sha256()
    with os_errors_named(path), path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
