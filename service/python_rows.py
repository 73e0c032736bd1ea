"""Rows that come from Python or from a table, and not in a body: checked as those of `POST /predict` are.

An array and a list of lists have the errors of a request (`inputs[3][5]: expected a number, found null`). A table's
columns are found by their names, its categories are text, and its errors name the column and the row.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import chain
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np
import pyarrow
from jaxtyping import Float, Num

from abstain.models.errors import DataError, InputError
from abstain.models.files.row_files import checked_inputs
from abstain.models.prediction.posterior import Model
from abstain.models.prediction.preprocessing import ArrowTable, check_column_names, encode_table, numeric_column
from abstain.service.rows import check_rows, dtype_of, in_feature_shape, refuse_unknown_codes

# pyarrow ships no types.
pa: Any = pyarrow


@runtime_checkable
class Table(Protocol):
    """A table of any library that speaks Arrow: a DataFrame of pandas or of Polars, a table of pyarrow."""

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        """The table's columns, by the Arrow PyCapsule interface."""
        ...


@runtime_checkable
class ArrayLike(Protocol):
    """What numpy can make an array of: an array of numpy, of JAX or of PyTorch."""

    def __array__(self, dtype: Any = None) -> Any:
        """The array."""
        ...


Rows = Table | ArrayLike | Sequence[Any]
"""What rows may come in."""


def rows_of(given: object, model: Model) -> Float[np.ndarray, "rows ..."]:
    """The rows in the model's feature shape; a row of an image may be nested or flat.

    As float32; as float64 for a model that takes an offset off on the host.

    Args:
        given: an array, nested lists, or a table.

    Raises:
        InputError: naming the row and the feature of an array or of lists that is wrong.
        DataError: naming the column and the row of a table that is wrong.
    """
    if isinstance(given, Table) and _is_frame(given):
        return _rows_of_frame(given, model)
    if isinstance(given, np.ma.MaskedArray):
        # As lists it has None where a number is masked; as an array, the number that nobody is to see.
        return _rows_of_lists(cast("Any", given).tolist(), model)
    if isinstance(given, ArrayLike):
        return _rows_of_array(_as_array(given), model)
    return _rows_of_lists(given, model)


# ---- arrays and lists ------------------------------------------------------------------------------------------------


def _as_array(given: ArrayLike) -> np.ndarray:
    try:
        return np.asarray(given)
    except (TypeError, ValueError, RuntimeError) as error:
        # PyTorch refuses a tensor on a device, or one that takes part in a gradient.
        name = f"{type(given).__name__} ({error})"
        raise InputError("inputs", expected="an array, a list of rows, or a table", found=name) from error


def _rows_of_array(array: np.ndarray, model: Model) -> Float[np.ndarray, "rows ..."]:
    """All numbers at once; where one of them must be refused, the walk through lists finds it and names it."""
    dtype = dtype_of(model)
    if array.dtype.kind in "iuf" and array.ndim > 1 and len(array):
        with np.errstate(over="ignore"):
            # By way of float64, as the numbers of JSON: an integer beyond 2⁵³ would be rounded otherwise.
            exact = array if array.dtype == dtype else array.astype(np.float64, copy=False)
            rows = in_feature_shape(exact.astype(dtype, copy=False), model)
        if rows is not None:
            refuse_unknown_codes(rows, model)
            return rows
    return _rows_of_lists(array.tolist(), model)


def _rows_of_lists(given: object, model: Model) -> Float[np.ndarray, "rows ..."]:
    deepest = len(model.feature_shape) + 1
    plain = _numbers_alone(given, deepest)
    inputs = given if plain else _as_lists(given, deepest)
    plain = plain or _numbers_alone(inputs, deepest)
    rows = len(cast("list[Any]", inputs)) if isinstance(inputs, list) else 0
    return check_rows(inputs, plain, model, max_rows=rows)


