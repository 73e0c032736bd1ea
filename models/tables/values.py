"""The one text and the one number of a value, whichever program wrote it.

    value_text     one Python or JSON value → text of a category, class or group
    column_texts   an Arrow column          → the same texts
    date_seconds   one Python or JSON value → seconds since 1970-01-01 00:00 UTC
    date_column    an Arrow column          → the same numbers

| value | text |
|---|---|
| true, in a text column also `True`, `TRUE` | `true` |
| 2, 2.0, decimal 2.00, the texts `2`, `2.0` | `2`: pandas writes whole numbers with gaps as 2.0 |
| 0.1 in float64 or float32, `0.10`, `1e-01` | `0.1` |
| a date, a time at midnight without an offset | `2024-03-01` |
| other times | `2024-03-01T10:00:00`; with an offset in UTC, `2024-03-01T08:00:00Z` |
| text, bytes of UTF-8 | the text without blanks at its ends; `007`, `1E5` and `+1` stay as they are |
| null, NaN, an empty cell | None: a missing value |
"""

from __future__ import annotations

import datetime
import decimal
import math
import re
import uuid
from typing import Any, cast

import numpy as np
import pyarrow
import pyarrow.compute as arrow_compute
from jaxtyping import Float

from abstain.models.errors import DataError, clip_repr
from abstain.models.tables.dates import (
    ISO_EXAMPLES,
    Moment,
    arrow_moments,
    arrow_unit,
    clock_text,
    moment_of,
    moment_text,
    parse_moment,
    seconds_of,
)

# pyarrow ships no types.
pa: Any = pyarrow
pc: Any = arrow_compute
ArrowColumn = Any
ArrowType = Any
# Any, because the type checker cannot know the precision of numpy's scalars.
_INTEGERS: Any = (int, np.integer)
_FLOATS: Any = (float, np.floating)
_DATES: Any = (datetime.date, np.datetime64)
NUMPY_FLOATS: Any = np.floating

MISSING_NUMBERS = frozenset(
    ("", "NA", "N/A", "n/a", "#N/A", "#NA", "<NA>", "null", "NULL", "None", "nan", "NaN", "NAN", "NaT", "?", "-", ".")
)
"""Cells that no number and no date can be, and that many programs write for a missing one. In a column of categories they
are categories, except for the empty cell: NA is a country."""
_WORDS = {"True": "true", "TRUE": "true", "False": "false", "FALSE": "false"}
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-][0-9]{1,3})?")
_CLOCK = re.compile(r"[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{1,9}")
_LONGEST_NUMBER = 400
"""Longer texts of digits are no numbers that a program writes; they stay as they are."""
_LARGEST_INTEGER = 10**_LONGEST_NUMBER
_OTHER_DATE = (
    "write the dates in this form, or list the column in data.categorical or data.drop; the same holds for a column of "
    "numbers or text that is listed in data.dates"
)


class UnreadableValue(ValueError):
    """A value that has no text or no date: `expected` and `found` are words for the error of the caller."""

    def __init__(self, expected: str, found: str) -> None:
        super().__init__(f"expected {expected}, found {found}")
        self.expected, self.found = expected, found


# ---- texts -----------------------------------------------------------------------------------------------------------


def value_text(value: object) -> str | None:
    """Returns the one text of a value; None for a missing value.

    Args:
        value: a value of JSON, or a scalar of Python or numpy.

    Raises:
        UnreadableValue: it is a list, a table or another object without a text, or bytes that are not UTF-8.
    """
    if value is None or isinstance(value, str):
        return canonical_text(value) if value else None
    return _scalar_text(value)


def _scalar_text(value: Any) -> str | None:
    if isinstance(value, bool | np.bool_):
        return "true" if value else "false"
    if isinstance(value, _INTEGERS):
        if abs(int(value)) >= _LARGEST_INTEGER:
            raise UnreadableValue(f"a number of at most {_LONGEST_NUMBER} digits", "a longer one")
        return str(int(value))
    if isinstance(value, _FLOATS):
        return _float_text(value)
    if isinstance(value, decimal.Decimal):
        return None if value.is_nan() else _number_text(str(value))
    if isinstance(value, bytes):
        return canonical_text(decoded(value))
    if isinstance(value, _DATES):
        return moment_text(moment_of(value)) if _is_present(value) else None
    if isinstance(value, datetime.time):
        return clock_text(value.hour * 3600 + value.minute * 60 + value.second, 1000 * value.microsecond)
    if isinstance(value, uuid.UUID):
        return str(value)
    raise UnreadableValue("text, a number, true or false", f"a value of type {type(value).__name__}")


