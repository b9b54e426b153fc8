"""How the ranks of a run find each other: each comes to rank 0, and rank 0 says when all are there.

    rank 1 ── who I am ──▸
    rank 2 ── who I am ──▸  rank 0 ── who all are ──▸ ranks 1, 2, …

Torch's own rendezvous waits in C, where no signal is heard, for minutes, and does not say for whom. This one waits
`train.meet_within` seconds, heeds signals and names who is missing; its connections are the heartbeat's afterwards.
"""

import json
import os
import selectors
import signal
import socket
import time
from collections import Counter
from contextlib import suppress
from dataclasses import astuple, dataclass, field
from typing import Any, NoReturn

from dsllm.errors import RankError, Stopped, UserError
from dsllm.training.signals import STOPPING

LOOK = 0.1
"""Seconds between two looks at signals, and between two tries to reach rank 0."""
PORT_PATIENCE = 20.0
"""Seconds to wait for a port that is taken, for a run that has just ended may not have let go of it."""
STOP_WITHIN = 10.0
"""Seconds to wait on for others after a signal, so that they hear of it."""
ANSWER = 5.0
"""Seconds that the others wait for rank 0 longer than it waits for them, so that its word comes before their own."""
GREETING = "dsllm rank"
LONGEST = 4096
"""Bytes of a line from someone who has not said yet who it is."""


@dataclass(frozen=True)
class Member:
    """One rank, as the others name it."""

    rank: int
    host: str
    pid: int

    def __str__(self) -> str:
        return f"rank {self.rank} on {self.host} (process {self.pid})"


NOBODY = Member(-1, "", 0)


@dataclass
class Link:
    """The connection to one other rank."""

    socket: socket.socket
    peer: Member = NOBODY
    """Until it has said who it is."""
    heard: float = field(default_factory=time.monotonic)
    """When, by the monotonic clock."""
    unread: bytes = b""
    early: list[list[Any]] = field(default_factory=list)
    """Lines that came in one piece with the end of the meeting."""
    left: bool = False
    """It said that it ends and that all is well, or the connection is closed and why is known."""

    def __post_init__(self) -> None:
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)

    def send(self, *words: object) -> None:
        """Send a line, unless nobody is there any more; never waits."""
        with suppress(OSError):
            self.socket.send(f"{json.dumps(words)}\n".encode())

    def deliver(self, *words: object) -> None:
        """Send a line that may be longer than what the network takes at once, unless nobody is there any more."""
        with suppress(OSError):
            self.socket.settimeout(ANSWER)
            self.socket.sendall(f"{json.dumps(words)}\n".encode())
        self.socket.setblocking(False)

    def receive(self) -> list[list[Any]] | None:
        """The lines that have come; None if the connection is closed. Raises `ValueError` if they are not of ours."""
        try:
            found = self.socket.recv(2**16)
        except BlockingIOError:
            return []
        except OSError:
            return None
        if not found:
            return None
        self.heard = time.monotonic()
        *lines, self.unread = (self.unread + found).split(b"\n")
        return [json.loads(line) for line in lines]


@dataclass
class Party:
    """All ranks of a run, as one of them sees them once they have met."""

    rank: int
    members: list[Member]
    """By rank."""
    links: dict[int, Link]
    """By rank: from rank 0 to all others, from each of them to rank 0."""
    word: Any
    """What rank 0 had to say to all."""


class Patience:
    """Until when to wait; not much longer once a signal that is held back asks this rank or another to stop."""

    def __init__(self, within: float, stop_within: float):
        self.within, self.stop_within = within, stop_within
        self._deadline = time.monotonic() + within
        self.signum = 0

    def look(self, signum: int = 0) -> bool:
        """Whether to wait on; notes a signal to this process, or `signum`. Raises `Stopped` if one has come to naught.

        All ranks are to hear of it, so that all stop alike.
        """
        signum = signum or min(signal.sigpending() & set(STOPPING), default=0)
        if signum and not self.signum:
            self.signum, self._deadline = signum, min(self._deadline, time.monotonic() + self.stop_within)
        over = time.monotonic() > self._deadline
        if over and self.signum:
            stop(self.signum)
        return not over


def stop(signum: int) -> NoReturn:
    """Nothing is under way yet, and all that was before is saved."""
    stopped = Stopped(signum)
    if os.environ.get("LOCAL_RANK", "0") == "0":
        print(f"{stopped} before the ranks had met; the same command resumes", flush=True)
    raise stopped


def meet(run: str, rank: int, size: int, address: tuple[str, int], within: float, word: Any = None) -> Party:
    """Wait until all ranks have come to rank 0, which listens at `address`; `word` is what rank 0 says to all.

    Ranks of another `run` that use the same port wait until this one's have met.

    Raises:
        RankError: on all that came, if another did not within so many seconds, or died meanwhile.
        Stopped: on all that came, if one has had a signal that is held back, as after a structural event.
        UserError: on rank 0, if the port is taken.
    """
    me = Member(rank, socket.gethostname(), os.getpid())
    if size == 1:
        return Party(rank, [me], {}, word)
    run, patience = f"{run} on {size} ranks", Patience(within, STOP_WITHIN)
    if rank == 0:
        return _receive_all(me, size, run, address[1], patience, word)
    while True:
        party = _come(me, run, address, patience)
        if party is not None:
            return party
        time.sleep(LOOK)


