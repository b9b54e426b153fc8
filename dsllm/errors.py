"""What a user can put right, said in one message with the thing, its value and the cure; never a traceback.

error: data/train_00000.bin: 1,024 bytes, but its index counts 2,048; prepare the folder again
"""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class UserError(Exception):
    """Something the user can put right. The message names thing, value and cure; commands exit with code 2."""


class ConfigError(UserError):
    """The configuration: every problem of it, at once."""


class DataError(UserError):
    """A source, a shard, a manifest or a tokenizer."""


class TooLongError(DataError):
    """Problems that the model's context does not hold."""


class CheckpointError(UserError):
    """A run's folder or one of its checkpoints."""


class Stopped(Exception):
    """A signal asked the run to stop; every rank knows it, and a complete checkpoint is written."""

    def __init__(self, signum: int):
        self.signal_name = signal.Signals(signum).name
        super().__init__(f"stopped by {self.signal_name}")
        self.exit_code = 130 if signum == signal.SIGINT else 143


@contextmanager
def user_errors_exit() -> Iterator[None]:
    """Within it a `UserError` ends the process with exit code 2 and its message alone on standard error."""
    try:
        yield
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        raise SystemExit(2) from None


class Reinitialise(Exception):
    """The run is to go on from its newest checkpoint, which holds another model: with a new engine around that one."""
