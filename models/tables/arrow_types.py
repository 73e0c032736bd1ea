"""Arrow's types of columns: which can be read, and rare ones as common ones."""

from __future__ import annotations

import uuid
from typing import Any

import numpy as np
import pyarrow
import pyarrow.compute as arrow_compute

from abstain.models.errors import DataError, clip_repr

# pyarrow ships no types.
pa: Any = pyarrow
pc: Any = arrow_compute
ArrowColumn = Any
ArrowType = Any


def value_type(dtype: ArrowType) -> ArrowType:
    """Returns the type of the values of a dictionary or of runs, at any depth; another type as it is."""
    while pa.types.is_dictionary(dtype) or pa.types.is_run_end_encoded(dtype):
        dtype = dtype.value_type
    return dtype


def is_nested(dtype: ArrowType) -> bool:
    """Whether a cell of a type holds several values; the values of a dictionary or of runs are single ones."""
    return bool(pa.types.is_nested(value_type(dtype)))


def unpacked(values: ArrowColumn) -> ArrowColumn:
    """Returns a column without runs and views, also in dictionaries: a value for each row, and text.

    The caller has checked the number of rows and the bytes of text (`text_lengths`): a few runs may stand for very many rows.
    """
    if isinstance(values, pa.ChunkedArray):
        chunks = [unpacked(chunk) for chunk in values.chunks]
        return pa.chunked_array(chunks, chunks[0].type) if chunks else pa.chunked_array([], unpacked_type(values.type))
    dtype = values.type
    if pa.types.is_run_end_encoded(dtype):
        return unpacked(values.values).take(_places(values))
    if pa.types.is_dictionary(dtype):
        inner = unpacked(values.dictionary)
        if pa.types.is_dictionary(inner.type):
            return inner.take(values.indices)
        return values if inner.type == dtype.value_type else pa.DictionaryArray.from_arrays(values.indices, inner)
    return values if unpacked_type(dtype) == dtype else pc.cast(values, unpacked_type(dtype))


def unpacked_type(dtype: ArrowType) -> ArrowType:
    """Returns the type of a column of a type after `unpacked`."""
    inner = value_type(dtype)
    if pa.types.is_string_view(inner) or pa.types.is_binary_view(inner):
        inner = pa.large_string() if pa.types.is_string_view(inner) else pa.large_binary()
    return pa.dictionary(dtype.index_type, inner) if pa.types.is_dictionary(dtype) else inner


def _places(values: ArrowColumn) -> ArrowColumn:
    """Returns for each row of runs the place of its value."""
    places = pa.array(np.arange(len(values.values)))
    # The last run may end after the last row, so that only a slice has the right number of rows.
    return pc.run_end_decode(
        pa.RunEndEncodedArray.from_arrays(values.run_ends, places).slice(values.offset, len(values))
    )


def text_lengths(values: ArrowColumn) -> ArrowColumn | None:
    """Returns the bytes of each cell's text, null for a missing value; None for other types.

    Many cells of a dictionary, of runs or of a view may stand for the same bytes.
    """
    dtype = values.type
    if pa.types.is_run_end_encoded(dtype):
        lengths = text_lengths(values.values)
        return None if lengths is None else lengths.take(_places(values))
    if pa.types.is_dictionary(dtype):
        lengths = text_lengths(values.dictionary)
        return None if lengths is None else lengths.take(values.indices)
    if pa.types.is_string_view(dtype) or pa.types.is_binary_view(dtype):
        # The first four bytes of each view are the length; there is no kernel for it.
        views = np.frombuffer(values.buffers()[1] if len(values) else b"", np.int32).reshape(-1, 4)
        return pa.array(views[values.offset : values.offset + len(values), 0].astype(np.int64))
    if is_text(dtype) and not pa.types.is_fixed_size_binary(dtype):
        return pc.binary_length(values).cast(pa.int64())
    return None


def plain_column(values: ArrowColumn, name: str, where: str) -> ArrowColumn:
    """Converts rare Arrow types to common ones: views to text, small decimals to large ones, extensions to their storage.

    Raises:
        DataError: the type holds lists, durations, or values of a library that is not known here.
    """
    if is_nested(values.type):
        raise _unreadable(values.type, name, where)
    values = unpacked(values)
    dtype: ArrowType = values.type
    if isinstance(dtype, pa.BaseExtensionType):
        storage = pc.cast(values, dtype.storage_type)
        if dtype.extension_name == "arrow.bool8":
            return pc.not_equal(storage, 0)
        if dtype.extension_name == "arrow.uuid":
            texts = [None if value is None else str(uuid.UUID(bytes=value)) for value in storage.to_pylist()]
            return pa.array(texts, pa.string())
        if dtype.extension_name == "arrow.json":
            return plain_column(storage, name, where)
    elif pa.types.is_decimal(dtype) and dtype.bit_width < 128:
        return pc.cast(values, pa.decimal128(dtype.precision, dtype.scale))
    elif pa.types.is_dictionary(dtype):
        if pa.types.is_null(dtype.value_type) or is_plain(dtype.value_type):
            return values
    elif pa.types.is_null(dtype) or is_plain(dtype):
        return values
    raise _unreadable(dtype, name, where)


def _unreadable(dtype: ArrowType, name: str, where: str) -> DataError:
    return DataError(
        f"column {name!r} cannot be read",
        where=where,
        expected="numbers, text, booleans, decimals, dates or times",
        found=f"values of type {clip_repr(str(dtype))[1:-1]}",
        fix="convert the column, such as a duration to seconds, or list it in data.drop",
    )


def is_text(dtype: ArrowType) -> bool:
    """Whether an Arrow type holds text, or bytes that are read as text."""
    types = pa.types
    return bool(
        types.is_string(dtype)
        or types.is_large_string(dtype)
        or types.is_binary(dtype)
        or types.is_large_binary(dtype)
        or types.is_fixed_size_binary(dtype)
    )


def is_plain(dtype: ArrowType) -> bool:
    """Whether an Arrow type is a number, text, a boolean, a decimal, a date or a time."""
    types = pa.types
    return bool(
        is_text(dtype)
        or types.is_boolean(dtype)
        or types.is_integer(dtype)
        or types.is_floating(dtype)
        or types.is_decimal(dtype)
        or is_moment(dtype)
        or types.is_time(dtype)
    )


def is_moment(dtype: ArrowType) -> bool:
    """Whether an Arrow type holds dates or timestamps."""
    return bool(pa.types.is_date(dtype) or pa.types.is_timestamp(dtype))
