"""Signs of life between the ranks, so that none waits for one that is gone.

    rank 1 ──┐                      every second each rank sends rank 0 a dot, and rank 0 each rank one
    rank 2 ──┼── rank 0             a connection that closes without a word: that process has died
    rank 3 ──┘                      none heard for `lost_after` seconds: its host has, or the network to it

Rank 0 tells the others whom it has lost; of rank 0 itself each knows alone. Then every process ends, at once and with
exit code 75 ("try again", as sysexits.h has it): it stands in a collective operation that no longer comes to its end,
and gloo and NCCL wait for minutes. A thread does it, over the connections by which the ranks met.
"""

import os
import selectors
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, NoReturn

from dsllm.errors import RankError, Reinitialise, Stopped, UserError
from dsllm.training.meeting import Link, Member, Party

BEAT = 1.0
"""Seconds between two signs of life."""
GRACE = 45.0
"""Seconds for which others may work on when a rank has ended with a message: mostly they are about to end with it."""
BLAME = 5.0
"""Seconds that a rank with an error waits for word that another is its cause."""


class Heartbeat:
    """From its making on, and until it is left, this process ends with a message as soon as another rank is lost."""

    def __init__(self, party: Party, lost_after: float):
        self.rank, self.members, self.links = party.rank, party.members, party.links
        self.lost_after = lost_after
        self._errors: list[tuple[float, Member, str]] = []
        """Who has ended with a message, and when."""
        self._closing, self._failing = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._watch, name="heartbeat", daemon=True)
        if self.links:
            self._thread.start()

    def __enter__(self) -> "Heartbeat":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self.links:
            return
        as_meant = error is None or isinstance(error, (Stopped, Reinitialise))
        explained = isinstance(error, (UserError, KeyboardInterrupt, SystemExit))
        if not as_meant and not explained:
            # Another rank's death may be what this one stumbled over: then the thread ends the process and says so.
            self._failing.set()
            self._thread.join(BLAME)
        self._closing.set()
        self._thread.join()
        for link in self.links.values():
            if as_meant:
                link.send("left")
            elif explained:
                link.send("error", (str(error) or type(error).__name__)[:1000])
            else:
                me = self.members[self.rank]
                link.send("lost", [self.rank], f"{me} ended with {type(error).__name__}: {error}"[:1000])
        self._close()

    # The thread.

    def _watch(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # they are the main thread's
        beaten = looked = time.monotonic()
        with selectors.DefaultSelector() as selector:
            for link in self.links.values():
                selector.register(link.socket, selectors.EVENT_READ, link)
                self._read(link, link.early)
            while not self._closing.is_set():
                if time.monotonic() - beaten >= BEAT:
                    beaten = time.monotonic()
                    for link in self.links.values():
                        link.send("alive")
                for key, _ in selector.select(BEAT / 5):
                    lines = key.data.receive()
                    if lines is None:
                        selector.unregister(key.fileobj)
                    self._read(key.data, lines)
                now = time.monotonic()
                if now - looked > 3 * BEAT:
                    # It was this process that stood still: suspended, or held by a call that shares nothing.
                    for link in self.links.values():
                        link.heard = now
                looked = now
                self._judge(now)

    def _read(self, link: Link, lines: list[list[Any]] | None) -> None:
        """What a peer said; None if its connection is closed."""
        if lines is None and not link.left:
            self._lost([link.peer.rank], f"{link.peer} has died: killed, out of memory or crashed; see what it printed")
        for what, *words in lines or []:
            if what == "left":
                link.left = True
            elif what == "error":
                link.left = True
                self._errors.append((time.monotonic(), link.peer, words[0]))
            elif what == "lost":
                self._lost(*words)

    def _judge(self, now: float) -> None:
        """End if a rank is silent, or has ended with a message while this one works on."""
        silent = [link.peer for link in self.links.values() if not link.left and now - link.heard > self.lost_after]
        if silent:
            who, has = ", ".join(map(str, silent)), "has" if len(silent) == 1 else "have"
            words = f"{who} {has} not been heard for {self.lost_after:g} s: the host is down, or the network to it"
            self._lost([peer.rank for peer in silent], words)
        for when, peer, message in self._errors:
            if self._failing.is_set() or now - when > GRACE:
                self._lost([peer.rank], f"{peer} ended: {message}")

    def _lost(self, ranks: Sequence[int], words: str) -> NoReturn:
        """Tell the others, and end. Of each host one process speaks."""
        for link in self.links.values():
            link.send("lost", list(ranks), words)
        host = self.members[self.rank].host
        if self.rank == min(m.rank for m in self.members if m.host == host and (m.rank not in ranks)):
            text = f"error: {words}. All ranks end; the same command goes on from the newest checkpoint"
            # A paused terminal, or a pipe that nobody empties, would hold this thread for ever.
            say = threading.Thread(target=print, args=(text,), kwargs={"file": sys.stderr, "flush": True}, daemon=True)
            say.start()
            say.join(2)
        self._close()
        os._exit(RankError.exit_code)

    def _close(self) -> None:
        """Close the connections once the others have what was sent: with input unread, a close can drop it."""
        deadline = time.monotonic() + 1
        for link in self.links.values():
            with suppress(OSError):
                link.socket.shutdown(socket.SHUT_WR)
        for link in self.links.values():
            with suppress(OSError):
                link.socket.settimeout(max(0.01, deadline - time.monotonic()))
                while link.socket.recv(2**16) and time.monotonic() < deadline:
                    pass
            link.socket.close()
