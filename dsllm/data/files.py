"""Files that appear whole or not at all, and their checksums.

    train_00000.bin.tmp  ── fsync ── rename ──▶  train_00000.bin  ── fsync of the folder

A temporary name lies in the folder of the final one, because a rename is atomic only within a file system. Its name is
fixed, so the next run of a killed command writes over what was left.
"""

import errno
import hashlib
import mmap
import os
import resource
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from dsllm.errors import DataError, shown

CHUNK_BYTES = 1 << 22
_FULL = "free space there or write to another folder"
_A_FILE = "a file is where a folder is to be; name another folder"
_TOO_MANY = "raise the limit with `ulimit -n`, or prepare the text with larger shards"
CURES = {
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.EFBIG: _FULL,
    errno.EEXIST: _A_FILE,
    errno.ENOTDIR: _A_FILE,
    errno.EMFILE: _TOO_MANY,
    errno.ENFILE: _TOO_MANY,
}
"""What to do about an error of the operating system, where it is not the path."""


def temporary(path: Path) -> Path:
    """Where `path` is written before it gets its name."""
    return path.with_name(path.name + ".tmp")


@contextmanager
def os_errors_named(path: Path) -> Iterator[None]:
    """Within it an `OSError` becomes a `DataError` that names `path` and the cure."""
    try:
        yield
    except OSError as error:
        cure = CURES.get(error.errno or 0, "check the path and its permissions")
        raise DataError(f"{path}: {error.strerror or error}; {cure}") from error


def inside(folder: Path, name: object) -> Path:
    """The path of a file of `folder`, by the name that another file gives it: `weight/wte.weight.npy`.

    Raises:
        DataError: the name is none of a file in there, or the file is a link that leads out of the folder. (The folder
            itself may be a link.)
    """
    if not isinstance(name, str) or not name.isprintable() or {"", ".", ".."} & set(name.split("/")):
        raise DataError(f"{folder}: {shown(name)} is no name of a file in this folder; fetch or write it again")
    path = folder / name
    real = os.path.realpath(path)
    if os.path.commonpath([real, top := os.path.realpath(folder)]) != top:
        raise DataError(f"{path}: leads out of its folder, to {shown(real)}; put the file itself there")
    return path


def allow_open_files(count: int) -> None:
    """Raises the process's limit of open files by `count`, as far as it may: a map holds its file open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if resource.RLIM_INFINITY not in (soft, hard):
        soft = min(soft + count, hard)
    elif soft != resource.RLIM_INFINITY:
        soft += count
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def sync_to_disk(path: Path) -> None:
    """Makes a file's content, or the renames in a folder, survive a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_stream(path: Path, chunks: Iterable[bytes | memoryview]) -> None:
    """Replaces `path` by the chunks one after the other; a kill at any moment leaves the old file or the new one.

    Raises:
        DataError: the folder is missing, read-only or full; nothing half-written is left.
    """
    draft = temporary(path)
    with os_errors_named(path):
        try:
            with draft.open("wb") as file:
                for chunk in chunks:
                    file.write(chunk)
                file.flush()
                os.fsync(file.fileno())
            draft.replace(path)
        except BaseException:
            draft.unlink(missing_ok=True)
            raise
        sync_to_disk(path.parent)


def write_atomically(path: Path, content: bytes) -> None:
    """`write_stream` of a content that is there as a whole."""
    write_stream(path, [content])


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


def mapped(path: Path, dtype: np.dtype, offset: int = 0, *, random_access: bool = False) -> np.ndarray:
    """The values of a file from byte `offset` on, shape (values,), read-only and read as they are touched.

    The map lives as long as any view of it: closing one under a view would crash the process.

    Args:
        random_access: whether small pieces will be read here and there; the system then reads nothing ahead of them,
            which for windows of 1,025 tokens from a cold disk with 8 MiB of read-ahead is 18 times faster.

    Raises:
        DataError: missing, unreadable, or not a whole, positive number of values.
    """
    with os_errors_named(path), path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size <= offset or (size - offset) % dtype.itemsize:
            wanted = f"{dtype.name} values" + (f" after a header of {offset:,}" if offset else "")
            raise DataError(
                f"{path}: {size:,} bytes, not a whole number of {wanted}; it was cut off or is another format"
            )
        content = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)
        if random_access and hasattr(mmap, "MADV_RANDOM"):
            content.madvise(mmap.MADV_RANDOM)
    return np.frombuffer(content, dtype=dtype, offset=offset)
