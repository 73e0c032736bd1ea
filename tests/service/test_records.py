"""Rows with named values in requests: the fast and the slow way agree, and every error names the row and the column."""

import json
import math
import tracemalloc
from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from abstain.models.errors import AbstainError, InputError
from abstain.models.networks.architectures import MLPSpec
from abstain.models.prediction.posterior import Model
from abstain.models.prediction.preprocessing import Preprocessing
from abstain.models.tables.columns import Column
from abstain.models.tables.values import date_seconds
from abstain.service.client.errors import shift_rows
from abstain.service.predict.request import parse_predict, rows_of_request, texts_of_request
from abstain.service.predict.table_bodies import CSV, rows_of_body
from abstain.service.python_rows import rows_of as python_rows_of

LIMIT = 100
JOBS = ("baker", "nurse", "true", "1")
COLUMNS = (
    Column(name="job", categories=JOBS, missing=0.0),
    Column(name="age", missing=30.0),
    Column(name="since", kind="date", missing=0.0),
    Column(name="land", categories=("DE", "FR"), missing=0.0, unseen="reject"),
    Column(name="town", categories=("Bonn", "Ulm"), missing=0.0, unseen="missing"),
    Column(name="kids", missing=1.0),
)
NAMES = [column.name for column in COLUMNS]
WIDE = Preprocessing(
    shift=(0.0,) * 6, scale=(1.0,) * 6, columns=COLUMNS, origin=(0.0, 0.0, 1.6e9, 0.0, 0.0, 0.0), unit=(1.0,) * 6
)
PEOPLE = Model(
    network=MLPSpec(), likelihood="normal", preprocessing=WIDE, feature_shape=(6,), feature_names=tuple(NAMES)
)
ARRAY = Model(network=MLPSpec(), likelihood="normal", feature_shape=(2,), feature_names=("x", "y"))
NAMELESS = Model(network=MLPSpec(), likelihood="normal", feature_shape=(2,))
DAY = datetime(2024, 3, 1, tzinfo=UTC).timestamp()
NURSE = {"age": 31, "job": "nurse", "since": "2024-03-01", "land": "FR", "town": "Ulm", "kids": None}
ROW = [1.0, 31.0, DAY, 1.0, 1.0, math.nan]


def rows_of(body: object, model: Model = PEOPLE) -> np.ndarray:
    """The rows of a body, parsed and checked."""
    text = body if isinstance(body, bytes) else (body if isinstance(body, str) else json.dumps(body)).encode()
    return rows_of_request(parse_predict(text, LIMIT), model, LIMIT)


def refusal(body: object, model: Model = PEOPLE) -> str:
    """The text of the error for a refused body."""
    with pytest.raises(InputError) as caught:
        rows_of(body, model)
    return str(caught.value)


def as_lists(*records: dict) -> dict:
    """The same rows as lists, in the order of the first record."""
    columns = list(records[0])
    return {"columns": columns, "data": [[record[name] for name in columns] for record in records]}


def slowly(records: list[dict]) -> str:
    """A body of records that only the slow parser takes: a key has an escaped quote."""
    return json.dumps({"records": records, "model": 'a"b'})


def test_records_and_lists_become_rows():
    """In any order of the columns; null is NaN, a date is seconds, a category its code."""
    bodies = ({"records": [NURSE]}, slowly([NURSE]), as_lists(NURSE), as_lists(dict(reversed(NURSE.items()))))
    for body in bodies:
        rows = rows_of(body)
        assert rows.dtype == np.float64
        np.testing.assert_array_equal(rows, [ROW])


def test_a_model_of_arrays_takes_names_too():
    """Numbers only; a missing value has no meaning there."""
    np.testing.assert_array_equal(rows_of({"records": [{"y": 2, "x": 1.5}]}, ARRAY), np.float32([[1.5, 2]]))
    np.testing.assert_array_equal(rows_of({"columns": ["y", "x"], "data": [[2, 1]]}, ARRAY), np.float32([[1, 2]]))
    for body in ({"records": [{"x": None, "y": 2}]}, slowly([{"x": None, "y": 2}])):
        assert refusal(body, ARRAY).startswith(
            "records[0].x: expected a number, found null; the model was fitted without"
        )
    assert "records[0].x: expected a number, found the string '1'; send it without quotes" in refusal(
        {"records": [{"x": "1", "y": 2}]}, ARRAY
    )
    assert "the model has no named columns: expected rows of numbers under the key inputs" in refusal(
        {"records": [{"x": 1}]}, NAMELESS
    )
    twice = ARRAY.model_copy(update={"feature_names": ("x", "x")})
    assert refusal({"records": [{"x": 1}]}, twice).endswith("found rows with two columns of one name")


