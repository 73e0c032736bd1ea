"""The body that each type of rows becomes; a value that JSON does not have is refused with its place."""

import datetime
import json
from decimal import Decimal

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from abstain.models.errors import InputError
from abstain.service.client.rows import rows_to_send

ALL = slice(0, None)


def body(rows, part=ALL, **options) -> dict:
    """The body of the request for some rows."""
    return json.loads(rows_to_send(rows).body(part, options))


def refusal(rows, part=ALL) -> str:
    """The text of the error for rows that cannot be sent."""
    with pytest.raises(InputError) as caught:
        rows_to_send(rows).body(part, {})
    return str(caught.value)


@pytest.mark.parametrize(
    "rows",
    [
        [[1, 2.5], [3, 4]],
        ((1, 2.5), (3, 4)),
        np.array([[1, 2.5], [3, 4]]),
        np.array([[1, 2.5], [3, 4]], dtype=">f4"),
        np.array([[1, 2.5], [3, 4], [5, 6]]).T[:, :2].T,
        [np.array([1, 2.5]), [np.float64(3), np.int8(4)]],
    ],
)
def test_numbers_are_sent_as_inputs(rows):
    """Lists, arrays of any layout and byte order, and both mixed; with the options that are given."""
    assert body(rows, model="m") == {"inputs": [[1, 2.5], [3, 4]], "model": "m"}
    assert body(rows, slice(1, 2)) == {"inputs": [[3, 4]]}


def test_every_float32_arrives_with_all_its_digits():
    """Its shortest text would be another float64: a model with an offset would compute another number."""
    numbers = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    assert body(numbers)["inputs"] == numbers.astype(np.float64).tolist()


def test_images_integers_and_masked_numbers_keep_their_form():
    """The server checks the shape; a masked number is null, and not the number under the mask."""
    images = np.arange(8, dtype=">i2").reshape(2, 2, 2)
    assert body(images) == {"inputs": images.tolist()}
    assert body(np.ma.masked_array([[1.0, 2.0]], [[False, True]])) == {"inputs": [[1, None]]}
    assert body([[1, None, True, "x"]]) == {"inputs": [[1, None, True, "x"]]}


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    "make", [lambda rows: rows, np.array, lambda rows: [tuple(map(np.float32, row)) for row in rows]]
)
def test_a_number_that_json_does_not_have_is_refused_where_it_is(make, bad):
    """JSON writers turn it into null, which means a gap. The row is counted among all rows, not in one request."""
    rows = make([[0.0, 1.0], [2.0, 3.0], [4.0, bad]])
    assert refusal(rows) == f"inputs[2][1]: expected a finite number, found {bad}"
    assert refusal(rows, slice(1, 3)) == f"inputs[2][1]: expected a finite number, found {bad}"
    assert body(rows, slice(0, 2)) == {"inputs": [[0, 1], [2, 3]]}


FRAME = pd.DataFrame(
    {
        "age": [31.5, np.nan, 40.0],
        "kids": pd.array([2, None, 0], dtype="Int64"),
        "job": pd.Categorical(["nurse", None, "cook"]),
        "zone": pd.Categorical([1.0, 2.0, None]),
        "town": ["Ulm", None, "Bonn"],
        "since": pd.to_datetime(["2024-03-01", None, "2024-03-01T10:30:00.000000001"], format="ISO8601"),
        "smokes": [True, False, True],
    },
    index=["a", "b", "c"],
)
CELLS = [
    [31.5, 2, "nurse", "1", "Ulm", "2024-03-01T00:00:00", True],
    [None, None, None, "2", None, None, False],
    [40, 0, "cook", None, "Bonn", "2024-03-01T10:30:00.000000001", True],
]


def test_a_frame_is_sent_by_its_columns():
    """A gap of any kind is null, a time is ISO 8601 text, a category is text; the index is kept and not sent."""
    rows = rows_to_send(FRAME)
    assert list(rows.index) == ["a", "b", "c"]
    assert body(FRAME) == {"columns": list(FRAME.columns), "data": CELLS}
    assert body(FRAME, slice(1, 3))["data"] == CELLS[1:]