def canonical_text(text: str) -> str | None:
    """Returns the one text of a cell of text; None if it is empty. Applied twice, it changes nothing more."""
    text = text.strip()
    if not text:
        return None
    if text in _WORDS:
        return _WORDS[text]
    if "0" <= text[0] <= "9" or text[0] == "-":
        if _NUMBER.fullmatch(text):
            return _number_text(text)
        moment = parse_moment(text)
        if moment is not None:
            return moment_text(moment)
        if _CLOCK.fullmatch(text):
            return text.rstrip("0").rstrip(".")
    return text


def _number_text(text: str) -> str:
    """Writes a decimal number without an exponent, and without zeros at the end of its fraction; exact."""
    if len(text) > _LONGEST_NUMBER:
        return text
    if not text.lstrip("-").isdigit():
        number = decimal.Decimal(text)
        if not number.is_finite() or abs(number.adjusted()) > _LONGEST_NUMBER:
            return text
        text = format(number, "f")
        text = text.rstrip("0").rstrip(".") if "." in text else text
    return "0" if text == "-0" else text


def _float_text(value: Any) -> str | None:
    if math.isnan(value):
        return None
    # str of a numpy number is the shortest decimal that reads back as this float, in its own precision.
    return _number_text(str(value) if isinstance(value, NUMPY_FLOATS) else repr(value))


def decoded(value: bytes) -> str:
    """Decodes UTF-8.

    Raises:
        UnreadableValue: the bytes are not UTF-8.
    """
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UnreadableValue("text in UTF-8", clip_repr(value)) from error


def _is_present(value: Any) -> bool:
    # NaT of pandas and of numpy differs from itself; pandas' is an instance of datetime.
    return bool(value == value)  # noqa: PLR0124


def column_texts(values: ArrowColumn, name: str, where: str) -> list[str | None]:
    """Returns the one text of every cell; equal cells share one text, so long texts need memory once.

    Raises:
        DataError: the column has a type without texts, such as lists, or bytes that are not UTF-8.
    """
    distinct, codes = _distinct(values, name, where)
    words: list[str | None] = []
    for number, value in enumerate(_scalars(distinct, name, where)):
        try:
            words.append(moment_text(value) if isinstance(value, Moment) else value_text(value))
        except UnreadableValue as error:
            words.append(None)
            if number in codes:
                raise _wrong_cell(name, where, codes.index(number), error.expected, error.found) from error
    return [None if code is None else words[code] for code in codes]


def distinct_cells(values: ArrowColumn, name: str, where: str) -> tuple[list[Any], list[int | None]]:
    """Returns the different values of a column, and for every row the place of its value; None for a missing value.

    Text that is not UTF-8 stays bytes. Dates and timestamps are `Moment`s.

    Raises:
        DataError: the column has a type that cannot be read.
    """
    distinct, codes = _distinct(values, name, where)
    return _scalars(distinct, name, where), codes


def _distinct(values: ArrowColumn, name: str, where: str) -> tuple[ArrowColumn, list[int | None]]:
    """Encodes a column as a dictionary: its different values as one array, and their places."""
    values = plain_column(values, name, where)
    if pa.types.is_null(values.type):
        return pa.nulls(0), [None] * len(values)
    encoded = values if pa.types.is_dictionary(values.type) else pc.dictionary_encode(values)
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.unify_dictionaries().combine_chunks()
    return plain_column(encoded.dictionary, name, where), encoded.indices.to_pylist()


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
        if pa.types.is_string_view(value_type) or pa.types.is_binary_view(value_type):
            return pc.cast(pc.cast(values, value_type), pa.large_binary())
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


def _scalars(values: ArrowColumn, name: str, where: str) -> list[Any]:
    """Returns the values of an array as Python values of `value_text`, or `Moment`s."""
    dtype = values.type
    if pa.types.is_null(dtype):
        return [None] * len(values)
    if pa.types.is_dictionary(dtype):
        raise DataError(f"column {name!r}", where=where, expected="values", found="a dictionary of dictionaries")
    if is_moment(dtype):
        return arrow_moments(values)
    if pa.types.is_floating(dtype):
        return list(values.to_numpy(zero_copy_only=False))  # numpy's own types keep the precision of float32
    if pa.types.is_time(dtype):
        unit = {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}[dtype.unit]
        numbers = values.cast(pa.int32() if dtype.bit_width == 32 else pa.int64()).to_pylist()
        return [None if number is None else _clock(number * unit) for number in numbers]
    if is_text(dtype):
        # As bytes, because a text of a file may be no UTF-8, and pyarrow would raise for all of them.
        binary = values if pa.types.is_fixed_size_binary(dtype) else pc.cast(values, pa.large_binary())
        return binary.to_pylist()
    return values.to_pylist()


