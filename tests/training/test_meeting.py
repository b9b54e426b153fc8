"""Ranks come together, wait for no one for ever, and know who is missing."""

import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from dsllm.errors import RankError, UserError
from dsllm.training import meeting
from dsllm.training.meeting import GREETING, Party, meet
from dsllm.training.world import free_port

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def address() -> tuple[str, int]:
    return "127.0.0.1", free_port()


@pytest.fixture
def come(address: tuple[str, int]):
    """Comes as a rank of a run, in a thread: `come(rank, size)` gives its future."""
    with ThreadPoolExecutor(8) as threads:

        def come(rank: int, size: int, run: str = "run", within: float = 20) -> "Future[Party]":
            return threads.submit(meet, run, rank, size, address, within, f"{run}'s word" if rank == 0 else None)

        yield come


def close(*parties: Party) -> None:
    for party in parties:
        for link in party.links.values():
            link.socket.close()


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0)], ids=["rank 0 first", "rank 0 last"])
def test_all_ranks_know_all_ranks_and_what_rank_0_says(order, come):
    futures = {}
    for rank in order:
        futures[rank] = come(rank, 3)
        time.sleep(0.2)
    parties = [futures[rank].result(20) for rank in range(3)]
    close(*parties)
    for rank, party in enumerate(parties):
        assert party.rank == rank and party.word == "run's word"
        assert [(m.rank, m.host, m.pid) for m in party.members] == [
            (number, socket.gethostname(), os.getpid()) for number in range(3)
        ]
    assert sorted(parties[0].links) == [1, 2] and list(parties[1].links) == list(parties[2].links) == [0]


def test_one_rank_needs_nobody(address):
    assert meet("run", 0, 1, address, within=3, word=7).word == 7


def test_what_comes_at_once_after_the_meeting_is_kept(come):
    first, second = come(0, 2), come(1, 2)
    main, other = first.result(20), second.result(20)
    main.links[1].send("lost", [2], "rank 2 has died")
    time.sleep(0.2)
    assert other.links[0].early or other.links[0].receive() == [["lost", [2], "rank 2 has died"]]
    close(main, other)


def test_what_rank_0_says_may_be_longer_than_a_connection_takes_at_once(come, address):
    """As the names of thousands of ranks are."""
    other = come(1, 2)
    main = meet("run", 0, 2, address, within=20, word="long" * 2_000_000)
    close(main, other.result(20))
    assert other.result().word == main.word


def test_a_rank_that_does_not_come_is_named_to_all_that_did(come):
    begun = time.monotonic()
    futures = [come(rank, 4, within=2) for rank in (0, 2)]
    for future in futures:
        with pytest.raises(RankError, match=r"^ranks 1, 3 have not come to rank 0 on .* within 2 s; there are 2 from "):
            future.result(20)
    assert 2 <= time.monotonic() - begun < 10


def test_rank_0_that_does_not_come_is_told_by_each(come):
    with pytest.raises(RankError, match=r"^rank 0 at 127.0.0.1, port \d+ cannot be reached .* within 1 s"):
        come(1, 2, within=1).result(20)


def test_a_rank_that_came_and_died_is_named_at_once(come, address):
    main, third = come(0, 4), come(2, 4)
    with connected(address) as gone:
        gone.sendall(f'["{GREETING}", "run on 4 ranks", 1, "node7", 4711, 0]\n'.encode())
        time.sleep(0.5)
    for future in (main, third):
        with pytest.raises(RankError, match=r"^rank 1 on node7 \(process 4711\) has died"):
            future.result(5)


def test_rank_0_that_dies_meanwhile_is_told_by_each(come, address):
    with socket.create_server(address) as listener:
        other = come(1, 2)
        connection, _ = listener.accept()
        connection.recv(1000)
        connection.close()
        with pytest.raises(RankError, match=r"^rank 0 at .* has died while the ranks met"):
            other.result(5)


def test_another_program_at_the_port_is_told(come, address):
    with socket.create_server(address) as listener:
        other = come(1, 2)
        connection, _ = listener.accept()
        connection.sendall(b"HTTP/1.1 400 Bad Request\n")
        with pytest.raises(UserError, match="another run or program answers there; start with another --master_port"):
            other.result(5)
        connection.close()


