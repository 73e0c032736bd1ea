"""Reads files of rows, for training and for offline scoring: .npz arrays here, tables by `text_tables.py` and `arrow_tables.py`.

Nothing is unpickled, and `checked_inputs` refuses NaN and infinities. The memory that rows may take is limited (`room.py`).
"""

from __future__ import annotations

import io
import math
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
from jaxtyping import Num

from abstain.models.errors import AbstainError, DataError
from abstain.models.files.arrow_tables import TableFile, read_arrow, read_parquet
from abstain.models.files.reading import PLAIN, Reading
from abstain.models.files.room import check_is_file, check_room
from abstain.models.files.text_tables import read_text_table
from abstain.models.tables.encoding import ArrowTable, with_gaps

# pyarrow ships no types.
pa: Any = pyarrow

TEXT_TABLES = (".csv", ".tsv", ".txt", ".csv.gz", ".tsv.gz", ".txt.gz")
ARROW_TABLES = (".arrow", ".feather", ".ipc")
TABLES = (*TEXT_TABLES, ".parquet", *ARROW_TABLES)
"""The endings of tables, in small or capital letters."""
_PLAIN = "an .npz of plain arrays"
_NPY_HEADER_BYTES = 16_384
"""More than the longest header that numpy reads."""


# ---- .npz ------------------------------------------------------------------------------------------------------------


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """Reads the arrays of an .npz file; returns them by name.

    Raises:
        DataError: the file does not exist, is not an .npz, contains a pickled array, or takes more memory than
            `data_limit`.
    """
    check_is_file(path)
    try:
        _check_members(path)
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: np.asanyarray(file[name]) for name in file.files}
    except FileNotFoundError as error:
        raise DataError("no such file or embedded set", where=str(path), fix="check the path") from error
    except AbstainError:
        raise
    except Exception as error:  # zipfile, zlib and numpy raise many types of exceptions for a damaged file.
        # numpy recommends unpickling if it finds no array; the user should not do that.
        found = "no archive, or Python objects in it" if "pickle" in str(error) else str(error)
        raise DataError("cannot be read", where=str(path), expected=_PLAIN, found=found) from error
    for name, array in arrays.items():
        # For a member that is not an array, numpy returns its bytes.
        if array.dtype.hasobject or (array.dtype.kind == "S" and not array.shape):
            raise DataError("cannot be read", where=f"{path}, {name}", expected=_PLAIN, found="something else")
    return arrays


def _check_members(path: Path) -> None:
    """Refuses an archive if its headers claim more than its members hold, or more memory than `data_limit`.

    A compressed member is never read beyond the size that the archive's directory states, so checking this size and the
    array's own header is enough.
    """
    taken = 0
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if not member.filename.endswith(".npy"):
                taken = check_room(member.file_size, f"{path}, {member.filename}", "its bytes", taken)
                continue
            with archive.open(member) as file:
                head = file.read(_NPY_HEADER_BYTES)
            taken = _check_npy(head, member.file_size, f"{path}, {member.filename.removesuffix('.npy')}", taken)


def _check_npy(head: bytes, size: int, where: str, taken: int) -> int:
    """Compares an array's header with its number of bytes; returns the memory of all arrays up to this one.

    Raises:
        DataError: they take more than `data_limit`.
        ValueError: the header is damaged, or claims another number of bytes.
    """
    stream = io.BytesIO(head)
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    # Version 3 is version 2 in UTF-8. Only field names need UTF-8, and arrays of rows have no fields.
    if version not in {(1, 0), (2, 0), (3, 0)}:
        raise ValueError(f"version {version} of the array format")
    shape, _, dtype = read(stream)
    if dtype.hasobject:
        raise ValueError("Python objects, which only pickle can read")
    claimed, held = dtype.itemsize * math.prod(shape), size - stream.tell()
    if claimed != held or not dtype.itemsize or any(length < 0 for length in shape):
        raise ValueError(f"{held:,} bytes for {dtype} {shape} in {Path(where).name}, which needs {claimed:,}")
    # With an axis of length 0 the array is empty, but numpy may still loop over the other axes.
    return check_room(dtype.itemsize * math.prod(length or 1 for length in shape), where, "the array's numbers", taken)