def test_a_model_with_one_column_takes_records():
    """One value is no special case."""
    one = Model(network=MLPSpec(), likelihood="normal", feature_shape=(1,), feature_names=("x",))
    np.testing.assert_array_equal(rows_of({"records": [{"x": 1}, {"x": 2}]}, one), np.float32([[1], [2]]))


@pytest.mark.parametrize(
    ("column", "value", "number"),
    [
        ("job", True, 2.0),
        ("job", 1, 3.0),
        ("job", 1.0, 3.0),
        ("job", "1", 3.0),
        ("job", "", math.nan),
        ("job", None, math.nan),
        ("land", "JP", -1.0),
        ("land", 7, -1.0),
        ("town", "Köln", math.nan),
        ("job", " nurse ", 1.0),
        ("job", "1.0", 3.0),
        ("job", "True", 2.0),
        ("age", 2**60 + 1, float(2**60)),
        ("age", -0.5, -0.5),
        ("since", "2024-03-01T12:30:00Z", DAY + 45_000),
        ("since", "2024-03-01T12:30:00.25+02:00", DAY + 45_000.25 - 7_200),
        ("since", "2024-03-01 00:00", DAY),
        ("since", "", math.nan),
        ("since", "1969-12-31", -86_400.0),
    ],
)
def test_the_meaning_of_each_value(column, value, number):
    """By both ways; a category that was not in training by the rule of its column."""
    record = NURSE | {column: value}
    for body in ({"records": [record]}, slowly([record]), as_lists(record)):
        assert rows_of(body)[0, NAMES.index(column)] == pytest.approx(number, nan_ok=True, abs=0)


def test_an_unseen_category_keeps_its_name():
    """For the reasons of the answer; by row and column, whatever the form and the order of the columns."""
    strange = [NURSE | {"town": "Köln"}, NURSE | {"age": -1, "land": "JP"}, NURSE, NURSE | {"land": 7}]
    for body in ({"records": strange}, as_lists(*strange), as_lists(*(dict(reversed(r.items())) for r in strange))):
        request = parse_predict(json.dumps(body).encode(), LIMIT)
        rows = rows_of_request(request, PEOPLE, LIMIT)
        place = NAMES.index("land")
        assert texts_of_request(request, PEOPLE, rows) == {(1, place): "JP", (3, place): "7"}
    request = parse_predict(json.dumps({"inputs": [ROW[:1] * 6]}).encode(), LIMIT)
    assert texts_of_request(request, PEOPLE, np.full((1, 6), -1.0)) == {}


@pytest.mark.parametrize(
    ("column", "value", "text"),
    [
        ("age", "31", "expected a number, or null for a missing value, found the string '31'; send it without quotes"),
        ("age", "old", "expected a number, or null for a missing value, found the string 'old'"),
        ("age", "", "expected a number, or null for a missing value, found the string ''"),
        ("age", True, "expected a number, or null for a missing value, found true"),
        ("age", [31], "expected a number, or null for a missing value, found a list of 1"),
        ("age", {}, "expected a number, or null for a missing value, found an object"),
        (
            "age",
            math.nan,
            "expected a finite number within float32's range, or null for a missing value, found the number",
        ),
        (
            "age",
            1e39,
            "expected a finite number within float32's range, or null for a missing value, found the number 1e",
        ),
        (
            "age",
            10**400,
            "expected a finite number within float32's range, or null for a missing value, found an integer",
        ),
        (
            "job",
            "nurze",
            "the category was not in training: expected one of baker, nurse, true, 1, found 'nurze'; did you",
        ),
        (
            "job",
            -(2**63) - 1,
            "the category was not in training: expected one of baker, nurse, true, 1, found '-9223372036854775809'",
        ),
        ("job", False, "the category was not in training: expected one of baker, nurse, true, 1, found 'false'"),
        (
            "job",
            [],
            "expected a category as text (baker, nurse, true, 1), or null for a missing value, found a list of 0",
        ),
        (
            "job",
            math.nan,
            "expected a category as text (baker, nurse, true, 1), or null for a missing value, found the nu",
        ),
        ("since", 1_700_000_000, "expected a date or time such as 2024-03-01, 2024-03-01T10:00:00 or"),
        ("since", "01/03/2024", "expected a date or time such as 2024-03-01, 2024-03-01T10:00:00 or"),
        ("since", "2024-13-01", "expected a date or time such as 2024-03-01, 2024-03-01T10:00:00 or"),
        ("since", True, "expected a date or time such as 2024-03-01, 2024-03-01T10:00:00 or"),
    ],
)
def test_a_wrong_value_is_told_by_row_and_column(column, value, text):
    """Only the second record is wrong."""
    wrong = NURSE | {column: value}
    assert refusal({"records": [NURSE, wrong]}).startswith(f"records[1].{column}: {text}")
    assert refusal(slowly([NURSE, wrong])).startswith(f"records[1].{column}: {text}")
    place = list(NURSE).index(column)
    assert refusal(as_lists(NURSE, wrong)).startswith(f"data[1][{place}] ({column}): {text}")


