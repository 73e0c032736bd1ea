"""The load generator: requests as fast as possible, or at a steady rate, over a few kept connections.

    echo '{"port": 3000, "requests": ["file"], "connections": 8, "seconds": 3}' | python benchmarks/load.py

It is a separate process, so that its cost is separate from the server's. Requests are bytes made in advance; of a response
only the status and the length are read, and every status but 200 is counted. It waits for sockets with `select`: its
timeouts have microseconds, which a steady rate of thousands per second needs, and it is cheap for a few connections.

At a given rate, requests are due at fixed times (`"arrivals": "even"`, or `"poisson"`), also if responses are late. Their
latency counts from the due time, so that a slow response also counts for the requests that it delays.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import select
import socket
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Any

WARM_SECONDS = 0.5
LAST_SECONDS = 20.0
"""The longest time to wait for the last responses."""


@dataclass
class Connection:
    """A socket, and the request that waits for its response on it."""

    socket: socket.socket
    due: float = 0.0
    read: bytearray = field(default_factory=bytearray)
    length: int = 0
    """Bytes of the head and the body of the response; 0 until the head has been read."""

    def send(self, request: bytes, due: float) -> None:
        """Sends a request."""
        self.due, self.length = due, 0
        self.read.clear()
        self.socket.sendall(request)

    def is_complete(self) -> bool:
        """Reads the bytes that have arrived; returns whether the response is complete."""
        piece = self.socket.recv(1 << 18)
        if not piece:
            raise ConnectionError("the server closed the connection")
        self.read += piece
        if not self.length:
            end = self.read.find(b"\r\n\r\n")
            if end < 0:
                return False
            head = bytes(self.read[:end]).lower()
            start = head.find(b"\r\ncontent-length:")
            if start < 0:
                raise ConnectionError(f"no Content-Length: {head[:200]!r}")
            self.length = end + 4 + int(head[start + 17 :].split(b"\r\n", 1)[0])
        return len(self.read) >= self.length

    @property
    def status(self) -> str:
        """The status of the response."""
        return bytes(self.read[9:12]).decode("ascii", "replace")


def main() -> int:
    """Reads the task from stdin and prints the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    sys.stdout.write(json.dumps(load(**json.load(sys.stdin))) + "\n")
    return 0


def load(
    port: int,
    requests: list[str],
    connections: int,
    seconds: float,
    rate: float | None = None,
    arrivals: str = "even",
    warm: float = WARM_SECONDS,
) -> dict[str, Any]:
    """Loads one server and returns the measurements, without the first `warm` seconds.

    Args:
        requests: files with one whole HTTP request each; they are sent in turns.
        rate: requests per second; None sends the next request after each response.
        arrivals: "even" or "poisson"; only used with a rate.
    """
    bodies = cycle([Path(name).read_bytes() for name in requests])
    open_connections = [connect(port) for _ in range(connections)]
    start = time.perf_counter()
    cpu_before = _cpu_seconds()
    end = start + warm + seconds
    if rate:
        responses = send_at_rate(open_connections, bodies, due_times(start, end, rate, arrivals))
    else:
        responses = send_fast(open_connections, bodies, end)
    latencies: list[float] = []
    statuses: Counter[str] = Counter()
    last_time = 0.0
    for connection, response_time in responses:
        if response_time < start + warm or (not rate and response_time > end):
            continue
        statuses[connection.status] += 1
        if connection.status == "200":
            latencies.append(response_time - connection.due)
        last_time = response_time
    wall = time.perf_counter() - start
    cpu = _cpu_seconds() - cpu_before
    for connection in open_connections:
        connection.socket.close()
    latencies.sort()
    return {
        "per_second": len(latencies) / (max(seconds, last_time - start - warm) if rate else seconds),
        "milliseconds": {str(p): 1e3 * quantile(latencies, p) for p in (50, 90, 99, 99.9)} if latencies else {},
        "answers": len(latencies),
        "other": {status: count for status, count in statuses.items() if status != "200"},
        "cpu_share": cpu / wall,
        "cpu_microseconds": 1e6 * cpu / max(1, sum(statuses.values())),
    }


def connect(port: int) -> Connection:
    """Connects to a port of loopback."""
    new = socket.create_connection(("127.0.0.1", port), timeout=60)
    new.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return Connection(new)


def send_fast(
    connections: list[Connection], requests: Iterator[bytes], end: float
) -> Iterator[tuple[Connection, float]]:
    """Sends the next request on a connection as soon as its response is complete; yields connections and times."""
    by_socket = {connection.socket: connection for connection in connections}
    for connection in connections:
        connection.send(next(requests), time.perf_counter())
    waiting = list(by_socket)
    while waiting and time.perf_counter() < end + LAST_SECONDS:
        for ready in select.select(waiting, [], [], 1.0)[0]:
            connection = by_socket[ready]
            if connection.is_complete():
                now = time.perf_counter()
                yield connection, now
                if now < end:
                    connection.send(next(requests), now)
                else:
                    waiting.remove(ready)


def send_at_rate(
    connections: list[Connection], requests: Iterator[bytes], due: Iterator[float]
) -> Iterator[tuple[Connection, float]]:
    """Sends each request when it is due, or when a connection is free after that; yields connections and times."""
    by_socket = {connection.socket: connection for connection in connections}
    free = deque(connections)
    busy: list[socket.socket] = []
    upcoming = next(due, None)
    last = time.perf_counter()
    while (upcoming is not None or busy) and time.perf_counter() < last + LAST_SECONDS:
        now = time.perf_counter()
        while upcoming is not None and upcoming <= now and free:
            connection = free.popleft()
            connection.send(next(requests), upcoming)
            busy.append(connection.socket)
            last, upcoming = now, next(due, None)
        idle = max(0.0, upcoming - time.perf_counter()) if upcoming is not None and free else 1.0
        for ready in select.select(busy, [], [], idle)[0]:
            connection = by_socket[ready]
            if connection.is_complete():
                busy.remove(ready)
                free.append(connection)
                yield connection, time.perf_counter()


def due_times(start: float, end: float, rate: float, arrivals: str) -> Iterator[float]:
    """Yields the times at which requests are due, `rate` per second on average."""
    rng = random.Random(0)  # noqa: S311 - not a secret
    now = start
    while (now := now + (rng.expovariate(rate) if arrivals == "poisson" else 1 / rate)) < end:
        yield now


def quantile(ascending: list[float], percent: float) -> float:
    """Returns a percentile: about `percent` of a hundred values are below it."""
    return ascending[min(len(ascending) - 1, int(len(ascending) * percent / 100))]


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    sys.exit(main())
