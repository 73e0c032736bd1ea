"""The input of `abstain predict`: the rows of a file, the columns to keep, and the rows with an error."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from abstain.models.bundles.data_record import reading_of_fit
from abstain.models.bundles.manifest import Manifest
from abstain.models.errors import DataError, drop_config_advice
from abstain.models.files.model_rows import (
    check_codes,
    find_unseen_texts,
    order_features,
    reshape_rows,
    rows_of_table,
)
from abstain.models.files.reading import FileDialect, Reading
from abstain.models.files.row_files import TABLES, checked_inputs, ending_of, is_table, read_npz, read_table
from abstain.models.files.text_dialect import DELIMITERS
from abstain.models.tables.encoding import ArrowTable, check_columns, with_names
from abstain.models.tables.unseen import NO_TEXTS, UnseenTexts
from abstain.service.commands.kept_columns import keep_from_arrays, keep_from_table

MOST_ERRORS = 10_000
"""The largest number of rows with an error that are skipped: a file with more has another fault than single rows."""


class InputRows(NamedTuple):
    """The rows of a file.

    Attributes:
        rows: those without an error, in the model's feature shape, in the file's order.
        texts: the unseen categories of a table, by the index in `rows` and the column.
        errors: the error of each other row, by its index in the file; None if such a row refuses the file.
        kept: the columns to keep, as columns of Arrow, with one value for each row of the file.
        size: the number of rows of the file.
    """

    rows: np.ndarray
    texts: UnseenTexts
    errors: dict[int, str] | None
    kept: dict[str, Any]
    size: int


_Converted = tuple[np.ndarray, UnseenTexts]


def read_input(source: Path, manifest: Manifest, keep: Sequence[str] = (), *, skip_errors: bool = False) -> InputRows:
    """Reads the rows of a file, and the columns to keep: `x_test` of an .npz if it has one, else `x`; the columns of a table.

    Args:
        manifest: of the model; tables are read with the keys of its fit.
        keep: columns of the table, or arrays of the .npz with one entry for each row.
        skip_errors: whether a row with an error is left out, instead of refusing the file.

    Raises:
        DataError: an array, column or row is invalid; or there is no such column to keep; or every row, or more than
            `MOST_ERRORS` rows, have an error. The text names the file.
    """
    model = manifest.model
    if is_table(source):
        table = read_as_fit(source, reading_of_fit(manifest.data, model))
        count = table.num_rows
        numbers = [column.name for column in model.preprocessing.columns if column.kind == "number"]
        kept = keep_from_table(keep, table, source, numbers)
        if keep and not (model.preprocessing.columns or model.feature_names):
            # All columns are inputs of such a model, except those that are copied.
            table = table.drop_columns([*dict.fromkeys(keep)])
        if skip_errors and model.preprocessing.columns:
            names = tuple(column.name for column in model.preprocessing.columns)
            check_columns(names, with_names(names, table), str(source))

        def convert(start: int, stop: int) -> _Converted:
            part = table if (start, stop) == (0, count) else table.slice(start, stop - start)
            rows = reshape_rows(rows_of_table(part, model, str(source)), model, str(source))
            return rows, find_unseen_texts(part, model, rows)

    elif ending_of(source) == ".npz":
        arrays = read_npz(source)
        key = key_of_rows(arrays, source)
        x = arrays[key]
        count = len(x) if x.ndim else 0
        kept = keep_from_arrays(keep, arrays, count, source)
        if skip_errors and x.ndim:
            _ = reshape_rows(x, model, str(source))

        def convert(start: int, stop: int) -> _Converted:
            part = x if (start, stop) == (0, count) else x[start:stop]
            ordered = order_features(checked_inputs(part, f"{source}, {key}"), arrays, model, str(source))
            rows = reshape_rows(ordered, model, str(source))
            check_codes(rows, model.preprocessing, str(source))
            return rows, NO_TEXTS

    else:
        raise DataError("--data", expected=f"a file ending in .npz, {', '.join(TABLES)}", found=str(source))
    if not skip_errors:
        try:
            rows, texts = convert(0, count)
        except DataError as error:
            drop_config_advice(error, "correct the cell, or leave it empty; --errors null leaves out such rows")
            raise
        return InputRows(rows, texts, None, kept, count)
    rows, texts, errors = _convert_each(count, convert, str(source))
    return InputRows(rows, texts, errors, kept, count)


def read_as_fit(source: Path, reading: Reading) -> ArrowTable:
    """Reads a table; an error's advice is about the file, because the keys of the fit cannot be changed any more.

    Raises:
        DataError: as `read_table`.
    """
    try:
        return read_table(source, reading)
    except DataError as error:
        drop_config_advice(error, _advice(reading.dialect))
        raise


def _advice(dialect: FileDialect | None) -> str:
    if dialect is None:
        return "write the file as the data of the fit"
    marks = {",": ", and numbers with a decimal comma", ".": ", and numbers with a decimal point", None: ""}
    return f"write the file as the data of the fit: cells separated by {DELIMITERS[dialect.delimiter]}{marks[dialect.decimal]}"


def key_of_rows(arrays: Mapping[str, np.ndarray], source: Path) -> str:
    """Returns the name of the array of the rows: `x_test` if it exists, else `x`.

    Raises:
        DataError: the file has neither.
    """
    key = next((key for key in ("x_test", "x") if key in arrays), None)
    if key is None:
        found = ", ".join(arrays) or "no arrays"
        raise DataError("arrays", where=str(source), expected="x_test or x", found=found)
    return key


def _convert_each(
    count: int, convert: Callable[[int, int], _Converted], where: str
) -> tuple[np.ndarray, UnseenTexts, dict[int, str]]:
    """Converts the rows of a file, and finds those that cannot be converted by halving the ranges that fail.

    Raises:
        DataError: no row can be converted, or more than `MOST_ERRORS` cannot.
    """
    parts: list[np.ndarray] = []
    texts: dict[tuple[int, int], str] = {}
    converted = 0
    errors: dict[int, str] = {}
    first: DataError | None = None
    ranges = [(0, count)]
    while ranges:
        start, stop = ranges.pop()
        try:
            rows, found = convert(start, stop)
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
        else:
            texts |= {(converted + row, column): text for (row, column), text in found.items()}
            converted += len(rows)
            parts.append(rows)
    if not parts:
        assert first is not None  # noqa: S101 - a range without an error adds a part
        raise first
    return np.concatenate(parts), texts, errors


def _of_one_row(error: DataError, where: str) -> str:
    """Returns the error's text without its place: its cell is in the row itself, whose number in a part of the file is 0."""
    place = (error.where or "").removeprefix(where).removeprefix(", ").removeprefix("row 0").removeprefix(": ")
    what = error.what.removeprefix("row 0, ")
    return str(DataError(what, where=place or None, expected=error.expected, found=error.found))