@pytest.mark.parametrize(
    ("record", "text"),
    [
        (
            {"age": 1},
            "records[1]: columns are missing: expected job, since, land, town, kids, found age; send null for a",
        ),
        ({}, "records[1]: columns are missing: expected job, age, since, land, town, kids, found no column; send null"),
        (
            {**NURSE, "Age": 1},
            "records[1]: unknown column: expected the columns job, age, since, land, town, kids, found",
        ),
        (
            {**NURSE, "x": 1},
            "records[1]: unknown column: expected the columns job, age, since, land, town, kids, found 'x'",
        ),
        ([1, 2], "records[1]: expected an object with a key for each column, found a list of 2"),
        (None, "records[1]: expected an object with a key for each column, found null"),
        ("age", "records[1]: expected an object with a key for each column, found the string 'age'"),
    ],
)
def test_a_record_has_exactly_the_columns(record, text):
    """A missing key is no missing value, and an unknown one is not ignored."""
    assert refusal({"records": [NURSE, record]}).startswith(text)


def test_all_faults_of_a_request_are_told_at_once():
    """Unknown and missing columns, and the first wrong value of each column; their text is bounded."""
    wrong = {**NURSE, "age": "x", "job": []}
    renamed = {"Age" if name == "age" else name: value for name, value in NURSE.items()}
    text = refusal({"records": [wrong, NURSE, {**renamed, "since": 1}]})
    assert text.startswith("records: 4 faults: (1) records[0].job: expected a category as text")
    assert " | (2) records[0].age: expected a number" in text
    assert " | (3) records[2]: unknown column: expected the columns job, age" in text
    assert "found 'Age'; did you mean 'age'?; missing: age | (4) records[2].since: expected a date" in text
    assert refusal(as_lists(wrong, wrong)).startswith("data: 2 faults: (1) data[0][1] (job)")
    text = refusal({"records": [{name: {} for name in NURSE}] * 100})
    assert text.startswith("records: 6 faults: (1) records[0].job: ")
    assert len(refusal({"records": [{"x" * 1000 + str(row): 1} for row in range(100)]})) < 5000


def test_a_client_counts_all_faults_in_all_rows():
    """For a request that began later rows."""
    wrong = {**NURSE, "age": "x", "job": []}
    error = InputError(refusal({"records": [NURSE, wrong]}).removeprefix("records: "), where="records")
    assert "(1) records[41].job" in str(shift_rows(error, 40))
    assert "(2) records[41].age" in str(error)


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({"columns": NAMES}, "body: data: expected columns and data together, found no key 'data'"),
        ({"data": [[1]]}, "body: columns: expected columns and data together, found no key 'columns'"),
        ({"records": [NURSE], "columns": NAMES}, "body: data: expected columns and data together, found no key 'data'"),
        (
            {"records": [NURSE], "inputs": [ROW[:5]]},
            "body: rows: expected one of inputs, records, or columns with data, fo",
        ),
        ({"records": {}}, 'records: expected a list of records, found an object; put it in a list: {"records": [{…}]}'),
        ({"records": []}, "records: expected at least one row, found none"),
        ({"records": [NURSE] * 101}, "records: expected at most 100 rows, found 101; send them in several requests"),
        ({"columns": "age", "data": [[1]]}, "columns: expected a list of column names, found the string 'age'"),
        ({"columns": [1], "data": [[1]]}, "columns[0]: expected the name of a column, found the number 1"),
        ({"columns": [[]], "data": [[1]]}, "columns[0]: expected the name of a column, found a list of 0"),
        ({"columns": [*NAMES, "age"], "data": [[1]]}, "columns: expected each column once, found 'age' twice"),
        (
            {"columns": NAMES[1:], "data": [[1]]},
            "columns: columns are missing: expected job, found age, since, land, town",
        ),
        (
            {"columns": [*NAMES, "pay"], "data": [[1]]},
            "columns: unknown column: expected the columns job, age, since, la",
        ),
        ({"columns": NAMES, "data": [[1]]}, "data[0]: expected 6 values, one for each of columns, found 1"),
        (
            {"columns": NAMES, "data": [NURSE]},
            "data[0]: expected a list of 6 values, one for each of columns, found an ob",
        ),
        ({"columns": NAMES, "data": []}, "data: expected at least one row, found none"),
        ({"columns": NAMES, "data": None}, "data: expected a list of lists, found null"),
        (
            {},
            "body: inputs: expected a list of rows, found no key 'inputs'; rows with named values go into records, or in",
        ),
    ],
)
def test_the_keys_and_the_form_of_the_rows_are_checked(body, text):
    """Exactly one of `inputs`, `records`, and `columns` with `data`."""
    assert refusal(body).startswith(text)


