"""Reads text tables: .csv, .tsv and .txt, plain or packed with gzip, from a file or from bytes.

All cells are read as text: a category's name must not depend on other cells (01 among numbers would become 1).
"""

from __future__ import annotations

import codecs
import gzip
import io
import re
from collections.abc import Callable
from typing import Any

import pyarrow
import pyarrow.compute as arrow_compute
import pyarrow.csv as arrow_csv

from abstain.models.errors import DataError, clip_repr
from abstain.models.files.arrow_tables import COLUMN_BYTES, TableFile, join_batches
from abstain.models.files.decimal_marks import check_points, commas_to_points, shows_points
from abstain.models.files.reading import FileDialect, Reading
from abstain.models.files.room import check_room
from abstain.models.files.text_dialect import DELIMITERS, SAMPLE_BYTES, Dialect, find_dialect, find_encoding
from abstain.models.files.text_quotes import QuoteCheck
from abstain.models.tables.encoding import ArrowTable, check_column_names, with_gaps

# pyarrow ships no types.
pa: Any = pyarrow
pc: Any = arrow_compute
csv: Any = arrow_csv

LINE_BYTES = 16 * 2**20
"""Largest size of a line, also of the header, including line breaks within quotes."""
PIECE_BYTES = 2**20
MOST_LINES = 10
"""The largest number of wrong lines that an error lists."""
_SPACED_QUOTE = re.compile(rb'[\r\n,;\t|] +"')
_LINE_END = re.compile(r"\r\n|\r|\n")
_CLOSING = re.compile(r'[^"]*(?:""[^"]*)*"')
"""The end of a quoted cell that began in a line before."""
Opener = Callable[[], io.BufferedIOBase]


class TextStream(io.RawIOBase):
    """A text table as UTF-8, without byte order mark and comment lines, for a reader that calls `read`.

    Unpacked bytes are counted, because a small packed file may hold more text than memory or time allow.
    """

    def __init__(
        self,
        file: io.BufferedIOBase,
        encoding: str,
        comment: str | None,
        where: str,
        *,
        packed: bool,
        delimiter: str | None = None,
    ) -> None:
        super().__init__()
        self._opened = file
        file = gzip.GzipFile(fileobj=file) if packed else file
        name = "utf-8-sig" if encoding == "utf-8" else encoding
        self._file, self._where, self._encoding = file, where, encoding
        self._decoder = codecs.getincrementaldecoder(name)("strict")
        self._comment = comment
        # Only a quote at the beginning of a cell opens one: `5" pipe` has none.
        ends = re.escape(delimiter or "".join(DELIMITERS))
        self._quotes = re.compile(rf'(?:^|(?<=[{ends}])) *"[^"]*(?:""[^"]*)*("?)')
        self._pending, self._taken, self._lines, self._ended = b"", 0, 1, False
        self._rest, self._quoted = "", False
        self.tail, self.size = b"", 0
        """The last bytes that were read, and their number."""
        self.has_quotes, self.has_spaced_quotes = False, False
        """Whether there is a quote, and one after a blank, among the bytes that were read."""
        self.quotes: QuoteCheck | None = None
        """Checks the quotes of the bytes that are read, if set."""

    def close(self) -> None:
        """Closes the file."""
        super().close()
        self._opened.close()

    def readable(self) -> bool:
        """Returns True."""
        return True

    def read(self, size: int = -1, /) -> bytes:
        """Returns at most `size` bytes; fewer only at the end.

        Raises:
            DataError: the text is not in its encoding, takes more memory than `data_limit`, or a quote is wrong.
        """
        while not self._ended and (size < 0 or len(self._pending) < size):
            self._pending += self._next_piece()
        cut = len(self._pending) if size < 0 else size
        piece, self._pending = self._pending[:cut], self._pending[cut:]
        self.has_spaced_quotes |= _SPACED_QUOTE.search(self.tail + piece) is not None
        self.tail = (self.tail + piece[-64:])[-64:]
        self.size += len(piece)
        self.has_quotes |= b'"' in piece
        if self.quotes is not None:
            self.quotes.feed(piece)
        return piece

    def readinto(self, buffer: Any, /) -> int:
        """Reads into a buffer; returns the number of bytes."""
        piece = self.read(len(buffer))
        buffer[: len(piece)] = piece
        return len(piece)

    def _next_piece(self) -> bytes:
        raw = self._file.read(PIECE_BYTES)
        self._ended = not raw
        self._taken = check_room(len(raw), self._where, "the unpacked text", self._taken)
        try:
            text = self._decoder.decode(raw, final=self._ended)
        except UnicodeDecodeError as error:
            raise _not_encoded(error, self._lines, self._encoding, self._where) from error
        self._lines += text.count("\n")
        return (self._without_comments(text) if self._comment else text).encode()

    def _without_comments(self, text: str) -> str:
        """Leaves out lines that begin with the comment's text outside quotes; keeps an unfinished line for the next call."""
        text = self._rest + text
        # A return at the end may be the first half of a line end.
        whole = text[:-1] if text.endswith("\r") and not self._ended else text
        *lines, self._rest = _LINE_END.split(whole)
        self._rest += text[len(whole) :]
        if len(self._rest) > LINE_BYTES:
            raise _too_long(self._where)
        if self._ended and self._rest:
            lines, self._rest = [*lines, self._rest], ""
        kept: list[str] = []
        for line in lines:
            if self._quoted or not line.startswith(str(self._comment)):
                kept.append(line)
                self._quoted = self._ends_in_quotes(line)
        return "".join(f"{line}\n" for line in kept)

    def _ends_in_quotes(self, line: str) -> bool:
        """Whether a quoted cell goes on after the end of a line."""
        start = 0
        if self._quoted:
            closing = _CLOSING.match(line)
            if closing is None:
                return True
            start = closing.end()
        return any(not match[1] for match in self._quotes.finditer(line, start)) if '"' in line[start:] else False


