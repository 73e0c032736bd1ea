"""Makes request bodies of what a caller has: lists, arrays, tables of pandas, Polars or pyarrow, and lists of records.

Rows without names are sent as `{"inputs": [[…], …]}`, rows with names as `{"columns": ["a", "b"], "data": [[…], …]}`: a gap is
null, dates and times are ISO 8601 text, and categories are text.
"""

from __future__ import annotations

import datetime
import decimal
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import numpy as np
import orjson

from abstain.models.errors import InputError, clip_repr

_OPTIONS = orjson.OPT_SERIALIZE_NUMPY
_CELL = "a number, text, true or false, a date, or None for a gap"
_EXACT = (int, str, bool, type(None))
_LEAST, _LARGEST = -(2**63), 2**64 - 1
"""The integers that orjson writes."""
_NARROW = ("float32", "float16")


Cells = Callable[[slice], list[Any]]
"""Returns some cells of a column; those of other rows do not become Python objects."""


@dataclass(frozen=True)
class Rows:
    """Rows in the form in which they are sent.

    Attributes:
        count: the number of rows.
        values: an array `[rows, …features]` or a list of rows; None for a table.
        columns: the cells of each column of a table by its name; None for rows without names.
        categories: the columns that hold categories, whose numbers are sent with the digits that their type shows.
        named: whether a table is sent with the names of its columns.
        index: the index of a pandas DataFrame; None for other rows.
        source: what the caller gave, for errors.
    """

    count: int
    values: Any = None
    columns: Mapping[str, Cells] | None = None
    categories: frozenset[str] = frozenset()
    named: bool = True
    index: Any = None
    source: str = "rows"

    def __len__(self) -> int:
        """Returns the number of rows."""
        return self.count

    def select(self, names: Sequence[str], categories: Iterable[str] = ()) -> Rows:
        """Returns only the columns that a model has, in its order, as `LoadedModel.predict` does.

        Raises:
            InputError: one is missing.
        """
        columns = self.columns or {}
        missing = [name for name in names if name not in columns]
        if missing:
            raise InputError(
                f"column {clip_repr(missing[0])}",
                where=self.source,
                expected=f"the columns {', '.join(names)}",
                found=f"only {', '.join(map(str, columns)) or 'none'}",
                fix="rename or add the column",
            )
        return replace(self, columns={name: columns[name] for name in names}, categories=frozenset(categories))

    def without_names(self) -> Rows:
        """Returns the same cells, to be sent to a model whose columns have no names."""
        return replace(self, named=False)

    def body(self, part: slice, options: Mapping[str, Any]) -> bytes:
        """Makes the body of a request for a part of the rows.

        Raises:
            InputError: a cell has no form in JSON; the text names its row and column.
        """
        start = part.start or 0
        if self.columns is None:
            values = self.values[part]
            body = _dump({"inputs": values, **options}, self.source)
            if b"null" in body:  # orjson writes NaN and infinities as null, which would be another value.
                _refuse_not_finite(values, start)
            return body
        cells = [
            [_json_cell(cell, name, self.source, start + at, shortest) for at, cell in enumerate(column(part))]
            for name, column in self.columns.items()
            for shortest in (name in self.categories,)
        ]
        data = list(zip(*cells, strict=True))
        rows = {"columns": list(self.columns), "data": data} if self.named else {"inputs": data}
        return _dump({**rows, **options}, self.source)


def rows_to_send(rows: object) -> Rows:
    """Reads rows of any of the accepted types.

    Raises:
        InputError: the rows are of another type, or the names of their columns are not usable.
    """
    pandas: Any = sys.modules.get("pandas")
    if pandas is not None and isinstance(rows, pandas.DataFrame):
        frame: Any = rows
        names = _names(frame.columns, "DataFrame")
        columns = {name: partial(_pandas_cells, frame.iloc[:, at]) for at, name in enumerate(names)}
        return Rows(len(frame), columns=columns, index=frame.index, source="DataFrame")
    if type(rows).__name__ == "Series":
        fix = "for one row of a DataFrame use frame.iloc[[0]], for one column series.to_frame()"
        raise InputError(where="rows", expected="rows: a table, an array or a list", found="a Series", fix=fix)
    if hasattr(rows, "__arrow_c_stream__") and (hasattr(rows, "columns") or hasattr(rows, "column_names")):
        return _of_arrow(rows)
    if isinstance(rows, np.ma.MaskedArray):
        return _of_list(cast("Any", rows).tolist())  # Lists have None for a masked number.
    if hasattr(rows, "__array__"):
        return _of_array(rows)
    if isinstance(rows, list | tuple):
        listed = list(cast("Sequence[Any]", rows))
        if listed and isinstance(listed[0], Mapping):
            return _of_records(listed)
        return _of_list(listed)
    found, fix = f"a value of type {type(rows).__name__}", None
    if isinstance(rows, Mapping):
        found, fix = _not_rows(cast("Mapping[Any, Any]", rows))
    raise InputError(where="rows", expected="a list of rows or of records, an array, or a table", found=found, fix=fix)


