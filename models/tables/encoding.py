"""Encodes columns of a table as numbers: categories as codes, dates as seconds, missing values as NaN."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import pyarrow
import pyarrow.compute as arrow_compute
from jaxtyping import Float

from abstain.models.errors import DataError, clip_repr, collect_errors
from abstain.models.tables.arrow_types import is_text, plain_column
from abstain.models.tables.columns import UNSEEN, Column
from abstain.models.tables.dates import Moment, moment_text
from abstain.models.tables.values import (
    MISSING_NUMBERS,
    NUMPY_FLOATS,
    UnreadableValue,
    canonical_text,
    column_texts,
    date_column,
    decoded,
    distinct_cells,
    value_text,
)

# pyarrow ships no types.
pa: Any = pyarrow
pc: Any = arrow_compute
ArrowTable = Any
ArrowSchema = Any
ArrowColumn = Any

_OTHER_COLUMN = (
    "if it holds names, list it in data.categorical; if this cell marks a missing value, in data.na_values; if ids, list the "
    "column in data.drop, or set data.group to it if rows of one id belong together; else correct the cell"
)
_FRACTION = re.compile(r"-?(?:0|[1-9][0-9]*)[.,][0-9]+")
_OTHER_MARK = str.maketrans(".,", ",.")


def check_columns(names: Sequence[str], table: ArrowTable, where: str) -> None:
    """Refuses a table without one of these columns.

    Raises:
        DataError: names the missing columns.
    """
    present = set(table.column_names)
    missing = [name for name in names if name not in present]
    if missing:
        raise DataError(
            "columns are missing",
            where=where,
            expected=", ".join(missing),
            found=", ".join(table.column_names),
            fix="add the columns, or rename them as in the fit",
        )


def encode_table(columns: tuple[Column, ...], table: ArrowTable, where: str) -> Float[np.ndarray, "rows columns"]:
    """Encodes columns of a table as float64 rows: numbers unchanged, categories as codes, dates as seconds, gaps as NaN.

    An unseen category is `UNSEEN`, NaN, or refused, as `Column.unseen` says.

    Raises:
        DataError: a column is missing, or contains text instead of numbers, an infinity, or a category that is refused. The
            text names the first wrong row of every wrong column.
    """
    check_column_names(table.schema, where)
    table = with_names([column.name for column in columns], table)
    check_columns([column.name for column in columns], table, where)
    with collect_errors(where, "columns cannot be read") as attempt:
        encoded = [attempt(encode_column, column, table.column(column.name), where) for column in columns]
    return np.stack(encoded, axis=1) if encoded else np.empty((table.num_rows, 0))


def with_gaps(table: ArrowTable, marks: Sequence[str]) -> ArrowTable:
    """Makes cells with one of these texts missing, in every column of text, numbers, decimals, dates or booleans."""
    texts = {canonical_text(mark) for mark in marks} - {None}
    if not texts:
        return table
    for place, field in enumerate(table.schema):
        column = table.column(place)
        if pa.types.is_nested(field.type):
            continue
        missing = pa.array([text in texts for text in category_texts(column, field.name)])
        if pc.any(missing).as_py():
            plain = plain_column(column, field.name, "table")
            plain = pc.cast(plain, plain.type.value_type) if pa.types.is_dictionary(plain.type) else plain
            table = table.set_column(place, field.name, pc.if_else(missing, pa.scalar(None, plain.type), plain))
    return table


def with_names(names: Sequence[str], table: ArrowTable) -> ArrowTable:
    """Renames columns for models of earlier versions, which kept the blanks around names in the file."""
    present: list[str] = table.column_names
    spaced = {name.strip(): name for name in names if name not in present and name.strip() in present}
    return table.rename_columns([spaced.get(name, name) for name in present]) if spaced else table


def check_column_names(schema: ArrowSchema, where: str) -> None:
    """Refuses two columns with the same name.

    Raises:
        DataError: names the column.
    """
    names: list[str] = schema.names
    name, count = Counter(names).most_common(1)[0] if names else ("", 0)
    if count > 1:
        raise DataError(
            f"column {clip_repr(name)}",
            where=where,
            expected="one column of that name",
            found=count,
            fix="rename or remove the others",
        )


def encode_column(column: Column, values: ArrowColumn, where: str) -> Float[np.ndarray, " rows"]:
    """Encodes one column as `encode_table` does."""
    if column.na_values:
        values = with_gaps(pa.table({column.name: values}), column.na_values).column(0)
    if column.kind == "date":
        return date_column(values, column.name, where)
    if column.kind == "number":
        return numeric_column(values, column.name, where)
    cells, places = distinct_cells(values, column.name, where)
    codes = category_codes(column)
    try:
        coded = [category_code(codes, cell) for cell in cells]
    except UnreadableValue:
        category_texts(values, column.name, where)  # its error names the row
        raise
    encoded = np.array([math.nan if place is None else coded[place] for place in places])
    if column.unseen == "missing":
        encoded[encoded == UNSEEN] = math.nan
    unknown = np.flatnonzero(encoded == UNSEEN)
    if unknown.size and column.unseen == "refuse":
        row = int(unknown[0])
        raise DataError(
            f"column {column.name!r} holds a category the model was not trained on",
            where=f"{where}, row {row}",
            expected=f"one of {', '.join(column.categories)}",
            found=clip_repr(category_texts(values[row : row + 1], column.name, where)[0]) + _more(unknown.size),
            fix="correct the category, or fit again with rows of it",
        )
    return encoded


def category_codes(column: Column) -> dict[str, float]:
    """Returns the code of each category by its name, and by other texts of its name that no other category has.

    These are its canonical text, and for a number the one with the other decimal mark: a file with decimal commas has the
    text `10,5` where others have the number 10.5. Categories of earlier versions have the names that their files had, such as `True`.
    """
    codes = {name: float(code) for code, name in enumerate(column.categories)}
    for name, code in list(codes.items()):
        text = canonical_text(name)
        if text is not None:
            codes.setdefault(text, code)
    for text, code in list(codes.items()):
        if _FRACTION.fullmatch(text):
            codes.setdefault(text.translate(_OTHER_MARK), code)
    # R, SQL and spreadsheets write booleans as 1 and 0.
    for flags, others in ((("true", "false"), ("1", "0")), (("1", "0"), ("true", "false"))):
        if set(column.categories) == set(flags):
            codes |= {other: codes[flag] for flag, other in zip(flags, others, strict=True)}
    return codes


def gap_texts(column: Column) -> frozenset[str | None]:
    """Returns the canonical texts that count as missing values of a column, in addition to empty cells."""
    return frozenset(map(canonical_text, column.na_values)) - {None}


def category_code(codes: Mapping[str, float], value: Any) -> float:
    """Returns the code of one value; NaN for a missing one, `UNSEEN` for another category.

    Args:
        codes: of `category_codes`.
        value: a value of JSON, a scalar of Python or numpy, bytes of UTF-8, or a `Moment`.

    Raises:
        UnreadableValue: as `value_text`.
    """
    if isinstance(value, bytes):
        return category_code(codes, decoded(value))
    if isinstance(value, str) and value in codes:
        return codes[value]
    text = moment_text(value) if isinstance(value, Moment) else value_text(value)
    if text is None:
        return math.nan
    if text not in codes and isinstance(value, NUMPY_FLOATS):
        # Earlier versions wrote a float32 category with the digits of float64.
        text = value_text(cast("Any", value).item()) or text
    if text not in codes and isinstance(value, float):
        text = _float32_text(value) or text
    return codes.get(text, UNSEEN)


def _float32_text(value: float) -> str | None:
    """Returns the text of a float32 that became a float64 on its way, as in JSON: `0.1`, not `0.10000000149011612`.

    None for numbers that no float32 is equal to.
    """
    with np.errstate(over="ignore"):
        narrow = np.float32(value)
    return value_text(narrow) if float(narrow) == value else None


def numeric_column(values: ArrowColumn, name: str, where: str, fix: str | None = None) -> Float[np.ndarray, " rows"]:
    """Converts a column to float64, with missing values (null, NaN, or one of `MISSING_NUMBERS`) as NaN.

    Args:
        fix: the advice of the error for a column of text.

    Raises:
        DataError: a value is not a number, or infinite; the text names its row.
    """
    values = plain_column(values, name, where)
    if pa.types.is_dictionary(values.type):
        values = plain_column(pc.cast(values, values.type.value_type), name, where)
    dtype = values.type
    if pa.types.is_decimal(dtype):
        # Through text, so that 1.10 is the same float64 as in a .csv file.
        values = pc.cast(pc.cast(values, pa.string()), pa.float64())
    elif is_text(dtype):
        values = _parse(values, name, where, fix)
    elif not (pa.types.is_integer(dtype) or pa.types.is_floating(dtype) or pa.types.is_null(dtype)):
        raise _no_number(name, where, 0, f"values of type {dtype}", fix or _fix_for_type(dtype))
    numbers = np.asarray(pc.cast(values, pa.float64(), safe=False).to_numpy(zero_copy_only=False), dtype=np.float64)
    outside = np.flatnonzero(np.abs(numbers) > np.finfo(np.float32).max)
    if outside.size:
        row = int(outside[0])
        expected = "a number within float32's range"
        raise DataError(
            f"column {name!r}",
            where=f"{where}, row {row}",
            expected=expected,
            found=f"{numbers[row]}{_more(outside.size)}",
            fix="replace the value, or leave the cell empty",
        )
    return numbers


def _parse(values: ArrowColumn, name: str, where: str, fix: str | None) -> ArrowColumn:
    """Parses text as numbers; empty cells become null."""
    try:
        texts = pc.cast(values, pa.large_string())
        trimmed = pc.utf8_trim_whitespace(texts)
        missing = pc.is_in(trimmed, pa.array(sorted(MISSING_NUMBERS), trimmed.type))
        trimmed = pc.if_else(missing, pa.scalar(None, trimmed.type), trimmed)
        return pc.cast(trimmed, pa.float64())
    except pa.ArrowInvalid:
        cells: list[str | None] = category_texts(values, name, where)
        wrong = [row for row, cell in enumerate(cells) if not is_number(cell)]
        found = cells[wrong[0]] or ""
        advice = fix or _fix_for_text(found)
        raise _no_number(name, where, wrong[0], clip_repr(found) + _more(len(wrong)), advice) from None


def is_number(cell: str | None) -> bool:
    """Whether a cell of text is a number in a column of numbers, or missing there."""
    if cell is None or cell.strip() in MISSING_NUMBERS:
        return True
    try:
        pc.cast(pa.scalar(cell.strip(), pa.string()), pa.float64())
    except pa.ArrowInvalid:
        return False
    return True


def _more(count: int) -> str:
    """Says for an error how many other rows are wrong."""
    return "" if count < 2 else f" and {count - 1} more row{'s' * (count > 2)} like it"


def _fix_for_type(dtype: Any) -> str:
    if pa.types.is_boolean(dtype):
        return "list it in data.categorical"
    if pa.types.is_date(dtype) or pa.types.is_timestamp(dtype):
        return "list it in data.dates, or leave it out of data.numeric"
    return "list it in data.categorical, convert it to numbers, or list it in data.drop"


def _fix_for_text(found: str) -> str:
    if re.fullmatch(r"[+-]?[0-9]+,[0-9]+", found):
        return 'if this is a decimal comma, set data.decimal = ","; thousands must be written without a separator'
    if re.fullmatch(r"[0-9]{1,4}[./-][0-9]{1,2}[./-][0-9]{1,4}", found):
        return (
            "write dates as 2024-03-01 and list the column in data.dates; or list it in data.categorical or data.drop"
        )
    return _OTHER_COLUMN


def _no_number(name: str, where: str, row: int, found: str, fix: str) -> DataError:
    return DataError(
        f"column {name!r} must be numeric",
        where=f"{where}, row {row}",
        expected="a number, or an empty cell",
        found=found,
        fix=fix,
    )


def category_texts(values: ArrowColumn, name: str = "", where: str = "table") -> list[str | None]:
    """Returns the canonical texts of the cells (`values.py`), None for a missing value: `1` and `"1"` are one category.

    Equal cells share one text, so a column of repeated long texts needs memory only for its distinct texts.

    Raises:
        DataError: as `column_texts`.
    """
    return column_texts(values, name, where)
