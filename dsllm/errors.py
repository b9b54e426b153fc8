"""What a user can put right, said in one message with the thing, its value and the cure; never a traceback.

error: data/train_00000.bin: 1,024 bytes, but its index counts 2,048; prepare the folder again
"""

import os
import select
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

LONGEST_MESSAGE = 4000
LONGEST_VALUE = 200


class UserError(Exception):
    """Something the user can put right. The message names thing, value and cure; commands exit with `exit_code`.

    One that would fill screens, as when a file of the wrong kind was given, is shortened in its midst: the thing stands
    at the beginning and the cure at the end.
    """

    exit_code = 2

    def __str__(self) -> str:
        return shortened(super().__str__(), LONGEST_MESSAGE)


def shortened(text: str, longest: int) -> str:
    """The text, or its beginning and its end in `longest` characters."""
    if len(text) <= longest:
        return text
    head = longest * 3 // 4
    return f"{text[:head]} … {text[head + 3 - longest :]}"


def shown(value: Any) -> str:
    """A value for a message: as Python writes it, shortened."""
    try:
        return shortened(repr(value), LONGEST_VALUE)
    except (RecursionError, ValueError):  # ValueError: an integer of more digits than Python writes
        return f"a {type(value).__name__} too deep or too long to show"


class ConfigError(UserError):
    """The configuration: every problem of it, at once."""


class DataError(UserError):
    """A source, a shard, a manifest or a tokenizer."""


class TooLongError(DataError):
    """Problems that the model's context does not hold."""


class CheckpointError(UserError):
    """A run's folder or one of its checkpoints."""


class DamagedError(CheckpointError):
    """A file of a checkpoint holds other bytes than were written: seen, not guessed from a file that cannot be read."""


class TrainingError(UserError):
    """A run that does not learn any more, or that cannot write what it did."""


class RankError(UserError):
    """Another rank is lost, or has not come: nothing to put right in the command, which goes on when started again."""

    exit_code = 75
    """EX_TEMPFAIL of sysexits.h: try again."""


class Stopped(Exception):
    """A signal asked the run to stop; every rank knows it, and a complete checkpoint is written."""

    def __init__(self, signum: int):
        self.signal_name = signal.Signals(signum).name
        super().__init__(f"stopped by {self.signal_name}")
        self.exit_code = 130 if signum == signal.SIGINT else 143


@contextmanager
def user_errors_exit(interrupted: str | None = None) -> Iterator[None]:
    """Within it a `UserError` ends the process with its exit code and its message alone on standard error.

    Ctrl-C does so with the words of `interrupted` and exit code 130; without them it is the caller's. So does a reader
    of standard output that has closed it, as `| head` does, without a word and with exit code 141.
    """
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        raise SystemExit(error.exit_code) from None
    except KeyboardInterrupt:
        if interrupted is None:
            raise
        print(interrupted, file=sys.stderr, flush=True)
        raise SystemExit(128 + signal.SIGINT) from None
    except BrokenPipeError:
        if not _closed(sys.stdout.fileno()):
            raise  # another pipe or a connection
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes once more at its end
        raise SystemExit(128 + signal.SIGPIPE) from None


def _closed(pipe: int) -> bool:
    """Whether nobody reads any more what is written to it."""
    watch = select.poll()
    watch.register(pipe, 0)
    return any(event & select.POLLERR for _, event in watch.poll(0))


class Reinitialise(Exception):
    """The run is to go on from its newest checkpoint, which holds another model: with a new engine around that one."""
