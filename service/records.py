"""Rows with named values, as people have them: records and lists of JSON; every error names the row and the column.

A record is an object with a key for each column. Numbers are numbers, categories are text, dates are text in ISO 8601,
and null is a missing value. `models/tables/row_plan.py` encodes rows quickly; each value is checked here only if that finds
an error or could hide one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NoReturn, cast

import numpy as np
from jaxtyping import Float

from abstain.models.errors import InputError, clip_repr, suggest
from abstain.models.prediction.posterior import Model
from abstain.models.tables.columns import UNSEEN, Column
from abstain.models.tables.dates import ISO_EXAMPLES
from abstain.models.tables.encoding import category_code
from abstain.models.tables.row_plan import LARGEST, Picks, RowPlan, encode_quickly, picks_of_lists
from abstain.models.tables.unseen import NO_TEXTS, UnseenTexts, rejecting_columns, unseen_cells
from abstain.models.tables.values import UnreadableValue, date_seconds, value_text
from abstain.service.json_objects import describe_value
from abstain.service.rows import NAMES_LENGTH, dtype_of, refuse_many_rows

_MOST_SUGGESTED = 1_000
"""Of how many names the nearest is looked for, and for how long a text at most: the search takes time for each."""
_LONGEST_SUGGESTED = 100
MOST_FAULTS = 10
"""The largest number of faults that an error lists; the search ends with the next one."""
_LONGEST_FAULT = 400


class _Enough(Exception):
    """As many faults are found as an error lists."""


class Faults:
    """Calls functions and keeps the `InputError`s that they raise, so that one error names all faults of a request.

    Of each column, and of the form of rows, this is the first one, as in errors about files.
    """

    def __init__(self) -> None:
        self.errors: list[InputError] = []
        self._wrong = set[str]()

    def __call__(self, about: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """Returns the function's result; NaN if there is a fault, which is never used, because `all_faults` raises.

        Args:
            about: the name of the column, or empty for the form of a row.
        """
        if about in self._wrong:
            return math.nan
        try:
            return function(*arguments)
        except InputError as error:
            self.errors.append(error)
            self._wrong.add(about)
            if len(self.errors) > MOST_FAULTS:
                raise _Enough from error
            return math.nan


@contextmanager
def all_faults(where: str) -> Generator[Faults]:
    """Raises the errors that its block collects: one as it is, several as one error that lists up to `MOST_FAULTS`.

    Args:
        where: the part of the request that all of them are about.

    Raises:
        InputError: at least one was collected.
    """
    faults = Faults()
    with suppress(_Enough):
        yield faults
    errors = faults.errors
    if len(errors) == 1:
        raise errors[0]
    if errors:
        texts = [str(error)[:_LONGEST_FAULT] for error in errors[:MOST_FAULTS]]
        listed = " | ".join(f"({number}) {text}" for number, text in enumerate(texts, 1))
        more = len(errors) > MOST_FAULTS
        raise InputError(f"{'the first ' if more else ''}{len(texts)} faults: {listed}", where=where)


def plan_of(model: Model, where: str) -> RowPlan:
    """Returns the plan of a model's rows.

    Raises:
        InputError: the model's features have no names, or two have the same name.
    """
    if model.row_plan is None:
        raise InputError(
            "the model has no named columns",
            where=where,
            expected="rows of numbers under the key inputs",
            found=f"rows with {'two columns of one name' if model.feature_names else 'names'}",
        )
    return model.row_plan


def rows_of_records(records: Any, plain: bool, model: Model, max_rows: int) -> Float[np.ndarray, "rows ..."]:
    """Checks records and returns them as rows, as `check_rows` does; an unseen category is `UNSEEN`, a missing value NaN.

    Args:
        records: parsed JSON.
        plain: whether no number can be NaN, and no key can occur twice.

    Raises:
        InputError: names the record and the column.
    """
    plan = plan_of(model, "records")
    records = _check_list(records, "records", "records", max_rows)
    values = encode_quickly(records, plan.of_records) if plain else None
    if values is None:
        with all_faults("records") as attempt:
            checked = [
                _check_record(record, f"records[{index}]", plan, attempt) for index, record in enumerate(records)
            ]
        values = np.array(checked)
    return in_model_shape(values, model)


def rows_of_lists(columns: Any, data: Any, plain: bool, model: Model, max_rows: int) -> Float[np.ndarray, "rows ..."]:
    """Checks lists of values and returns them as `rows_of_records` does.

    Args:
        columns: the names of the values in each list.
        data: the lists.
        plain: as for `rows_of_records`.

    Raises:
        InputError: names the list, the position in it, and the column.
    """
    plan = plan_of(model, "columns")
    names = _check_names(columns, plan)
    data = _check_list(data, "data", "lists", max_rows)
    picks = picks_of_lists(plan, names)
    values = encode_quickly(data, picks) if plain else None
    if values is None:
        places = [names.index(name) for name in plan.positions]
        with all_faults("data") as attempt:
            checked = [
                _check_values(row, f"data[{index}]", plan, picks, places, attempt) for index, row in enumerate(data)
            ]
        values = np.array(checked)
    return in_model_shape(values, model)


def in_model_shape(values: Float[np.ndarray, "rows columns"], model: Model) -> Float[np.ndarray, "rows ..."]:
    """Returns encoded values in the model's dtype and feature shape."""
    return values.astype(dtype_of(model)).reshape(len(values), *model.feature_shape)


