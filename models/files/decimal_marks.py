"""The decimal marks of the columns of a text table: which cells are numbers, and which have a mark that may separate thousands."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow
import pyarrow.compute as arrow_compute

from abstain.models.errors import DataError, clip_repr
from abstain.models.files.reading import ColumnKind
from abstain.models.tables.encoding import ArrowColumn, ArrowTable
from abstain.models.tables.values import MISSING_NUMBERS

# pyarrow ships no types.
pa: Any = pyarrow
pc: Any = arrow_compute

_THOUSANDS = r"[1-9][0-9]{0,2}(?:\.[0-9]{3})+"
_ANY_NUMBER = rf"^[+-]?(?:[0-9]+(?:,[0-9]*)?|,[0-9]+|[0-9]*\.[0-9]*|{_THOUSANDS}(?:,[0-9]*)?)(?:[eE][+-]?[0-9]+)?$"
"""A number with a decimal comma, a decimal point, or points between thousands."""
_WITH_THOUSANDS = rf"^[+-]?{_THOUSANDS}$"
_WITH_COMMA = r"^(\s*[+-]?[0-9]+),([0-9]+(?:[eE][+-]?[0-9]+)?\s*)$"


Kinds = Mapping[str, ColumnKind]
"""The kinds of columns that are known, by name."""


def commas_to_points(table: ArrowTable, kinds: Kinds, where: str) -> ArrowTable:
    """Replaces decimal commas by points in columns of numbers: in others, a comma belongs to the name of a category.

    Raises:
        DataError: a number has a point, which may separate thousands.
    """
    for place, name in enumerate(table.column_names):
        column = table.column(place)
        numbers = _numbers(column, kinds.get(name))
        if numbers is not None:
            _refuse(pc.match_substring(numbers, "."), column, name, where, expected="a decimal comma")
            table = table.set_column(place, name, pc.replace_substring_regex(column, _WITH_COMMA, r"\1.\2"))
    return table


def check_points(table: ArrowTable, kinds: Kinds, where: str) -> None:
    """Refuses a column of numbers in which every point may separate thousands: 4.000.

    Raises:
        DataError: a column is not certain; the text names its first such row, and the key that decides.
    """
    expected = "points that are certainly decimal points, or cells separated by commas"
    for place, name in enumerate(table.column_names):
        column = table.column(place)
        numbers = _numbers(column, kinds.get(name))
        if numbers is not None:
            points = pc.match_substring(numbers, ".")
            if pc.all(pc.equal(points, pc.match_substring_regex(numbers, _WITH_THOUSANDS))).as_py():
                _refuse(points, column, name, where, expected=expected)


def shows_points(table: ArrowTable, kinds: Kinds) -> bool:
    """Whether a number has a point that can only be a decimal point, and no number has a decimal comma."""
    shown = False
    for place, name in enumerate(table.column_names):
        numbers = _numbers(table.column(place), kinds.get(name))
        if numbers is None:
            continue
        if pc.any(pc.match_substring(numbers, ",")).as_py():
            return False
        points = pc.match_substring(numbers, ".")
        certain = pc.and_(points, pc.invert(pc.match_substring_regex(numbers, _WITH_THOUSANDS)))
        shown |= bool(pc.any(certain).as_py())
    return shown


def _numbers(column: ArrowColumn, kind: ColumnKind | None) -> ArrowColumn | None:
    """Returns the numbers of a column without blanks, and other cells as null; None for a column of categories or dates.

    If the kind is not known, a column in which more cells hold something else is one of categories. As for the kind of a column (`training/data/column_kinds.py`), one wrong cell among numbers makes no categories of them.
    """
    if kind not in {None, "number"}:
        return None
    cells = pc.utf8_trim_whitespace(column)
    gaps = pc.is_in(cells, pa.array(sorted(MISSING_NUMBERS), cells.type))
    numbers = pc.if_else(pc.match_substring_regex(cells, _ANY_NUMBER), cells, pa.scalar(None, cells.type))
    numbers = pc.if_else(gaps, pa.scalar(None, cells.type), numbers)
    filled = len(cells) - cells.null_count - (pc.sum(gaps).as_py() or 0)
    return numbers if kind == "number" or 2 * (len(numbers) - numbers.null_count) >= filled else None


def _refuse(wrong: ArrowColumn, column: ArrowColumn, name: str, where: str, *, expected: str) -> None:
    """Raises the error about the first cell of a column that is wrong; none is fine."""
    row = pc.index(pc.fill_null(wrong, False), True).as_py()
    if row < 0:
        return
    raise DataError(
        f"column {name!r}",
        where=f"{where}, row {row}",
        expected=expected,
        found=clip_repr(column[row].as_py()),
        fix='write thousands without a separator; for decimal points, set data.decimal = "."',
    )
