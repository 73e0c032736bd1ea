"""Preprocessing as part of the model: from a row on the scale of the training arrays to what the network sees.

It is fitted once by training, kept as plain numbers and names in the manifest, and runs inside the compiled call.
A table's text never reaches it: `encode_table` turns categories into their codes and gaps into NaN on the host.
"""

from __future__ import annotations

import math
from collections import Counter
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
"""Preprocessed inputs beyond this size are compressed by `bounded`: far beyond any training row, far below overflow."""

# What people write for a number that is not there. A category of such a name is a category: NA is a country.
_NO_NUMBER = ("", "NA", "N/A", "n/a", "null", "NULL", "None", "nan", "NaN", "NAN")
_OTHER_COLUMN = (
    "if it holds names, list it in data.categorical; if dates or times, set data.time to it; if ids, list it in data.drop, "
    "or set data.group to it where rows of one id belong together"
)


class Column(BaseModel):
    """One column of a table: its name, its categories (none: it is numeric), and what stands in for a gap."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str
    categories: tuple[str, ...] = ()
    missing: float = math.nan
    """The value, or the category's code, that replaces a missing cell; NaN before it is fitted."""


class Preprocessing(BaseModel):
    """`(x − shift) / scale`, gaps filled and categories one-hot encoded; and the scale of a regression target.

    `shift` and `scale` hold one number for all features, or one for each. `columns` is empty unless the data is a table.

    `origin` and `unit` are empty but for features that float32 cannot hold as they are, such as seconds since 1970. Then
    the compiled program is given `(x − origin) / unit`, computed on the host in float64 by `on_host`, and `shift` and
    `scale` are those of these numbers. Column.missing stays on the scale of the data.
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
    1e-20, which float32 would round to one number, or whose variance it cannot hold."""


def on_host(preprocessing: Preprocessing, rows: Num[np.ndarray, "rows ..."]) -> Num[np.ndarray, "rows ..."]:
    """The numbers that the compiled program is given, to be cast to float32: `rows` themselves but for an `origin`.

    Args:
        rows: on the scale of the data; float64 where there is an origin, for float32 has lost its digits already.
    """
    if not preprocessing.origin:
        return rows
    shape = rows.shape[1:] if len(preprocessing.origin) > 1 else ()
    origin, unit = (np.reshape(terms, shape) for terms in (preprocessing.origin, preprocessing.unit))
    largest = float(np.finfo(np.float32).max)
    # A row far outside is to be called strange, not infinite.
    with np.errstate(over="ignore"):
        return np.clip((rows.astype(np.float64) - origin) / unit, -largest, largest).astype(np.float32)


def in_data_units(
    preprocessing: Preprocessing, numbers: Float[np.ndarray, "*rows features"]
) -> Float[np.ndarray, "*rows features"]:
    """What `on_host` makes these numbers of."""
    if not preprocessing.origin:
        return numbers
    return numbers * np.asarray(preprocessing.unit) + np.asarray(preprocessing.origin)


def transform(preprocessing: Preprocessing, x: Float[Array, "..."]) -> Float[Array, "..."]:
    """What the network sees of one row: the standardised numeric features, then a one-hot block per category.

    Args:
        x: one row as `on_host` gives it, float32. NaN marks a gap, and only in tables.
    """
    columns = preprocessing.columns
    if columns:
        missing = on_host(preprocessing, np.array([[column.missing for column in columns]]))[0]
        x = jnp.where(jnp.isnan(x), jnp.asarray(missing, x.dtype), x)
    numbers = bounded((x - _per_feature(preprocessing.shift, x.shape)) / _per_feature(preprocessing.scale, x.shape))
    if not any(column.categories for column in columns):
        return numbers
    counts = _category_counts(columns)
    # One comparison for all categories: one for each column would take minutes to compile where columns are many.
    owners = np.repeat(np.arange(len(columns)), counts)
    codes = np.arange(len(owners)) - np.repeat(np.cumsum(counts) - counts, counts)
    ones = (x.astype(jnp.int32)[owners] == codes).astype(jnp.float32)
    return jnp.concatenate([numbers[np.flatnonzero(counts == 0)], ones])


def _category_counts(columns: tuple[Column, ...]) -> Int[np.ndarray, " columns"]:
    """How many categories each column has; 0: it is numeric."""
    return np.array([len(column.categories) for column in columns], int)


