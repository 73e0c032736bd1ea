"""The dialect of a text table: its encoding, its delimiter and its decimal mark, from the file's first bytes.

Only what is certain is detected. Where two readings are possible, the dialect of the training file decides if it is known and
possible; otherwise the file is refused with the key of `[data]` that decides.
"""

from __future__ import annotations

import codecs
import csv
import io
import re
from typing import Literal, NamedTuple

from abstain.models.errors import DataError, clip_repr
from abstain.models.files.reading import Reading

DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
SAMPLE_BYTES = 256 * 1024
"""The number of first bytes that are examined."""
SAMPLE_LINES = 200
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_COMMA_NUMBER = re.compile(r"[+-]?[0-9]+,[0-9]+(?:[eE][+-]?[0-9]+)?")
_POINT_NUMBER = re.compile(r"[+-]?[0-9]*\.[0-9]+(?:[eE][+-]?[0-9]+)?")
_THOUSANDS = re.compile(r"[+-]?[1-9][0-9]{0,2},[0-9]{3}")


class Dialect(NamedTuple):
    """How a text table is written, and notes on what was detected."""

    encoding: str
    delimiter: str
    decimal: str
    notes: tuple[str, ...] = ()
    decimal_from: Literal["key", "file", "training file"] = "file"
    """What decides the decimal mark: the config's key, the file's numbers, or the training file because these do not."""


def find_encoding(head: bytes, reading: Reading, where: str) -> str:
    """Returns the encoding: as the key says, by the mark at the beginning of the file, or UTF-8.

    Raises:
        DataError: the file has bytes of zero, but no mark, as UTF-16 without one.
    """
    marked = next((name for mark, name in _MARKS if head.startswith(mark)), None)
    if marked is not None or reading.encoding is not None:
        return marked or str(reading.encoding)
    if b"\0" in head:
        raise DataError(
            "the text has bytes of zero",
            where=where,
            expected="text in UTF-8, or in UTF-16 with a byte order mark",
            found=f"a zero at byte {head.index(0)}",
            fix='if it is UTF-16, set data.encoding = "utf-16-le"; if it is no text, use the right file',
        )
    return "utf-8"


def find_dialect(head: str, encoding: str, reading: Reading, *, tabs: bool, whole: bool, where: str) -> Dialect:
    """Returns the dialect of a text.

    Args:
        head: the first characters of the text, without comments.
        tabs: whether the file's name says that tabs separate cells.
        whole: whether `head` is the whole text.

    Raises:
        DataError: several delimiters or decimal marks are possible; the text names the key that decides.
    """
    notes = [] if encoding == "utf-8" or reading.encoding else [f"encoding {encoding}"]
    samples = {delimiter: _lines(head, delimiter, whole=whole) for delimiter in DELIMITERS}
    usual = reading.dialect
    delimiter = reading.delimiter or ("\t" if tabs else _find_delimiter(samples, usual and usual.delimiter, where))
    if reading.delimiter is None and delimiter != ",":
        notes.append(f"cells are separated by {DELIMITERS[delimiter]}")
    if reading.decimal is not None:
        return Dialect(encoding, delimiter, reading.decimal, tuple(notes), "key")
    # Another delimiter shows that another program wrote the file.
    usual_decimal = usual.decimal if usual is not None and usual.delimiter == delimiter else None
    decimal = "." if delimiter == "," else _find_decimal(samples[delimiter], reading, usual_decimal is not None, where)
    if decimal == ",":
        notes.append("numbers have a decimal comma")
    if decimal is None:
        return Dialect(
            encoding, delimiter, usual_decimal or ".", tuple(notes), "training file" if usual_decimal else "file"
        )
    return Dialect(encoding, delimiter, decimal, tuple(notes))


def _lines(text: str, delimiter: str, *, whole: bool) -> list[list[str]]:
    """Splits the first lines of a text into cells; empty lines are left out, and the last one if the text is cut off."""
    lines: list[list[str]] = []
    try:
        for cells in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter):
            if cells:
                lines.append(cells)
            if len(lines) > SAMPLE_LINES:
                return lines
    except csv.Error:  # a cell that is too long, or a zero byte: the reader of the whole file says what is wrong
        return lines
    return lines if whole or len(lines) < 2 else lines[:-1]


def _find_delimiter(samples: dict[str, list[list[str]]], usual: str | None, where: str) -> str:
    """Returns the delimiter by which all lines have as many cells as the header, at least two.

    Args:
        usual: the delimiter of the training file, which decides between several, and where no delimiter divides the lines.
    """
    widths = {delimiter: [len(cells) for cells in lines] for delimiter, lines in samples.items()}
    split = [delimiter for delimiter, counts in widths.items() if counts and counts[0] > 1]
    even = [delimiter for delimiter in split if len(set(widths[delimiter])) == 1]
    if len(even) == 1:
        return even[0]
    if usual in even or (not even and (usual in split or not split) and usual is not None):
        return usual
    if not even:
        # Lines of different lengths, or one column: the reader names the wrong line.
        return "," if "," in split or len(split) != 1 else split[0]
    raise DataError(
        "the delimiter is not certain",
        where=where,
        expected="one character that divides all lines into equally many cells",
        found=" and ".join(f"{DELIMITERS[delimiter]} ({widths[delimiter][0]} cells)" for delimiter in even),
        fix=f"set data.delimiter, for example to {even[0]!r}",
    )


def _find_decimal(lines: list[list[str]], reading: Reading, is_known: bool, where: str) -> Literal[".", ","] | None:
    """Returns the decimal mark that the numbers show; None if none has a mark, or it is not certain but known otherwise."""
    body = lines if reading.column_names else lines[1:]
    header: list[str] = lines[0] if lines else []
    names = reading.column_names or [name.strip() for name in header]
    texts = {place for place, name in enumerate(names) if reading.kinds.get(name, "number") != "number"}
    commas, points = list[tuple[int, int, str]](), list[tuple[int, int, str]]()
    for row, cells in enumerate(body):
        for column, cell in enumerate(cells):
            if column in texts:
                continue
            if _COMMA_NUMBER.fullmatch(cell.strip()):
                commas.append((row, column, cell.strip()))
            elif _POINT_NUMBER.fullmatch(cell.strip()):
                points.append((row, column, cell.strip()))
    if not commas:
        grouped = (_THOUSANDS.fullmatch(cell.replace(".", ",")) for _, _, cell in points)
        return None if all(grouped) else "."
    if not points and not all(_THOUSANDS.fullmatch(cell) for _, _, cell in commas):
        return ","
    if is_known:
        return None
    row, column, cell = commas[0]
    found = clip_repr(cell) + (f", and {points[0][2]!r} in row {points[0][0]}" if points else "")
    raise DataError(
        "the decimal mark is not certain",
        where=f"{where}, row {row}, column {column + 1}",
        expected="decimal points, or decimal commas in all numbers",
        found=found,
        fix='set data.decimal to "," or "."; thousands must be written without a separator',
    )
