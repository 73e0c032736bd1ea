"""Bodies of `POST /predict` that are tables: CSV and Arrow's IPC stream; the other settings are in the URL's query.

The columns are read as those of a file for `abstain predict`, so the rows are the same. A body may come from anybody: a
table of few bytes must not take much memory, and the offsets in an Arrow body may point anywhere.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pyarrow
import pyarrow.compute as arrow_compute
from jaxtyping import Float
from starlette.datastructures import QueryParams

from abstain.models.decisions.records import Levels
from abstain.models.errors import DataError, InputError, clip_repr, convert, drop_config_advice, suggest
from abstain.models.files.model_rows import find_unseen_texts, reshape_rows, rows_of_table
from abstain.models.files.reading import PLAIN, Reading
from abstain.models.files.row_files import read_table_bytes
from abstain.models.files.text_tables import first_line
from abstain.models.prediction.posterior import Model
from abstain.models.tables.arrow_types import text_lengths, unpacked, unpacked_type, value_type
from abstain.models.tables.encoding import ArrowTable, check_column_names
from abstain.models.tables.unseen import UnseenTexts
from abstain.service.json_objects import number_between
from abstain.service.predict.request import PredictRequest
from abstain.service.rows import dtype_of

# pyarrow ships no types.
pa: Any = pyarrow
pc: Any = arrow_compute

CSV, ARROW = "text/csv", "application/vnd.apache.arrow.stream"
MEDIA_TYPES = (CSV, ARROW)
QUERY = ("model", "percentile", "coverage", "max_error", "fields")
MOST_COLUMNS = 10_000
"""Most columns of a body, besides the model's: the reader takes kilobytes of memory for each."""
MOST_TEXT = 64 * 2**20
"""Most bytes of text of an Arrow body's columns, decoded."""
_WHERE = "body"
_DAMAGED = (pa.ArrowException, OSError, ValueError, OverflowError, MemoryError, struct.error)
"""What Arrow raises for damaged bodies, and Python for values such as a date in the year 300,000."""
_PLAIN_TYPES = tuple(
    getattr(pa.types, f"is_{kind}")
    for kind in (
        *("integer", "floating", "decimal", "boolean", "string", "large_string", "string_view", "binary_view"),
        *("binary", "large_binary", "date", "timestamp", "time", "null"),
    )
)


def parse_query(query: QueryParams) -> PredictRequest:
    """Parses the query of a request with a table as its body; `inputs` is None.

    Raises:
        InputError: a parameter is unknown, occurs twice, or has an invalid value.
    """
    given: dict[str, str] = {}
    for key, text in query.multi_items():
        if key not in QUERY:
            expected = f"one of {', '.join(QUERY)}"
            raise InputError(
                "unknown parameter",
                where="query",
                expected=expected,
                found=clip_repr(key),
                fix=suggest(key[:100], QUERY),
            )
        if key in given:
            raise InputError("duplicate parameter", where="query", expected="each once", found=clip_repr(key))
        given[key] = text
    numbers = {key: _number(text) for key, text in given.items() if key in {"percentile", "coverage", "max_error"}}
    return PredictRequest(
        inputs=None,
        plain=False,
        model=given.get("model"),
        levels=Levels(
            percentile=number_between(numbers, "percentile", 100),
            coverage=number_between(numbers, "coverage", 1),
            max_error=number_between(numbers, "max_error", 1),
        ),
        fields=tuple(given["fields"].split(",")) if "fields" in given else None,
        form="body",
    )


def _number(text: str) -> float | str:
    """Parses a number; returns other text unchanged, for the error about it."""
    try:
        return float(text) if text.isascii() and "_" not in text else text
    except ValueError:
        return text


def rows_of_body(
    body: bytes, media_type: str, model: Model, max_rows: int, reading: Reading = PLAIN
) -> tuple[Float[np.ndarray, "rows ..."], UnseenTexts]:
    """Reads a body's columns by name and returns the rows as `check_rows` does; other columns are ignored.

    Args:
        reading: the keys for reading tables, of the model's fit.

    Returns:
        The rows, and the unseen categories.

    Raises:
        InputError: the body is damaged, or a column is missing or has an invalid value; the text names row and column.
    """
    most_columns = MOST_COLUMNS + model.features
    try:
        if media_type == CSV:
            table = read_csv(body, reading, max_rows, most_columns)
        else:
            table = read_arrow(body, model.feature_names or None, max_rows, most_columns)
        rows = reshape_rows(rows_of_table(table, model, _WHERE), model, _WHERE)
        texts = find_unseen_texts(table, model, rows)
    except DataError as error:
        refused = convert(error, InputError)
        drop_config_advice(refused)
        raise refused from error
    except _DAMAGED as error:
        found = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(
            "cannot be read", where=_WHERE, expected=f"valid {media_type}", found=clip_repr(found)
        ) from error
    return rows.astype(np.float64, copy=False).astype(dtype_of(model), copy=False), texts


def _check_rows(rows: int, max_rows: int) -> None:
    if rows > max_rows:
        fix = "send them in several requests"
        raise InputError("rows", where=_WHERE, expected=f"at most {max_rows}", found=rows, fix=fix)


# ---- CSV -------------------------------------------------------------------------------------------------------------


