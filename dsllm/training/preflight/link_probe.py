"""Latency and bandwidth between hosts. Preflight sends this file to all of them, and runs it as `python - REQUEST`.

    the first host   {"serve": 63, "port": 41234, "word": "5f0c", "seconds": 25}
    each other one   {"address": "10.77.0.1", "port": 41234, "word": "5f0c", "megabytes": 64, "seconds": 25, …}
                     → {"milliseconds": 0.12, "megabytes_per_second": 1180.4}  or  {"error": "Connection refused"}

All connect at once to the master's address, as ranks will, but the first host serves one after the other: they do not
share the wire while they are measured. A connection says the word, is answered by a byte when its turn has come, sends
single bytes that come back, and then a stream that is acknowledged at its end.
"""

import json
import signal
import socket
import statistics
import sys
import time
from contextlib import suppress
from typing import Any

PINGS = 20
SILENCE_SECONDS = 8
"""After which a connection that was at work is given up, and so is waiting for one that was not made."""
CHUNK = 1 << 20


def main(request: dict[str, Any]) -> None:
    signal.alarm(int(request["seconds"]) + 5)  # by then nobody waits any more
    deadline = time.monotonic() + request["seconds"] - 2
    if "serve" in request:
        answer: dict[str, Any] = {"served": serve(request["port"], request["word"], request["serve"], deadline)}
    else:
        try:
            answer = measure(request, deadline)
        except OSError as error:
            answer = {"error": error.strerror or str(error) or type(error).__name__}
    print(json.dumps(answer))


def serve(port: int, word: str, connections: int, deadline: float) -> int:
    """Answers connections until there were so many or no more come; returns how many were served to their end."""
    served = 0
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    with socket.create_server(("", port), family=family, backlog=connections + 8, dualstack_ipv6=both) as server:
        while served < connections and (left := deadline - time.monotonic()) > 0:
            server.settimeout(min(SILENCE_SECONDS, left))
            try:
                connection, _ = server.accept()
            except TimeoutError:  # all connect at once, so that none will
                break
            with connection, suppress(OSError):  # which the other end tells
                connection.settimeout(min(SILENCE_SECONDS, left))
                served += serve_one(connection, word)
    return served


def serve_one(connection: socket.socket, word: str) -> bool:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if connection.recv(len(word), socket.MSG_WAITALL) != word.encode():
        return False  # not one of ours
    connection.sendall(b"!")
    for _ in range(PINGS):
        connection.sendall(connection.recv(1))
    while connection.recv(CHUNK):
        pass
    connection.sendall(b".")
    return True


def measure(request: dict[str, Any], deadline: float) -> "dict[str, Any]":
    """Median round trip in milliseconds, and megabytes (10⁶ bytes) a second towards the first host."""
    with connected(request["address"], request["port"]) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.sendall(request["word"].encode())
        connection.settimeout(max(0.1, deadline - time.monotonic()))
        receive(connection)  # others come first
        connection.settimeout(SILENCE_SECONDS)
        trips = []
        for _ in range(PINGS):
            began = time.perf_counter()
            connection.sendall(b"?")
            receive(connection)
            trips.append(time.perf_counter() - began)
        chunk, total, sent = bytes(CHUNK), request["megabytes"] * 10**6, 0
        began = time.perf_counter()
        # A slow link is known before all has gone over it.
        while sent < total and (sent == 0 or time.perf_counter() - began < request["transfer_seconds"]):
            part = chunk[: total - sent]
            try:
                connection.sendall(part)
            except TimeoutError:
                raise OSError(f"small packets pass, but only {sent / 1e6:.0f} MB within {SILENCE_SECONDS} s") from None
            sent += len(part)
        connection.shutdown(socket.SHUT_WR)
        receive(connection)
        rate = sent / (time.perf_counter() - began)
    return {"milliseconds": statistics.median(trips) * 1e3, "megabytes_per_second": rate / 1e6}


def connected(address: str, port: int) -> socket.socket:
    """A connection to the first host, which may not listen yet."""
    until = time.monotonic() + SILENCE_SECONDS
    while True:
        try:
            return socket.create_connection((address, port), timeout=SILENCE_SECONDS)
        except ConnectionRefusedError:
            if time.monotonic() > until:
                raise
            time.sleep(0.1)


def receive(connection: socket.socket) -> None:
    if not connection.recv(1):
        raise ConnectionResetError("closed by the first host")


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
