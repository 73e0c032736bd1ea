"""Regular files: what lies in a store is opened only where it is a plain file, and read only up to a size.

A named pipe keeps whoever opens it waiting, a device may do anything, and a symbolic link leads out of the store. All three
are refused by name, by a look at the entry that opens nothing.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection
from io import BufferedReader
from pathlib import Path, PurePosixPath

from abstain.models.errors import AbstainError, BundleError, ConfigError

RESTORE = "fit the model again, or restore the bundle from a copy"
_KINDS = {
    stat.S_IFREG: "a regular file",
    stat.S_IFDIR: "a folder",
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
}


def kind_of(mode: int) -> str:
    """What an entry of a folder is, in words, by its `st_mode`."""
    return _KINDS.get(stat.S_IFMT(mode), "a device")


def not_a_file(path: Path) -> str | None:
    """What lies at a path, or where its symbolic links lead, in place of a file, in words.

    None for a file, and for a path that does not exist or may not be looked at.
    """
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):  # a path with a NUL byte is a ValueError
        return None
    return None if stat.S_ISREG(mode) else kind_of(mode)


def open_regular(path: Path, refusal: type[AbstainError]) -> BufferedReader:
    """The file, open for reading.

    Raises:
        AbstainError: of the type `refusal`, the path is no regular file.
        OSError: it does not exist, or may not be read.
    """
    _check_regular(path, path.lstat().st_mode, refusal)
    # Another entry may have been put in its place since: without O_NONBLOCK a named pipe would wait for its writer.
    file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb")
    try:
        _check_regular(path, os.fstat(file.fileno()).st_mode, refusal)
    except AbstainError:
        file.close()
        raise
    return file


def read_bounded(path: Path, most: int, refusal: type[AbstainError]) -> bytes:
    """The contents of a regular file of at most so many bytes.

    Raises:
        AbstainError: of the type `refusal`, the path is no regular file, or a larger one.
        OSError: it does not exist, or may not be read.
    """
    with open_regular(path, refusal) as file:
        size = os.fstat(file.fileno()).st_size
        if size > most:
            raise refusal("is too large", where=str(path), expected=f"at most {most:,} bytes", found=f"{size:,}")
        return file.read(most)


def others_may_write(mode: int) -> bool:
    """Whether the `st_mode` of a file or folder lets its group, or everyone, write to it."""
    return bool(mode & (stat.S_IWGRP | stat.S_IWOTH))


def refuse_other_writers(path: Path, mode: int, what: str) -> None:
    """Refuses a file or folder that others could put keys of their own into.

    Args:
        mode: its `st_mode`. The owner is not compared: in a container it is often a user of the host.
        what: the setting that names it.

    Raises:
        ConfigError: its group, or everyone, may write to it.
    """
    if others_may_write(mode):
        raise ConfigError(
            what,
            where=str(path),
            expected="a file or folder that only its owner may write to",
            found=f"mode {stat.filemode(mode)}",
            fix=f"chmod go-w {path}",
        )


def check_contents(folder: Path, listed: Collection[str]) -> dict[str, int]:
    """The size in bytes of each file in the folder, by its path there; nothing is opened.

    Args:
        listed: the paths of the files that may lie there; those that do not are absent from the answer.

    Raises:
        BundleError: naming an entry that is not listed, or that is no regular file.
    """
    files = set(listed)
    folders = {parent.as_posix() for name in files for parent in PurePosixPath(name).parents}
    sizes: dict[str, int] = {}
    waiting = ["."]
    while waiting:
        inside = PurePosixPath(waiting.pop())
        try:
            with os.scandir(folder / inside) as entries:
                # The first that does not belong ends the walk, so a folder of a million files is not listed whole.
                for entry in entries:
                    name = (inside / entry.name).as_posix()
                    found = entry.stat(follow_symlinks=False)
                    if stat.S_ISDIR(found.st_mode) and name in folders:
                        waiting.append(name)
                    elif name in files:
                        _check_regular(folder / name, found.st_mode, BundleError)
                        sizes[name] = found.st_size
                    else:
                        _refuse_unlisted(folder / name, found.st_mode)
        except OSError as error:
            where = str(folder / inside)
            raise BundleError("cannot be read", where=where, found=error.strerror, fix=RESTORE) from error
    return sizes


def _check_regular(path: Path, mode: int, refusal: type[AbstainError]) -> None:
    if not stat.S_ISREG(mode):
        fix = "put the file itself there, or restore it from a copy"
        raise refusal("is no regular file", where=str(path), expected="a regular file", found=kind_of(mode), fix=fix)


def _refuse_unlisted(path: Path, mode: int) -> None:
    raise BundleError(
        "is not listed in the manifest",
        where=str(path),
        expected="only what the manifest lists",
        found=kind_of(mode),
        fix="find out who put it there, and remove it",
    )
