"""Bodies that are tables: the rows of the same values as records, and only errors of the client for damaged ones."""

import io
import json

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.datastructures import QueryParams

from abstain.models.decisions.records import Levels
from abstain.models.errors import InputError
from abstain.models.networks.architectures import MLPSpec
from abstain.models.prediction.posterior import Model
from abstain.models.prediction.preprocessing import Preprocessing
from abstain.models.tables.columns import Column
from abstain.service.predict.request import PredictRequest, parse_predict, rows_of_request
from abstain.service.predict.table_bodies import ARROW, CSV, parse_query, rows_of_body

LIMIT = 10
PEOPLE = Model(
    network=MLPSpec(),
    likelihood="normal",
    preprocessing=Preprocessing(
        shift=(0.0,) * 3,
        scale=(1.0,) * 3,
        columns=(
            Column(name="age", missing=30),
            Column(name="job", categories=("baker", "nurse"), missing=0),
            Column(name="pay", missing=9),
        ),
    ),
    feature_shape=(3,),
    feature_names=("age", "job", "pay"),
)
ARRAY = Model(network=MLPSpec(), likelihood="normal", feature_shape=(2,), feature_names=("x", "y"))
TABLE = pa.table({"job": ["nurse", None, "baker"], "id": [1, 2, 3], "pay": [1.5, 2.0, None], "age": [31, None, 40]})
TEXT = b"job,id,pay,age\nnurse,1,1.5,31\n,2,2.0,\nbaker,3,,40\n"


def stream(table: pa.Table, chunk: int = 2, **options) -> bytes:
    """The table as an IPC stream, in batches of a few rows."""
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table, max_chunksize=chunk)
    return sink.getvalue()


def refusal(body: bytes, media_type: str, model: Model = PEOPLE) -> str:
    """The text of the error for a refused body."""
    with pytest.raises(InputError) as caught:
        rows_of_body(body, media_type, model, LIMIT)
    return str(caught.value)


def test_a_table_has_the_rows_of_its_records():
    """Columns in any order, and others besides; an empty cell is a missing value."""
    names = ("job", "pay", "age")
    records = {"records": [{name: row[name] for name in names} for row in TABLE.to_pylist()]}
    expected = rows_of_request(parse_predict(json.dumps(records).encode(), LIMIT), PEOPLE, LIMIT)
    categorical = TABLE.set_column(0, "job", TABLE["job"].dictionary_encode())
    views = TABLE.set_column(0, "job", TABLE["job"].cast(pa.string_view()))
    bodies = [
        (TEXT, CSV),
        (TEXT.replace(b"\n", b"\r\n"), CSV),
        (b"\xef\xbb\xbf" + TEXT, CSV),
        *((stream(table), ARROW) for table in (TABLE, categorical, views)),
    ]
    for body, media_type in bodies:
        rows, _ = rows_of_body(body, media_type, PEOPLE, LIMIT)
        assert rows.dtype == np.float32
        np.testing.assert_array_equal(rows, expected)