@pytest.mark.parametrize(
    "body",
    [
        '{"records":[{"x":1,"y":2,"x":1}]}',
        '{"records":[{"x":1,"y":2},{"x":1,"x":2}]}',
        '{"records":[{"x":1,"y":2,"\\u0078":1}]}',
        '{"records":[{"x":1,"y":2}],"records":[{"x":1,"y":2}]}',
        '{"columns":["x","y"],"columns":["y","x"],"data":[[1,2]]}',
        '{"columns":["x","y"],"data":[[1,2]],"data":[[1,2]]}',
        '{"records":[{"x":{"a":1,"a":1},"y":2}]}',
    ],
)
def test_duplicate_keys_are_refused(body):
    """The last of two equal keys would win silently, in any spelling."""
    assert refusal(body, ARRAY).startswith("body: duplicate key: expected each key once, found '")


def test_a_missing_value_in_inputs_is_refused_with_the_way_to_send_it():
    """Rows of numbers are as strict as ever."""
    text = refusal({"inputs": [[0, None, 0, 0, 0, 0]]})
    assert text == (
        "inputs[0][1] (age): expected a number, found null; send the rows as records: they hold categories and dates as "
        "text, and null for a missing value"
    )
    assert refusal({"inputs": [[-1, 1, 0, 0, 0, 0]]}).startswith("inputs[0][0] (job): expected a category's code")
    assert "send" not in refusal({"inputs": [[None, 1]]}, ARRAY)


def test_errors_stay_short_and_quick():
    """However many categories the column has, and however long the text is."""
    many = Column(name="job", categories=tuple(f"job {number}" for number in range(20_000)), missing=0.0)
    preprocessing = Preprocessing(shift=(0.0,), scale=(1.0,), columns=(many,))
    model = Model(network=MLPSpec(), likelihood="normal", preprocessing=preprocessing, feature_shape=(1,))
    text = refusal({"records": [{"job": "x" * 1_000_000}]}, model)
    assert len(text) < 600
    assert len(refusal({"records": [{"x" * 1_000_000: 1}]}, model)) < 600


def test_more_objects_than_rows_are_refused_before_they_are_parsed():
    """Parsed, they would need many times their bytes."""
    body = b'{"records":[' + b",".join([b"{}"] * 1_100_000) + b"]}"
    tracemalloc.start()
    assert refusal(body) == "body: expected at most 1,100 JSON objects, found 1,100,001 opening braces"
    assert tracemalloc.get_traced_memory()[1] < len(body)
    tracemalloc.stop()


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**40), 10**40),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from(["nurse", "DE", "Ulm", "2024-03-01", '"', ""]),
    st.text(max_size=3),
    st.datetimes().map(str),
    st.just([]),
    st.just({}),
)


@settings(max_examples=100, deadline=None)
@given(column=st.sampled_from(NAMES), value=VALUES)
def test_both_ways_agree_on_any_value(column, value):
    """The same row, or the same error; of a long integer, the fast parser finds a float."""
    record = NURSE | {column: value}
    found = []
    for body in (json.dumps({"records": [NURSE, record]}), slowly([NURSE, record])):
        try:
            found.append(rows_of(body).tolist())
        except InputError as error:
            found.append(str(error).partition(", found")[0])
    assert str(found[0]) == str(found[1])