def _receive_all(me: Member, size: int, run: str, port: int, patience: Patience, word: Any) -> Party:
    """Rank 0's part."""
    links: dict[int, Link] = {}
    with _listener(port, size) as listener, selectors.DefaultSelector() as selector:
        selector.register(listener, selectors.EVENT_READ)
        try:
            while len(links) < size - 1:
                if not patience.look():
                    raise RankError(_missing(me, size, links, patience.within))
                for key, _ in selector.select(LOOK):
                    if key.data is None:
                        with suppress(OSError):
                            link = Link(listener.accept()[0])
                            selector.register(link.socket, selectors.EVENT_READ, link)
                    elif not _hear(key.data, links, size, run, patience):
                        selector.unregister(key.fileobj)
                        key.data.socket.close()
            if patience.signum:
                stop(patience.signum)
        except BaseException as error:
            words = ("stop", patience.signum) if isinstance(error, Stopped) else ("apart", _reason(me, error))
            for link in links.values():
                link.send(*words)
                link.socket.close()
            raise
    members = [me, *(links[rank].peer for rank in sorted(links))]
    for link in links.values():
        link.deliver("all", [astuple(member) for member in members], word)
    return Party(me.rank, members, links, word)


def _hear(link: Link, links: dict[int, Link], size: int, run: str, patience: Patience) -> bool:
    """What someone says who has come to rank 0; False if it has no business here. Raises `RankError` if a rank ends."""
    try:
        lines = link.receive()
        if lines is None and link.peer is not NOBODY:
            raise RankError(f"{link.peer} has died: killed, out of memory or crashed; see what it printed")
        for what, *words in lines or []:
            if link.peer is NOBODY:
                its_run, rank, host, pid, signum = words
                peer = Member(int(rank), str(host), int(pid))
                if (what, its_run) != (GREETING, run) or not 0 < peer.rank < size or peer.rank in links:
                    link.send("stranger")
                    return False
                link.peer, links[peer.rank] = peer, link
                patience.look(int(signum))
            elif what == "stop":
                patience.look(int(words[0]))
            else:
                raise RankError(words[0])
    except (ValueError, TypeError):  # whatever it is, it is none of ours
        return False
    return lines is not None and len(link.unread) < LONGEST


def _missing(me: Member, size: int, links: dict[int, Link], within: float) -> str:
    missing = [str(rank) for rank in range(1, size) if rank not in links]
    there = Counter(member.host for member in [me, *(link.peer for link in links.values())])
    who = f"rank {missing[0]} has" if len(missing) == 1 else f"ranks {', '.join(missing)} have"
    return (
        f"{who} not come to {me} within {within:g} s; there are "
        f"{', '.join(f'{count} from {host}' for host, count in there.items())}. A host is down, or the network to it; "
        f"if hosts start slowly, raise train.meet_within"
    )


def _come(me: Member, run: str, address: tuple[str, int], patience: Patience) -> Party | None:
    """The part of the others; None if another run meets there."""
    link = Link(_connect(me, address, patience))
    patience.look()
    link.send(GREETING, run, *astuple(me), patience.signum)
    try:
        return _await_all(me, link, address, patience)
    except KeyboardInterrupt as error:
        link.send("apart", _reason(me, error))
        raise
    finally:
        if link.peer is NOBODY:
            link.socket.close()


def _await_all(me: Member, link: Link, address: tuple[str, int], patience: Patience) -> Party | None:
    """Wait for rank 0's word that all are there; None if it is another run's."""
    mine, told = Patience(patience.within + ANSWER, STOP_WITHIN + ANSWER), False
    with selectors.DefaultSelector() as selector:
        selector.register(link.socket, selectors.EVENT_READ)
        while mine.look():
            if mine.signum and not told:
                link.send("stop", mine.signum)
                told = True
            try:
                lines = link.receive() if selector.select(LOOK) else []
                if lines is None:
                    raise RankError(f"rank 0 at {_place(address)} has died while the ranks met; see what it printed")
                for index, (what, *words) in enumerate(lines):
                    if what == "stop":
                        stop(int(words[0]))
                    if what == "apart":
                        raise RankError(words[0])
                    if what == "stranger" and patience.look():
                        return None
                    members = [Member(*member) for member in words[0]]
                    link.peer, link.early = members[0], lines[index + 1 :]
                    return Party(me.rank, members, {0: link}, words[1])
            except (ValueError, TypeError, IndexError):
                raise UserError(
                    f"{_place(address)}: another run or program answers there; start with another --master_port"
                ) from None
    raise RankError(f"rank 0 at {_place(address)} is silent: its host is down, or the network to it")


def _connect(me: Member, address: tuple[str, int], patience: Patience) -> socket.socket:
    """A connection to rank 0, tried for until it listens."""
    while True:
        try:
            return socket.create_connection(address, timeout=2)
        except OSError as error:
            if not patience.look():
                raise RankError(
                    f"rank 0 at {_place(address)} cannot be reached from {me.host} within {patience.within:g} s "
                    f"({error}). Its host is down, or the network to it, or a firewall is between; if hosts start "
                    f"slowly, raise train.meet_within"
                ) from None
        time.sleep(LOOK)


def _listener(port: int, size: int) -> socket.socket:
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    patience = Patience(PORT_PATIENCE, STOP_WITHIN)
    while True:
        try:
            return socket.create_server(("", port), family=family, backlog=size, dualstack_ipv6=both)
        except OSError as error:
            if not patience.look():
                raise UserError(
                    f"port {port}, where the ranks meet, cannot be had ({error.strerror}): another program may hold "
                    f"it; start with another --master_port. A run that was under way goes on where it was"
                ) from None
        time.sleep(LOOK)


def _place(address: tuple[str, int]) -> str:
    return f"{address[0]}, port {address[1]}"


def _reason(me: Member, error: BaseException) -> str:
    if isinstance(error, RankError):
        return str(error)
    return f"{me} ended while the ranks met: {str(error) or type(error).__name__}"
