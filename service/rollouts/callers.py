"""The callers that a rollout has observed: a table in the run's folder that all workers of a server share."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

SLOTS = 2**18
"""The number of slots; eight bytes each."""
PROBES = 32
"""How many slots are looked at for one caller."""
_BYTES = 8


class Callers:
    """A set of 64-bit fingerprints that only grows.

    Two workers that add the same caller at the same time may both count it; no lock is worth that.
    """

    def __init__(self, path: Path) -> None:
        """Opens the table; makes it if it does not exist.

        Raises:
            OSError: it cannot be made.
        """
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            os.ftruncate(descriptor, SLOTS * _BYTES)
            self._memory = mmap.mmap(descriptor, SLOTS * _BYTES)
        finally:
            os.close(descriptor)
        self._slots = memoryview(self._memory).cast("Q")

    def add(self, fingerprint: int) -> bool:
        """Adds a caller; returns whether it is new. If the table is full around its place, it counts as known."""
        value = fingerprint or 1  # 0 marks an empty slot.
        for probe in range(PROBES):
            slot = (value + probe) % SLOTS
            found = self._slots[slot]
            if found == value:
                return False
            if found == 0:
                self._slots[slot] = value
                return True
        return False
