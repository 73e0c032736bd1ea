"""Facts about a table and its columns: what `choices.py` decides by, and what the comments of a config say.

describe_table  Arrow table → TableFacts
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float

from abstain.models.errors import DataError
from abstain.models.tables.encoding import ArrowColumn, ArrowTable, category_texts, numeric_column
from abstain.models.tables.values import date_column, is_text
from abstain.training.config.data import DataConfig
from abstain.training.data.column_kinds import column_kind
from abstain.training.data.hints import Role, column_role

Kind = Literal["number", "category", "date", "empty", "unreadable"]
MIXED_CATEGORIES = 20
"""Up to this number of different texts, a column of numbers with some other text holds categories."""
LISTED = 12
"""The largest number of distinct values of a column that are kept with their counts."""


@dataclass(frozen=True)
class ColumnFacts:
    """What one column holds."""

    name: str
    kind: Kind
    filled: int = 0
    """The number of rows with a value."""
    distinct: int = 0
    counts: tuple[tuple[str, int], ...] = ()
    """The most frequent values with their numbers of rows, at most `LISTED`."""
    rarest: tuple[tuple[str, int], ...] = ()
    """The least frequent values with their numbers of rows, at most `LISTED`."""
    whole: bool = False
    """Whether every value is a whole number."""
    low: float = np.nan
    """The smallest number or date; NaN for categories."""
    high: float = np.nan
    role: Role | None = None
    """What the column looks like by its name and order: a group, or a time."""
    problem: str = ""
    """Why the column cannot be read; empty for all other columns."""

    @property
    def consecutive(self) -> bool:
        """Whether the values are different whole numbers without gaps between them, as in an index."""
        return self.whole and self.distinct == self.filled > 2 and self.high - self.low == self.filled - 1

    @property
    def largest(self) -> int:
        """The number of rows that have the most frequent value."""
        return self.counts[0][1] if self.counts else 0


@dataclass(frozen=True)
class TableFacts:
    """The columns of a table in their order, and the numbers that stand for their values.

    These are the numbers themselves, seconds for dates, or a code for each distinct text; NaN for a gap. A column that is
    empty or unreadable has none.
    """

    rows: int
    columns: tuple[ColumnFacts, ...]
    values: Mapping[str, Float[np.ndarray, " rows"]]

    def column(self, name: str) -> ColumnFacts:
        """Returns the facts of a column."""
        return next(column for column in self.columns if column.name == name)

    def gaps(self, column: ColumnFacts) -> int:
        """Returns how many rows have no value in a column."""
        return self.rows - column.filled


def describe_table(table: ArrowTable) -> TableFacts:
    """Describes every column of a table."""
    columns, values = list[ColumnFacts](), dict[str, Float[np.ndarray, " rows"]]()
    for name in table.column_names:
        facts, numbers = _describe(name, table.column(name))
        columns.append(facts)
        if numbers is not None:
            values[name] = numbers
    return TableFacts(table.num_rows, tuple(columns), values)


def _describe(name: str, column: ArrowColumn) -> tuple[ColumnFacts, Float[np.ndarray, " rows"] | None]:
    try:
        # First the type: the reader leaves lists of a parquet file empty.
        kind = column_kind(name, column, DataConfig(), "")
        if column.null_count == len(column):
            return ColumnFacts(name, "empty"), None
        texts = category_texts(column, name)
        kind, values = _encode(name, column, kind, texts)
    except DataError as error:
        return ColumnFacts(name, "unreadable", problem=_problem(error)), None
    known = values[~np.isnan(values)]
    if not len(known):
        return ColumnFacts(name, "empty"), None
    ordered = known if kind in {"number", "date"} else np.array([np.nan])
    # Numbers are counted by value: 1, 1.0 and 01 are one number, and three texts.
    numbers, rows = np.unique(known, return_counts=True)
    words = dict(zip(values.tolist(), texts, strict=True))
    counts = sorted(
        ((str(words[number]), int(count)) for number, count in zip(numbers, rows, strict=True)), key=_by_count
    )
    facts = ColumnFacts(
        name,
        kind,
        filled=len(known),
        distinct=len(numbers),
        counts=tuple(counts[:LISTED]),
        rarest=tuple(reversed(counts[-LISTED:])),
        whole=kind == "number" and bool((known == np.floor(known)).all()),
        low=float(ordered.min()),
        high=float(ordered.max()),
        role=column_role(name, column),
    )
    return facts, values


def _by_count(pair: tuple[str, int]) -> tuple[int, str]:
    return -pair[1], pair[0]


def _encode(
    name: str, column: ArrowColumn, kind: Kind, texts: list[str | None]
) -> tuple[Kind, Float[np.ndarray, " rows"]]:
    """Returns the kind of a column, and the numbers that stand for its values.

    Raises:
        DataError: a value cannot be read, such as infinity, or text among many numbers.
    """
    known = dict.fromkeys(text for text in texts if text is not None)
    try:
        if kind != "category":
            return kind, (date_column if kind == "date" else numeric_column)(column, name, "")
    except DataError:
        # Such as 0, 1, 2 and 3+, which are categories.
        if not is_text(column.type) or len(known) > MIXED_CATEGORIES:
            raise
    places = {text: float(place) for place, text in enumerate(known)}
    return "category", np.array([np.nan if text is None else places[text] for text in texts])


def _problem(error: DataError) -> str:
    row = (error.where or "").strip(", ")
    return f"{row + ': ' if row else ''}expected {error.expected}, found {error.found}"
