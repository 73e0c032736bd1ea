"""Regular files: entries of a store are opened only if they are regular files, and read only up to a size limit.

Opening a named pipe waits for its writer, opening a device may do anything, and a symbolic link may lead out of the store.
All three are refused by their metadata, before anything is opened.
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
    """Returns the type of a folder's entry in words, from its `st_mode`."""
    return _KINDS.get(stat.S_IFMT(mode), "a device")


def not_a_file(path: Path) -> str | None:
    """Returns the type of a path in words if it is not a file, after following symbolic links.

    None for a file, and for a path that does not exist or cannot be inspected.
    """
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):  # a path with a NUL byte is a ValueError
        return None
    return None if stat.S_ISREG(mode) else kind_of(mode)


def open_regular(path: Path, refusal: type[AbstainError]) -> BufferedReader:
    """Opens a regular file for reading.

    Raises:
        AbstainError: of type `refusal`; the path is not a regular file.
        OSError: it does not exist, or may not be read.
    """
    _check_regular(path, path.lstat().st_mode, refusal)
    # The entry may have been replaced since: without O_NONBLOCK, opening a named pipe would wait for its writer.
    file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb")
    try:
        _check_regular(path, os.fstat(file.fileno()).st_mode, refusal)
    except AbstainError:
        file.close()
        raise
    return file


def read_bounded(path: Path, most: int, refusal: type[AbstainError]) -> bytes:
    """Reads a regular file of at most `most` bytes.

    Raises:
        AbstainError: of type `refusal`; the path is not a regular file, or the file is larger.
        OSError: it does not exist, or may not be read.
    """
    with open_regular(path, refusal) as file:
        size = os.fstat(file.fileno()).st_size
        if size > most:
            raise refusal("is too large", where=str(path), expected=f"at most {most:,} bytes", found=f"{size:,}")
        return file.read(most)


def others_may_write(mode: int) -> bool:
    """Whether a file's or folder's `st_mode` allows its group, or everyone, to write to it."""
    return bool(mode & (stat.S_IWGRP | stat.S_IWOTH))


def refuse_other_writers(path: Path, mode: int, what: str) -> None:
    """Refuses a file or folder of keys that other users can write to.

    Args:
        mode: its `st_mode`. The owner is not checked: in a container it is often a user of the host.
        what: the setting that names the file or folder.

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
    """Returns the size in bytes of each file in the folder, by its path there; opens no file.

    Args:
        listed: the paths of the files that the folder may contain; files that do not exist are not in the result.

    Raises:
        BundleError: an entry is not listed, or is not a regular file.
    """
    files = set(listed)
    folders = {parent.as_posix() for name in files for parent in PurePosixPath(name).parents}
    sizes: dict[str, int] = {}
    waiting = ["."]
    while waiting:
        inside = PurePosixPath(waiting.pop())
        try:
            with os.scandir(folder / inside) as entries:
                # The first unlisted entry ends the walk, so a folder of a million files is not read to its end.
                for entry in entries:
                    name = (inside / entry.name).as_posix()
                    status = entry.stat(follow_symlinks=False)
                    if stat.S_ISDIR(status.st_mode) and name in folders:
                        waiting.append(name)
                    elif name in files:
                        _check_regular(folder / name, status.st_mode, BundleError)
                        sizes[name] = status.st_size
                    else:
                        _refuse_unlisted(folder / name, status.st_mode)
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
