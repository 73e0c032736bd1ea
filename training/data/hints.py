"""Hints: notes on columns that look like a group or a time, if the config names neither, and on classes that look like numbers.

If the rows of a group are split at random, the stated reject rate does not hold for new groups. A hint is only a
note, because an ordinary feature may look like a group.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal

import numpy as np

from abstain.models.errors import DataError
from abstain.models.tables.encoding import ArrowColumn, category_texts
from abstain.training.data.rows import Rows

GROUP_WORDS = {
    "id",
    "patient",
    "user",
    "subject",
    "customer",
    "client",
    "person",
    "individual",
    "participant",
    "household",
    "device",
    "group",
}
TIME_WORDS = {"date", "datetime", "timestamp", "year", "epoch"}
GROUPS = 10
"""The smallest number of distinct values of a group: a column with fewer values is a category, like a user's type."""
ROWS = 3
"""The smallest average number of rows of a group: a unique identifier of each row is not a group."""
CLASSES, CLASS_ROWS = 20, 50
"""The smallest number of classes, and the largest average number of rows of a class, that look like a number to predict."""
HINT_ROWS = 20_000
"""The number of first rows that are examined."""
Role = Literal["time", "group", "blocks"]
"""What a column looks like: a time; a group, by its name and values; or a group whose rows are adjacent, by its values alone."""


def split_hints(columns: Mapping[str, ArrowColumn | np.ndarray]) -> tuple[str, ...]:
    """Returns a note for each column that looks like a group or a time, by its name and values or by the values alone."""
    hints = []
    for name, column in columns.items():
        hint = _hint(name, _texts(column))
        if hint:
            hints.append(hint)
    return tuple(hints)


def class_hints(target: str, classes: Sequence[str], rows: int) -> tuple[str, ...]:
    """Returns a note if the classes look like a number to predict: many of them, all numbers, few rows each."""
    if len(classes) < CLASSES or rows > CLASS_ROWS * len(classes) or not all(map(_is_number, classes)):
        return ()
    return (
        f"target {target!r} has {len(classes)} different numbers in {rows:,} rows, and each is a class: to predict a "
        'number, set likelihood = "normal"',
    )


def absent_class_notes(train: Rows, names: Sequence[str]) -> tuple[str, ...]:
    """Returns a note that names the classes without a row in the training part."""
    absent = np.flatnonzero(np.bincount(train.y.astype(int), minlength=len(names)) == 0)
    if not absent.size:
        return ()
    listed = ", ".join(repr(names[code]) for code in absent[:10]) + (", …" if absent.size > 10 else "")
    noun = "class has" if absent.size == 1 else "classes have"
    return (
        f"{absent.size} {noun} no row in the training part, and cannot be learnt: {listed}; add rows, or set "
        "data.stratify = true to give every part rows of each class",
    )


def array_hints(arrays: Mapping[str, np.ndarray], features: Sequence[str], rows: Rows | None) -> tuple[str, ...]:
    """Returns `split_hints` of an .npz, for its arrays with one value per row and for its named features."""
    if rows is None:
        return ()
    row_arrays = {
        name: array
        for name, array in arrays.items()
        if array.shape == (len(rows),) and re.sub("_(train|test)$", "", name) not in {"x", "y"}
    }
    named = rows.x.reshape(len(rows), -1) if features else np.empty((len(rows), 0))
    return split_hints(row_arrays | {name: named[:, index] for index, name in enumerate(features)})


def _texts(column: ArrowColumn | np.ndarray) -> list[str | None]:
    values: Any = column[:HINT_ROWS]
    if not isinstance(values, np.ndarray):
        try:
            return category_texts(values)
        except DataError:  # A column that cannot be read is dropped, or refused where it is used.
            return []
    return [
        str(int(value)) if isinstance(value, float) and value.is_integer() else str(value) for value in values.tolist()
    ]


def _hint(name: str, texts: list[str | None]) -> str | None:
    match _role(name, texts):
        case "time":
            return (
                f"column {name!r} looks like a time, and rows are split at random: if the model will predict later "
                f"rows, set data.time = {name!r}, otherwise the stated rates hold only for rows from the same period"
            )
        case "group" | "blocks":
            return (
                f"column {name!r} looks like a group, and rows are split at random: if the model will predict new "
                f"ones, set data.group = {name!r}, otherwise rows of one group are used for training and calibration, and "
                "a new group may be rejected far more often than stated"
            )
        case _:
            return None


def column_role(name: str, column: ArrowColumn) -> Role | None:
    """Returns what a column looks like by its name and its first rows; None for an ordinary feature."""
    return _role(name, _texts(column))


def _role(name: str, texts: list[str | None]) -> Role | None:
    words = [word.lower() for word in re.findall("[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)]
    if _is_time(words, texts):
        return "time"
    if not _repeats(texts):
        return None
    if GROUP_WORDS & {*words[-1:]}:
        return "group"
    return "blocks" if _in_blocks(texts) else None


def _is_time(words: list[str], texts: list[str | None]) -> bool:
    """Whether a column is a time: its values are dates, or numbers under a name that ends in a time word."""
    filled = [text for text in texts if text]
    if len({*filled}) < GROUPS:
        return False
    dates = all(map(_is_date, filled[:100]))
    return dates or (
        bool(words) and (words[-1] in TIME_WORDS or words == ["time"]) and all(map(_is_number, filled[:100]))
    )


def _is_date(text: str) -> bool:
    try:
        datetime.datetime.fromisoformat(text)
    except ValueError:
        return False
    return not text.isdigit()


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _repeats(texts: list[str | None]) -> bool:
    """Whether there are many distinct values, whole numbers or words, each with several rows."""
    distinct = {text for text in texts if text}
    if len(distinct) < GROUPS or len(texts) < ROWS * len(distinct):
        return False
    return not any(_is_number(text) and not text.lstrip("-").isdigit() for text in distinct)


def _in_blocks(texts: list[str | None]) -> bool:
    """Whether rows with the same value are adjacent."""
    runs = 1 + sum(one != other for one, other in pairwise(texts))
    return runs <= 1.1 * len({*texts})
