"""Rate limits: the requests per second that each key may send, counted over all workers of the server.

The generic cell rate algorithm (ITU-T I.371) stores one number for each key: the time at which its next request is due if
requests arrive evenly. A request that arrives earlier by more than the tolerance is refused. The tolerance is the requests of
one second, which a client may send at once.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import struct
import time
from pathlib import Path

_TIME = struct.Struct("d")


class RateLimits:
    """The time at which the next request of each key is due, in files that the server's workers share."""

    def __init__(self, folder: Path) -> None:
        """Keeps its files in a folder that only this server uses and that is empty when the server starts."""
        self._folder = folder
        self._due: dict[str, mmap.mmap] = {}

    def take(self, name: str, per_second: float) -> float:
        """Counts a request of a key, unless it is too early.

        Workers use no lock: of two requests in the same microsecond, one may not be counted.

        Returns:
            0, or the seconds until a request would be accepted.
        """
        due = self._due.get(name) or self._due.setdefault(name, self._open(name))
        now, interval = time.monotonic(), 1 / per_second
        # The requests that may be sent at once: those of one second, and at least one.
        tolerance = max(1.0, interval) - interval
        planned = max(now, _TIME.unpack_from(due)[0])
        if planned - now > tolerance:
            return planned - now - tolerance
        _TIME.pack_into(due, 0, planned + interval)
        return 0.0

    def _open(self, name: str) -> mmap.mmap:
        # Only keys have a rate, and their names are safe as file names; the hash keeps the path short.
        path = self._folder / f"rate-{hashlib.sha256(name.encode()).hexdigest()[:32]}"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(descriptor, _TIME.size)
            return mmap.mmap(descriptor, _TIME.size)
        finally:
            os.close(descriptor)
