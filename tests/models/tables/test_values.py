"""The one text and the one number of a value: the same from every writer, type and door."""

import datetime
import decimal
import io
import json
import math
import uuid

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv as arrow_csv
import pytest

from abstain.models.errors import DataError
from abstain.models.tables.columns import Column
from abstain.models.tables.encoding import category_code, category_codes, encode_column, encode_table, numeric_column
from abstain.models.tables.values import (
    UnreadableValue,
    canonical_text,
    column_texts,
    date_column,
    date_seconds,
    value_text,
)

UTC = datetime.UTC
BERLIN = datetime.timezone(datetime.timedelta(hours=2))
TEN = datetime.datetime(2024, 3, 1, 10)


def texts(values, dtype=None):
    """The texts of an Arrow column."""
    return column_texts(pa.array(values, dtype), "c", "rows")


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ([True, "True", "TRUE", "true", np.bool_(1)], "true"),
        ([False, "False", "FALSE", "false", np.bool_(0)], "false"),
        ([2, 2.0, "2", "2.0", "2.00", " 2", decimal.Decimal("2.0"), np.int8(2), np.float32(2), b"2"], "2"),
        ([0, -0.0, "0", "-0", "0.0", "-0.0", "0e+00"], "0"),
        ([0.1, np.float32(0.1), np.float16(0.1), "0.1", "0.10", "1e-01", decimal.Decimal("0.10")], "0.1"),
        ([100000.0, "1e+05", "100000", 100000, decimal.Decimal("1E+5")], "100000"),
        ([1e16, "1e+16", "10000000000000000.0"], "10000000000000000"),
        ([-1.5, "-1.50", decimal.Decimal("-1.5")], "-1.5"),
        (["12345678901234567891", 12345678901234567891], "12345678901234567891"),
        ([datetime.date(2024, 3, 1), "2024-03-01", "2024-03-01 00:00:00", "2024-03-01T00:00:00.000000"], "2024-03-01"),
        ([datetime.datetime(2024, 3, 1), np.datetime64("2024-03-01"), pd.Timestamp("2024-03-01")], "2024-03-01"),
        ([TEN, "2024-03-01 10:00:00", "2024-03-01T10:00", "2024-03-01 10:00:00.000000"], "2024-03-01T10:00:00"),
        ([TEN.replace(tzinfo=BERLIN), "2024-03-01 10:00:00+02:00", "2024-03-01T08:00:00Z"], "2024-03-01T08:00:00Z"),
        ([datetime.time(10, 0), "10:00:00", "10:00:00.000000"], "10:00:00"),
        (["ja", " ja ", b"ja", "ja\t"], "ja"),
        ([uuid.UUID(int=5), str(uuid.UUID(int=5))], str(uuid.UUID(int=5))),
    ],
)
def test_a_value_has_one_text_whatever_its_type(values, text):
    """Booleans, numbers, decimals, dates, times, text and bytes, as programs write them."""
    assert [value_text(value) for value in values] == [text] * len(values)
    assert canonical_text(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "02134",
        "007",
        "1E5",
        "1e5",
        "+1",
        "1_000",
        "1,5",
        "2024-13-01",
        "2024-3-1",
        "NA",
        "nan",
        "?",
        "SW1A",
        "٣",
        "1.",
        "--1",
    ],
)
def test_other_text_stays_as_it_is(text):
    """Postal codes, product codes, other notations, and words that mean a gap only in a column of numbers."""
    assert value_text(text) == text


def test_missing_values_have_no_text():
    """None, NaN and NaT of each library, empty text and text of blanks."""
    missing = [None, math.nan, np.float32("nan"), decimal.Decimal("NaN"), np.datetime64("NaT"), pd.NaT, "", "  ", b""]
    assert [value_text(value) for value in missing] == [None] * len(missing)


@pytest.mark.parametrize("value", [[1], {"a": 1}, b"\xff", 1j, object(), 10**500])
def test_what_has_no_text_is_refused(value):
    """Lists, tables, bytes that are not UTF-8, and numbers that no program writes."""
    with pytest.raises(UnreadableValue, match=r"expected .*, found "):
        value_text(value)


