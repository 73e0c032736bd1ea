"""The callers that a rollout has observed: a table in the run's folder that all workers of a server share.

A caller of a rollout always gets the same version, and its requests resemble each other, so it is one observation.
"""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import numpy as np

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
            # Takes the space now: a full disk is an error here, and not a signal that ends the process at a later write.
            os.posix_fallocate(descriptor, 0, SLOTS * _BYTES)
            self._memory = mmap.mmap(descriptor, SLOTS * _BYTES)
        finally:
            os.close(descriptor)
        self._slots = memoryview(self._memory).cast("Q")

    def all(self) -> bytes:
        """Returns all fingerprints, eight bytes each."""
        values = np.frombuffer(self._memory, np.uint64)
        return values[values != 0].tobytes()

    def add_all(self, fingerprints: bytes) -> None:
        """Adds the fingerprints that `all` of another server has returned."""
        whole = len(fingerprints) // _BYTES * _BYTES
        for value in np.frombuffer(fingerprints[:whole], np.uint64).tolist():
            self.add(value)

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
