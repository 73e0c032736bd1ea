"""Columns of Arrow as dictionaries, runs and views: the values of the plain column, in files, bodies and tables."""

import datetime
import decimal
import io

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from abstain.models.errors import DataError, InputError
from abstain.models.files.room import DATA_BYTES
from abstain.models.files.row_files import read_table_bytes
from abstain.models.tables.columns import Column
from abstain.models.tables.encoding import encode_table
from abstain.service.predict.table_bodies import read_arrow

DATE = datetime.date(2024, 3, 1)
STAMPS = pa.array([DATE, None, DATE]).cast(pa.timestamp("us"))
COLUMNS = (
    Column(name="n"),
    Column(name="d", kind="date"),
    Column(name="c", kind="category", categories=("false", "true")),
)
FLAGS = pa.array([True, None, False])
VARIANTS = {
    "plain": (pa.array([1.5, None, 2.5]), pa.array([DATE, None, DATE]), FLAGS),
    "narrow": (pa.array([1.5, None, 2.5], pa.float32()), pa.array([DATE, None, DATE], pa.date64()), FLAGS),
    "decimals": (pa.array([decimal.Decimal("1.50"), None, decimal.Decimal("2.5")]), STAMPS, FLAGS),
    "zones": (
        pa.array(["1.5", None, "2.5"]),
        STAMPS.cast(pa.timestamp("ns", "UTC")),
        pa.array(["true", None, "false"]),
    ),
    "large": (pa.array(["1.5", None, "2.5"], pa.large_string()), STAMPS, pa.array([b"true", None, b"false"])),
    "views": (
        pa.array(["1.5", None, "2.5"], pa.string_view()),
        pa.array(["2024-03-01", None, "2024-03-01"], pa.string_view()),
        pa.array([b"true", None, b"false"], pa.binary_view()),
    ),
}
EXPECTED = np.array([[1.5, 1_709_251_200, 1], [np.nan] * 3, [2.5, 1_709_251_200, 0]])


def as_dictionary(column):
    """The values and their places, with one value twice, and null as a place."""
    values = pa.array([*(cell for cell in column.to_pylist() if cell is not None), None], column.type)
    return pa.DictionaryArray.from_arrays(pa.array([0, 2, 1], pa.int8()), values)


def as_runs(column):
    """A run for each row."""
    return pa.RunEndEncodedArray.from_arrays(pa.array([1, 2, 3], pa.int32()), column)


def stream(rows):
    """A table as an IPC stream."""
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, rows.schema) as writer:
        writer.write_table(rows)
    return sink.getvalue()


@pytest.mark.parametrize(
    "encode", [lambda column: column, as_dictionary, as_runs, lambda column: as_runs(as_dictionary(column))]
)
@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_an_encoded_column_has_the_values_of_the_plain_one(variant, encode):
    """As a file, as a body, and as a table of the caller."""
    rows = pa.table({name: encode(column) for name, column in zip("ndc", variant, strict=True)})
    content = stream(rows)
    tables = [read_table_bytes(content, ".arrow", "file").table, read_arrow(content, None, 10, 10), rows]
    for found in tables:
        np.testing.assert_array_equal(encode_table(COLUMNS, found, "rows"), EXPECTED)


@pytest.mark.parametrize("encode", [lambda column: column, pc.dictionary_encode, as_runs])
def test_a_column_of_nulls_is_one_of_gaps(encode):
    """The type says nothing else."""
    content = stream(pa.table({name: encode(pa.nulls(3)) for name in "ndc"}))
    for found in (read_table_bytes(content, ".arrow", "file").table, read_arrow(content, None, 10, 10)):
        assert np.isnan(encode_table(COLUMNS, found, "rows")).all()


def test_runs_of_lists_are_refused_by_name():
    """They have no single value for a row; other columns are read."""
    lists = as_runs(pa.array([[1], [2], [3]]))
    content = stream(pa.table({"n": lists, "m": [1, 2, 3]}))
    with pytest.raises(InputError, match=r"column 'n': expected numbers, text, .* found 'run_end_encoded"):
        read_arrow(content, None, 10, 10)
    table = read_table_bytes(content, ".arrow", "file").table
    assert table["m"].to_pylist() == [1, 2, 3]
    with pytest.raises(DataError, match="column 'n' cannot be read: expected numbers, text"):
        encode_table(COLUMNS[:1], table, "rows")


def test_few_runs_that_stand_for_very_much_are_refused_before_they_are_unpacked(monkeypatch):
    """Many rows, and one long text in many rows."""
    long = pa.table({"n": pa.RunEndEncodedArray.from_arrays(pa.array([2_000_000], pa.int32()), pa.array(["1"]))})
    wide = pa.table({"n": pa.RunEndEncodedArray.from_arrays(pa.array([1_000], pa.int32()), pa.array(["1" * 100_000]))})
    with pytest.raises(InputError, match="rows: expected at most 1000, found 2000000"):
        read_arrow(stream(long), None, 1000, 10)
    with pytest.raises(InputError, match=r"text: expected at most .* bytes, found more"):
        read_arrow(stream(wide), None, 1000, 10)
    monkeypatch.setenv(DATA_BYTES, "10000000")
    for rows in (long, wide):
        with pytest.raises(DataError, match="take too much memory"):
            read_table_bytes(stream(rows), ".arrow", "file")


@pytest.mark.parametrize("ends", [[2, 1], [1, 2], [-1, 3], [1, 2**31 - 1]])
def test_runs_that_end_elsewhere_than_they_should_are_refused_or_cut_off(ends):
    """A body may state any ends: backwards, too few rows, or very many."""
    runs = pa.RunEndEncodedArray.from_arrays(pa.array([1, 3], pa.int32()), pa.array([1.5, 2.5]))
    stated, damaged = (np.array(numbers, np.int32).tobytes() for numbers in ([1, 3], ends))
    content = stream(pa.table({"n": runs}))
    assert content.count(stated) == 1
    content = content.replace(stated, damaged)
    for read in (lambda: read_arrow(content, None, 10, 10), lambda: read_table_bytes(content, ".arrow", "file").table):
        try:
            found = read()
        except (pa.ArrowException, DataError):
            continue
        assert found["n"].to_pylist() in ([1.5, 2.5, 2.5], [2.5, 2.5, 2.5])
