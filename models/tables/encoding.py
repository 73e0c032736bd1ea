"""Encodes columns of a table as numbers: categories as codes, dates as seconds, missing values as NaN."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow
import pyarrow.compute as arrow_compute
from jaxtyping import Float

from abstain.models.errors import DataError, clip_repr
from abstain.models.tables.columns import UNSEEN, Column

# pyarrow ships no types.
pa: Any = pyarrow
pc: Any = arrow_compute
ArrowTable = Any
ArrowSchema = Any
ArrowColumn = Any

# Common words for a missing number. In a column of categories they are categories: NA is a country.
_NO_NUMBER = ("", "NA", "N/A", "n/a", "null", "NULL", "None", "nan", "NaN", "NAN")
_OTHER_COLUMN = (
    "if it holds names, list it in data.categorical; if dates or times, set data.time to it; if ids, list it in data.drop, "
    "or set data.group to it if rows of one id belong together"
)


def check_columns(names: Sequence[str], table: ArrowTable, where: str) -> None:
    """Refuses a table without one of these columns.

    Raises:
        DataError: names the missing columns.
    """
    present = set(table.column_names)
    missing = [name for name in names if name not in present]
    if missing:
        raise DataError(
            "columns are missing",
            where=where,
            expected=", ".join(missing),
            found=", ".join(table.column_names),
            fix="add the columns, or rename them as in the fit",
        )


def encode_table(columns: tuple[Column, ...], table: ArrowTable, where: str) -> Float[np.ndarray, "rows columns"]:
    """Encodes columns of a table as float64 rows: numbers unchanged, categories as codes, missing values as NaN.

    An unseen category is `UNSEEN`, NaN, or refused, as `Column.unseen` says.

    Raises:
        DataError: a column is missing, or contains text instead of numbers, an infinity, or a category that is refused.
    """
    check_column_names(table.schema, where)
    check_columns([column.name for column in columns], table, where)
    encoded = [encode_column(column, table.column(column.name), where) for column in columns]
    return np.stack(encoded, axis=1) if encoded else np.empty((table.num_rows, 0))


def check_column_names(schema: ArrowSchema, where: str) -> None:
    """Refuses two columns with the same name.

    Raises:
        DataError: names the column.
    """
    names: list[str] = schema.names
    name, count = Counter(names).most_common(1)[0] if names else ("", 0)
    if count > 1:
        raise DataError(
            f"column {clip_repr(name)}",
            where=where,
            expected="one column of that name",
            found=count,
            fix="rename or remove the others",
        )


def encode_column(column: Column, values: ArrowColumn, where: str) -> Float[np.ndarray, " rows"]:
    """Encodes one column as `encode_table` does."""
    if not column.categories:
        return numeric_column(values, column.name, where)
    texts = category_texts(values)
    codes = {category: float(code) for code, category in enumerate(column.categories)}
    absent = math.nan if column.unseen == "missing" else UNSEEN
    encoded = np.array([math.nan if text is None else codes.get(text, absent) for text in texts])
    unknown = np.flatnonzero(encoded == UNSEEN)
    if unknown.size and column.unseen == "refuse":
        row = int(unknown[0])
        raise DataError(
            f"column {column.name!r} holds a category the model was not trained on",
            where=f"{where}, row {row}",
            expected=f"one of {', '.join(column.categories)}",
            found=clip_repr(texts[row]),
            fix="correct the category, or fit again with rows of it",
        )
    return encoded


def numeric_column(values: ArrowColumn, name: str, where: str, fix: str = _OTHER_COLUMN) -> Float[np.ndarray, " rows"]:
    """Converts a column to float64, with missing values (null, or NaN) as NaN.

    Args:
        fix: the advice of the error for a column of text.

    Raises:
        DataError: a value is not a number, or infinite; the text names its row.
    """
    dtype: Any = values.type
    if pa.types.is_string(dtype) or pa.types.is_large_string(dtype):
        values = _parse(values, name, where, fix)
    elif not (pa.types.is_integer(dtype) or pa.types.is_floating(dtype) or pa.types.is_null(dtype)):
        raise _no_number(name, where, 0, f"values of type {dtype}", fix)
    numbers = np.asarray(pc.cast(values, pa.float64(), safe=False).to_numpy(zero_copy_only=False), dtype=np.float64)
    outside = np.flatnonzero(np.abs(numbers) > np.finfo(np.float32).max)
    if outside.size:
        row = int(outside[0])
        expected = "a number within float32's range"
        raise DataError(
            f"column {name!r}",
            where=f"{where}, row {row}",
            expected=expected,
            found=numbers[row],
            fix="replace the value, or leave the cell empty",
        )
    return numbers


def _parse(values: ArrowColumn, name: str, where: str, fix: str) -> ArrowColumn:
    """Parses text as numbers; empty cells become null."""
    trimmed = pc.utf8_trim_whitespace(values)
    trimmed = pc.if_else(pc.is_in(trimmed, pa.array(_NO_NUMBER, trimmed.type)), pa.scalar(None, trimmed.type), trimmed)
    try:
        return pc.cast(trimmed, pa.float64())
    except pa.ArrowInvalid:
        texts: list[str | None] = trimmed.to_pylist()
        row = next(row for row, text in enumerate(texts) if not _is_number(text))
        raise _no_number(name, where, row, clip_repr(texts[row]), fix) from None


def _is_number(text: str | None) -> bool:
    try:
        pc.cast(pa.scalar(text, pa.string()), pa.float64())
    except pa.ArrowInvalid:
        return False
    return True


def _no_number(name: str, where: str, row: int, found: str, fix: str) -> DataError:
    return DataError(
        f"column {name!r} must be numeric",
        where=f"{where}, row {row}",
        expected="a number, or an empty cell",
        found=found,
        fix=fix,
    )


def category_texts(values: ArrowColumn) -> list[str | None]:
    """Returns the cells as text, None for a missing value: `1` and `"1"` are one category in columns of all types.

    Equal cells share one text, so a column of repeated long texts needs memory only for its distinct texts.
    """
    try:
        encoded = values if pa.types.is_dictionary(values.type) else pc.dictionary_encode(values)
        if isinstance(encoded, pa.ChunkedArray):
            encoded = encoded.unify_dictionaries().combine_chunks()
    except pa.ArrowNotImplementedError:  # for types without equality
        return [_text(value) for value in values.to_pylist()]
    words = [_text(value) for value in encoded.dictionary.to_pylist()]
    return [None if code is None else words[code] for code in encoded.indices.to_pylist()]


def _text(value: object) -> str | None:
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)
