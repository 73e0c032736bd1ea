"""Quotes in text tables: a quote that is never closed must not swallow rows up to another quote."""

import csv
import io
import itertools

import pyarrow as pa
import pyarrow.csv as arrow_csv
import pytest

from abstain.models.errors import DataError
from abstain.models.files.row_files import read_table_bytes
from abstain.models.files.text_quotes import QuoteCheck


def verdict(text: str, size: int, most: int = 1000) -> str:
    """What the check says about a text in pieces of this size; empty if the text is fine."""
    content, check = text.encode(), QuoteCheck(",", "t.csv", most)
    try:
        for start in range(0, len(content), size):
            check.feed(content[start : start + size])
        check.finish()
    except DataError as error:
        return str(error)
    return ""


def is_strict(text: str) -> bool:
    """Whether the reader of Python's standard library finds each quote in its place."""
    try:
        list(csv.reader(io.StringIO(text, newline=""), strict=True))
    except csv.Error:
        return False
    return True


def test_each_short_text_is_judged_as_the_strict_reader_of_python_does():
    """All texts of up to six signs, in pieces of any size."""
    texts = ("".join(signs) for length in range(7) for signs in itertools.product('",x\n', repeat=length))
    wrong = [text for number, text in enumerate(texts) if (verdict(text, 1 + number % 4) == "") is not is_strict(text)]
    assert wrong == []


@pytest.mark.parametrize("size", [1, 7, 1000])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('n,c,d\n31,"true,1\n30,0,2\n20,"1",3\n', "t.csv, line 2: a quote is never closed, or text follows"),
        ('a,b\r\n1,2\r\n2,"x\r\n3,"z"\r\n', "t.csv, line 3: a quote is never closed, or text follows"),
        ('a,b\n1,2\n2,"x\n3,""\n4,y\n', "t.csv, line 3: a quote is never closed"),
        ('a,b\n1,"' + "x" * 1000, "t.csv, line 2: a line is too long, or a quote is never closed"),
    ],
)
def test_an_open_quote_is_named_by_its_line(text, message, size):
    """Whatever piece it is in."""
    assert verdict(text, size).startswith(message)


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_quotes_in_their_place_are_fine(size):
    """Doubled ones, line breaks within, blanks after; in a cell that begins without a quote, it is a sign as any other."""
    assert verdict('"a","b ""c"""\r\n"1\r\n2" ,5" pipe\n,"x"', size) == ""


def test_a_table_is_refused_before_rows_are_lost():
    """One that the reader would take for one row."""
    text = b'a,b\n1,"x\n2,y\n3,"z"\n'
    lenient = arrow_csv.read_csv(pa.py_buffer(text), parse_options=arrow_csv.ParseOptions(newlines_in_values=True))
    assert lenient.num_rows == 1
    with pytest.raises(DataError, match=r"body, line 2: .*found .*z.* up to line 4; close the quote"):
        read_table_bytes(text, ".csv", "body")
    assert read_table_bytes(b'a,b\n1,5" pipe\n"2",x\n', ".csv", "body").table["b"].to_pylist() == ['5" pipe', "x"]
