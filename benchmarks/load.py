"""The load generator: requests as fast as possible, or at a steady rate, over a few kept connections.

    echo '{"port": 3000, "requests": ["file"], "connections": 8, "seconds": 3}' | python benchmarks/load.py

A process of its own, so that its cost is separate from the server's. Requests are bytes made in advance;
of an answer only the status and the length are read, and whoever does not answer 200 is counted. Sockets are waited
for with `select`, whose timeouts count microseconds: a steady rate of thousands a second needs that, and for a few
connections nothing costs less.

At a rate, requests are due at fixed times (`"arrivals": "even"`, or `"poisson"`), whether answers arrive or not, and
their latency counts from when they were due: a slow answer is not hidden by the requests that it holds up.
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
"""How long the last answers are waited for."""


@dataclass
class Connection:
    """A socket, and the request under way on it."""

    socket: socket.socket
    due: float = 0.0
    read: bytearray = field(default_factory=bytearray)
    whole: int = 0
    """Bytes of head and body together; 0 until the head has been read."""

    def ask(self, request: bytes, due: float) -> None:
        """Writes a request."""
        self.due, self.whole = due, 0
        self.read.clear()
        self.socket.sendall(request)

    def answered(self) -> bool:
        """Reads what has arrived; returns whether that is all."""
        piece = self.socket.recv(1 << 18)
        if not piece:
            raise ConnectionError("the server closed the connection")
        self.read += piece
        if not self.whole:
            end = self.read.find(b"\r\n\r\n")
            if end < 0:
                return False
            head = bytes(self.read[:end]).lower()
            place = head.find(b"\r\ncontent-length:")
            if place < 0:
                raise ConnectionError(f"no Content-Length: {head[:200]!r}")
            self.whole = end + 4 + int(head[place + 17 :].split(b"\r\n", 1)[0])
        return len(self.read) >= self.whole

    @property
    def status(self) -> str:
        """The status of the answer."""
        return bytes(self.read[9:12]).decode("ascii", "replace")


def main() -> int:
    """Reads the task from stdin, prints what was found."""
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
    """Loads one server; what is reported leaves the first `warm` seconds out.

    Args:
        requests: files, each a whole HTTP request; sent in turns.
        rate: requests a second; None for as many as are answered.
        arrivals: at a rate: "even" or "poisson".
    """
    bodies = cycle([Path(name).read_bytes() for name in requests])
    open_now = [connect(port) for _ in range(connections)]
    started = time.perf_counter()
    used = _cpu_seconds()
    until = started + warm + seconds
    if rate:
        answers = at_rate(open_now, bodies, due_times(started, until, rate, arrivals))
    else:
        answers = as_fast(open_now, bodies, until)
    latencies: list[float] = []
    statuses: Counter[str] = Counter()
    late = 0.0
    for connection, ended in answers:
        if ended < started + warm or (not rate and ended > until):
            continue
        statuses[connection.status] += 1
        if connection.status == "200":
            latencies.append(ended - connection.due)
        late = ended
    wall = time.perf_counter() - started
    cpu = _cpu_seconds() - used
    for connection in open_now:
        connection.socket.close()
    latencies.sort()
    return {
        "per_second": len(latencies) / (max(seconds, late - started - warm) if rate else seconds),
        "milliseconds": {str(p): 1e3 * quantile(latencies, p) for p in (50, 90, 99, 99.9)} if latencies else {},
        "answers": len(latencies),
        "other": {status: count for status, count in statuses.items() if status != "200"},
        "cpu_share": cpu / wall,
        "cpu_microseconds": 1e6 * cpu / max(1, sum(statuses.values())),
    }


def connect(port: int) -> Connection:
    """To loopback."""
    made = socket.create_connection(("127.0.0.1", port), timeout=60)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return Connection(made)


def as_fast(
    connections: list[Connection], requests: Iterator[bytes], until: float
) -> Iterator[tuple[Connection, float]]:
    """Every connection asks again as soon as it is answered."""
    by_socket = {connection.socket: connection for connection in connections}
    for connection in connections:
        connection.ask(next(requests), time.perf_counter())
    waiting = list(by_socket)
    while waiting and time.perf_counter() < until + LAST_SECONDS:
        for ready in select.select(waiting, [], [], 1.0)[0]:
            connection = by_socket[ready]
            if connection.answered():
                now = time.perf_counter()
                yield connection, now
                if now < until:
                    connection.ask(next(requests), now)
                else:
                    waiting.remove(ready)


def at_rate(
    connections: list[Connection], requests: Iterator[bytes], due: Iterator[float]
) -> Iterator[tuple[Connection, float]]:
    """A request whenever one is due and a connection is free; those that find none wait for one."""
    by_socket = {connection.socket: connection for connection in connections}
    free = deque(connections)
    busy: list[socket.socket] = []
    upcoming = next(due, None)
    last = time.perf_counter()
    while (upcoming is not None or busy) and time.perf_counter() < last + LAST_SECONDS:
        now = time.perf_counter()
        while upcoming is not None and upcoming <= now and free:
            connection = free.popleft()
            connection.ask(next(requests), upcoming)
            busy.append(connection.socket)
            last, upcoming = now, next(due, None)
        idle = max(0.0, upcoming - time.perf_counter()) if upcoming is not None and free else 1.0
        for ready in select.select(busy, [], [], idle)[0]:
            connection = by_socket[ready]
            if connection.answered():
                busy.remove(ready)
                free.append(connection)
                yield connection, time.perf_counter()


def due_times(start: float, end: float, rate: float, arrivals: str) -> Iterator[float]:
    """When requests are due, at `rate` a second on average."""
    chance = random.Random(0)  # noqa: S311 - no secret
    now = start
    while (now := now + (chance.expovariate(rate) if arrivals == "poisson" else 1 / rate)) < end:
        yield now


def quantile(ascending: list[float], percent: float) -> float:
    """The smallest value that at least `percent` of a hundred do not exceed."""
    return ascending[min(len(ascending) - 1, int(len(ascending) * percent / 100))]


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    sys.exit(main())
