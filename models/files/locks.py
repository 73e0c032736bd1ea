"""Locks that end with the process that holds them, and errors for full, read-only or failing disks."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from abstain.models.errors import AbstainError, StoreError

REMEDY = "free space there or make it writable, then run the command again"
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO, errno.EACCES)


@contextmanager
def hold(lock: Path, *, blocking: bool = True) -> Generator[None]:
    """Holds the lock of a file until the block or the process ends; creates the file if needed.

    The file is opened for writing: NFS locks exclusively only through such a descriptor, and never a folder.

    Raises:
        BlockingIOError: another process or thread holds it, and `blocking` is False.
        FileNotFoundError: its folder does not exist.
        StoreError: the file cannot be opened for writing, or its file system has no locks.
    """
    descriptor = _lock(lock, blocking=blocking)
    try:
        yield
    finally:
        os.close(descriptor)


def _lock(lock: Path, *, blocking: bool) -> int:
    while True:
        descriptor = _open(lock)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if blocking else fcntl.LOCK_NB))
            # The previous holder may have removed the file: then the lock is on a deleted file.
            if _is_at(descriptor, lock):
                return descriptor
        except BlockingIOError:
            os.close(descriptor)
            raise
        except OSError as error:
            os.close(descriptor)
            raise StoreError(
                "cannot be locked",
                where=str(lock),
                found=os.strerror(error.errno or 0),
                fix="mount its file system with locks (NFS: with its lock service, without nolock), or keep the store on "
                "a local disk",
            ) from error
        os.close(descriptor)


def _open(lock: Path) -> int:
    try:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
        # Every user who may write to the folder may hold its lock, so this process's umask must not apply.
        mode = lock.parent.stat().st_mode & 0o666
        status = os.fstat(descriptor)
        if status.st_uid == os.geteuid() and status.st_mode & 0o777 != mode:
            os.fchmod(descriptor, mode)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise StoreError(
            "the lock cannot be opened for writing",
            where=str(lock),
            found=os.strerror(error.errno or 0),
            fix="give this user write permission for the file and its folder, and free space there",
        ) from error
    return descriptor


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except FileNotFoundError:
        return False


@contextmanager
def disk_errors(
    where: Path, remedy: str = REMEDY, kind: type[AbstainError] = StoreError, what: str = "cannot be written"
) -> Generator[None]:
    """Converts errors of a full, read-only or failing disk in the block into errors of abstain; others pass through.

    Raises:
        AbstainError: of `kind`; names `where`, the system's reason, and the remedy.
    """
    try:
        yield
    except AbstainError:
        raise
    except Exception as error:
        reason = disk_fault(error)
        if reason is None:
            raise
        raise kind(what, where=str(where), found=reason, fix=remedy) from error


def disk_fault(error: BaseException) -> str | None:
    """Returns the system's reason for a disk error, None for any other error.

    TensorStore, which Orbax uses, raises a ValueError with the system's message in a text of many lines.
    """
    if isinstance(error, OSError):
        return (str(error).splitlines() or ["an error of the system"])[0]
    return next((os.strerror(number) for number in _DISK if os.strerror(number) in str(error)), None)
