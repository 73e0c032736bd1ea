"""Reads files of rows, for training and for offline scoring: .npz arrays, .csv and .parquet tables.

Nothing is unpickled, and `checked_inputs` refuses NaN and infinities.

A small compressed file may hold more rows than fit into memory. So their size is computed from the file's headers, and
counted again while the rows are read. More than `data_limit` is refused.
"""

from __future__ import annotations

import io
import math
import os
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.compute as arrow_compute
import pyarrow.csv as arrow_csv
import pyarrow.parquet as arrow_parquet
from jaxtyping import Num

from abstain.models.errors import AbstainError, ConfigError, DataError, clip_repr
from abstain.models.files.regular import not_a_file
from abstain.models.tables.encoding import ArrowTable, check_column_names

# pyarrow ships no types.
pa: Any = pyarrow
pc: Any = arrow_compute
csv: Any = arrow_csv
parquet: Any = arrow_parquet

TABLES = {".csv", ".parquet"}
DATA_BYTES = "ABSTAIN_DATA_BYTES"
DEFAULT_DATA_BYTES = 4 * 2**30
LINE_BYTES = 16 * 2**20
"""Largest size of a line of a .csv file, also of the header, including line breaks within quotes."""
CELL_BYTES = 8
"""Least memory of a table's cell, which becomes a float64; for text, its bytes are added."""
COLUMN_BYTES = 4096
"""Memory that the readers of tables take for each column, however few rows there are."""
_PLAIN = "an .npz of plain arrays"
_NPY_HEADER_BYTES = 16_384
"""More than the longest header that numpy reads."""


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


def read_table(path: Path) -> ArrowTable:
    """Reads a .csv or .parquet file.

    Raises:
        DataError: it cannot be read, has no rows, has two columns of one name, or takes more memory than `data_limit`.
    """
    check_is_file(path)
    try:
        table = _read_csv(path) if path.suffix == ".csv" else _read_parquet(path)
        _ = table.column_names  # pyarrow decodes them only now, and may raise
    except (OSError, pa.ArrowException, ValueError, MemoryError) as error:
        if isinstance(error, FileNotFoundError):
            raise DataError(
                "cannot be read", where=str(path), found="No such file or directory", fix="check the path"
            ) from error
        found = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError("cannot be read", where=str(path), found=found) from error
    if not table.num_rows:
        raise DataError(
            "rows", where=str(path), expected="at least one", found="an empty set", fix="add rows to the file"
        )
    return table


def _read_csv(path: Path) -> ArrowTable:
    _check_width(path)
    try:
        # All cells are read as text: a category's name must not depend on other cells (01 among numbers would become 1).
        # Line breaks in quotes are allowed, because otherwise a quote that is never closed is no error.
        with csv.open_csv(
            path,
            read_options=csv.ReadOptions(block_size=LINE_BYTES),
            parse_options=csv.ParseOptions(newlines_in_values=True),
            convert_options=csv.ConvertOptions(
                default_column_type=pa.string(), strings_can_be_null=True, null_values=[""]
            ),
        ) as reader:
            check_column_names(reader.schema, str(path))
            table, _ = _to_table(reader, reader.schema, str(path))
    except pa.ArrowInvalid as error:
        if not _is_too_long(error, path):
            raise
        raise DataError(
            "a line is too long, or a quote is never closed",
            where=str(path),
            expected=f"lines of at most {LINE_BYTES:,} bytes",
            found="a longer one",
            fix='look for a cell that begins with " and does not end with one, or save the table as .parquet',
        ) from error
    if _ends_within_quotes(table, path):
        raise DataError(
            "a quote is never closed",
            where=str(path),
            expected='each cell that begins with " to end with "',
            found=f"the rest of the file in row {max(table.num_rows - 1, 0)}",
            fix="close the quote, or double it if it is part of the text",
        )
    return table


def _check_width(path: Path) -> None:
    """Refuses a header with too many columns: the reader allocates memory for each of them at once."""
    with path.open("rb") as file:
        head = file.read(LINE_BYTES).partition(b"\n")[0]
    check_room(COLUMN_BYTES * (head.count(b",") + 1), str(path), "the columns")