def _not_rows(rows: Mapping[Any, Any]) -> tuple[str, str]:
    """Says what a dict in place of rows seems to be, and how to send it."""
    for key in ("records", "inputs"):
        if isinstance(rows.get(key), list | tuple):
            return "the body of a request", f"pass its rows alone: rows[{key!r}]; options are arguments of predict"
    if rows and all(isinstance(cells, list | tuple | np.ndarray) for cells in rows.values()):
        return "a dict of columns", "make a table of it: pandas.DataFrame(rows)"
    return "one record", "put it in a list: [record]"


# ---- the types of rows -----------------------------------------------------------------------------------------------


def _of_array(rows: object) -> Rows:
    try:
        array = np.asarray(rows)
    except (TypeError, ValueError, RuntimeError) as error:
        # PyTorch refuses a tensor on a device, or one with a gradient.
        name = f"{type(rows).__name__} ({error})"
        raise InputError(where="rows", expected="an array, a list of rows, or a table", found=name) from error
    if not array.ndim or array.dtype.kind not in "iuf":
        return _of_list(array.tolist() if array.ndim else [array.item()])
    # As float64, so that each float32 arrives with all its digits; integers in the byte order of this machine.
    dtype = np.float64 if array.dtype.kind == "f" else array.dtype.newbyteorder("=")
    return Rows(len(array), np.ascontiguousarray(array, dtype))


def _of_list(rows: list[Any]) -> Rows:
    return Rows(len(rows), rows)


def _of_arrow(rows: object) -> Rows:
    import pyarrow  # noqa: PLC0415 - only for tables

    arrow: Any = pyarrow
    name = type(rows).__name__
    try:
        table: Any = rows if isinstance(rows, arrow.Table) else arrow.table(rows)
    except (arrow.ArrowException, TypeError, ValueError) as error:
        found = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError("cannot be read", where=name, expected="columns of numbers or text", found=found) from error
    names = _names(table.column_names, name)
    columns = {own: partial(_arrow_cells, table.column(at), own, name) for at, own in enumerate(names)}
    return Rows(table.num_rows, columns=columns, source=name)


def _of_records(records: list[Any]) -> Rows:
    names = _names(records[0], "rows[0]")
    columns: dict[str, list[Any]] = {name: [] for name in names}
    for row, record in enumerate(records):
        if not isinstance(record, Mapping):
            raise InputError(
                where=f"rows[{row}]", expected="a record", found=f"a value of type {type(record).__name__}"
            )
        cells = cast("Mapping[str, Any]", record)
        other = next((key for key in cells if key not in columns), None)
        missing = next((name for name in names if name not in cells), None)
        if other is not None or missing is not None:
            raise InputError(
                where=f"rows[{row}]",
                expected=f"the keys {', '.join(names)}",
                found=f"another key, {clip_repr(other)}" if other is not None else f"no key {clip_repr(missing)}",
                fix="give every record the same keys; None is a gap",
            )
        for name in names:
            columns[name].append(cells[name])
    return Rows(len(records), columns={name: column.__getitem__ for name, column in columns.items()})


def _names(names: Iterable[Any], where: str) -> list[str]:
    """Checks the names of columns: text, each once, at least one."""
    listed = list(names)
    other = next((name for name in listed if not isinstance(name, str)), None)
    if other is not None:
        raise InputError("a column name", where=where, expected="text", found=clip_repr(other), fix="rename the column")
    twice = next((name for at, name in enumerate(listed) if name in listed[:at]), None)
    if twice is not None:
        fix = "rename or remove the others"
        raise InputError(f"column {clip_repr(twice)}", where=where, expected="one of that name", found="two", fix=fix)
    if not listed:
        raise InputError(where=where, expected="at least one column", found="none")
    return listed


# ---- cells -----------------------------------------------------------------------------------------------------------


def _pandas_cells(series: Any, part: slice) -> list[Any]:
    """Returns cells of a pandas column: categories as text, and timestamps without loss of nanoseconds."""
    # Narrow floats stay numpy's: a list would have all digits of float64.
    cells: list[Any] = list(series.to_numpy()[part]) if str(series.dtype) in _NARROW else series.iloc[part].tolist()
    return [_category(cell) for cell in cells] if str(series.dtype) == "category" else cells


