"""The input of `abstain predict`: the rows of a file, the columns to keep, and the rows with an error."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from abstain.models.errors import DataError, suggest
from abstain.models.files.model_rows import check_codes, reshape_rows, rows_of_table
from abstain.models.files.row_files import TABLES, checked_inputs, read_npz, read_table
from abstain.models.prediction.posterior import Model
from abstain.models.prediction.preprocessing import check_columns

MOST_ERRORS = 10_000
"""The largest number of rows with an error that are skipped: a file with more has another fault than single rows."""


class InputRows(NamedTuple):
    """The rows of a file.

    Attributes:
        rows: those without an error, in the model's feature shape, in the file's order.
        errors: the error of each other row, by its index in the file; None if such a row refuses the file.
        kept: the values of the columns to keep, one for each row of the file.
        size: the number of rows of the file.
    """

    rows: np.ndarray
    errors: dict[int, str] | None
    kept: dict[str, list[Any]]
    size: int


def read_rows(source: Path, model: Model) -> np.ndarray:
    """Reads the rows of a file: `x_test` of an .npz if it has one, else `x`; the model's columns of a table.

    Raises:
        DataError: names the file, and the invalid array, column or row.
    """
    return read_input(source, model).rows


def read_input(source: Path, model: Model, keep: Sequence[str] = (), *, skip_errors: bool = False) -> InputRows:
    """Reads the rows of a file, as `read_rows`, and the columns to keep.

    Args:
        keep: columns of the table, or arrays of the .npz with one entry for each row.
        skip_errors: whether a row with an error is left out, instead of refusing the file.

    Raises:
        DataError: as `read_rows`; or there is no such column; or every row, or more than `MOST_ERRORS` rows, have an error.
    """
    if source.suffix in TABLES:
        table = read_table(source)
        count = table.num_rows
        kept = _keep(keep, table.column_names, lambda name: table.column(name).to_pylist(), count, source)
        if keep and not (model.preprocessing.columns or model.feature_names):
            # All columns are inputs of such a model, except those that are copied.
            table = table.drop_columns([*dict.fromkeys(keep)])
        if skip_errors and model.preprocessing.columns:
            check_columns(tuple(column.name for column in model.preprocessing.columns), table, str(source))

        def convert(start: int, stop: int) -> np.ndarray:
            part = table if (start, stop) == (0, count) else table.slice(start, stop - start)
            return _checked(rows_of_table(part, model, str(source)), model, str(source))

    elif source.suffix == ".npz":
        arrays = read_npz(source)
        key = next((key for key in ("x_test", "x") if key in arrays), None)
        if key is None:
            found = ", ".join(arrays) or "no arrays"
            raise DataError("arrays", where=str(source), expected="x_test or x", found=found)
        x = arrays[key]
        count = len(x) if x.ndim else 0
        kept = _keep(keep, [*arrays], lambda name: np.atleast_1d(arrays[name]).tolist(), count, source)
        if skip_errors and x.ndim:
            _ = reshape_rows(x, model, str(source))

        def convert(start: int, stop: int) -> np.ndarray:
            part = x if (start, stop) == (0, count) else x[start:stop]
            return _checked(checked_inputs(part, f"{source}, {key}"), model, str(source))

    else:
        raise DataError("--data", expected="a file ending in .npz, .csv or .parquet", found=str(source))
    if not skip_errors:
        return InputRows(convert(0, count), None, kept, count)
    rows, errors = _convert_each(count, convert, str(source))
    return InputRows(rows, errors, kept, count)


def _checked(rows: np.ndarray, model: Model, where: str) -> np.ndarray:
    rows = reshape_rows(rows, model, where)
    check_codes(rows, model.preprocessing, where)
    return rows


def _keep(
    keep: Sequence[str], names: list[str], values: Callable[[str], list[Any]], count: int, source: Path
) -> dict[str, list[Any]]:
    """Returns the values of each column to keep.

    Raises:
        DataError: there is no such column, or it has not one value for each row.
    """
    kept: dict[str, list[Any]] = {}
    for name in keep:
        if name not in names:
            raise DataError(
                f"--keep {name}",
                where=str(source),
                expected=f"one of {', '.join(names)}",
                found="no such column",
                fix=suggest(name, names),
            )
        column = values(name)
        if len(column) != count or any(isinstance(value, list) for value in column):
            raise DataError(f"--keep {name}", where=str(source), expected=f"one value for each of {count:,} rows")
        kept[name] = column
    return kept


def _convert_each(
    count: int, convert: Callable[[int, int], np.ndarray], where: str
) -> tuple[np.ndarray, dict[int, str]]:
    """Converts the rows of a file, and finds those that cannot be converted by halving the ranges that fail.

    Raises:
        DataError: no row can be converted, or more than `MOST_ERRORS` cannot.
    """
    parts: list[np.ndarray] = []
    errors: dict[int, str] = {}
    first: DataError | None = None
    ranges = [(0, count)]
    while ranges:
        start, stop = ranges.pop()
        try:
            parts.append(convert(start, stop))
        except DataError as error:
            first = first or error
            if stop - start > 1:
                middle = (start + stop) // 2
                # The first half is taken next, so that the rows stay in order.
                ranges += [(middle, stop), (start, middle)]
                continue
            errors[start] = _of_one_row(error, where)
            if len(errors) > MOST_ERRORS:
                raise DataError(
                    "rows",
                    where=where,
                    expected=f"at most {MOST_ERRORS:,} rows with an error",
                    found=f"more, the first: {first}",
                    fix="correct the file",
                ) from error
    if not parts:
        assert first is not None  # noqa: S101 - a range without an error adds a part
        raise first
    return np.concatenate(parts), errors


def _of_one_row(error: DataError, where: str) -> str:
    """Returns the error's text without its place: its cell is in the row itself, whose number in a part of the file is 0."""
    place = (error.where or "").removeprefix(where).removeprefix(", ").removeprefix("row 0").removeprefix(": ")
    what = error.what.removeprefix("row 0, ")
    return str(DataError(what, where=place or None, expected=error.expected, found=error.found, fix=error.fix))