def encode_value(value: Any, position: int, plan: RowPlan, where: str) -> float:
    """Encodes one JSON value for the column at a position.

    Raises:
        InputError: at `where`; names what the column may hold.
    """
    column = plan.columns[position]
    if plan.gaps[position] and isinstance(value, str | int | float) and value_text(value) in plan.gaps[position]:
        return math.nan
    if value is None or (value == "" and column.kind != "number"):
        if not plan.nullable:
            _refuse(
                where,
                "a number",
                value,
                "the model was fitted without missing values: estimate it, or leave out the row",
            )
        return math.nan
    if column.kind == "category":
        return _encode_category(value, column, plan.codes[position], where)
    if column.kind == "date":
        return _encode_date(value, where)
    expected = "a number, or null for a missing value" if plan.nullable else "a number"
    if isinstance(value, bool) or not isinstance(value, int | float):
        fix = "send it without quotes" if isinstance(value, str) and _is_number(value) else None
        _refuse(where, expected, value, fix)
    # Compares exact integers, not floats: an integer of 400 digits has no float.
    if not -LARGEST <= value <= LARGEST:
        finite = "a finite number within float32's range"
        _refuse(where, f"{finite}, or null for a missing value" if plan.nullable else finite, value)
    return float(value)


def unseen_texts(rows: Float[np.ndarray, "rows ..."], model: Model, value: Callable[[int, str], Any]) -> UnseenTexts:
    """Returns the unseen categories of rows with named values, by row and index of the column.

    Args:
        value: returns the JSON value of a row, by its index and the name of the column.
    """
    if not (rows == UNSEEN).any():
        return NO_TEXTS
    columns = model.preprocessing.columns
    indices = rejecting_columns(columns)
    found: list[list[int]] = np.argwhere(unseen_cells(columns, rows)).tolist() if indices else []
    places = [(row, indices[place]) for row, place in found]
    return {(row, index): str(value_text(value(row, columns[index].name))) for row, index in places}


def check_names(found: Iterable[str], plan: RowPlan, where: str, fix: str) -> None:
    """Refuses names that are not exactly those of the plan's columns.

    Args:
        fix: what to do if a column is missing.

    Raises:
        InputError: names the columns that are unknown, or missing.
    """
    found = dict.fromkeys(found)
    unknown = [name for name in found if name not in plan.positions]
    missing = [name for name in plan.positions if name not in found]
    if unknown:
        advice = _nearest(unknown[0], plan.positions) if len(unknown) == 1 else None
        advice = advice or ("leave it out" if len(unknown) == 1 else "leave them out")
        raise InputError(
            "unknown column" if len(unknown) == 1 else "unknown columns",
            where=where,
            expected=f"the columns {_joined(plan.positions)}",
            found=_joined(map(clip_repr, unknown)),
            fix=f"{advice}; missing: {_joined(missing)}" if missing else advice,
        )
    if missing:
        raise InputError(
            "columns are missing",
            where=where,
            expected=_joined(missing),
            found=_joined(name for name in plan.positions if name in found) or "no column",
            fix=fix,
        )


def _check_list(rows: Any, where: str, what: str, max_rows: int) -> list[Any]:
    if not isinstance(rows, list):
        # One row in place of a list of rows is the most frequent mistake.
        fix = f'put it in a list: {{"{where}": [{{…}}]}}' if isinstance(rows, dict) and where == "records" else None
        raise InputError(where=where, expected=f"a list of {what}", found=describe_value(rows), fix=fix)
    rows = cast("list[Any]", rows)
    if not rows:
        raise InputError(where=where, expected="at least one row", found="none")
    refuse_many_rows(rows, max_rows, where)
    return rows


