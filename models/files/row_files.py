"""The files that rows come in, for training and for offline scoring: .npz arrays, .csv and .parquet tables.

Everything here only reads and refuses; nothing is unpickled, and no NaN or infinity gets past `checked_inputs`.

A small file may hold more than any memory does: what its rows take is known from its headers, and counted again while
they are read. More than `data_limit` is refused.
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
from abstain.models.prediction.preprocessing import ArrowTable, check_column_names

# pyarrow ships no types.
pa: Any = pyarrow
pc: Any = arrow_compute
csv: Any = arrow_csv
parquet: Any = arrow_parquet

TABLES = {".csv", ".parquet"}
DATA_BYTES = "ABSTAIN_DATA_BYTES"
DEFAULT_DATA_BYTES = 4 * 2**30
LINE_BYTES = 16 * 2**20
"""Of a line of a .csv file, the header's among them, with the line breaks within its quotes."""
CELL_BYTES = 8
"""Of a cell of a table, at least: it becomes a float64. The bytes of text come on top."""
COLUMN_BYTES = 4096
"""That the readers of tables take for a column, however few rows there are."""
_PLAIN = "an .npz of plain arrays"
_NPY_HEADER_BYTES = 16_384
"""More than any header that numpy reads has."""
_BATCH_CELLS = 2**22


def data_limit(environ: Mapping[str, str]) -> int:
    """The bytes that the rows of one source may take in memory: 4 GiB, or `ABSTAIN_DATA_BYTES`.

    Raises:
        ConfigError: the variable is no whole number above 0.
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
    """Refuses rows that take more than `data_limit`; returns what all take together.

    Args:
        needed: bytes in memory.
        already: bytes that the source's other rows take.

    Raises:
        DataError: saying how much they take, the limit, and how to raise it.
    """
    limit = data_limit(os.environ)
    if needed + already > limit:
        raise DataError(
            f"{what} take too much memory",
            where=where,
            expected=f"at most {limit:,} bytes",
            found=f"{needed + already:,} bytes or more",
            fix=f"give fewer rows or columns; or, if this machine has several times that memory, set {DATA_BYTES} higher",
        )
    return needed + already


def check_is_file(path: Path) -> None:
    """Refuses what must not even be opened: to open a named pipe may wait for ever.

    Raises:
        DataError: a folder, a named pipe, a socket or a device lies there.
    """
    found = not_a_file(path)
    if found:
        raise DataError("cannot be read", where=str(path), expected="a file", found=found)


# ---- .npz ------------------------------------------------------------------------------------------------------------


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz file, by name.

    Raises:
        DataError: there is no such file, it is no .npz, an array in it would have to be unpickled, or they take more
            than `data_limit`.
    """
    check_is_file(path)
    try:
        _check_members(path)
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: np.asanyarray(file[name]) for name in file.files}
    except FileNotFoundError as error:
        raise DataError("no such file or embedded set", where=str(path)) from error
    except AbstainError:
        raise
    except Exception as error:  # zipfile, zlib and numpy raise a dozen kinds for a damaged file.
        # numpy recommends unpickling where it finds no array; nobody should.
        found = "no archive, or Python objects in it" if "pickle" in str(error) else str(error)
        raise DataError("cannot be read", where=str(path), expected=_PLAIN, found=found) from error
    for name, array in arrays.items():
        # numpy hands out the bytes of a member that is no array.
        if array.dtype.hasobject or (array.dtype.kind == "S" and not array.shape):
            raise DataError("cannot be read", where=f"{path}, {name}", expected=_PLAIN, found="something else")
    return arrays