RECORD = st.dictionaries(st.sampled_from([*NAMES, "x"]), VALUES, max_size=7)
JSON = st.one_of(VALUES, RECORD, st.lists(st.one_of(VALUES, RECORD, st.lists(VALUES, max_size=7)), max_size=3))


@settings(max_examples=100, deadline=None)
@given(
    body=st.fixed_dictionaries(
        {}, optional={"records": JSON, "columns": JSON, "data": JSON, "inputs": JSON, "model": st.text(max_size=2)}
    )
)
def test_any_json_is_rows_or_an_abstain_error(body):
    """No other exception is raised, and no row has another width."""
    try:
        rows = rows_of(body)
    except AbstainError:
        return
    assert rows.shape[1:] == (6,)


@settings(max_examples=50, deadline=None)
@given(seconds=st.integers(-(10**10), 10**11), offset=st.integers(-23, 23))
def test_dates_are_seconds_since_1970(seconds, offset):
    """Against the arithmetic of dates, in any time zone."""
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds)
    sign, hours = "-" if offset < 0 else "+", abs(offset)
    local = (moment + timedelta(hours=offset)).replace(tzinfo=None).isoformat()
    assert rows_of({"records": [NURSE | {"since": f"{local}{sign}{hours:02}:00"}]})[0, 2] == seconds


@settings(max_examples=300, deadline=None)
@given(
    st.one_of(
        st.datetimes().map(lambda moment: moment.isoformat(timespec="seconds")),
        st.dates().map(str),
        st.sampled_from(["2024-W09-5", "2024-060", "20240301", "2024-03-01T24:00:00", "2024-03-01T10:00:60"]),
    ),
    st.integers(0, 18),
    st.sampled_from(["", "0", "9", "-", ":", "T", " ", "W", "Z", "+", "٣"]),
)
def test_dates_are_read_quickly_as_by_all_readers(text, place, character):
    """One character is replaced: both ways have the same number, or refuse the text."""
    text = (text[:place] + character + text[place + 1 :]) if character else text
    try:
        expected = date_seconds(text)
    except ValueError:
        assert "expected a date or time" in refusal({"records": [NURSE | {"since": text}]})
    else:
        np.testing.assert_array_equal(rows_of({"records": [NURSE | {"since": text}]})[0, 2], expected)


MARKED = tuple(column.model_copy(update={"na_values": ("-999", "?")}) for column in COLUMNS[:3])
SURVEY = PEOPLE.model_copy(
    update={
        "preprocessing": Preprocessing(
            shift=(0.0,) * 3, scale=(1.0,) * 3, columns=MARKED, origin=(0.0,) * 3, unit=(1.0,) * 3
        ),
        "feature_shape": (3,),
        "feature_names": tuple(NAMES[:3]),
    }
)


@pytest.mark.parametrize("mark", ["-999", "?", -999, -999.0])
def test_marks_of_missing_values_are_gaps_at_every_door(mark):
    """As in the files of the fit: in records, lists, tables and frames."""
    record = {"age": mark, "job": mark, "since": mark if isinstance(mark, str) else None}
    for body in ({"records": [record]}, slowly([record]), as_lists(record)):
        assert np.isnan(rows_of(body, SURVEY)).all()
    frame = pd.DataFrame({name: [value, None] for name, value in record.items()})
    assert np.isnan(python_rows_of(frame, SURVEY)).all()
    assert np.isnan(rows_of_body(frame.to_csv(index=False).encode(), CSV, SURVEY, LIMIT)[0]).all()
    assert rows_of({"records": [{"age": 999, "job": "nurse", "since": "2024-03-01"}]}, SURVEY).tolist() == [
        [1, 999, DAY]
    ]


def test_flags_may_be_written_as_numbers():
    """1 and 0 for true and false, and the other way round; in other columns they are other categories."""
    for own, other in ((("false", "true"), (0, 1)), (("0", "1"), (False, True))):
        flags = Preprocessing(columns=(Column(name="flag", categories=own, missing=0.0),))
        model = PEOPLE.model_copy(update={"preprocessing": flags, "feature_shape": (1,), "feature_names": ("flag",)})
        assert rows_of({"records": [{"flag": flag} for flag in other]}, model).tolist() == [[0], [1]]
        assert python_rows_of(pd.DataFrame({"flag": other}), model).tolist() == [[0], [1]]
    assert rows_of({"records": [NURSE | {"job": 1}]})[0, 0] == JOBS.index("1")