def read_csv(body: bytes, reading: Reading, max_rows: int, most_columns: int) -> ArrowTable:
    """Reads CSV in UTF-8 as `abstain predict` reads a file, with the keys of the fit.

    Raises:
        InputError: it has too many rows or columns.
        DataError: as `read_table_bytes`.
    """
    # Each separator of the header is a column, which takes kilobytes.
    columns = 1 + max(first_line(body).count(separator) for separator in (b",", b";", b"\t", b"|"))
    if columns > most_columns:
        raise InputError("columns", where=_WHERE, expected=f"at most {most_columns:,}", found=f"{columns:,}")
    table = read_table_bytes(body, ".csv", _WHERE, reading.model_copy(update={"encoding": "utf-8"})).table
    _check_rows(table.num_rows, max_rows)
    return table


# ---- Arrow -----------------------------------------------------------------------------------------------------------


def read_arrow(body: bytes, names: tuple[str, ...] | None, max_rows: int, most_columns: int) -> ArrowTable:
    """Reads these columns of an IPC stream, all if None; their offsets are checked before any value is read.

    Raises:
        InputError: it has too many rows or columns, is compressed, or a column has a type without one value for each row.
        DataError: two columns have the same name.
        ArrowException: it is damaged.
        OSError: it is incomplete.
    """
    buffer = pa.py_buffer(body)
    _check_messages(buffer)
    with pa.ipc.open_stream(buffer) as reader:
        schema = reader.schema
        if len(schema) > most_columns:
            raise InputError("columns", where=_WHERE, expected=f"at most {most_columns:,}", found=f"{len(schema):,}")
        check_column_names(schema, _WHERE)
        wanted = [field for field in schema if names is None or field.name in names]
        for field in wanted:
            _check_type(field)
        rows, text, parts = 0, 0, list[Any]()
        for batch in reader:
            rows += batch.num_rows
            # A column of nulls takes no bytes, however many rows it claims.
            _check_rows(rows, max_rows)
            columns = [batch.column(field.name) for field in wanted] if batch.num_rows else []
            for column in columns:
                column.validate(full=True)
                text += _text_bytes(column)
                if text > MOST_TEXT:
                    raise InputError("text", where=_WHERE, expected=f"at most {MOST_TEXT:,} bytes", found="more")
            parts.append([_decoded(column) for column in columns])
    if not wanted:
        return pa.table({})
    types = [value_type(unpacked_type(field.type)) for field in wanted]
    columns = [pa.chunked_array([part[place] for part in parts if part], kind) for place, kind in enumerate(types)]
    return pa.Table.from_arrays(columns, names=[field.name for field in wanted])


def _check_type(field: Any) -> None:
    kind = value_type(field.type)
    if not any(is_kind(kind) for is_kind in _PLAIN_TYPES):
        raise InputError(
            f"column {clip_repr(field.name)}",
            where=_WHERE,
            expected="numbers, text, booleans, dates or times",
            found=clip_repr(str(field.type)),
        )


def _text_bytes(column: Any) -> int:
    lengths = text_lengths(column)
    return int((0 if lengths is None else pc.sum(lengths).as_py()) or 0)


def _decoded(column: Any) -> Any:
    """Returns a column with a value for each row in place of dictionaries and runs, and text in place of views."""
    column = unpacked(column)
    return column.dictionary.take(column.indices) if pa.types.is_dictionary(column.type) else column


def _check_messages(buffer: Any) -> None:
    """Refuses what may take a thousand times the body's bytes as soon as Arrow reads it.

    These are compressed buffers, and dictionaries that are extended batch by batch, because each batch has its own copy.
    """
    for message in pa.ipc.MessageReader.open_stream(buffer):
        if message.type not in {"record batch", "dictionary"}:
            continue
        is_dictionary = message.type == "dictionary"
        compressed, extended = _traits(message.metadata.to_pybytes(), is_dictionary=is_dictionary)
        if compressed or extended:
            raise InputError(
                where=_WHERE,
                expected="an Arrow stream without compression and delta dictionaries",
                found="compressed buffers" if compressed else "a delta dictionary",
                fix="write it with compression=None" if compressed else "write it with emit_dictionary_deltas=False",
            )


def _traits(metadata: bytes, *, is_dictionary: bool) -> tuple[bool, bool]:
    """Returns whether a message has compressed buffers, and whether it extends a dictionary.

    The metadata are a table of FlatBuffers, which Arrow has verified. Source: Arrow columnar format, Message.fbs:
    Message.header is field 2, DictionaryBatch.data 1 and isDelta 2, RecordBatch.compression 3.
    """
    header = _field(metadata, _target(metadata, 0), 2)
    if header is None:
        return False, False
    table, extended = _target(metadata, header), False
    if is_dictionary:
        delta, data = _field(metadata, table, 2), _field(metadata, table, 1)
        extended = delta is not None and metadata[delta] != 0
        if data is None:
            return False, extended
        table = _target(metadata, data)
    return _field(metadata, table, 3) is not None, extended


def _target(metadata: bytes, place: int) -> int:
    """Returns the place of the table that the offset at this place points to."""
    return place + struct.unpack_from("<I", metadata, place)[0]


def _field(metadata: bytes, table: int, number: int) -> int | None:
    """Returns the place of a table's field; None if the table does not have it."""
    fields = table - struct.unpack_from("<i", metadata, table)[0]
    entry = 4 + 2 * number
    if entry >= struct.unpack_from("<H", metadata, fields)[0]:
        return None
    place = struct.unpack_from("<H", metadata, fields + entry)[0]
    return table + place if place else None