# ---- tables ----------------------------------------------------------------------------------------------------------


def ending_of(path: Path) -> str:
    """Returns the ending of a file's name in small letters: `.csv`, `.csv.gz`."""
    *_, first, last = ("", "", *(suffix.lower() for suffix in path.suffixes))
    return first + last if last == ".gz" else last


def is_table(path: Path) -> bool:
    """Whether a file's name has the ending of a table."""
    return ending_of(path) in TABLES


def read_table(path: Path, reading: Reading = PLAIN) -> ArrowTable:
    """Reads a table; arguments and errors as `read_table_file`."""
    return read_table_file(path, reading).table


def read_table_file(path: Path, reading: Reading = PLAIN) -> TableFile:
    """Reads a table with one of the endings `TABLES`.

    Args:
        reading: the config's keys for reading tables.

    Raises:
        DataError: it cannot be read, has no rows, has two columns of one name, or takes more memory than `data_limit`.
    """
    check_is_file(path)
    where = str(path)
    return _checked(
        lambda: _read_ending(lambda: path.open("rb"), ending_of(path), where, reading, path), where, reading
    )


def read_table_bytes(content: bytes, ending: str, where: str, reading: Reading = PLAIN) -> TableFile:
    """Reads a table from the bytes of a request.

    Args:
        ending: one of `TABLES`, except .parquet.
        where: the name of the table in errors.

    Raises:
        DataError: as `read_table_file`.
    """
    return _checked(lambda: _read_ending(lambda: io.BytesIO(content), ending, where, reading, None), where, reading)


def _read_ending(
    open_file: Callable[[], io.BufferedIOBase], ending: str, where: str, reading: Reading, path: Path | None
) -> TableFile:
    if ending in TEXT_TABLES:
        packed, tabs = ending.endswith(".gz"), ending.startswith(".tsv")
        return read_text_table(open_file, where, reading, packed=packed, tabs=tabs)
    if ending in ARROW_TABLES:
        with open_file() as file:
            return read_arrow(file, where)
    if path is None:
        raise DataError("table", where=where, expected=", ".join(TEXT_TABLES + ARROW_TABLES), found=ending)
    return read_parquet(path)


def _checked(read: Callable[[], TableFile], where: str, reading: Reading) -> TableFile:
    try:
        file = read()
        _ = file.table.column_names  # pyarrow decodes them only now, and may raise
    except (OSError, pa.ArrowException, ValueError, MemoryError, EOFError, zlib.error, OverflowError) as error:
        if isinstance(error, FileNotFoundError):
            raise DataError(
                "cannot be read", where=where, found="No such file or directory", fix="check the path"
            ) from error
        found = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError("cannot be read", where=where, found=found) from error
    if not file.table.num_rows:
        raise DataError("rows", where=where, expected="at least one", found="an empty set", fix="add rows to the file")
    return file._replace(table=with_gaps(file.table, reading.na_values))


# ---- numbers ---------------------------------------------------------------------------------------------------------


def checked_inputs(x: np.ndarray, where: str) -> Num[np.ndarray, "rows ..."]:
    """Returns numbers `[rows, …features]`, all within float32's range; adds a feature axis if there is none.

    Raises:
        DataError: a value is wrong; the text names its row and feature.
    """
    if x.ndim < 1 or x.dtype.kind not in "iufb":
        raise DataError(
            "inputs",
            where=where,
            expected="numbers [rows, …features]",
            found=f"{x.dtype} {x.shape}",
            fix="save the inputs as a numeric array",
        )
    x = x[:, None] if x.ndim == 1 else x
    x = x.astype(np.uint8) if x.dtype == bool else x
    if 0 in x.shape[1:]:
        raise DataError(
            where, expected="at least one feature", found=f"shape {x.shape}", fix="add a feature to the inputs"
        )
    if np.issubdtype(x.dtype, np.floating):
        fits = np.isfinite(x) & (np.abs(x) <= np.finfo(np.float32).max)
        if not fits.all():
            index = tuple(int(i) for i in np.argwhere(~fits)[0])
            raise DataError(
                f"row {index[0]}, feature {list(index[1:])}",
                where=where,
                expected="a finite number",
                found=x[index],
                fix="replace the value, or remove the row",
            )
    return x
