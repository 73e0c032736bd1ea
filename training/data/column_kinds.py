"""Column kinds: which columns of a table are features, and whether each holds numbers, categories or dates.

`data.categorical`, `data.numeric` and `data.dates` name the kind of a column. For the others, the type of the file decides,
and for text the cells: a column is numeric if its cells are numbers, and a date column if they are ISO 8601 dates. If only
most of them are, the others are errors: a typing error must not turn numbers into categories.
"""

from __future__ import annotations

import re
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow

from abstain.models.errors import DataError
from abstain.models.tables.arrow_types import is_moment, plain_column
from abstain.models.tables.columns import Column
from abstain.models.tables.dates import Moment, parse_moment
from abstain.models.tables.encoding import ArrowColumn, ArrowTable, category_texts, is_number, numeric_column
from abstain.models.tables.values import MISSING_NUMBERS, date_column, distinct_cells
from abstain.training.config.data import DataConfig

pa: Any = pyarrow
Kind = Literal["number", "category", "date"]
MOST_CATEGORIES = 200
"""The largest number of categories of a column that no key names."""
FEW_CATEGORIES = 20
"""Up to this number, categories need not repeat; more must be at most half the number of rows."""
_DROP = "list it under data.drop"
_UNNAMED = re.compile(r"Unnamed: [0-9]+(?:\.[0-9]+)*")
_PANDAS_INDEX = re.compile(r"__index_level_[0-9]+__")


class Features(NamedTuple):
    """The names of the feature columns, and notes on columns that are left out."""

    names: tuple[str, ...]
    notes: tuple[str, ...]


def choose_features(table: ArrowTable, target: str, config: DataConfig, where: str) -> Features:
    """Returns the feature columns: all but the target, the dropped ones, the split's key, and pandas' row numbers.

    Raises:
        DataError: a column has no name, or no feature is left.
    """
    named = {*config.categorical, *config.numeric, *config.dates}
    left_out = {target, config.split_by, *config.drop}
    names, notes = list[str](), list[str]()
    for place, name in enumerate(table.column_names):
        if name in left_out:
            continue
        if name in named or not _is_index(table, place):
            names.append(name)
            continue
        notes.append(f"column {name!r} is left out: it is the index of the rows, or has no name and no values")
    if "" in names:
        place = names.index("")
        raise DataError(
            "a column has no name",
            where=where,
            expected="a name for each column",
            found=f"none for the column after {names[place - 1]!r}" if place else "none for a column",
            fix="name the column, or remove it",
        )
    if not names:
        raise DataError(
            "columns",
            where=where,
            expected="at least one feature in addition to the target",
            found="none",
            fix="remove columns from data.drop, or add a feature to the table",
        )
    return Features(tuple(names), tuple(notes))


def _is_index(table: ArrowTable, place: int) -> bool:
    """Whether a column is an index that pandas or R wrote beside the data, or a name and values are missing."""
    name = table.column_names[place]
    if _PANDAS_INDEX.fullmatch(name):
        return True
    if name and not _UNNAMED.fullmatch(name):
        return False
    column = table.column(place)
    return place == 0 or name.startswith("Unnamed: 0") or column.null_count == len(column)


def column_kind(name: str, values: ArrowColumn, config: DataConfig, where: str) -> Kind:
    """Returns the kind of a column: as the config names it, or by its type and its cells.

    Raises:
        DataError: the column has a type that cannot be read.
    """
    kinds: dict[Kind, tuple[str, ...]] = {
        "category": config.categorical,
        "number": config.numeric,
        "date": config.dates,
    }
    for kind, names in kinds.items():
        if name in names:
            return kind
    plain = plain_column(values, name, where)
    dtype = plain.type.value_type if pa.types.is_dictionary(plain.type) else plain.type
    if is_moment(dtype):
        return "date"
    if pa.types.is_boolean(dtype) or pa.types.is_time(dtype):
        return "category"
    if pa.types.is_integer(dtype) or pa.types.is_floating(dtype) or pa.types.is_decimal(dtype):
        return "number"
    return _kind_of_text(plain, name, where)