COLUMNS = {
    "bool": ([True, None, False], [pa.bool_(), pa.dictionary(pa.int8(), pa.bool_())]),
    "int": ([2, None, 30], [pa.int8(), pa.uint16(), pa.int64(), pa.float32(), pa.float64(), pa.decimal128(5, 2)]),
    "small decimals": ([decimal.Decimal("1.50"), None], [pa.decimal32(5, 2), pa.decimal64(9, 3), pa.decimal256(50, 4)]),
    "float": ([0.1, None, 1e-7, 1e20], [pa.float32(), pa.float64()]),
    "text": (
        ["a", None, "ü", " b "],
        [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())],
    ),
    "bytes": ([b"ab", None, b"cd"], [pa.binary(), pa.large_binary(), pa.binary_view(), pa.binary(2)]),
    "date": (
        [datetime.date(2024, 3, 1), None, datetime.date(1900, 1, 1)],
        [pa.date32(), pa.date64()],
    ),
    "time": (
        [TEN, None, TEN.replace(microsecond=500_000)],
        [pa.timestamp("ms"), pa.timestamp("us"), pa.timestamp("ns")],
    ),
    "with an offset": (
        [TEN.replace(tzinfo=BERLIN), None],
        [pa.timestamp("s", "UTC"), pa.timestamp("ns", "Europe/Berlin")],
    ),
    "of day": ([datetime.time(10, 0), None, datetime.time(1, 2, 3, 40)], [pa.time64("us"), pa.time64("ns")]),
    "gaps": ([None, None], [pa.null(), pa.float64(), pa.string()]),
}


@pytest.mark.parametrize("kind", COLUMNS)
def test_a_column_has_the_texts_of_its_single_values(kind):
    """Every Arrow type against Python's values one by one, and against the same column in chunks."""
    values, dtypes = COLUMNS[kind]
    expected = [value_text(value) for value in values]
    for dtype in dtypes:
        is_dictionary = pa.types.is_dictionary(dtype)
        column = pa.array(values, dtype.value_type if is_dictionary else dtype)
        column = column.dictionary_encode() if is_dictionary else column
        assert column_texts(column, "c", "rows") == expected, dtype
        chunked = pa.chunked_array([column[:1], column[1:], column[:0]], column.type)
        assert column_texts(chunked, "c", "rows") == expected, dtype


def test_dictionaries_with_a_null_in_them_are_read():
    """In chunks, too, which pyarrow cannot join."""
    for values in (["a", None], [True, None], [1.5, None]):
        column = pa.DictionaryArray.from_arrays(pa.array([0, 1, None]), pa.array(values))
        expected = [value_text(values[0]), None, None]
        assert column_texts(column, "c", "rows") == expected
        assert column_texts(pa.chunked_array([column, column]), "c", "rows") == 2 * expected


def test_extension_types_are_read_by_their_meaning():
    """UUIDs as text, eight-bit booleans as booleans, JSON as text; types of another library are refused by name."""
    one = uuid.UUID(int=1)
    assert column_texts(pa.array([one.bytes, None], pa.uuid()), "c", "rows") == [str(one), None]
    bools = pa.ExtensionArray.from_storage(pa.bool8(), pa.array([0, 5, None], pa.int8()))
    assert column_texts(bools, "c", "rows") == ["false", "true", None]
    assert column_texts(pa.ExtensionArray.from_storage(pa.json_(), pa.array(['"a"'])), "c", "rows") == ['"a"']
    period = pa.table(pd.DataFrame({"c": pd.period_range("2024-01", periods=2, freq="M")}))["c"]
    for read in (column_texts, numeric_column, date_column):
        with pytest.raises(DataError, match=r"rows: column 'c' cannot be read: .*found values of type .*data.drop"):
            read(period, "c", "rows")


@pytest.mark.parametrize("cell", [[1], {"a": 1}, datetime.timedelta(1)], ids=["list", "struct", "duration"])
def test_columns_without_single_values_are_refused(cell):
    """Lists, tables and durations, by every function."""
    column = pa.array([cell])
    for read in (column_texts, numeric_column, date_column):
        with pytest.raises(DataError, match=r"rows: column 'c' cannot be read: .*found values of type"):
            read(column, "c", "rows")


def test_bytes_that_are_no_text_are_named_by_row():
    """Also in a text column, which a file may fill with any bytes."""
    broken = pa.Array.from_buffers(pa.string(), 2, pa.array([b"a", b"\xff"]).buffers())
    for column in (pa.array([b"a", b"\xff"]), broken):
        for read in (column_texts, date_column, numeric_column):
            with pytest.raises(DataError, match=r"rows, row [01]: column 'c'"):
                read(column, "c", "rows")


# ---- one table by several writers ------------------------------------------------------------------------------------


FRAME = pd.DataFrame(
    {
        "flag": [True, False, True, False],
        "count": pd.array([2, None, 30, 2], dtype="Int64"),
        "share": [0.1, 0.25, 1e-5, 100000.0],
        "day": pd.to_datetime(["2024-03-01", "2024-02-29", "1999-12-31", "2024-03-01"]),
        "at": pd.to_datetime(
            ["2024-03-01 10:00", "2024-02-29 23:59:59.5", "1999-12-31", "2024-03-01 10:00"], format="ISO8601"
        ),
        "word": ["ä", "b c", "d,e", 'f"g'],
    }
)
R_CSV = (
    '"flag","count","share","day","at","word"\n'
    'TRUE,2,0.1,2024-03-01,2024-03-01 10:00:00,"ä"\n'
    'FALSE,NA,0.25,2024-02-29,2024-02-29 23:59:59.5,"b c"\n'
    'TRUE,30,1e-05,1999-12-31,1999-12-31,"d,e"\n'
    'FALSE,2,1e+05,2024-03-01,2024-03-01 10:00:00,"f""g"\n'
)