def _not_encoded(error: UnicodeDecodeError, lines: int, encoding: str, where: str) -> DataError:
    line = lines + error.object[: error.start].count(b"\n")
    return DataError(
        f"the text is not {encoding.upper()}",
        where=f"{where}, line {line}",
        expected=f"text in {encoding.upper()}",
        found=clip_repr(bytes(error.object[max(error.start - 10, 0) : error.start + 10])),
        fix='set data.encoding, often "cp1252" or "latin-1", or save the file as UTF-8',
    )


def _too_long(where: str) -> DataError:
    return DataError(
        "a line is too long, or a quote is never closed",
        where=where,
        expected=f"lines of at most {LINE_BYTES:,} bytes",
        found="a longer one",
        fix='look for a cell that begins with " and does not end with one, or save the table as .parquet',
    )


def read_text_table(open_file: Opener, where: str, reading: Reading, *, packed: bool, tabs: bool) -> TableFile:
    """Reads a text table.

    Args:
        open_file: opens the bytes of the file; called more than once.
        packed: whether they are packed with gzip.
        tabs: whether the file's name says that tabs separate cells.

    Raises:
        DataError: the dialect is not certain, a line has another number of cells than the header, a quote is never
            closed, or the rows take more memory than `data_limit`.
    """

    def open_text(encoding: str, delimiter: str | None = reading.delimiter) -> TextStream:
        return TextStream(open_file(), encoding, reading.comment, where, packed=packed, delimiter=delimiter)

    with open_file() as file:
        head = gzip.GzipFile(fileobj=file).read(SAMPLE_BYTES) if packed else file.read(SAMPLE_BYTES)
    encoding = find_encoding(head, reading, where)
    with open_text(encoding) as stream:
        sample = stream.read(SAMPLE_BYTES)
        whole = len(sample) < SAMPLE_BYTES
    text = sample.decode("utf-8", "ignore")
    dialect = find_dialect(text, encoding, reading, tabs=tabs, whole=whole, where=where)
    names = _own_names(text, dialect, reading, where)
    with open_text(encoding, dialect.delimiter) as stream:
        _check_width(stream, dialect.delimiter, where)
    with open_text(encoding, dialect.delimiter) as stream:
        stream.quotes = QuoteCheck(dialect.delimiter, where, LINE_BYTES)
        table = _read(stream, dialect, names, where)
        stream.quotes.finish()
        spaced = stream.has_spaced_quotes
    table, notes = _without_spaces(table, where, quotes=spaced)
    decimal, table = _with_points(table, dialect, reading, where)
    found = FileDialect.model_validate({"delimiter": dialect.delimiter, "decimal": decimal})
    return TableFile(table, (*dialect.notes, *notes), found)


def _with_points(table: ArrowTable, dialect: Dialect, reading: Reading, where: str) -> tuple[str | None, ArrowTable]:
    """Returns the decimal mark, None if the file does not show it, and the table with decimal points."""
    decimal, kinds = dialect.decimal, reading.kinds
    if dialect.delimiter == "," and decimal == ".":
        return decimal, table
    table = with_gaps(table, reading.na_values)
    points = dialect.decimal_from != "key" and shows_points(table, kinds)
    if decimal == "," and not (dialect.decimal_from == "training file" and points):
        return decimal, commas_to_points(table, kinds, where)
    if dialect.decimal_from == "file" or decimal == ",":
        check_points(table, kinds, where)
    return "." if points or dialect.decimal_from == "key" else None, table


