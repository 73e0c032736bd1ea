"""Arrow's types of columns: which can be read, and rare ones as common ones."""

from __future__ import annotations

import uuid
from typing import Any

import pyarrow
import pyarrow.compute as arrow_compute

from abstain.models.errors import DataError, clip_repr

# pyarrow ships no types.
pa: Any = pyarrow
pc: Any = arrow_compute
ArrowColumn = Any
ArrowType = Any


def plain_column(values: ArrowColumn, name: str, where: str) -> ArrowColumn:
    """Converts rare Arrow types to common ones: views to text, small decimals to large ones, extensions to their storage.

    Raises:
        DataError: the type holds lists, durations, or values of a library that is not known here.
    """
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
    elif pa.types.is_string_view(dtype):
        return pc.cast(values, pa.large_string())
    elif pa.types.is_binary_view(dtype):
        return pc.cast(values, pa.large_binary())
    elif pa.types.is_decimal(dtype) and dtype.bit_width < 128:
        return pc.cast(values, pa.decimal128(dtype.precision, dtype.scale))
    elif pa.types.is_dictionary(dtype):
        value_type = dtype.value_type
        if pa.types.is_null(value_type) or is_plain(value_type):
            return values
    elif pa.types.is_null(dtype) or is_plain(dtype):
        return values
    raise DataError(
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
