"""Preprocessing as part of the model: from a row on the scale of the training arrays to the network's input.

Training fits it once, the manifest stores it as numbers and names, and it runs inside the compiled call. It takes numbers
only: `encode_table` turns a table's categories into codes and missing values into NaN on the host.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import pyarrow
import pyarrow.compute as arrow_compute
from jaxtyping import Array, Float, Int, Num
from pydantic import BaseModel, ConfigDict

from abstain.models.errors import DataError, clip_repr

# pyarrow ships no types.
pa: Any = pyarrow
pc: Any = arrow_compute
ArrowTable = Any
ArrowSchema = Any
ArrowColumn = Any


FAR = 1e10
"""`bounded` compresses preprocessed inputs beyond this size: far outside any training row, far below overflow."""

# Common words for a missing number. In a column of categories they are categories: NA is a country.
_NO_NUMBER = ("", "NA", "N/A", "n/a", "null", "NULL", "None", "nan", "NaN", "NAN")
_OTHER_COLUMN = (
    "if it holds names, list it in data.categorical; if dates or times, set data.time to it; if ids, list it in data.drop, "
    "or set data.group to it if rows of one id belong together"
)


class Column(BaseModel):
    """One column of a table: its name, its categories (empty if numeric), and the replacement of a missing value."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str
    categories: tuple[str, ...] = ()
    missing: float = math.nan
    """The value, or the category's code, that replaces a missing value; NaN before the fit."""


class Preprocessing(BaseModel):
    """`(x − shift) / scale`, missing values filled and categories one-hot encoded; and the scale of a regression target.

    `shift` and `scale` hold one number for all features, or one for each. `columns` is empty unless the data is a table.

    `origin` and `unit` are used only for features that float32 cannot represent exactly enough, such as seconds since 1970. Then
    the compiled program takes `(x − origin) / unit`, which `on_host` computes in float64, and `shift` and `scale` apply to
    these numbers. `Column.missing` stays on the scale of the data.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    shift: tuple[float, ...] = (0.0,)
    scale: tuple[float, ...] = (1.0,)
    columns: tuple[Column, ...] = ()
    target_shift: float = 0.0
    target_scale: float = 1.0
    origin: tuple[float, ...] = ()
    unit: tuple[float, ...] = ()
    float64_target: bool = False
    """Whether `target_shift` and `target_scale` are applied on the host in float64: to targets such as 1.7e9 ± 10 or
    1e-20, which float32 would round to one number, or with a variance that it cannot represent."""


def on_host(preprocessing: Preprocessing, rows: Num[np.ndarray, "rows ..."]) -> Num[np.ndarray, "rows ..."]:
    """Returns the input of the compiled program: `(rows − origin) / unit` in float32, or `rows` without an `origin`.

    Args:
        rows: on the scale of the data; must be float64 if there is an `origin`, because float32 has lost the digits.
    """
    if not preprocessing.origin:
        return rows
    shape = rows.shape[1:] if len(preprocessing.origin) > 1 else ()
    origin, unit = (np.reshape(values, shape) for values in (preprocessing.origin, preprocessing.unit))
    largest = float(np.finfo(np.float32).max)
    # A row far outside must get a large number, not an infinite one.
    with np.errstate(over="ignore"):
        return np.clip((rows.astype(np.float64) - origin) / unit, -largest, largest).astype(np.float32)


def in_data_units(
    preprocessing: Preprocessing, numbers: Float[np.ndarray, "*rows features"]
) -> Float[np.ndarray, "*rows features"]:
    """Inverts `on_host`: returns the numbers on the scale of the data."""
    if not preprocessing.origin:
        return numbers
    return numbers * np.asarray(preprocessing.unit) + np.asarray(preprocessing.origin)


def transform(preprocessing: Preprocessing, x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Returns the network's input for one row: standardised numeric features, then one-hot blocks of the categories.

    Args:
        x: one row as `on_host` returns it, float32. NaN means a missing value, only in tables.
    """
    columns = preprocessing.columns
    if columns:
        missing = on_host(preprocessing, np.array([[column.missing for column in columns]]))[0]
        x = jnp.where(jnp.isnan(x), jnp.asarray(missing, x.dtype), x)
    numbers = bounded((x - _per_feature(preprocessing.shift, x.shape)) / _per_feature(preprocessing.scale, x.shape))
    if not any(column.categories for column in columns):
        return numbers
    counts = _category_counts(columns)
    # One comparison for all categories: one for each of many columns would take minutes to compile.
    owners = np.repeat(np.arange(len(columns)), counts)
    codes = np.arange(len(owners)) - np.repeat(np.cumsum(counts) - counts, counts)
    ones = (x.astype(jnp.int32)[owners] == codes).astype(jnp.float32)
    return jnp.concatenate([numbers[np.flatnonzero(counts == 0)], ones])


def _category_counts(columns: tuple[Column, ...]) -> Int[np.ndarray, " columns"]:
    """Returns the number of categories of each column; 0 if it is numeric."""
    return np.array([len(column.categories) for column in columns], int)


def bounded(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Returns `x` up to `FAR`, and sign(x) · `FAR` · (1 + log(|x| / `FAR`)) beyond it: at most 67 times `FAR`.

    Without a bound, a network's outputs or their squares would overflow float32 for a row of 1e30, so its prediction would
    not be finite. Unlike a clip, the logarithm keeps such rows in order of their distance.
    """
    size = jnp.clip(jnp.abs(x), FAR, np.finfo(np.float32).max)
    return jnp.where(jnp.abs(x) > FAR, jnp.sign(x) * FAR * (1 + jnp.log(size / FAR)), x)


def transformed_shape(preprocessing: Preprocessing, feature_shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the shape of `transform`'s result for a row of shape `feature_shape`."""
    widths = [len(column.categories) or 1 for column in preprocessing.columns]
    return (sum(widths),) if widths else feature_shape


def _per_feature(values: tuple[float, ...], shape: tuple[int, ...]) -> Array:
    return jnp.asarray(values, jnp.float32).reshape(shape if len(values) > 1 else ())


def first_unknown_code(preprocessing: Preprocessing, rows: Num[np.ndarray, "rows ..."]) -> tuple[int, int] | None:
    """Returns row and column of a number that is not a code of its column's categories; None if there is none."""
    counts = _category_counts(preprocessing.columns)
    categorical = np.flatnonzero(counts)
    if not categorical.size:
        return None
    codes = rows[:, categorical]
    known = np.isnan(codes) | ((codes >= 0) & (codes < counts[categorical]) & (codes == np.floor(codes)))
    if known.all():
        return None
    column = int(np.argmin(known.all(axis=0)))
    return int(np.argmin(known[:, column])), int(categorical[column])


def describe_codes(column: Column) -> str:
    """Returns, for an error, what a column of categories may hold: `a category's code (0 = Bonn, 1 = Ulm)`."""
    codes = ", ".join(f"{code} = {name}" for code, name in enumerate(column.categories))
    return f"a category's code ({codes})"


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

    Raises:
        DataError: a column is missing, or contains text instead of numbers, an infinity, or an unknown category.
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
    encoded = np.array([math.nan if text is None else codes.get(text, -1.0) for text in texts])
    unknown = np.flatnonzero(encoded == -1)
    if unknown.size:
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
