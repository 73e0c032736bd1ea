"""Preprocessing as part of the model: from a row on the scale of the training arrays to the network's input.

Training fits it once, the manifest stores it as numbers and names, and it runs inside the compiled call. It takes numbers
only: `models/tables/encoding.py` makes them of a table's cells on the host.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Num
from pydantic import BaseModel, ConfigDict

from abstain.models.tables.columns import UNSEEN, Column
from abstain.models.tables.unseen import rejecting_columns

FAR = 1e10
"""`bounded` compresses preprocessed inputs beyond this size: far outside any training row, far below overflow."""


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

    The block of an unseen category is all zeros: none of the categories.

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


def find_unseen(preprocessing: Preprocessing, rows: Float[Array, "batch ..."]) -> Bool[Array, "batch rejecting"] | None:
    """Returns which cells have an unseen category that rejects the row; None if no column can have one.

    Args:
        rows: as `on_host` returns them, which does not change codes.

    Returns:
        One column for each of `rejecting_columns`.
    """
    indices = rejecting_columns(preprocessing.columns)
    return rows[:, np.array(indices)] == UNSEEN if indices else None


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