def test_a_model_of_arrays_finds_its_columns_by_name():
    """Without missing values."""
    assert rows_of_body(b"y,x\n1,2\n", CSV, ARRAY, LIMIT)[0].tolist() == [[2, 1]]
    assert "expected a finite number, found nan" in refusal(b"y,x\n1,\n", CSV, ARRAY)


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"", "body: cannot be read: found Empty CSV file"),
        (b"age,job,pay\n", "body: rows: expected at least one, found an empty set"),
        (b"age,job\n1,nurse\n", "body: columns are missing: expected pay, found age, job"),
        (b"age,job,pay,age\n1,nurse,2,3\n", "body: column 'age': expected one column of that name, found 2"),
        (
            b"age,job,pay\n1,nurse\n",
            "body: lines have another number of cells than the header: expected 3 cells, found line 2",
        ),
        (b"age,job,pay\n1,nurse,2\nold,nurse,2\n", "body, row 1: column 'age' must be numeric"),
        (
            b"age,job,pay\n1,nurse,2\n1,nurze,2\n",
            "body, row 1: column 'job' holds a category the model was not trained",
        ),
        (b"age,job,pay\n1,nurse,1e39\n", "body, row 0: column 'pay': expected a number within float32's range"),
        (b'age,pay,job\n1,2,"nurse\n', "body, line 2: a quote is never closed"),
        (
            b'age,job,pay\n31,"nurse,1\n30,nurse,2\n20,"nurse",3\n',
            "body, line 2: a quote is never closed, or text follows a closing quote",
        ),
        (
            b"age;job;pay\n4.000;nurse;2\n",
            "body, row 0: column 'age': expected points that are certainly decimal points, or cells separated by commas",
        ),
        (b"age,job,pay\n1,nurs\xff,2\n", "body, line 2: the text is not UTF-8"),
        (b"age,job,pay\n" + b"1,nurse,2\n" * 11, "body: rows: expected at most 10, found 11; send them in several"),
        (b"," * 10_003 + b"x\n", "body: columns: expected at most 10,003, found 10,004"),
    ],
)
def test_a_wrong_csv_is_refused_by_row_and_column(body, text):
    """As in a file."""
    assert refusal(body, CSV).startswith(text)


def test_advice_for_a_fit_is_not_given_to_a_client():
    """A client has no config."""
    assert "data." not in refusal(b"age,job,pay\nold,nurse,2\n", CSV)


def nulls(rows: int) -> bytes:
    """A stream of few bytes that claims this number of rows."""
    body = stream(pa.table({name: pa.nulls(2) for name in ("age", "job", "pay")}))
    return body.replace((2).to_bytes(8, "little"), rows.to_bytes(8, "little"))


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"", "body: cannot be read: expected valid application/vnd.apache.arrow.stream, found "),
        (b"ARROW1\x00\x00" * 20, "body: cannot be read: expected valid application/vnd.apache.arrow.stream, found "),
        (stream(TABLE)[:-200], "body: cannot be read: expected valid application/vnd.apache.arrow.stream, found "),
        (
            stream(TABLE, compression="zstd"),
            "body: expected an Arrow stream without compression and delta dictionaries, found compressed buffers; write it",
        ),
        (
            stream(TABLE, compression="lz4"),
            "body: expected an Arrow stream without compression and delta dictionaries, found compressed buffers; write it",
        ),
        (
            stream(pa.table({"job": TABLE["job"].dictionary_encode()}), compression="zstd"),
            "body: expected an Arrow stream without compression and delta dictionaries, found compressed buffers; write it",
        ),
        (stream(TABLE.drop(["age"])), "body: columns are missing: expected age, found job, pay"),
        (
            stream(TABLE.set_column(0, "job", pa.array([[1], [2], [3]]))),
            "body: column 'job': expected numbers, text, bool",
        ),
        (stream(TABLE.slice(0, 0)), "body: rows: expected at least one, found none"),
        (
            stream(pa.concat_tables([TABLE] * 4)),
            "body: rows: expected at most 10, found 11; send them in several requests",
        ),
        (nulls(2**60), f"body: rows: expected at most 10, found {2**60}"),
        (
            stream(pa.table({f"c{n}": [1] for n in range(10_004)})),
            "body: columns: expected at most 10,003, found 10,004",
        ),
        (
            stream(pa.table({"job": pa.DictionaryArray.from_arrays([0], pa.nulls(1))})),
            "body: columns are missing: expected age, pay, found job",
        ),
    ],
)
def test_a_wrong_arrow_stream_is_refused(body, text):
    """Damaged, compressed, too large, or with a column of another type."""
    assert refusal(body, ARROW).startswith(text)


MEGABYTE = "x" * 2**20


def shared_views() -> pa.Array:
    """A hundred views of one long text, which take 16 bytes each."""
    views = pa.array([MEGABYTE], pa.string_view())
    view = views.buffers()[1].to_pybytes()[:16]
    return pa.StringViewArray.from_buffers(pa.string_view(), 100, [None, pa.py_buffer(view * 100), views.buffers()[2]])