def _kind_of_text(values: ArrowColumn, name: str, where: str) -> Kind:
    cells, places = distinct_cells(values, name, where)
    rows = np.bincount([place for place in places if place is not None], minlength=len(cells))
    counts = {"number": 0, "date": 0, "other": 0}
    for cell, count in zip(cells, rows, strict=True):
        kind = _kind_of_cell(cell)
        if kind is not None:
            counts[kind] += int(count)
    filled = sum(counts.values())
    if 2 * counts["number"] >= filled:
        return "number"
    return "date" if 2 * counts["date"] >= filled else "category"


def _kind_of_cell(cell: Any) -> Literal["number", "date", "other"] | None:
    """Returns what a cell of text holds; None if it is empty or a mark of a missing number."""
    if cell is None:
        return None
    if isinstance(cell, Moment):
        return "date"
    text = (cell.decode("utf-8", "replace") if isinstance(cell, bytes) else str(cell)).strip()
    if text in MISSING_NUMBERS:
        return None
    if is_number(text):
        return "number"
    return "date" if parse_moment(text) is not None else "other"


def make_column(name: str, values: ArrowColumn, config: DataConfig, where: str) -> Column:
    """Returns a column with its categories, if it has any; its filling value is fitted later, to the training part.

    Raises:
        DataError: the column is empty, or has a wrong value, or more categories than a column that no key names may have.
    """
    kind = column_kind(name, values, config, where)
    if kind != "category":
        read, noun = (date_column, "date") if kind == "date" else (numeric_column, "number")
        if np.isnan(read(values, name, where)).all():
            raise DataError(
                f"column {name!r} is empty", where=where, expected=f"at least one {noun}", found="only gaps", fix=_DROP
            )
        return Column(name=name, kind=kind, na_values=config.na_values)
    texts = [text for text in category_texts(values, name, where) if text is not None]
    if not texts:
        raise DataError(
            f"column {name!r} is empty", where=where, expected="at least one category", found="only gaps", fix=_DROP
        )
    categories = sorted(set(texts))
    if name not in config.categorical:
        _check_count(name, len(categories), len(texts), where)
    return Column(name=name, kind="category", categories=tuple(categories), na_values=config.na_values)


def _check_count(name: str, categories: int, rows: int, where: str) -> None:
    repeats = categories <= max(FEW_CATEGORIES, rows // 2)
    if categories > MOST_CATEGORIES or not repeats:
        expected = f"at most {MOST_CATEGORIES} categories" if repeats else "categories that repeat"
        raise DataError(
            f"column {name!r} holds text",
            where=where,
            expected=expected,
            found=f"{categories} different texts in {rows} rows",
            fix="list it in data.drop if it is a name or an id; in data.categorical if each text is a category; or set "
            "data.group to it if rows of one id belong together",
        )


def kind_notes(columns: tuple[Column, ...], config: DataConfig, table: ArrowTable) -> tuple[str, ...]:
    """Returns notes on the kinds that were detected: which columns are categories, and which are dates."""
    notes = list[str]()
    for kind, named, words in (
        ("category", config.categorical, "categories"),
        ("date", config.dates, "dates, in seconds since 1970-01-01 UTC"),
    ):
        found = [column.name for column in columns if column.kind == kind and column.name not in named]
        if found:
            notes.append(f"columns read as {words}: {', '.join(map(repr, found))}")
    for column in columns:
        if column.kind == "number" and column.name not in config.numeric:
            code = _zero_padded(table.column(column.name))
            if code:
                notes.append(
                    f"column {column.name!r} is read as numbers, although some begin with a zero, such as {code}: if they "
                    "are codes, list the column in data.categorical"
                )
    return tuple(notes)


def _zero_padded(values: ArrowColumn) -> str | None:
    if not (pa.types.is_string(values.type) or pa.types.is_large_string(values.type)):
        return None
    first = values[:1000].to_pylist()
    return next((text for text in first if text and re.fullmatch("0[0-9]+", text)), None)