def _own_names(text: str, dialect: Dialect, reading: Reading, where: str) -> tuple[str, ...]:
    """Returns the names that the config gives to the columns; none if the file has them in its first line, too."""
    names = reading.column_names
    if not names:
        return ()
    first = next(iter(text.splitlines()), "").split(dialect.delimiter)
    cells = [cell.strip().strip('"') for cell in first]
    if cells == list(names):
        return ()
    if len(first) != len(names) and '"' not in next(iter(text.splitlines()), ""):
        raise DataError(
            "data.column_names",
            where=where,
            expected=f"a name for each of {len(first)} columns",
            found=f"{len(names)} names",
            fix="name all columns in their order, or leave the key out if the file has a header",
        )
    return names


def _read(stream: TextStream, dialect: Dialect, names: tuple[str, ...], where: str) -> ArrowTable:
    wrong: list[str] = []

    def note_wrong_line(line: Any) -> str:
        place = "" if line.number is None else f"line {line.number}: "
        wrong.append(f"{place}{line.actual_columns} cells in {clip_repr(line.text)}")
        return "skip" if len(wrong) < MOST_LINES else "error"

    expected = len(names)
    try:
        # Line breaks in quotes are allowed, because otherwise a quote that is never closed is no error.
        with csv.open_csv(
            stream,
            # In one thread, so that the reader knows the number of a wrong line.
            read_options=csv.ReadOptions(block_size=LINE_BYTES, column_names=list(names) or None, use_threads=False),
            parse_options=csv.ParseOptions(
                delimiter=dialect.delimiter, newlines_in_values=True, invalid_row_handler=note_wrong_line
            ),
            convert_options=csv.ConvertOptions(
                default_column_type=pa.string(), strings_can_be_null=True, null_values=[""]
            ),
        ) as reader:
            expected = len(reader.schema)
            check_column_names(reader.schema, where)
            table, _ = join_batches(reader, reader.schema, where)
    except pa.ArrowInvalid as error:
        if not wrong and _is_too_long(error, stream):
            raise _too_long(where) from error
        if not wrong:
            raise
        table = None
    if wrong or table is None:
        more = " and more" if len(wrong) == MOST_LINES else ""
        raise DataError(
            "lines have another number of cells than the header",
            where=where,
            expected=f"{expected} cells" if expected else "as many cells as the header",
            found=" | ".join(wrong) + more,
            fix="write a cell that contains the delimiter in quotes; if the delimiter is another one, set data.delimiter; if "
            "lines are comments, set data.comment",
        )
    return table


def _check_width(stream: TextStream, delimiter: str, where: str) -> None:
    """Refuses a header with too many columns: the reader allocates memory for each of them at once."""
    head = first_line(stream.read(LINE_BYTES))
    check_room(COLUMN_BYTES * (head.count(delimiter.encode()) + 1), where, "the columns")


def first_line(text: bytes) -> bytes:
    """Returns the first line of a text, whose lines may end with a return, a line feed or both."""
    return text.partition(b"\n")[0].partition(b"\r")[0]


def _is_too_long(error: Exception, stream: TextStream) -> bool:
    """Whether the reader found no end of a line in its block; for the header, it only reports that it found no column."""
    message = str(error)
    if "cannot infer number of columns" in message:
        return stream.size >= LINE_BYTES or stream.has_quotes
    return "straddling object" in message or "out of sync with chunker" in message


def _without_spaces(table: ArrowTable, where: str, *, quotes: bool) -> tuple[ArrowTable, tuple[str, ...]]:
    """Removes blanks beside names, and quotes that follow a blank, which the reader takes for a part of the cell.

    Args:
        quotes: whether the file has a quote after a blank.
    """
    names: list[str] = table.column_names
    stripped = [_unquoted(name) for name in names]
    notes = ("blanks beside the columns' names are removed",) if stripped != names else ()
    if len(set(stripped)) == len(names):
        table = table.rename_columns(stripped)
    for place, name in enumerate(table.column_names if quotes else ()):
        column = table.column(place)
        spaced = pc.match_substring_regex(column, r'^\s+"')
        if not pc.any(spaced).as_py():
            continue
        open_quote = pc.and_(spaced, pc.invert(pc.match_substring_regex(column, r'^\s+"[^"]*"\s*$')))
        if pc.any(open_quote).as_py():
            row = pc.index(pc.fill_null(open_quote, False), True).as_py()
            raise DataError(
                f"column {name!r}",
                where=f"{where}, row {row}",
                expected="a quote directly after the delimiter",
                found=clip_repr(column[row].as_py()),
                fix="remove the blank before the quote",
            )
        cleaned = pc.replace_substring_regex(column, r'^\s+"([^"]*)"\s*$', r"\1")
        table = table.set_column(place, name, cleaned)
    return table, notes


def _unquoted(name: str) -> str:
    text = name.strip()
    return text[1:-1] if text != name and len(text) > 1 and text[0] == text[-1] == '"' else text
