"""Reads Arrow's tables: .parquet files, and Arrow IPC files and streams (.arrow, .feather).

Every column's memory is counted before it is decoded, because a small file may hold one long text very often.
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow
import pyarrow.compute as arrow_compute
import pyarrow.ipc as arrow_ipc
import pyarrow.parquet as arrow_parquet

from abstain.models.errors import DataError
from abstain.models.files.ipc_claims import claimed_bytes
from abstain.models.files.reading import FileDialect
from abstain.models.files.room import check_room
from abstain.models.tables.arrow_types import is_nested, is_text, text_lengths, unpacked, unpacked_type, value_type
from abstain.models.tables.encoding import ArrowTable, check_column_names

# pyarrow ships no types.
pa: Any = pyarrow
pc: Any = arrow_compute
ipc: Any = arrow_ipc
parquet: Any = arrow_parquet

CELL_BYTES = 8
"""Least memory of a table's cell, which becomes a float64; for text, its bytes are added."""
COLUMN_BYTES = 4096
"""Memory that the readers of tables take for each column, however few rows there are."""
_MAGIC = b"ARROW1"


class TableFile(NamedTuple):
    """The table of a file, notes on what its reader detected, and for a text table how it is written."""

    table: ArrowTable
    notes: tuple[str, ...] = ()
    dialect: FileDialect | None = None


def read_parquet(path: Path) -> TableFile:
    """Reads a .parquet file, column by column; raises as `read_table`."""
    with parquet.ParquetFile(path) as file:
        metadata, schema = file.metadata, file.schema_arrow
        check_column_names(schema, str(path))
        check_room(_stated_bytes(file), str(path))
    nested = {field.name for field in schema if is_nested(field.type)}
    flat = pa.schema([field for field in schema if field.name not in nested])
    # Text is read as a dictionary and codes: a small file may contain one long text so often that it takes gigabytes.
    texts = [field.name for field in flat if is_text(field.type) and not pa.types.is_fixed_size_binary(field.type)]
    options = {"metadata": metadata, "read_dictionary": texts, "page_checksum_verification": True}
    with parquet.ParquetFile(path, **options) as file:
        taken, columns = 0, list[Any]()
        # Column by column, because the footer may state smaller sizes than the columns have.
        for field in flat:
            batches = file.iter_batches(batch_size=2**16, columns=[field.name])
            part, taken = join_batches(batches, pa.schema([field]), str(path), taken)
            columns += part.columns
    table = pa.Table.from_arrays(columns, schema=flat)
    # A nested column cannot be a feature. Its values are not read: the column is dropped, or refused because of its type.
    for index, field in enumerate(schema):
        if field.name in nested:
            table = table.add_column(index, field, pa.nulls(metadata.num_rows, field.type))
    return TableFile(table)


def _stated_bytes(file: Any) -> int:
    """Returns the least number of bytes that a parquet file's columns take, decompressed, according to its footer."""
    metadata, schema = file.metadata, file.schema
    widths = [max(CELL_BYTES, schema.column(index).length or 0) for index in range(metadata.num_columns)]
    cells, unpacked = metadata.num_rows * sum(widths), 0
    for number in range(metadata.num_row_groups):
        unpacked += max(metadata.row_group(number).total_byte_size, 0)
    return max(cells, unpacked, COLUMN_BYTES * metadata.num_columns)


def join_batches(batches: Iterable[Any], schema: Any, where: str, taken: int = 0) -> tuple[ArrowTable, int]:
    """Joins batches to a table of this schema; decodes text only after checking its size.

    Args:
        taken: the bytes that other columns of the file take.

    Returns:
        The table, and the bytes taken with it.
    """
    parts: list[Any] = []
    for batch in batches:
        # A run or a missing value takes no bytes, however many rows it stands for.
        check_room(CELL_BYTES * batch.num_rows * batch.num_columns, where, already=taken)
        taken = check_room(sum(map(_bytes_of, batch.columns)), where, already=taken)
        columns = [unpacked(batch.column(field.name)) for field in schema]
        columns = [column.cast(column_type) for column, column_type in zip(columns, schema.types, strict=True)]
        parts.append(pa.RecordBatch.from_arrays(columns, schema=schema))
    return pa.Table.from_batches(parts, schema), taken


def _bytes_of(column: Any) -> int:
    """Returns the memory of a column as float64 or text; for dictionaries, runs and views, that of the text of each row."""
    least, dtype = CELL_BYTES * len(column), column.type
    if value_type(dtype) is dtype and not (pa.types.is_string_view(dtype) or pa.types.is_binary_view(dtype)):
        return least + int(column.nbytes) if is_text(dtype) else max(least, int(column.nbytes))
    lengths = text_lengths(column)
    return least + int((0 if lengths is None else pc.sum(lengths).as_py()) or 0)


def read_arrow(file: io.BufferedIOBase, where: str) -> TableFile:
    """Reads an Arrow IPC file or stream; raises as `read_table`.

    A file is a stream between a mark and a footer, so both are read as streams.
    """
    start = file.read(8)
    if start.startswith(b"FEA1"):
        fix = "save it again with a newer library: as Arrow IPC (Feather version 2), or as .parquet"
        raise DataError("cannot be read", where=where, expected="Arrow IPC", found="Feather version 1", fix=fix)
    begin = 8 if start.startswith(_MAGIC) else 0
    file.seek(begin)
    _check_claims(file, where)
    file.seek(begin)
    with ipc.open_stream(file) as reader:
        schema = reader.schema
        check_column_names(schema, where)
        check_room(COLUMN_BYTES * len(schema), where, "the columns")
        nested = {field.name for field in schema if is_nested(field.type)}
        flat = pa.schema([(field.name, unpacked_type(field.type)) for field in schema if field.name not in nested])
        table, _ = join_batches(_checked_batches(reader), flat, where)
    for index, field in enumerate(schema):
        if field.name in nested:
            table = table.add_column(index, field, pa.nulls(table.num_rows, field.type))
    return TableFile(table)


def _check_claims(file: io.BufferedIOBase, where: str) -> None:
    """Refuses a stream whose messages claim more memory than `data_limit`, before anything is unpacked."""
    taken = 0
    for message in ipc.MessageReader.open_stream(file):
        taken = check_room(claimed_bytes(message), where, already=taken)


def _checked_batches(reader: Any) -> Iterable[Any]:
    """Yields the batches of a stream, each after a check of its offsets: a damaged one could point outside its buffers."""
    for batch in reader:
        batch.validate(full=True)
        yield batch
