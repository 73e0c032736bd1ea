"""The columns that `abstain predict --keep` copies from the input, with their types."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.compute as arrow_compute

from abstain.models.errors import DataError, suggest
from abstain.models.files.row_files import TEXT_TABLES, ending_of

# pyarrow ships no types.
pa: Any = pyarrow
pc: Any = arrow_compute
_WHOLE = re.compile(r"0|-?[1-9][0-9]{0,17}")
"""Whole numbers as every program writes them: 007 is an id, not a number."""


def keep_from_table(keep: Sequence[str], table: Any, source: Path, numbers: Collection[str] = ()) -> dict[str, Any]:
    """Returns each column to keep as a column of Arrow, with the type that it has in the file.

    A text file has no types: a column is of whole numbers, or of numbers, if that changes none of its texts, or if it is one of
    the model's numbers. A cell of these that is no number is then left empty: it is in the error of its row.

    Args:
        numbers: the names of the model's columns of numbers.

    Raises:
        DataError: there is no such column, or it holds lists.
    """
    kept: dict[str, Any] = {}
    for name in keep:
        _check_name(name, table.column_names, source)
        column = table.column(name)
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        if pa.types.is_nested(column.type):
            raise _not_single(name, table.num_rows, source)
        if ending_of(source) in TEXT_TABLES:
            column = _only_numbers(column) if name in numbers else as_numbers(column)
        kept[name] = column
    return kept


def keep_from_arrays(keep: Sequence[str], arrays: Mapping[str, np.ndarray], count: int, source: Path) -> dict[str, Any]:
    """Returns each array to keep as a column of Arrow.

    Raises:
        DataError: there is no such array, or it has not one value for each row.
    """
    kept: dict[str, Any] = {}
    for name in keep:
        _check_name(name, [*arrays], source)
        if arrays[name].shape != (count,):
            raise _not_single(name, count, source)
        try:
            kept[name] = pa.chunked_array([arrays[name]])
        except pa.ArrowException as error:
            found = f"the type {arrays[name].dtype}"
            raise DataError(f"--keep {name}", where=str(source), expected="numbers or text", found=found) from error
    return kept


def as_numbers(column: Any) -> Any:
    """Returns a column of text as whole numbers or as numbers, if each text is what Python writes for its number.

    So 1.10, which may be a version, and 007 stay text; a missing value stays one.
    """
    texts = [text for text in pc.unique(column).to_pylist() if text is not None]
    if not texts:
        return column
    if all(map(_WHOLE.fullmatch, texts)):
        return column.cast(pa.int64())
    return column.cast(pa.float64()) if all(map(_is_plain_number, texts)) else column


def _only_numbers(column: Any) -> Any:
    """Returns a column of text as whole numbers or as numbers; other texts become missing values."""
    texts = [None if text is None or not _is_number(text) else text.strip() for text in column.to_pylist()]
    whole = all(_WHOLE.fullmatch(text) for text in texts if text is not None)
    values = [text if text is None else int(text) if whole else float(text) for text in texts]
    return pa.chunked_array([values], pa.int64() if whole else pa.float64())


def _is_number(text: str) -> bool:
    try:
        return "_" not in text and bool(np.isfinite(float(text)))
    except ValueError:
        return False


def _is_plain_number(text: str) -> bool:
    if not _is_number(text):
        return False
    number = float(text)
    return int(number) == int(text) if _WHOLE.fullmatch(text) else repr(number) == text


def _check_name(name: str, names: Sequence[str], source: Path) -> None:
    if name not in names:
        raise DataError(
            f"--keep {name}",
            where=str(source),
            expected=f"one of {', '.join(names)}",
            found="no such column",
            fix=suggest(name, names),
        )


def _not_single(name: str, count: int, source: Path) -> DataError:
    return DataError(f"--keep {name}", where=str(source), expected=f"one value for each of {count:,} rows")
