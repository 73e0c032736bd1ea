"""The limit on the memory that the rows of one source may take, and the check that a path is a file.

A small compressed file may hold more rows than fit into memory. So their size is computed from the file's headers, and
counted again while the rows are read. More than `data_limit` is refused.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from abstain.models.errors import ConfigError, DataError, clip_repr
from abstain.models.files.regular import not_a_file

DATA_BYTES = "ABSTAIN_DATA_BYTES"
DEFAULT_DATA_BYTES = 4 * 2**30


def data_limit(environ: Mapping[str, str]) -> int:
    """Returns how many bytes of memory the rows of one source may take: `ABSTAIN_DATA_BYTES`, or 4 GiB.

    Raises:
        ConfigError: the variable is not a whole number above 0.
    """
    text = environ.get(DATA_BYTES, "").strip()
    if not text:
        return DEFAULT_DATA_BYTES
    if not (text.isascii() and text.isdigit() and len(text) < 19 and int(text)):
        raise ConfigError(
            DATA_BYTES, where="environment", expected="a whole number of bytes above 0", found=clip_repr(text)
        )
    return int(text)


def check_room(needed: int, where: str, what: str = "the rows", already: int = 0) -> int:
    """Refuses rows that take more memory than `data_limit`; returns `needed + already`.

    Args:
        needed: bytes in memory.
        already: bytes that the source's other rows take.

    Raises:
        DataError: they take more; the text names their size, the limit, and how to raise it.
    """
    limit = data_limit(os.environ)
    if needed + already > limit:
        raise DataError(
            f"{what} take too much memory",
            where=where,
            expected=f"at most {limit:,} bytes",
            found=f"{needed + already:,} bytes or more",
            fix=f"use fewer rows or columns, or set {DATA_BYTES} higher if this machine has several times that memory",
        )
    return needed + already


def check_is_file(path: Path) -> None:
    """Refuses a path that is not a file, without opening it: opening a named pipe may wait for ever.

    Raises:
        DataError: the path is a folder, a named pipe, a socket or a device.
    """
    found = not_a_file(path)
    if found:
        raise DataError("cannot be read", where=str(path), expected="a file", found=found)
