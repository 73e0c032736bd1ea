"""Which versions running servers use: each worker holds a shared lock (flock) on the manifest of every version that it serves.

A lock ends with its process, so nothing is left by a server that was killed. It needs no write permission, so a server may have
the store read-only. The locks are seen by every process on the same machine, and on NFS with a lock service by other machines.
"""

from __future__ import annotations

import fcntl
import os
import time
import weakref
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from abstain.models.bundles.store import MANIFEST
from abstain.models.files.locks import disk_errors

TRIES, WAIT_SECONDS = 50, 0.02
"""How often a lock is tried, and the time between two tries: `abstain prune` holds it for less than a millisecond."""
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
_WRITE = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK


class InUse:
    """The mark that this process uses a version; it ends with this object."""

    def __init__(self, descriptor: int) -> None:
        weakref.finalize(self, os.close, descriptor)


def mark_in_use(folder: Path) -> InUse | None:
    """Marks the version in a folder as used by this process, so that `abstain prune` leaves it.

    Returns:
        The mark; None if the version is gone, or its file system has no locks.
    """
    try:
        descriptor = os.open(folder / MANIFEST, _READ)
    except OSError:
        return None
    for _ in range(TRIES):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return InUse(descriptor)
        except BlockingIOError:
            time.sleep(WAIT_SECONDS)
        except OSError:
            break
    os.close(descriptor)
    return None


@contextmanager
def claim_unused(folder: Path) -> Generator[bool]:
    """Yields whether no running server uses the version in a folder; none can begin to until the block ends.

    Raises:
        StoreError: its manifest cannot be opened or locked.
    """
    with disk_errors(folder / MANIFEST, what="cannot be locked"):
        descriptor = _open(folder / MANIFEST)
    if descriptor is None:
        yield True
        return
    try:
        with disk_errors(folder / MANIFEST, what="cannot be locked"):
            unused = _lock(descriptor)
        yield unused
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _open(path: Path) -> int | None:
    """Opens a manifest for an exclusive lock, for which NFS needs write permission; None if there is none."""
    try:
        return os.open(path, _WRITE)
    except FileNotFoundError:
        return None
    except OSError:
        return os.open(path, _READ)