def test_a_table_of_pyarrow_is_sent_in_the_same_way():
    """Polars and other libraries with Arrow's interface, too: they are converted to it."""

    class Other:
        """A table of another library."""

        columns = tuple(FRAME.columns)

        def __arrow_c_stream__(self, requested_schema=None):
            return pa.Table.from_pandas(FRAME, preserve_index=False).__arrow_c_stream__(requested_schema)

    assert body(pa.Table.from_pandas(FRAME, preserve_index=False)) == body(FRAME)
    assert body(Other()) == body(FRAME)
    kinds = pa.table(
        {
            "day": pa.array([datetime.date(2024, 3, 1), None]),
            "price": pa.array([Decimal("1.50"), None]),
            "bytes": pa.array([b"caf\xc3\xa9", None]),
            "zoned": pa.array([datetime.datetime(2024, 3, 1, tzinfo=datetime.UTC), None]),
        }
    )
    assert body(kinds)["data"] == [["2024-03-01", 1.5, "café", "2024-03-01T00:00:00+00:00"], [None] * 4]


def test_records_are_sent_by_their_keys():
    """In the order of the first one, whatever the order of the others; values of numpy and pandas, too."""
    records = [
        {"age": np.float32(0.5), "job": "nurse", "since": datetime.date(2024, 3, 1), "kids": None},
        {"kids": float("nan"), "age": 3, "job": pd.NA, "since": np.datetime64("2024-03-01")},
    ]
    columns = ["age", "job", "since", "kids"]
    assert body(records) == {
        "columns": columns,
        "data": [[0.5, "nurse", "2024-03-01", None], [3, None, "2024-03-01", None]],
    }


def test_only_the_models_columns_are_sent_in_its_order():
    """As without a server: other columns are left out, and a missing one is named."""
    rows = rows_to_send(FRAME)
    assert json.loads(rows.select(["town", "age"]).body(ALL, {}))["data"] == [["Ulm", 31.5], [None, None], ["Bonn", 40]]
    with pytest.raises(InputError) as caught:
        rows.select(["age", "height"])
    assert str(caught.value) == (
        "DataFrame: column 'height': expected the columns age, height, "
        "found only age, kids, job, zone, town, since, smokes; rename or add the column"
    )


def test_a_model_without_names_gets_numbers():
    """The cells in the order of the columns."""
    frame = pd.DataFrame({"b": [1, 2], "a": [0.5, 4]})
    assert json.loads(rows_to_send(frame).without_names().body(ALL, {})) == {"inputs": [[1, 0.5], [2, 4]]}


@pytest.mark.parametrize(
    ("rows", "text"),
    [
        (
            {"age": 3},
            "rows: expected a list of rows or of records, an array, or a table, found one record; put it in a list: [record]",
        ),
        ({"records": [{"age": 3}]}, "found the body of a request; pass its rows alone: rows['records']"),
        ({"age": [3, 4], "job": ["a", "b"]}, "found a dict of columns; make a table of it: pandas.DataFrame(rows)"),
        (
            pd.Series({"age": 3, "job": "nurse"}),
            "rows: expected rows: a table, an array or a list, found a Series; for one row of a DataFrame use frame.iloc[[0]]",
        ),
        (5, "rows: expected a list of rows or of records, an array, or a table, found a value of type int"),
        (iter([[1]]), "found a value of type list_iterator"),
        ([{"a": 1}, {"b": 1}], "rows[1]: expected the keys a, found another key, 'b'; give every record the same keys"),
        ([{"a": 1, "b": 2}, {"b": 1}], "rows[1]: expected the keys a, b, found no key 'a'; give every record the same"),
        ([{"a": 1}, [1]], "rows[1]: expected a record, found a value of type list"),
        ([{3: 1}], "rows[0]: a column name: expected text, found 3"),
        ([{}], "rows[0]: expected at least one column, found none"),
        (pd.DataFrame([[1, 2]], columns=["a", "a"]), "DataFrame: column 'a': expected one of that name, found two"),
        ([{"a": 1}, {"a": np.inf}], "rows, row 1, column 'a': expected a finite number, found inf"),
        ([{"a": [1]}], "rows, row 0, column 'a': expected a number, text, true or false, a date, or None for a gap"),
        ([{"a": b"\xff"}], "found b'\\xff', a value of type bytes; convert the column, or leave it out"),
        (pd.DataFrame({"a": pd.to_timedelta([1, 2], "s")}), "DataFrame, row 0, column 'a': expected a number, text"),
        ([[10**30]], "rows: cannot be sent as JSON"),
        ([[object()]], "rows: cannot be sent as JSON"),
    ],
)
def test_what_cannot_be_sent_is_refused(rows, text):
    """The text names the row and the column."""
    assert text in refusal(rows)
