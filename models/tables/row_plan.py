"""How named values become rows: planned once for each model, so that decoding one row costs little."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from abstain.models.tables.columns import Column
from abstain.models.tables.encoding import category_codes, gap_texts
from abstain.models.tables.values import date_seconds

LARGEST = float(np.finfo(np.float32).max)
"""The largest number that a row may hold."""
Pick = Callable[[Any], tuple[Any, ...]]
"""Takes some values out of a row."""
_DAY = 86_400.0
_EPOCH = date(1970, 1, 1).toordinal()
_KINDS = ("number", "category", "date")


class Picks(NamedTuple):
    """Takes the values of one row out of a dict or a list: those of one kind of column after another.

    Attributes:
        row_type: dict or list.
        width: the number of values in a row.
        codes: for each column of categories, the number for each text.
        order: the place of each column among the values; None if the values have the order of the columns.
        number_types: the types that a number may have.
    """

    row_type: type
    width: int
    numbers: Pick
    categories: Pick
    dates: Pick
    codes: tuple[Mapping[str | None, float], ...]
    order: Int[np.ndarray, " columns"] | None
    number_types: frozenset[type]


class RowPlan(NamedTuple):
    """The named columns of a model's rows.

    Attributes:
        columns: in the order of a row.
        nullable: whether a value may be missing; not for a model that was fitted on arrays.
        positions: the position of each name in a row.
        codes: for each column, the code of each category (`category_codes`); empty for other kinds.
        gaps: for each column, the canonical texts of missing values (`gap_texts`).
        of_records: takes values out of a dict with the names as keys.
    """

    columns: tuple[Column, ...]
    nullable: bool
    positions: Mapping[str, int]
    codes: tuple[dict[str, float], ...]
    gaps: tuple[frozenset[str | None], ...]
    of_records: Picks


def plan_rows(columns: tuple[Column, ...], *, nullable: bool) -> RowPlan | None:
    """Plans the rows of these columns; None if there are no columns, or two have the same name."""
    positions = {column.name: position for position, column in enumerate(columns)}
    if not columns or len(positions) < len(columns):
        return None
    codes = tuple(category_codes(column) for column in columns)
    gaps = tuple(map(gap_texts, columns))
    picks = _plan_picks(columns, codes, nullable, list(positions), dict)
    return RowPlan(columns, nullable, positions, codes, gaps, picks)


def picks_of_lists(plan: RowPlan, names: Sequence[str]) -> Picks:
    """Plans how to take values out of lists.

    Args:
        names: the columns' names in the order of a list, each once.
    """
    places = {name: place for place, name in enumerate(names)}
    return _plan_picks(plan.columns, plan.codes, plan.nullable, [places[name] for name in plan.positions], list)


def _plan_picks(
    columns: tuple[Column, ...],
    codes: tuple[dict[str, float], ...],
    nullable: bool,
    keys: Sequence[str | int],
    row_type: type,
) -> Picks:
    indices = {kind: [index for index, column in enumerate(columns) if column.kind == kind] for kind in _KINDS}
    picked = np.array([index for kind in _KINDS for index in indices[kind]], int)
    gaps: dict[str | None, float] = {None: math.nan, "": math.nan} if nullable else {}
    number_types: frozenset[type] = frozenset({int, float, type(None)} if nullable else {int, float})
    if any(columns[index].na_values for index in indices["number"]):
        number_types = frozenset()  # a number may be the mark of a missing value, so each one is checked
    return Picks(
        row_type,
        len(columns),
        *(_pick([keys[index] for index in indices[kind]]) for kind in _KINDS),
        codes=tuple({**codes[index], **gaps} for index in indices["category"]),
        order=None if np.array_equal(picked, np.arange(len(columns))) else np.argsort(picked),
        number_types=number_types,
    )


def _pick(keys: list[str | int]) -> Pick:
    if len(keys) > 1:
        return itemgetter(*keys)
    # For a single key, `itemgetter` returns the value itself.
    return (lambda row: (row[keys[0]],)) if keys else (lambda _: ())


def encode_quickly(rows: Sequence[Any], picks: Picks) -> Float[np.ndarray, "rows columns"] | None:
    """Encodes rows of JSON values; None if a value may be wrong, which only a check of each value finds out.

    Args:
        rows: at least one; no number is NaN.
    """
    encoded: list[list[float | None]] = []
    try:
        for row in rows:
            if type(row) is not picks.row_type or len(row) != picks.width:
                return None
            numbers = picks.numbers(row)
            if not picks.number_types.issuperset(map(type, numbers)):
                return None
            # A text that is no category is a KeyError: each column decides what it means.
            codes = [known[text] for known, text in zip(picks.codes, picks.categories(row), strict=True)]
            encoded.append([*numbers, *codes, *map(_seconds, picks.dates(row))])
        values = np.array(encoded, np.float64)
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
    # A missing value is NaN, which is not above any number.
    if (np.abs(values) > LARGEST).any():
        return None
    return values if picks.order is None else values[:, picks.order]


def _seconds(text: str | None) -> float:
    """Returns `date_seconds` of a text, of a plain date or time ten times as quickly."""
    if text is None:
        return math.nan
    if len(text) == 10 and text[4] == text[7] == "-":
        return _DAY * (date.fromisoformat(text).toordinal() - _EPOCH)
    if len(text) == 19 and text[4] == text[7] == "-" and text[13] == text[16] == ":" and text[10] in "T ":
        moment = datetime.fromisoformat(text)
        seconds = 3600.0 * moment.hour + 60 * moment.minute + moment.second
        return _DAY * (moment.toordinal() - _EPOCH) + seconds
    return date_seconds(text)