def as_text(content):
    """Reads a .csv with every cell as text, as the reader of files does."""
    options = arrow_csv.ConvertOptions(
        column_types={name: pa.string() for name in FRAME}, strings_can_be_null=True, null_values=[""]
    )
    return arrow_csv.read_csv(io.BytesIO(content), convert_options=options)


def writers():
    """The same table as text and in Arrow's types."""
    table = pa.Table.from_pandas(FRAME, preserve_index=False)
    arrow = io.BytesIO()
    arrow_csv.write_csv(table, arrow)
    floats = FRAME.assign(count=FRAME["count"].astype("float64"))
    return {
        "pandas": as_text(FRAME.to_csv(index=False).encode()),
        "pandas, gaps as floats": as_text(floats.to_csv(index=False).encode()),
        "pyarrow": as_text(arrow.getvalue()),
        "R": as_text(R_CSV.encode()),
        "arrow types": table,
        "categorical": pa.Table.from_pandas(
            FRAME.astype({"flag": "category", "word": "category"}), preserve_index=False
        ),
        "json": pa.table(
            {
                name: [
                    json.loads(json.dumps(v, default=str))
                    for v in FRAME[name].astype(object).where(FRAME[name].notna(), None)
                ]
                for name in FRAME
            }
        ),
    }


def test_all_writers_give_the_same_texts_and_numbers():
    """Categories of every column but R's NA, dates and numbers of each writer are those of Arrow's types, bit by bit."""
    tables = writers()
    expected = {name: column_texts(tables["arrow types"][name], name, "rows") for name in FRAME}
    assert expected["flag"] == ["true", "false", "true", "false"]
    assert expected["count"] == ["2", None, "30", "2"]
    for writer, table in tables.items():
        for name in FRAME:
            found = column_texts(table[name], name, "rows")
            found = [None if text == "NA" and name == "count" else text for text in found]
            assert found == expected[name], (writer, name)
        for name in ("day", "at"):
            seconds = date_column(table[name], name, "rows")
            np.testing.assert_array_equal(seconds, date_column(tables["arrow types"][name], name, "rows"), writer)
        for name in ("count", "share"):
            np.testing.assert_array_equal(
                numeric_column(table[name], name, "rows"), FRAME[name].to_numpy("float64", na_value=math.nan), writer
            )


# ---- dates -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1970-01-01", 0.0),
        ("2024-03-01", 1709251200.0),
        ("2024-03-01T10:00:00", 1709287200.0),
        ("2024-03-01 10:00", 1709287200.0),
        ("2024-03-01T10:00:00.25", 1709287200.25),
        ("2024-03-01T10:00:00Z", 1709287200.0),
        ("2024-03-01T10:00:00+02:00", 1709280000.0),
        ("2024-03-01 10:00:00 -0530", 1709307000.0),
        ("1969-12-31T23:59:59.5", -0.5),
        ("0001-01-01", -62135596800.0),
        (" 2024-03-01 ", 1709251200.0),
    ],
)
def test_a_date_is_its_seconds_since_1970(text, seconds):
    """Also compared with Python's own datetime."""
    assert date_seconds(text) == seconds
    own = datetime.datetime.fromisoformat(text.strip().replace(" -", "-"))
    assert own.replace(tzinfo=own.tzinfo or UTC).timestamp() == seconds


@pytest.mark.parametrize("text", ["", "NA", "NaT", "null", None, math.nan, pd.NaT])
def test_a_missing_date_is_nan(text):
    """Empty cells, and the words for a missing number."""
    assert math.isnan(date_seconds(text))


@pytest.mark.parametrize(
    "value",
    [
        "01/02/2024",
        "2024-02-30",
        "2024-3-1",
        "20240301",
        "2024-03-01T24:00:00",
        "2024-03-01T10:00:60",
        "March 1",
        "2024",
        "2024-03-01T10:00:00+25:00",
        "2024-03-01T10:00:00.1234567890",
        "0000-01-01",
        1709251200,
        1.5,
        True,
        [1],
    ],
)
def test_another_notation_is_refused(value):
    """Also a number: its unit is not known."""
    with pytest.raises(UnreadableValue, match="expected a date or time such as 2024-03-01"):
        date_seconds(value)


