"""A folder that gets its name last: it is there whole, or not at all.

    with prepared(Path("runs/deep"), "growing") as folder:      # runs/.deep.growing
        ...                                                     # runs/deep, once all has come to its end

What a kill leaves is never taken for the result, and the same command removes it.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dsllm.data.files import sync_to_disk
from dsllm.errors import CheckpointError
from dsllm.training.lock import take


def check_free(out: Path) -> None:
    """Raises `CheckpointError` if there is something at `out` already, but for an empty folder."""
    if out.is_symlink() or (out.exists() and not (out.is_dir() and not any(out.iterdir()))):
        raise CheckpointError(f"{out}: there is something already; name a new folder, nothing is written over")


@contextmanager
def prepared(out: Path, doing: str) -> Iterator[Path]:
    """A folder beside `out`, this process's alone, that becomes `out` at the end, or vanishes when that fails.

    Raises `CheckpointError` where it cannot be written.
    """
    folder = out.absolute().parent / f".{out.absolute().name}.{doing}"
    lock = folder / ".lock"
    file, _ = take(lock)
    with file:
        for left in folder.iterdir():  # by a command that was killed
            if left != lock:
                shutil.rmtree(left) if left.is_dir() else left.unlink()
        try:
            yield folder
            folder.rename(out)
            (out / lock.name).unlink()
            sync_to_disk(folder.parent)
        except BaseException as error:
            shutil.rmtree(folder, ignore_errors=True)
            if isinstance(error, OSError):
                reason = " ".join(str(error).split())[:200]
                raise CheckpointError(
                    f"{out}: cannot be written ({reason}); free disk space or name another folder"
                ) from None
            raise
