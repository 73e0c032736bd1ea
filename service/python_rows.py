"""Checks rows from Python or from a table, in the same way as those of `POST /predict`.

The errors of an array or of nested lists are those of a request (`inputs[3][5]: expected a number, found null`). A table's
columns are found by their names, its categories are text, and its errors name the column and the row.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from datetime import date
from decimal import Decimal
from itertools import chain
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np
import pyarrow
from jaxtyping import Float

from abstain.models.errors import DataError, InputError
from abstain.models.files.model_rows import find_unseen_texts, reshape_rows, rows_of_table
from abstain.models.prediction.posterior import Model
from abstain.models.tables.dates import moment_text
from abstain.models.tables.encoding import ArrowTable, check_column_names
from abstain.models.tables.unseen import NO_TEXTS, UnseenTexts, count_unseen
from abstain.models.tables.values import NUMPY_FLOATS, UnreadableValue, date_moment
from abstain.service.records import rows_of_records, unseen_texts
from abstain.service.rows import check_rows, dtype_of, in_feature_shape, refuse_unknown_codes

# pyarrow ships no types.
pa: Any = pyarrow
# Any, because the type checker cannot know the precision of numpy's scalars.
_NUMPY: Any = np.generic
_NUMPY_DATE: Any = np.datetime64


@runtime_checkable
class Table(Protocol):
    """A table of any library with Arrow's interface: a DataFrame of pandas or Polars, a table of pyarrow."""

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        """Returns the table's columns through the Arrow PyCapsule interface."""
        ...


@runtime_checkable
class ArrayLike(Protocol):
    """A value that numpy can convert to an array: an array of numpy, JAX or PyTorch."""

    def __array__(self, dtype: Any = None) -> Any:
        """Returns the array."""
        ...


Rows = Table | ArrayLike | Sequence[Any] | Sequence[Mapping[str, Any]]
"""The accepted types of rows."""


def rows_of(inputs: object, model: Model) -> Float[np.ndarray, "rows ..."]:
    """Checks rows and returns them in the model's feature shape; an image row may be nested or flat.

    The result is float32, or float64 for a model that subtracts an offset on the host.

    Args:
        inputs: an array, nested lists, records (dicts with a key for each column), or a table.

    Raises:
        InputError: names the invalid row and column of an array, of lists or of records.
        DataError: names the invalid column and row of a table.
    """
    if _are_records(inputs):
        return _rows_of_records(cast("Sequence[Any]", inputs), model)
    if isinstance(inputs, Table) and _is_frame(inputs):
        return _rows_of_frame(inputs, model)
    if isinstance(inputs, np.ma.MaskedArray):
        # Lists have None for a masked number; an array would have the masked number itself.
        return _rows_of_lists(cast("Any", inputs).tolist(), model)
    if isinstance(inputs, ArrayLike):
        return _rows_of_array(_as_array(inputs), model)
    return _rows_of_lists(inputs, model)


def unseen_texts_of(inputs: object, model: Model, rows: Float[np.ndarray, "rows ..."]) -> UnseenTexts:
    """Returns the unseen categories of records or a table; none for arrays and lists, which hold codes.

    Args:
        rows: the result of `rows_of`.
    """
    if _are_records(inputs):
        records = cast("Sequence[Any]", inputs)
        return unseen_texts(rows, model, lambda row, name: _json_value(records[row][name], True))
    if not (count_unseen(model.preprocessing.columns, rows) and isinstance(inputs, Table) and _is_frame(inputs)):
        return NO_TEXTS
    return find_unseen_texts(_arrow_table(inputs, type(inputs).__name__), model, rows)


# ---- arrays and lists ------------------------------------------------------------------------------------------------


def _as_array(inputs: ArrayLike) -> np.ndarray:
    try:
        return np.asarray(inputs)
    except (TypeError, ValueError, RuntimeError) as error:
        # PyTorch refuses a tensor on a device, or one with a gradient.
        name = f"{type(inputs).__name__} ({error})"
        raise InputError("inputs", expected="an array, a list of rows, or a table", found=name) from error


def _rows_of_array(array: np.ndarray, model: Model) -> Float[np.ndarray, "rows ..."]:
    """Converts all numbers at once; if one may be invalid, checks each cell, so that the error can name it."""
    dtype = dtype_of(model)
    if array.dtype.kind in "iuf" and array.ndim > 1 and len(array):
        with np.errstate(over="ignore"):
            # First to float64, as numbers in JSON, so that integers beyond 2⁵³ are rounded in the same way.
            exact = array if array.dtype == dtype else array.astype(np.float64, copy=False)
            rows = in_feature_shape(exact.astype(dtype, copy=False), model)
        if rows is not None:
            refuse_unknown_codes(rows, model)
            return rows
    return _rows_of_lists(array.tolist(), model)


def _rows_of_lists(inputs: object, model: Model) -> Float[np.ndarray, "rows ..."]:
    depth = len(model.feature_shape) + 1
    plain = _has_only_numbers(inputs, depth)
    lists = inputs if plain else _as_lists(inputs, depth)
    plain = plain or _has_only_numbers(lists, depth)
    rows = len(cast("list[Any]", lists)) if isinstance(lists, list) else 0
    return check_rows(lists, plain, model, max_rows=rows)