@pytest.mark.parametrize(
    "jobs",
    [shared_views(), pa.DictionaryArray.from_arrays(np.zeros(100, np.int8), [MEGABYTE])],
    ids=["views", "dictionary"],
)
def test_a_text_that_many_rows_share_does_not_take_memory_for_each(jobs):
    """A megabyte would become a hundred."""
    body = stream(pa.table({"age": [1] * 100, "pay": [1] * 100, "job": jobs}), chunk=100)
    assert len(body) < 2**21
    before = pa.total_allocated_bytes()
    with pytest.raises(InputError, match=r"^body: text: expected at most 67,108,864 bytes, found more"):
        rows_of_body(body, ARROW, PEOPLE, 100)
    assert pa.total_allocated_bytes() - before < 2**21


def test_a_dictionary_that_grows_is_refused():
    """Each batch would keep a copy of all that came before."""
    sink = io.BytesIO()
    schema = pa.schema([("job", pa.dictionary(pa.int8(), pa.string()))])
    with pa.ipc.new_stream(sink, schema, options=pa.ipc.IpcWriteOptions(emit_dictionary_deltas=True)) as writer:
        for words in (["a"], ["a", "b"]):
            writer.write_batch(pa.record_batch([pa.DictionaryArray.from_arrays(np.int8([0]), words)], schema))
    assert refusal(sink.getvalue(), ARROW).endswith(
        "found a delta dictionary; write it with emit_dictionary_deltas=False"
    )


def test_batches_may_share_or_replace_a_dictionary():
    """As pyarrow writes them."""
    numbers = {"age": [1.0] * 6, "pay": [2.0] * 6}
    jobs = pa.chunked_array(
        [pa.array(["nurse", "baker", None]).dictionary_encode(), pa.array(["baker"] * 3).dictionary_encode()]
    )
    rows, _ = rows_of_body(stream(pa.table({**numbers, "job": jobs})), ARROW, PEOPLE, LIMIT)
    np.testing.assert_array_equal(rows[:, 1], [1, 0, np.nan, 0, 0, 0])


@settings(max_examples=200, deadline=None)
@given(
    position=st.integers(0, len(stream(TABLE)) - 1),
    junk=st.binary(max_size=9),
    dropped=st.integers(0, 9),
    kind=st.booleans(),
)
def test_a_body_with_changed_bytes_is_rows_or_a_client_error(position, junk, dropped, kind):
    """Offsets and lengths of an Arrow stream may then point anywhere; no value outside of the body is read."""
    body = stream(TABLE.set_column(0, "job", TABLE["job"].dictionary_encode())) if kind else TEXT
    position %= len(body)
    changed = body[:position] + junk + body[position + dropped :]
    try:
        rows, _ = rows_of_body(changed, ARROW if kind else CSV, PEOPLE, LIMIT)
    except InputError:
        return
    assert rows.shape[1:] == (3,)
    assert len(rows) <= LIMIT


def test_the_settings_are_in_the_query():
    """The same as the keys of a JSON body."""
    query = QueryParams("model=people%40stable&percentile=95&coverage=0.5&max_error=.1&fields=label,std")
    assert parse_query(query) == PredictRequest(
        None, False, "people@stable", Levels(95.0, 0.5, 0.1), ("label", "std"), "body"
    )
    assert parse_query(QueryParams("")) == PredictRequest(None, False, None, Levels(), None, "body")


@pytest.mark.parametrize(
    ("query", "text"),
    [
        (
            "percentil=95",
            "query: unknown parameter: expected one of model, percentile, coverage, max_error, fields, found",
        ),
        ("model=a&model=b", "query: duplicate parameter: expected each once, found 'model'"),
        ("percentile=high", "percentile: expected a number above 0 and below 100, found the string 'high'"),
        ("percentile=nan", "percentile: expected a number above 0 and below 100, found nan"),
        ("coverage=2", "coverage: expected a number above 0 and below 1, found 2.0"),
    ],
)
def test_a_wrong_setting_is_refused(query, text):
    """By its name."""
    with pytest.raises(InputError) as caught:
        parse_query(QueryParams(query))
    assert str(caught.value).startswith(text)
