"""What a reader found in a source: arrays by their names there, and the digests of the files."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np

from abstain.models.bundles.import_record import ImportedFile, ImportKind
from abstain.models.errors import DataError
from abstain.models.files.regular import open_regular
from abstain.models.files.row_files import check_room

MOST_FILES = 10_000
"""The largest number of files of a checkpoint."""
Arrays = dict[str, np.ndarray]


class Found(NamedTuple):
    """The arrays of a source.

    Attributes:
        kind: the kind of source.
        where: the source, for errors.
        arrays: the arrays by name, each with the draws, or chains and draws, as first axes.
        files: the files that were read; empty for objects in memory.
        members: whether each draw is a network that was trained alone, so that no chains can disagree.
        divergences: the number of divergent transitions, if a sampler counted them.
    """

    kind: ImportKind
    where: str
    arrays: Arrays
    files: tuple[ImportedFile, ...] = ()
    members: bool = False
    divergences: int | None = None


def stack_members(members: Mapping[str, Arrays], kind: ImportKind, files: tuple[ImportedFile, ...] = ()) -> Found:
    """Joins the arrays of networks that were trained alone; the draws are a new first axis.

    Args:
        members: the arrays of each network, by the place of the network, for errors.

    Raises:
        DataError: a network has other arrays than the first one.
    """
    first_where, first = next(iter(members.items()))
    for where, arrays in members.items():
        if arrays.keys() != first.keys():
            odd = sorted(arrays.keys() ^ first.keys())
            raise DataError(
                f"array {odd[0]!r}",
                where=where,
                expected=f"the arrays of the first network, {first_where}",
                found="none of that name" if odd[0] in first else "one more",
                fix="import networks of one architecture",
            )
        for name, array in arrays.items():
            if array.shape != first[name].shape:
                raise DataError(
                    f"array {name!r}",
                    where=where,
                    expected=f"shape {first[name].shape}, as in {first_where}",
                    found=f"shape {array.shape}",
                    fix="import networks of one architecture",
                )
    stacked = {name: np.stack([arrays[name] for arrays in members.values()]) for name in first}
    where = first_where if len(members) == 1 else f"{first_where} and {len(members) - 1} more"
    return Found(kind, where, stacked, files, members=True)


def flatten(tree: Any, where: str, path: str = "") -> Arrays:
    """Returns the arrays of nested dicts and lists by their path, joined by dots; leaves without numbers are left out.

    Raises:
        DataError: two arrays have one name.
    """
    if isinstance(tree, Mapping):
        branches = [(str(key), value) for key, value in cast("Mapping[Any, Any]", tree).items()]
    elif isinstance(tree, list | tuple) and not hasattr(tree, "_fields"):
        branches = [(str(index), value) for index, value in enumerate(cast("list[Any]", tree))]
    else:
        return {} if tree is None else {path: np.asarray(tree)}
    arrays: Arrays = {}
    for key, value in branches:
        found = flatten(value, where, f"{path}.{key}" if path else key)
        twice = sorted(found.keys() & arrays.keys())
        if twice:
            raise DataError("arrays", where=where, expected="each name once", found=f"{twice[0]} twice")
        arrays |= found
    return arrays


def imported_file(path: Path) -> ImportedFile:
    """Returns the name and the SHA-256 of a file, or of a folder's files.

    Raises:
        DataError: a file cannot be read, a folder's entry is not a regular file, or there are too many.
    """
    try:
        digest = _folder_digest(path) if path.is_dir() else _file_digest(path.resolve())
    except OSError as error:
        raise DataError("cannot be read", where=str(path), found=error.strerror, fix="check the path") from error
    return ImportedFile(name=path.resolve().name[:255] or "root", digest=f"sha256:{digest}")


def _file_digest(path: Path) -> str:
    with open_regular(path, DataError) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _folder_digest(folder: Path) -> str:
    digest, files = hashlib.sha256(), list[Path]()
    for inside, folders, names in os.walk(folder):
        files += [Path(inside, name) for name in names]
        links = [name for name in folders if Path(inside, name).is_symlink()]
        if links or len(files) > MOST_FILES:
            found = f"the link {links[0]}" if links else "more"
            raise DataError(
                "checkpoint", where=str(folder), expected=f"at most {MOST_FILES:,} regular files", found=found
            )
    # Orbax reads at least what is on disk.
    check_room(sum(path.lstat().st_size for path in files), str(folder), "the checkpoint's files")
    for path in sorted(files, key=lambda path: path.relative_to(folder).as_posix()):
        digest.update(f"{path.relative_to(folder).as_posix()}\0{_file_digest(path)}\n".encode())
    return digest.hexdigest()