def _check_record(record: Any, where: str, plan: RowPlan, attempt: Faults) -> list[float]:
    if not isinstance(record, dict):
        return [attempt("", _refuse, where, "an object with a key for each column", record)]
    record = cast("dict[str, Any]", record)
    if record.keys() != plan.positions.keys():
        fix = "send null for a missing value" if plan.nullable else "add it to the record"
        attempt("", check_names, record, plan, where, fix)
    present = ((name, position) for name, position in plan.positions.items() if name in record)
    return [attempt(name, encode_value, record[name], position, plan, f"{where}.{name}") for name, position in present]


def _check_names(columns: Any, plan: RowPlan) -> list[str]:
    """Returns the names of the values in each list of `data`."""
    if not isinstance(columns, list):
        _refuse("columns", "a list of column names", columns)
    columns = cast("list[Any]", columns)
    for place, name in enumerate(columns):
        if not isinstance(name, str):
            _refuse(f"columns[{place}]", "the name of a column", name)
    if len(set(columns)) < len(columns):
        seen = set[str]()
        twice = next(name for name in columns if name in seen or seen.add(name))
        raise InputError(where="columns", expected="each column once", found=f"{clip_repr(twice)} twice")
    check_names(columns, plan, "columns", "add it, and to each list of data a value or null")
    return columns


def _check_values(
    row: Any, where: str, plan: RowPlan, picks: Picks, places: Sequence[int], attempt: Faults
) -> list[float]:
    if not isinstance(row, list):
        return [attempt("", _refuse, where, f"a list of {picks.width} values, one for each of columns", row)]
    row = cast("list[Any]", row)
    if len(row) != picks.width:
        return [attempt("", _refuse_length, where, picks.width, len(row))]
    return [
        attempt(column.name, encode_value, row[place], position, plan, f"{where}[{place}] ({column.name})")
        for position, (column, place) in enumerate(zip(plan.columns, places, strict=True))
    ]


def _refuse_length(where: str, width: int, found: int) -> NoReturn:
    raise InputError(where=where, expected=f"{width} values, one for each of columns", found=found)


def _encode_category(value: Any, column: Column, codes: dict[str, float], where: str) -> float:
    if not isinstance(value, str | bool | int | float) or value != value:  # noqa: PLR0124 - NaN
        _refuse(where, f"a category as text ({_joined(column.categories)}), or null for a missing value", value)
    if isinstance(value, float) and math.isinf(value):
        _refuse(where, "a category as text, or a finite number", value)
    try:
        code = category_code(codes, value)
    except UnreadableValue as error:
        raise InputError(where=where, expected=error.expected, found=error.found) from error
    if code != UNSEEN or column.unseen == "reject":
        return code
    if column.unseen == "missing":
        return math.nan
    text = str(value_text(value))
    raise InputError(
        "the category was not in training",
        where=where,
        expected=f"one of {_joined(column.categories)}",
        found=clip_repr(text),
        fix=_nearest(text, column.categories) or "correct it, or send null if it is not known",
    )


def _encode_date(value: Any, where: str) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    fix = "send seconds since 1970 in a row of inputs" if is_number else None
    if not isinstance(value, str):
        _refuse(where, f"{ISO_EXAMPLES}, or null for a missing value", value, fix)
    try:
        return date_seconds(value)
    except UnreadableValue:
        _refuse(where, f"{ISO_EXAMPLES}, or null for a missing value", value)


def _is_number(text: str) -> bool:
    try:
        return len(text) <= _LONGEST_SUGGESTED and math.isfinite(float(text))
    except ValueError:
        return False


def _nearest(name: str, known: Iterable[str]) -> str | None:
    known = list(known)
    return suggest(name, known) if len(name) <= _LONGEST_SUGGESTED and len(known) <= _MOST_SUGGESTED else None


def _joined(names: Iterable[str]) -> str:
    """Joins names, and cuts the text to `NAMES_LENGTH` characters."""
    text = ", ".join(names)
    return text if len(text) <= NAMES_LENGTH else f"{text[:NAMES_LENGTH]}…"


def _refuse(where: str, expected: str, value: Any, fix: str | None = None) -> NoReturn:
    raise InputError(where=where, expected=expected, found=describe_value(value), fix=fix)