def _check_members(path: Path) -> None:
    """Refuses an archive whose headers claim more than its members hold, or than memory may be taken by.

    A compressed member is never read beyond the size that the archive's directory states for it, so that size and the
    array's own header are all there is to check.
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
    """Holds an array's header against the bytes there are; returns what all arrays up to this one take.

    Raises:
        DataError: they take more than `data_limit`.
        ValueError: the header is damaged, or claims another number of bytes.
    """
    stream = io.BytesIO(head)
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    # A header of version 3 is one of version 2 in UTF-8, which only names of fields need, and no rows have fields.
    if version not in {(1, 0), (2, 0), (3, 0)}:
        raise ValueError(f"version {version} of the array format")
    shape, _, dtype = read(stream)
    if dtype.hasobject:
        raise ValueError("Python objects in it, which only pickle reads")
    claimed, held = dtype.itemsize * math.prod(shape), size - stream.tell()
    if claimed != held or not dtype.itemsize or any(length < 0 for length in shape):
        raise ValueError(f"{held:,} bytes for {dtype} {shape} in {Path(where).name}, which needs {claimed:,}")
    # An axis of length 0 hides what the others claim, and they may be walked along.
    return check_room(dtype.itemsize * math.prod(length or 1 for length in shape), where, "the array's numbers", taken)


# ---- tables ----------------------------------------------------------------------------------------------------------


def read_table(path: Path) -> ArrowTable:
    """A .csv or .parquet file.

    Raises:
        DataError: it cannot be read, has no rows or two columns of one name, or takes more than `data_limit`.
    """
    check_is_file(path)
    try:
        table = _read_csv(path) if path.suffix == ".csv" else _read_parquet(path)
        _ = table.column_names  # decoded only when asked for
    except (OSError, pa.ArrowException, ValueError, MemoryError) as error:
        if isinstance(error, FileNotFoundError):
            raise DataError(
                "cannot be read", where=str(path), found="No such file or directory", fix="check the path"
            ) from error
        found = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError("cannot be read", where=str(path), found=found) from error
    if not table.num_rows:
        raise DataError("rows", where=str(path), expected="at least one", found="an empty set")
    return table


def _read_csv(path: Path) -> ArrowTable:
    _check_width(path)
    try:
        # As text: a category must not change its name with the company it keeps (01 among numbers is 1).
        # Line breaks in quotes are allowed: only so does the reader notice a quote that is never closed.
        with csv.open_csv(
            path,
            read_options=csv.ReadOptions(block_size=LINE_BYTES),
            parse_options=csv.ParseOptions(newlines_in_values=True),
            convert_options=csv.ConvertOptions(
                default_column_type=pa.string(), strings_can_be_null=True, null_values=[""]
            ),
        ) as reader:
            check_column_names(reader.schema, str(path))
            table = _gathered(reader, reader.schema, str(path))
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
            fix="close the quote, or double it where it is part of the text",
        )
    return table


def _check_width(path: Path) -> None:
    """Refuses a header of more columns than memory may be taken by; the reader makes room for each of them at once."""
    with path.open("rb") as file:
        head = file.read(LINE_BYTES).partition(b"\n")[0]
    check_room(COLUMN_BYTES * (head.count(b",") + 1), str(path), "the columns")


def _is_too_long(error: Exception, path: Path) -> bool:
    """Whether the reader found no end of a line in its block; of the header it only says that the block has no column."""
    said = str(error)
    if "cannot infer number of columns" in said:
        with path.open("rb") as file:
            head = file.read(LINE_BYTES)
        return len(head) == LINE_BYTES or b'"' in head
    return "straddling object" in said or "out of sync with chunker" in said


def _ends_within_quotes(table: ArrowTable, path: Path) -> bool:
    """Whether the file's last cell holds line breaks, and no quote closes it: the reader takes the end of the file for one."""
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
        check_room(_stated(file), str(path))
    nested = {field.name for field in schema if pa.types.is_nested(field.type)}
    flat = pa.schema([field for field in schema if field.name not in nested])
    # Text is read as a dictionary and its codes: some bytes of a file may stand for gigabytes of one long text.
    texts = [field.name for field in flat if _is_text(field.type)]
    with parquet.ParquetFile(path, metadata=metadata, read_dictionary=texts) as file:
        batch_rows = max(1, min(2**16, _BATCH_CELLS // max(len(flat), 1)))
        batches = file.iter_batches(batch_size=batch_rows, columns=flat.names if nested else None)
        table = _gathered(batches, flat, str(path))
    # A nested column is no feature, whatever is in it: it is there to be dropped, or refused by its type.
    for place, field in enumerate(schema):
        if field.name in nested:
            table = table.add_column(place, field, pa.nulls(table.num_rows, field.type))
    return table


def _stated(file: Any) -> int:
    """Bytes that a parquet file's footer says its columns take, at least: read, or unpacked."""
    metadata, schema = file.metadata, file.schema
    widths = [max(CELL_BYTES, schema.column(place).length or 0) for place in range(metadata.num_columns)]
    cells, unpacked = metadata.num_rows * sum(widths), 0
    for number in range(metadata.num_row_groups):
        unpacked += max(metadata.row_group(number).total_byte_size, 0)
    return max(cells, unpacked, COLUMN_BYTES * metadata.num_columns)


def _gathered(batches: Iterator[Any], schema: Any, where: str) -> ArrowTable:
    """Batches as a table of that schema, text decoded only once it is known to fit."""
    taken, parts = 0, list[Any]()
    for batch in batches:
        taken = check_room(sum(map(_bytes_of, batch.columns)), where, already=taken)
        columns = [batch.column(field.name) for field in schema]
        columns = [column.cast(column_type) for column, column_type in zip(columns, schema.types, strict=True)]
        parts.append(pa.RecordBatch.from_arrays(columns, schema=schema))
    return pa.Table.from_batches(parts, schema)


def _bytes_of(column: Any) -> int:
    """What a column takes as float64, or as text; of a dictionary and its codes, what it takes decoded."""
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
    """Numbers `[rows, …features]`, a feature axis added where there is none, all within float32's range.

    Raises:
        DataError: naming the row and feature at fault.
    """
    if x.ndim < 1 or x.dtype.kind not in "iufb":
        raise DataError("inputs", where=where, expected="numbers [rows, …features]", found=f"{x.dtype} {x.shape}")
    x = x[:, None] if x.ndim == 1 else x
    x = x.astype(np.uint8) if x.dtype == bool else x
    if 0 in x.shape[1:]:
        raise DataError(where, expected="at least one feature", found=f"shape {x.shape}")
    if np.issubdtype(x.dtype, np.floating):
        fits = np.isfinite(x) & (np.abs(x) <= np.finfo(np.float32).max)
        if not fits.all():
            place = tuple(int(i) for i in np.argwhere(~fits)[0])
            raise DataError(
                f"row {place[0]}, feature {list(place[1:])}", where=where, expected="a finite number", found=x[place]
            )
    return x
