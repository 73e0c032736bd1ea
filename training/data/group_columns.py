"""Reads the key of each row, its group or its time, from a table's column or an array."""

from __future__ import annotations

import datetime
from typing import Any

import numpy as np
import pyarrow
from jaxtyping import Shaped

from abstain.models.errors import DataError, clip_repr
from abstain.models.tables.encoding import ArrowColumn, category_texts
from abstain.training.config.data import DataConfig

pa: Any = pyarrow
Key = Shaped[np.ndarray, " rows"]


def column_key(column: ArrowColumn, config: DataConfig, where: str) -> Key:
    """Reads the key from a table's column: text for groups; numbers or datetime64 for times.

    Raises:
        DataError: a cell is empty or is not a time; the text names its row.
    """
    where = f"{where}, column {config.split_by!r}"
    if config.time is not None and (pa.types.is_timestamp(column.type) or pa.types.is_date(column.type)):
        if column.null_count:
            raise _gap(where, column.to_pylist().index(None))
        return column.cast(pa.timestamp("us")).to_numpy().astype("datetime64[us]")
    cells = category_texts(column)
    texts = [cell for cell in cells if cell is not None]
    if len(texts) < len(cells):
        raise _gap(where, cells.index(None))
    return parse_times(texts, where) if config.time is not None else np.array(texts)


def array_key(arrays: dict[str, np.ndarray], part: str, rows: int, config: DataConfig, where: str) -> Key:
    """Reads the key of one part's rows: the array `NAME_train` for `x_train`, `NAME` for `x`.

    Args:
        part: "_train", or "" for `x`.

    Raises:
        DataError: the array is missing, or does not have one group or time for every row.
    """
    name = next((name for name in (f"{config.split_by}{part}", str(config.split_by)) if name in arrays), None)
    if name is None:
        expected = f"an array {config.split_by}{part}, one {config.split_kind} a row"
        raise DataError(
            f"data.{config.split_kind}",
            where=where,
            expected=expected,
            found=", ".join(arrays),
            fix="add the array, or leave out the setting",
        )
    values = arrays[name]
    if values.shape != (rows,):
        raise DataError(
            name,
            where=where,
            expected=f"shape ({rows},), one value a row",
            found=f"shape {values.shape}",
            fix="give the array one value for each row",
        )
    missing = np.flatnonzero(values != values)  # noqa: PLR0124 - true only for NaN and NaT
    if missing.size:
        raise _gap(f"{where}, {name}", int(missing[0]))
    if config.time is None or values.dtype.kind in "iufM":
        return values
    return parse_times([text.decode() if isinstance(text, bytes) else str(text) for text in values], f"{where}, {name}")


def parse_times(texts: list[str], where: str) -> Key:
    """Parses texts as int64 or float64; else as ISO 8601 dates and times (datetime64), in UTC if they have an offset.

    Raises:
        DataError: a text is neither, or only some times have a UTC offset; the text names the first row that differs.
    """
    for kind in (np.int64, np.float64):
        try:
            values = np.array([kind(text) for text in texts])
        except (ValueError, OverflowError):
            continue
        if np.isfinite(values).all():
            return values
    parsed = [_parse_time(text, row, where) for row, text in enumerate(texts)]
    offsets = [moment.tzinfo is not None for moment in parsed]
    if any(offsets) and not all(offsets):
        row = offsets.index(not offsets[0])
        raise DataError(
            f"row {row}",
            where=where,
            expected="all times with a UTC offset, or none",
            found=clip_repr(texts[row]),
            fix="write every time with an offset, or none",
        )
    plain = [moment.astimezone(datetime.UTC).replace(tzinfo=None) if any(offsets) else moment for moment in parsed]
    return np.array(plain, "datetime64[us]")


def _parse_time(text: str, row: int, where: str) -> datetime.datetime:
    try:
        return datetime.datetime.fromisoformat(text.strip())
    except ValueError as error:
        expected = "a number, or an ISO 8601 date or time such as 2024-01-31"
        raise DataError(
            f"row {row}",
            where=where,
            expected=expected,
            found=clip_repr(text),
            fix="write the times in this form, or leave out data.time",
        ) from error


def _gap(where: str, row: int) -> DataError:
    return DataError(
        f"row {row}",
        where=where,
        expected="the row's group or time",
        found="an empty cell",
        fix="fill it in, or remove the row",
    )