def test_a_port_that_is_taken_is_told(come, address, monkeypatch):
    monkeypatch.setattr(meeting, "PORT_PATIENCE", 0.5)
    with socket.create_server(address), pytest.raises(UserError, match=f"^port {address[1]}, .* --master_port"):
        come(0, 2).result(5)


STRANGERS: dict[str, bytes] = {
    "says nothing": b"",
    "a browser": b"GET / HTTP/1.1\r\nHost: node1\r\n\r\n",
    "no list": b"17\n",
    "a list of too few": b'["dsllm rank"]\n',
    "a list of nonsense": b'["dsllm rank", "run on 2 ranks", "one", null, {}, 0]\n',
    "rank 0 again": b'["dsllm rank", "run on 2 ranks", 0, "node7", 4711, 0]\n',
    "a rank too high": b'["dsllm rank", "run on 2 ranks", 2, "node7", 4711, 0]\n',
    "no end of a line": b"a" * 100_000,
    "no text": bytes(range(128, 256)) + b"\n",
}


@pytest.mark.parametrize("words", STRANGERS.values(), ids=STRANGERS)
def test_a_stranger_disturbs_no_meeting(words, come, address):
    main = come(0, 2)
    with connected(address) as stranger:
        stranger.sendall(words)
        time.sleep(0.2)
        close(main_party := come(1, 2).result(10), main.result(10))
    assert [member.rank for member in main_party.members] == [0, 1]


def test_two_runs_meet_at_the_same_port_one_after_the_other(come):
    futures = [come(rank, 3, run) for rank, run in [(2, "b"), (0, "a"), (1, "b"), (1, "a"), (0, "b"), (2, "a")]]
    parties = [future.result(20) for future in futures]
    close(*parties)
    assert [party.word for party in parties] == ["b's word", "a's word", "b's word", "a's word", "b's word", "a's word"]


HELD = """
import os, signal, sys
from dsllm.errors import RankError, Stopped
from dsllm.training import meeting
from dsllm.training.meeting import meet

meeting.STOP_WITHIN, meeting.ANSWER = 4.0, 1.0
os.environ["LOCAL_RANK"] = sys.argv[1]
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
print("waits", flush=True)
try:
    meet("run", int(sys.argv[1]), int(sys.argv[3]), ("127.0.0.1", int(sys.argv[2])), 60)
except Stopped as stopped:
    sys.exit(stopped.exit_code)
"""


class Held:
    """A rank in a process that holds signals back, as after a structural event."""

    def __init__(self, script: Path, rank: int, size: int, port: int) -> None:
        script.write_text(HELD)
        self.process = subprocess.Popen(
            [sys.executable, script, str(rank), str(port), str(size)],
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert self.process.stdout is not None and self.process.stdout.readline() == "waits\n"

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def stopped(self) -> tuple[int, str]:
        """Its exit code, and what it printed; of which it may wait some seconds for others."""
        output, _ = self.process.communicate(timeout=20)
        return self.process.returncode, output


SAID = "stopped by SIGTERM before the ranks had met; the same command resumes\n"


@pytest.mark.parametrize("first", [0, 1])
def test_a_signal_to_one_rank_that_waits_stops_all_that_come(first, address, tmp_path):
    """The one that had it is there before the other, and alone the other would wait for it for a minute."""
    signalled = Held(tmp_path / "held.py", first, 2, address[1])
    signalled.terminate()
    time.sleep(1)
    other = Held(tmp_path / "held.py", 1 - first, 2, address[1])
    assert [signalled.stopped()[0], other.stopped()[0]] == [143, 143]


@pytest.mark.parametrize("signalled", [0, 1])
def test_a_signal_stops_ranks_that_wait_for_a_lost_one(signalled, address, tmp_path):
    ranks = [Held(tmp_path / "held.py", rank, 3, address[1]) for rank in range(2)]
    time.sleep(1)
    ranks[signalled].terminate()
    assert [rank.stopped() for rank in ranks] == [(143, SAID), (143, "")]


def test_a_signal_stops_a_rank_whose_rank_0_is_lost(address, tmp_path):
    rank = Held(tmp_path / "held.py", 1, 2, address[1])
    rank.terminate()
    assert rank.stopped() == (143, "")


def connected(address: tuple[str, int]) -> socket.socket:
    """A connection to a rank 0 that is about to listen."""
    deadline = time.monotonic() + 10
    while True:
        try:
            return socket.create_connection(address)
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.05)