def _clock(nanoseconds: int) -> str:
    return clock_text(nanoseconds // 10**9, nanoseconds % 10**9)


# ---- dates -----------------------------------------------------------------------------------------------------------


def date_moment(value: Any) -> Moment | None:
    """Returns the moment of a date; None for a missing value.

    Args:
        value: a text of ISO 8601, or a date or datetime of Python, pandas or numpy.

    Raises:
        UnreadableValue: it is another type, or a text in another notation.
    """
    if isinstance(value, Moment) or value is None:
        return value
    if isinstance(value, bytes):
        value = decoded(value)
    if isinstance(value, str):
        text = value.strip()
        moment = parse_moment(text)
        if moment is None and text not in MISSING_NUMBERS:
            raise UnreadableValue(ISO_EXAMPLES, clip_repr(value))
        return moment
    if isinstance(value, _DATES):
        return moment_of(value) if _is_present(value) else None
    if isinstance(value, float) and math.isnan(value):
        return None
    raise UnreadableValue(ISO_EXAMPLES, clip_repr(value))


def date_seconds(value: object) -> float:
    """Returns seconds since 1970-01-01 00:00 UTC; NaN for a missing value. Arguments and errors as `date_moment`."""
    moment = date_moment(value)
    return math.nan if moment is None else moment.seconds


def date_column(values: ArrowColumn, name: str, where: str) -> Float[np.ndarray, " rows"]:
    """Converts a column of dates to seconds since 1970-01-01 00:00 UTC, with missing values as NaN.

    Raises:
        DataError: a cell is no date, or some times have an offset from UTC and others have none; the text names the row.
    """
    values = plain_column(values, name, where)
    dtype = values.type
    if is_moment(dtype):
        unit = arrow_unit(dtype)
        whole = pc.cast(pc.cast(values, pa.int32()) if unit == "D" else values, pa.int64())
        numbers = np.asarray(pc.fill_null(whole, 0).to_numpy(zero_copy_only=False), dtype=np.int64)
        gaps = np.asarray(pc.is_null(values).to_numpy(zero_copy_only=False), dtype=bool)
        return np.where(gaps, math.nan, seconds_of(numbers, unit))
    distinct, codes = distinct_cells(values, name, where)
    moments: list[Moment | None] = []
    for number, value in enumerate(distinct):
        try:
            moments.append(date_moment(value))
        except UnreadableValue as error:
            moments.append(None)
            if number in codes:
                row = codes.index(number)
                raise _wrong_cell(name, where, row, error.expected, error.found, _OTHER_DATE) from error
    _check_offsets(moments, codes, name, where)
    seconds = [math.nan if moment is None else moment.seconds for moment in moments]
    return np.array([math.nan if code is None else seconds[code] for code in codes], dtype=np.float64)


def _check_offsets(moments: list[Moment | None], codes: list[int | None], name: str, where: str) -> None:
    used = {code for code in codes if code is not None and moments[code] is not None}
    offsets = {code: cast("Moment", moments[code]).offset for code in used}
    if len(set(offsets.values())) < 2:
        return
    first = next(code for code in codes if code in offsets)
    row = next(row for row, code in enumerate(codes) if code in offsets and offsets[code] != offsets[first])
    words = {True: "a time with an offset", False: "a time without one"}
    raise DataError(
        f"column {name!r} mixes times with and without an offset from UTC",
        where=f"{where}, row {row}",
        expected=words[offsets[first]].replace("without one", "without an offset") + ", as in the rows before",
        found=words[not offsets[first]].replace("without one", "without an offset"),
        fix="write every time with an offset, or none; a time without an offset counts as UTC",
    )


def _wrong_cell(name: str, where: str, row: int, expected: str, found: str, fix: str | None = None) -> DataError:
    return DataError(
        f"column {name!r}",
        where=f"{where}, row {row}",
        expected=expected,
        found=found,
        fix=fix or "correct the cell, or list the column in data.drop",
    )