def _has_only_numbers(inputs: object, depth: int) -> bool:
    """Whether all cells of nested lists are Python numbers; a bool is not, although numpy would convert it to a number."""
    cells: list[Any] = [inputs]
    types = {type(inputs)}
    for _ in range(depth):
        if types != {list}:
            break
        cells = list(chain.from_iterable(cells))
        types = set(map(type, cells))
    return types <= {int, float}


def _as_lists(inputs: object, depth: int) -> object:
    """Converts tuples, arrays and numpy numbers to lists and Python numbers; returns other values unchanged."""
    if isinstance(inputs, np.ndarray | np.generic):
        return cast("Any", inputs).tolist()
    if depth < 0 or not isinstance(inputs, tuple | list):
        return inputs
    return [_as_lists(cell, depth - 1) for cell in cast("list[Any]", inputs)]


# ---- records ---------------------------------------------------------------------------------------------------------


def _are_records(inputs: object) -> bool:
    rows = cast("Sequence[Any]", inputs) if isinstance(inputs, list | tuple) else ()
    return bool(rows) and isinstance(rows[0], Mapping)


def _rows_of_records(inputs: Sequence[Any], model: Model) -> Float[np.ndarray, "rows ..."]:
    """Checks records as those of a request; in Python, NaN is a missing value, and a date may be a date or datetime."""
    categories = {column.name for column in model.preprocessing.columns if column.categories}
    records = [
        {key: _json_value(value, key in categories) for key, value in cast("Mapping[str, Any]", record).items()}
        if isinstance(record, Mapping)
        else record
        for record in inputs
    ]
    return rows_of_records(records, False, model, max_rows=len(records))


def _json_value(value: Any, is_category: bool) -> Any:
    """Converts a value of Python, numpy or pandas to the JSON value that means the same; returns other values unchanged.

    A category keeps its text: the float32 0.1 is `0.1`, and a number has all of its digits. A number keeps its value.
    """
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, (date, _NUMPY_DATE)):
        try:
            # None for NaT, which pandas makes an instance of datetime.
            moment = date_moment(value)
        except UnreadableValue:
            return value
        return moment and moment_text(moment)
    if isinstance(value, float):  # also numpy's float64
        return None if math.isnan(value) else float(value)
    if isinstance(value, NUMPY_FLOATS):
        return None if math.isnan(value) else float(str(value) if is_category else value)
    if isinstance(value, _NUMPY):
        return value.item()
    if isinstance(value, Decimal):
        return None if value.is_nan() else str(value) if is_category else float(value)
    pandas: Any = sys.modules.get("pandas")
    return None if pandas is not None and value is pandas.NA else value


# ---- tables ----------------------------------------------------------------------------------------------------------


def _is_frame(table: Table) -> bool:
    """Whether a table has named columns; a Series has Arrow's interface, too, but no columns."""
    return hasattr(table, "columns") or hasattr(table, "column_names")


def _rows_of_frame(frame: Table, model: Model) -> Float[np.ndarray, "rows ..."]:
    where = type(frame).__name__
    table = _arrow_table(frame, where)
    if not table.num_columns or not table.num_rows:
        found = f"{table.num_rows} rows of {table.num_columns} columns"
        raise DataError("rows", where=where, expected="at least one row and one column", found=found)
    rows = reshape_rows(rows_of_table(table, model, where), model, where)
    return rows.astype(np.float64, copy=False).astype(dtype_of(model), copy=False)


def _arrow_table(frame: Table, where: str) -> ArrowTable:
    """Converts a table to pyarrow; the index of pandas is not a column."""
    try:
        if is_pandas(frame):
            check_pandas_names(frame, where)
            return _of_pandas(frame)
        table = pa.table(frame)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        found = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError("cannot be read", where=where, expected="columns of numbers or text", found=found) from error
    check_column_names(table.schema, where)
    return table


def _of_pandas(frame: Any) -> ArrowTable:
    """Converts a DataFrame of pandas; integers beyond 64 bits, which no type of Arrow's integers holds, become text."""
    try:
        return pa.Table.from_pandas(frame, preserve_index=False)
    except OverflowError:
        objects = frame.select_dtypes("object")
        texts = {name: objects[name].map(_as_text) for name in objects}
        return pa.Table.from_pandas(frame.assign(**texts), preserve_index=False)


def _as_text(cell: object) -> object:
    return str(cell) if type(cell) is int else cell


def is_pandas(frame: object) -> bool:
    """Whether a value is a pandas DataFrame; does not import pandas, because every program with a DataFrame has imported it."""
    pandas: Any = sys.modules.get("pandas")
    return pandas is not None and isinstance(frame, pandas.DataFrame)


def check_pandas_names(frame: Any, where: str) -> None:
    """Refuses two columns with the same name; pyarrow's error would have no fix.

    Raises:
        DataError: names the column.
    """
    names = [str(name) for name in frame.columns]
    check_column_names(pa.schema([(name, pa.null()) for name in names]), where)
