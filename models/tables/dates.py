"""Dates and times: strict ISO 8601 texts, Arrow columns and Python values as seconds since 1970-01-01 00:00 UTC.

A date is its midnight. A time without an offset counts as UTC, a time with one is converted. Another notation, such as
`01/02/2024`, is refused, because its meaning depends on the country of the writer.
"""

from __future__ import annotations

import datetime
import math
import re
from typing import Any, NamedTuple

import numpy as np
import pyarrow
from jaxtyping import Int

# pyarrow ships no types.
pa: Any = pyarrow
ISO_EXAMPLES = "a date or time such as 2024-03-01, 2024-03-01T10:00:00 or 2024-03-01T10:00:00+02:00"
NANOSECONDS = 10**9
_NUMPY_TIME: Any = np.datetime64
_DAY = 86_400
_EPOCH = datetime.date(1970, 1, 1).toordinal()
_PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": NANOSECONDS}
_ISO = re.compile(
    r"([0-9]{4})-([0-9]{2})-([0-9]{2})"
    r"(?:[T ]([0-9]{2}):([0-9]{2})(?::([0-9]{2})(?:\.([0-9]{1,9}))?)? ?(Z|[+-][0-9]{2}:?[0-9]{2})?)?"
)


class Moment(NamedTuple):
    """A point in time: whole seconds since 1970-01-01 00:00 UTC, and nanoseconds after it, 0 … 999,999,999."""

    second: int
    nanosecond: int = 0
    offset: bool = False
    """Whether it was given with an offset from UTC."""

    @property
    def seconds(self) -> float:
        """The seconds as a float64. All readers add the two parts in this way, so their results are equal bit by bit."""
        return self.second + self.nanosecond / NANOSECONDS


def parse_moment(text: str) -> Moment | None:
    """Reads an ISO 8601 date or time; None if the text is another notation, or no date of the calendar.

    A time has hours and minutes, and may have seconds with up to nine decimals, and an offset (`Z`, `+02:00`). A blank may
    stand in place of the `T`.
    """
    match = _ISO.fullmatch(text)
    if match is None:
        return None
    year, month, day, hour, minute, second = (int(part or 0) for part in match.groups()[:6])
    fraction, offset = match[7] or "", match[8]
    shift = _offset_seconds(offset)
    if hour > 23 or minute > 59 or second > 59 or shift is None:
        return None
    try:
        days = datetime.date(year, month, day).toordinal() - _EPOCH
    except ValueError:
        return None
    whole = days * _DAY + hour * 3600 + minute * 60 + second - shift
    return Moment(whole, int(fraction.ljust(9, "0")), offset is not None)


def _offset_seconds(offset: str | None) -> int | None:
    """Returns the seconds that an offset is ahead of UTC; None if it is no time of day."""
    if offset is None or offset == "Z":
        return 0
    hours, minutes = int(offset[1:3]), int(offset[-2:])
    if hours > 23 or minutes > 59:
        return None
    return (3600 * hours + 60 * minutes) * (-1 if offset[0] == "-" else 1)


def moment_of(value: Any) -> Moment:
    """Returns the moment of a date or a datetime of Python, pandas or numpy; not of NaT."""
    if isinstance(value, _NUMPY_TIME):
        unit = np.datetime_data(value.dtype)[0]
        unit = unit if unit in _PER_SECOND else "s"
        return _moment(int(value.astype(f"M8[{unit}]").astype(np.int64)), unit, offset=False)
    second = (value.toordinal() - _EPOCH) * _DAY
    if not isinstance(value, datetime.datetime):
        return Moment(second)
    shift = value.utcoffset()
    nanosecond = 1000 * value.microsecond + getattr(value, "nanosecond", 0)
    second += value.hour * 3600 + value.minute * 60 + value.second
    if shift is None:
        return Moment(second, nanosecond)
    late = nanosecond - 1000 * shift.microseconds
    second += late // NANOSECONDS - shift.days * _DAY - shift.seconds
    return Moment(second, late % NANOSECONDS, offset=True)


def arrow_moments(values: Any) -> list[Moment | None]:
    """Returns the moments of an Arrow array of dates or timestamps; None for a missing value."""
    dtype = values.type
    offset = pa.types.is_timestamp(dtype) and dtype.tz is not None
    unit = arrow_unit(dtype)
    whole = values.cast(pa.int32() if unit == "D" else pa.int64()).to_pylist()
    return [None if number is None else _moment(number, unit, offset=offset) for number in whole]


def arrow_unit(dtype: Any) -> str:
    """Returns the unit in which an Arrow type of dates or timestamps counts: D, s, ms, us or ns."""
    if pa.types.is_date32(dtype):
        return "D"
    return "ms" if pa.types.is_date64(dtype) else dtype.unit


def seconds_of(numbers: Int[np.ndarray, " rows"], unit: str) -> np.ndarray:
    """Converts numbers of a unit since 1970 to float64 seconds, as `Moment.seconds` does."""
    if unit == "D":
        return numbers.astype(np.float64) * _DAY
    per_second = _PER_SECOND[unit]
    second, rest = np.divmod(numbers.astype(np.int64), per_second)
    return second + rest * (NANOSECONDS // per_second) / NANOSECONDS


def _moment(number: int, unit: str, *, offset: bool) -> Moment:
    if unit == "D":
        return Moment(number * _DAY)
    per_second = _PER_SECOND[unit]
    second, rest = divmod(number, per_second)
    return Moment(second, rest * (NANOSECONDS // per_second), offset)


def moment_text(moment: Moment) -> str:
    """Returns the one text of a moment: `2024-03-01` at midnight without an offset, else `2024-03-01T10:00:00.5`, in UTC.

    A time that was given with an offset ends with `Z`. Years outside 1 … 9999 are written in seconds.
    """
    days, second = divmod(moment.second, _DAY)
    try:
        date = datetime.date.fromordinal(days + _EPOCH).isoformat()
    except (ValueError, OverflowError):
        return f"{moment.seconds!r} s"
    if not (second or moment.nanosecond or moment.offset):
        return date
    return f"{date}T{clock_text(second, moment.nanosecond)}{'Z' if moment.offset else ''}"


def clock_text(second: int, nanosecond: int) -> str:
    """Returns a time of day: `10:00:00`, with as many decimals as it needs."""
    clock = f"{second // 3600:02}:{second // 60 % 60:02}:{second % 60:02}"
    return f"{clock}.{nanosecond:09}".rstrip("0").rstrip(".") if nanosecond else clock


def date_text(seconds: float) -> str:
    """Returns the text of a date column's number, for people: `2024-03-01`, or `2024-03-01T10:00:00Z`."""
    if not math.isfinite(seconds):
        return str(seconds)
    second = math.floor(seconds)
    nanosecond = round((seconds - second) * 1e6) * 1000
    moment = Moment(second + nanosecond // NANOSECONDS, nanosecond % NANOSECONDS)
    return moment_text(moment if not moment.nanosecond and not moment.second % _DAY else moment._replace(offset=True))