def _is_too_long(error: Exception, path: Path) -> bool:
    """Whether the reader found no end of a line in its block.

    For the header, the reader only reports that it found no column.
    """
    message = str(error)
    if "cannot infer number of columns" in message:
        with path.open("rb") as file:
            head = file.read(LINE_BYTES)
        return len(head) == LINE_BYTES or b'"' in head
    return "straddling object" in message or "out of sync with chunker" in message


def _ends_within_quotes(table: ArrowTable, path: Path) -> bool:
    """Whether the last cell contains line breaks and no quote closes it: the reader accepts the end of the file instead."""
    last = table.column(table.num_columns - 1)[-1].as_py() if table.num_rows else table.column_names[-1]
    if "\n" not in (last or ""):
        return False
    with path.open("rb") as file:
        file.seek(-min(path.stat().st_size, 64), os.SEEK_END)
        return not file.read().rstrip().endswith(b'"')


def _read_parquet(path: Path) -> ArrowTable:
    with parquet.ParquetFile(path) as file:
        metadata, schema = file.metadata, file.schema_arrow
        check_column_names(schema, str(path))
        check_room(_stated_bytes(file), str(path))
    nested = {field.name for field in schema if pa.types.is_nested(field.type)}
    flat = pa.schema([field for field in schema if field.name not in nested])
    # Text is read as a dictionary and codes: a small file may contain one long text so often that it takes gigabytes.
    texts = [field.name for field in flat if _is_text(field.type)]
    with parquet.ParquetFile(path, metadata=metadata, read_dictionary=texts) as file:
        taken, columns = 0, list[Any]()
        # Column by column, because the footer may state smaller sizes than the columns have.
        for field in flat:
            batches = file.iter_batches(batch_size=2**16, columns=[field.name])
            part, taken = _to_table(batches, pa.schema([field]), str(path), taken)
            columns += part.columns
    table = pa.Table.from_arrays(columns, schema=flat)
    # A nested column cannot be a feature. Its values are not read: the column is dropped, or refused because of its type.
    for index, field in enumerate(schema):
        if field.name in nested:
            table = table.add_column(index, field, pa.nulls(metadata.num_rows, field.type))
    return table


def _stated_bytes(file: Any) -> int:
    """Returns the least number of bytes that a parquet file's columns take, decompressed, according to its footer."""
    metadata, schema = file.metadata, file.schema
    widths = [max(CELL_BYTES, schema.column(index).length or 0) for index in range(metadata.num_columns)]
    cells, unpacked = metadata.num_rows * sum(widths), 0
    for number in range(metadata.num_row_groups):
        unpacked += max(metadata.row_group(number).total_byte_size, 0)
    return max(cells, unpacked, COLUMN_BYTES * metadata.num_columns)


def _to_table(batches: Iterator[Any], schema: Any, where: str, taken: int = 0) -> tuple[ArrowTable, int]:
    """Joins batches to a table of this schema; decodes text only after checking its size.

    Args:
        taken: the bytes that other columns of the file take.

    Returns:
        The table, and the bytes taken with it.
    """
    parts: list[Any] = []
    for batch in batches:
        taken = check_room(sum(map(_bytes_of, batch.columns)), where, already=taken)
        columns = [batch.column(field.name) for field in schema]
        columns = [column.cast(column_type) for column, column_type in zip(columns, schema.types, strict=True)]
        parts.append(pa.RecordBatch.from_arrays(columns, schema=schema))
    return pa.Table.from_batches(parts, schema), taken


def _bytes_of(column: Any) -> int:
    """Returns the memory of a column as float64 or text; for a dictionary and its codes, that of the decoded text."""
    least = CELL_BYTES * len(column)
    if pa.types.is_dictionary(column.type) and _is_text(column.type.value_type):
        lengths = pc.binary_length(column.dictionary).take(column.indices)
        return least + int(pc.sum(lengths.cast(pa.int64())).as_py() or 0)
    return least + int(column.nbytes) if _is_text(column.type) else max(least, int(column.nbytes))


def _is_text(dtype: Any) -> bool:
    kinds = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)
    return any(is_kind(dtype) for is_kind in kinds)


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