def _numbers_alone(given: object, deepest: int) -> bool:
    """Whether the cells of nested lists are all numbers of Python, and no bool, which numpy would take for a number."""
    cells: list[Any] = [given]
    kinds = {type(given)}
    for _ in range(deepest):
        if kinds != {list}:
            break
        cells = list(chain.from_iterable(cells))
        kinds = set(map(type, cells))
    return kinds <= {int, float}


def _as_lists(given: object, deepest: int) -> object:
    """Tuples, arrays and numbers of numpy as what JSON has in their place; anything else as it is."""
    if isinstance(given, np.ndarray | np.generic):
        return cast("Any", given).tolist()
    if deepest < 0 or not isinstance(given, tuple | list):
        return given
    return [_as_lists(cell, deepest - 1) for cell in cast("list[Any]", given)]


# ---- tables ----------------------------------------------------------------------------------------------------------


def rows_of_table(table: ArrowTable, model: Model, where: str) -> Num[np.ndarray, "rows ..."]:
    """A table's columns by name; columns of a model fitted on arrays are its feature names, or all of them in order.

    Args:
        where: what an error calls the table.

    Raises:
        DataError: a column is missing or holds what does not belong there.
    """
    if model.preprocessing.columns:
        return encode_table(model.preprocessing.columns, table, where)
    names: tuple[str, ...] = model.feature_names or tuple(table.column_names)
    absent = [name for name in names if name not in table.column_names]
    if absent:
        raise DataError(
            "columns are missing", where=where, expected=", ".join(absent), found=", ".join(table.column_names)
        )
    rows = np.stack([numeric_column(table.column(name), name, where) for name in names], axis=1)
    return checked_inputs(rows, where)


def shaped(rows: Num[np.ndarray, "rows ..."], model: Model, where: str) -> Num[np.ndarray, "rows ..."]:
    """Rows of a file or of a table in the model's feature shape.

    Raises:
        DataError: there are none, or they have another number of features.
    """
    if not len(rows):
        raise DataError("rows", where=where, expected="at least one", found="an empty set")
    if rows.shape[1:] not in {model.feature_shape, (model.features,)}:
        raise DataError("rows", where=where, expected=f"shape {model.feature_shape}", found=f"shape {rows.shape[1:]}")
    return rows.reshape(len(rows), *model.feature_shape)


def _is_frame(given: Table) -> bool:
    """Whether it has columns with names; a Series speaks Arrow, too."""
    return hasattr(given, "columns") or hasattr(given, "column_names")


def _rows_of_frame(given: Table, model: Model) -> Float[np.ndarray, "rows ..."]:
    where = type(given).__name__
    table = _arrow_table(given, where)
    if not table.num_columns or not table.num_rows:
        found = f"{table.num_rows} rows of {table.num_columns} columns"
        raise DataError("rows", where=where, expected="at least one row and one column", found=found)
    rows = shaped(rows_of_table(table, model, where), model, where)
    return rows.astype(np.float64, copy=False).astype(dtype_of(model), copy=False)


def _arrow_table(given: Table, where: str) -> ArrowTable:
    """The table as one of pyarrow; of pandas without its index, which is no column."""
    try:
        if is_pandas(given):
            check_pandas_names(given, where)
            return pa.Table.from_pandas(given, preserve_index=False)
        table = pa.table(given)
    except (pa.ArrowException, TypeError, ValueError) as error:
        found = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError("cannot be read", where=where, expected="columns of numbers or text", found=found) from error
    check_column_names(table.schema, where)
    return table


def is_pandas(given: object) -> bool:
    """Whether it is a DataFrame of pandas, which is not imported to find out: who has one has imported it."""
    pandas: Any = sys.modules.get("pandas")
    return pandas is not None and isinstance(given, pandas.DataFrame)


def check_pandas_names(frame: Any, where: str) -> None:
    """Refuses two columns of one name before pyarrow does, which does not say what to do.

    Raises:
        DataError: naming the column.
    """
    names = [str(name) for name in frame.columns]
    check_column_names(pa.schema([(name, pa.null()) for name in names]), where)