def test_dates_of_arrow_are_the_seconds_of_their_single_values():
    """Random moments in every unit, before and after 1970, with and without an offset."""
    rng = np.random.default_rng(0)
    for unit, scale in {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}.items():
        numbers = rng.integers(-2 * 10**9, 4 * 10**9, 50) * scale + rng.integers(0, scale, 50)
        expected = [date_seconds(np.datetime64(int(number), unit)) for number in numbers]
        for zone in (None, "UTC", "America/New_York"):
            column = pa.array([*numbers.tolist(), None], pa.int64()).cast(pa.timestamp(unit, zone))
            np.testing.assert_array_equal(date_column(column, "c", "rows"), [*expected, math.nan])
            written = pa.array(column_texts(column, "c", "rows"))
            np.testing.assert_array_equal(date_column(written, "c", "rows"), [*expected, math.nan])
        exact = [float(decimal.Decimal(int(number)) / scale) for number in numbers]
        np.testing.assert_allclose(expected, exact, rtol=2e-16)


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        (
            ["2024-03-01", "1.3.2024"],
            r"row 1: column 'c': expected a date or time .*found '1.3.2024'; .*data.categorical",
        ),
        (["2024-03-01T10:00", None, "2024-03-01T10:00Z"], "row 2: column 'c' mixes times with and without an offset"),
        ([1, 2], "row 0: column 'c': expected a date"),
        ([datetime.time(10)], "row 0: column 'c': expected a date"),
    ],
)
def test_a_wrong_date_is_named_by_row(cells, message):
    """Other notations, offsets here and there, numbers, and times of day."""
    with pytest.raises(DataError, match=f"rows, {message}"):
        date_column(pa.array(cells), "c", "rows")


def test_a_date_column_is_encoded_as_seconds():
    """By `encode_column`, from text and from Arrow's dates."""
    column = Column(name="since", kind="date")
    for cells in (pa.array(["2024-03-01", ""]), pa.array([datetime.date(2024, 3, 1), None])):
        np.testing.assert_array_equal(encode_column(column, cells, "rows"), [1709251200.0, math.nan])


# ---- categories and errors -------------------------------------------------------------------------------------------


def test_categories_of_earlier_versions_keep_their_names():
    """A name that a file had then comes before the canonical text: TRUE and true were two categories."""
    codes = category_codes(Column(name="c", categories=("TRUE", "maybe", "true", "2.0", "0.10000000149011612")))
    cells = ["TRUE", "true", True, "True", "maybe", 2, "2", "2.0", np.float32(0.1), "no"]
    assert [category_code(codes, cell) for cell in cells] == [0, 2, 2, 2, 1, 3, 3, 3, 4, -1]
    assert math.isnan(category_code(codes, None))


@pytest.mark.parametrize("cells", [[True, None], ["True", None], ["true", ""], [b"TRUE", None], ["1.0", "true"]])
def test_a_category_is_one_value_for_all_writers(cells):
    """The codes of a column do not depend on the type of its cells."""
    column = Column(name="c", categories=("1", "true"))
    codes = category_codes(column)
    single = [category_code(codes, cell) for cell in cells]
    np.testing.assert_array_equal(encode_column(column, pa.array(cells), "rows"), single)


def test_all_wrong_columns_of_a_table_are_named_at_once():
    """Each with its row, and how many other rows are wrong."""
    table = pa.table({"a": ["1", "x", "y"], "b": ["u", "v", "v"], "c": ["2024-03-01", "", "soon"], "d": [1, 2, 3]})
    columns = (
        Column(name="a"),
        Column(name="b", categories=("u",)),
        Column(name="c", kind="date"),
        Column(name="d"),
    )
    with pytest.raises(DataError) as error:
        encode_table(columns, table, "rows.csv")
    text = str(error.value)
    assert text.startswith("rows.csv: 3 columns cannot be read: (1) row 1: column 'a' must be numeric")
    assert "found 'x' and 1 more row like it" in text
    assert "(2) row 1: column 'b' holds a category the model was not trained on: expected one of u, found 'v'" in text
    assert "(3) row 2: column 'c': expected a date or time" in text


def test_decimals_are_the_numbers_of_their_text():
    """1.10 of a decimal column is the float64 of 1.10 in a .csv file."""
    numbers = [decimal.Decimal(k) / 100 for k in range(-200, 200, 7)]
    for dtype in (pa.decimal128(10, 2), pa.decimal256(40, 2), pa.decimal64(10, 2), pa.decimal32(5, 2)):
        found = numeric_column(pa.array([*numbers, None], dtype), "c", "rows")
        np.testing.assert_array_equal(found, [*map(float, numbers), math.nan])


def test_marks_of_a_missing_number_are_gaps():
    """As programs write them; in a column of categories they are categories."""
    marks = ["1", "?", "-", ".", "#N/A", "NA", " ", "<NA>", "NaT"]
    np.testing.assert_array_equal(numeric_column(pa.array(marks), "c", "rows"), [1] + [math.nan] * 8)
    assert texts(marks)[1] == "?"
