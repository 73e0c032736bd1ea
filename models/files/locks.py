"""Locks that end with the process that holds them, and errors of full, read-only or failing disks."""

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
    """Holds the lock of a file, which is made where there is none, until the block or the process ends.

    The file is opened for writing: NFS takes an exclusive lock by no other descriptor, and by none of a folder.

    Raises:
        BlockingIOError: another holds it, and `blocking` is False.
        FileNotFoundError: its folder is not there.
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
            # Who held it before may have removed the file: a lock on what has no name keeps no one out.
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
        # Whoever may write to the folder may take its lock, whatever this process's umask is.
        wanted = lock.parent.stat().st_mode & 0o666
        facts = os.fstat(descriptor)
        if facts.st_uid == os.geteuid() and facts.st_mode & 0o777 != wanted:
            os.fchmod(descriptor, wanted)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise StoreError(
            "cannot be opened for writing, as a lock must be",
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
    """Turns what a full, read-only or failing disk raises in the block into our own error; all else comes through.

    Raises:
        AbstainError: of `kind`, naming `where`, the system's reason, and the remedy.
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
    """The system's reason in an error of a disk, None for any other error.

    TensorStore, below Orbax, raises it as a ValueError, with the system's sentence in a text of many lines.
    """
    if isinstance(error, OSError):
        return (str(error).splitlines() or ["an error of the system"])[0]
    return next((os.strerror(number) for number in _DISK if os.strerror(number) in str(error)), None)