def bounded(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """`x` itself up to `FAR`, and beyond it sign(x) · `FAR` · (1 + log(|x| / `FAR`)): at most 67 times `FAR`.

    Without a bound the outputs of a network, or their squares, overflow float32 for a row of 1e30, and the row has no
    finite answer. The logarithm keeps such rows in order of their distance, which a clip would not.
    """
    size = jnp.clip(jnp.abs(x), FAR, np.finfo(np.float32).max)
    return jnp.where(jnp.abs(x) > FAR, jnp.sign(x) * FAR * (1 + jnp.log(size / FAR)), x)


def transformed_shape(preprocessing: Preprocessing, feature_shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of `transform`'s answer for a row of shape `feature_shape`."""
    widths = [len(column.categories) or 1 for column in preprocessing.columns]
    return (sum(widths),) if widths else feature_shape


def _per_feature(values: tuple[float, ...], shape: tuple[int, ...]) -> Array:
    return jnp.asarray(values, jnp.float32).reshape(shape if len(values) > 1 else ())


def first_unknown_code(preprocessing: Preprocessing, rows: Num[np.ndarray, "rows ..."]) -> tuple[int, int] | None:
    """Row and column of the first number that is no code of its column's categories; None if all are."""
    counts = _category_counts(preprocessing.columns)
    categorical = np.flatnonzero(counts)
    if not categorical.size:
        return None
    codes = rows[:, categorical]
    known = np.isnan(codes) | ((codes >= 0) & (codes < counts[categorical]) & (codes == np.floor(codes)))
    if known.all():
        return None
    place = int(np.argmin(known.all(axis=0)))
    return int(np.argmin(known[:, place])), int(categorical[place])


def encode_table(columns: tuple[Column, ...], table: ArrowTable, where: str) -> Float[np.ndarray, "rows columns"]:
    """A table's named columns as float64 rows: numbers as they are, categories as their codes, gaps as NaN.

    Raises:
        DataError: a column is missing, holds text where numbers belong, an infinity, or a category never seen.
    """
    check_column_names(table.schema, where)
    present = set(table.column_names)
    absent = [column.name for column in columns if column.name not in present]
    if absent:
        raise DataError(
            "columns are missing", where=where, expected=", ".join(absent), found=", ".join(table.column_names)
        )
    encoded = [encode_column(column, table.column(column.name), where) for column in columns]
    return np.stack(encoded, axis=1) if encoded else np.empty((table.num_rows, 0))


def check_column_names(schema: ArrowSchema, where: str) -> None:
    """Refuses two columns of one name.

    Raises:
        DataError: naming the column.
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
    """One column of `encode_table`."""
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
        )
    return encoded


def numeric_column(values: ArrowColumn, name: str, where: str, fix: str = _OTHER_COLUMN) -> Float[np.ndarray, " rows"]:
    """A column as float64, gaps (null, or NaN) as NaN; text that is no number and infinities are refused by row.

    Args:
        fix: what to do about a column of text.
    """
    dtype: Any = values.type
    if pa.types.is_string(dtype) or pa.types.is_large_string(dtype):
        values = _parsed(values, name, where, fix)
    elif not (pa.types.is_integer(dtype) or pa.types.is_floating(dtype) or pa.types.is_null(dtype)):
        raise _no_number(name, where, 0, f"values of type {dtype}", fix)
    found = np.asarray(pc.cast(values, pa.float64(), safe=False).to_numpy(zero_copy_only=False), dtype=np.float64)
    outside = np.flatnonzero(np.abs(found) > np.finfo(np.float32).max)
    if outside.size:
        row = int(outside[0])
        expected = "a number within float32's range"
        raise DataError(f"column {name!r}", where=f"{where}, row {row}", expected=expected, found=found[row])
    return found


def _parsed(values: ArrowColumn, name: str, where: str, fix: str) -> ArrowColumn:
    """Text as numbers; empty cells as gaps."""
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
    """The cells as text, None for a gap: `1` and `"1"` are one category, however a file types the column.

    Equal cells share one text: a column of long texts that repeat takes no more memory than its different ones.
    """
    try:
        encoded = values if pa.types.is_dictionary(values.type) else pc.dictionary_encode(values)
        if isinstance(encoded, pa.ChunkedArray):
            encoded = encoded.unify_dictionaries().combine_chunks()
    except pa.ArrowNotImplementedError:  # of types that have no equality
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