def _arrow_cells(column: Any, name: str, source: str, part: slice) -> list[Any]:
    """Returns cells of a column of pyarrow.

    Raises:
        InputError: Python has no such value, for example nanoseconds without pandas.
    """
    try:
        narrow = str(column.type) in {"float", "halffloat"}
        cells: list[Any] = list(column[part].to_numpy()) if narrow else column[part].to_pylist()
    except (TypeError, ValueError, OverflowError) as error:  # pyarrow's own are ValueErrors
        where, found = f"{source}, column {clip_repr(name)}", f"{column.type}: {error}"
        raise InputError(where=where, expected=_CELL, found=found, fix="convert the column, or leave it out") from error
    return [_category(cell) for cell in cells] if str(column.type).startswith("dictionary") else cells


def _category(cell: Any) -> Any:
    """Returns the text of a category as `abstain fit` reads it, whatever the type of its values; a gap unchanged."""
    if cell is None or isinstance(cell, str | bytes) or cell != cell:  # noqa: PLR0124 - NaN and NaT
        return cell
    if type(cell) in {bool, np.bool_}:
        return str(cell).lower()
    return str(int(cell)) if isinstance(cell, float) and cell.is_integer() else str(cell)


def _json_cell(cell: Any, name: str, source: str, row: int, is_category: bool) -> Any:
    """Converts a cell to a value that JSON has; a gap of any library (NaN, NaT, NA) to None.

    A category keeps its digits: the float32 0.1 is sent as 0.1, and a large integer as text. A number keeps its value.

    Raises:
        InputError: JSON has no such value.
    """
    if type(cell) is int and not _LEAST <= cell <= _LARGEST:
        if is_category:
            return str(cell)
        cell = decimal.Decimal(cell)
    if type(cell) in _EXACT or (type(cell) is float and math.isfinite(cell)):
        return cell
    if isinstance(cell, np.generic):
        scalar = cast("Any", cell)
        # `item` would return nanoseconds as an integer.
        is_moment = scalar.dtype.kind == "M" and not np.isnat(scalar)
        narrow = is_category and scalar.dtype.kind == "f" and scalar.itemsize < 8
        cell = str(scalar) if is_moment else float(str(scalar)) if narrow else scalar.item()
    if is_category and isinstance(cell, decimal.Decimal) and cell.is_finite():
        return str(cell)
    if isinstance(cell, float | decimal.Decimal):
        number = float(cell)
        if math.isinf(number):
            raise _no_cell(cell, name, source, row, "a finite number")
        return None if math.isnan(number) else number
    if isinstance(cell, datetime.datetime | datetime.date | datetime.time):
        text = cell.isoformat()
        return None if text == "NaT" else text
    if isinstance(cell, bytes):
        try:
            return cell.decode("utf-8")
        except UnicodeDecodeError:
            raise _no_cell(cell, name, source, row) from None
    if isinstance(cell, bool | int | str) or cell is None:
        return cell
    if type(cell).__name__ in {"NAType", "NaTType"}:
        return None
    raise _no_cell(cell, name, source, row)


def _no_cell(cell: Any, name: str, source: str, row: int, expected: str = _CELL) -> InputError:
    found = f"{clip_repr(cell)}, a value of type {type(cell).__name__}"
    where = f"{source}, row {row}, column {clip_repr(name)}"
    return InputError(where=where, expected=expected, found=found, fix="convert the column, or leave it out")


def _dump(content: dict[str, Any], source: str) -> bytes:
    try:
        return orjson.dumps(content, option=_OPTIONS)
    except orjson.JSONEncodeError as error:
        raise InputError("cannot be sent as JSON", where=source, expected=_CELL, found=str(error)) from error


def _refuse_not_finite(values: Any, start: int) -> None:
    """Refuses NaN and infinities at any depth of nested rows; None passes, and the server says what it thinks of it."""
    if not isinstance(values, np.ndarray):
        _walk(values, "inputs", start)
        return
    array = cast("Any", values)
    places = np.argwhere(~np.isfinite(array)) if array.dtype.kind == "f" else np.empty((0, array.ndim), int)
    for place in places[:1].tolist():
        at = "".join(f"[{index}]" for index in (place[0] + start, *place[1:]))
        raise InputError(where=f"inputs{at}", expected="a finite number", found=repr(array[tuple(place)].item()))


def _walk(values: Any, where: str, start: int = 0) -> None:
    for at, value in enumerate(values):
        if isinstance(value, list | tuple | np.ndarray):
            _walk(value, f"{where}[{at + start}]")
        elif isinstance(value, float | np.floating) and not math.isfinite(number := float(cast("Any", value))):
            raise InputError(where=f"{where}[{at + start}]", expected="a finite number", found=repr(number))
