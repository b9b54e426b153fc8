"""Standard output and error of a run that goes on when they cannot be written: a log on a full disk, a closed pipe."""

import sys
from contextlib import suppress
from typing import Any, TextIO


class Unfailing:
    """A stream that drops what cannot be written; all else is the stream's own."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> int:
        with suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def speak_into_the_void() -> None:
    """From now on this process prints what it can, and no error comes of it."""
    sys.stdout, sys.stderr = Unfailing(sys.stdout), Unfailing(sys.stderr)  # type: ignore[assignment]
