"""Signals ask for a stop; the ranks agree on it at the end of a step, so that all write the same checkpoint.

SIGTERM (a scheduler, the launcher), SIGUSR1 (a scheduler's early warning) and SIGINT (Ctrl-C). The launcher sends its
ranks SIGTERM one after the other, with up to 30 s for each, so a rank must not wait for its own: any rank's is all's.
"""

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType

STOPPING = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class StopSignals:
    """Within it the stopping signals are noted; `agreed` says on all ranks alike whether any rank has had one."""

    def __init__(self, maximum: Callable[[int], int]):
        """`maximum` gives the largest of all ranks' values, on every rank."""
        self.maximum = maximum
        self._received = 0
        self._agreed = 0
        self._before: dict[int, object] = {}
        self._holds = False

    def __enter__(self) -> "StopSignals":
        for signum in STOPPING:
            before = signal.signal(signum, self._note)
            holder = getattr(before, "__self__", None)  # the one that held, if this is still its process
            self._before[signum] = holder._before[signum] if isinstance(holder, StopSignals) else before
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)  # what was held over a restart comes now
        return self

    def hold(self) -> None:
        """From now on keep stopping signals back, until `StopSignals` is entered again, maybe in the next program."""
        self._holds = True
        signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._holds:
            return
        for signum, handler in self._before.items():
            signal.signal(signum, handler)  # type: ignore[arg-type]

    def agreed(self) -> int:
        """The signal to stop for, 0 if none; a collective call over the ranks."""
        if not self._agreed:
            self._agreed = self.maximum(self._received)
        return self._agreed

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if self._holds:
            # It came to a thread of some library, which holds nothing back. To this thread it has to wait.
            signal.pthread_kill(threading.get_ident(), signum)
            return
        # The first one counts: a Ctrl-C reaches the ranks before the SIGTERM of the launcher that it ends.
        self._received = self._received or signum
