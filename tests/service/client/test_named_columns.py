"""A table with names through the client and `abstain predict --url`: categories, dates, gaps, and an unseen category."""

import asyncio
import datetime
import re

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import csv, parquet

import abstain
from abstain.service.client.facts import ModelColumn
from tests.helpers.prediction_files import read_predictions
from tests.helpers.processes import PATIENCE

RECORDS = [
    {"age": 31, "job": "nurse", "night": True, "since": "2019-03-01"},
    {"age": None, "job": "baker", "night": False, "since": "2012-05-01T10:30:00"},
    {"age": 58.5, "job": "1", "night": True, "since": None},
    {"age": 20, "job": "pilot", "night": None, "since": "2015-12-31T23:59:59"},
    {"age": 45, "job": None, "night": False, "since": "2010-01-01"},
]
UNSEEN = "job: 'pilot' was not in training"


@pytest.fixture(scope="module")
def client(crew_url):
    """A client of the server of a table."""
    with abstain.Client(crew_url, timeout=PATIENCE) as client:
        yield client


def frame() -> pd.DataFrame:
    """The rows as pandas has them, in another order of the columns and with one more."""
    return pd.DataFrame(
        {
            "note": range(5),
            "since": pd.to_datetime([record["since"] for record in RECORDS], utc=True, format="ISO8601"),
            "night": pd.array([record["night"] for record in RECORDS], "boolean"),
            "age": [record["age"] for record in RECORDS],
            "job": pd.Categorical([record["job"] for record in RECORDS]),
        },
        index=list("abcde"),
    )


def arrow() -> pa.Table:
    """The rows as a table of pyarrow; the categories are a dictionary."""
    table = pa.Table.from_pandas(frame(), preserve_index=False)
    assert pa.types.is_dictionary(table.schema.field("job").type)
    assert pa.types.is_timestamp(table.schema.field("since").type)
    return table


def python_records() -> list[dict]:
    """The rows with values of Python, numpy and pandas."""
    found = [dict(record) for record in RECORDS]
    found[0] |= {"age": np.int64(31), "night": np.True_, "since": datetime.date(2019, 3, 1)}
    found[1] |= {"age": float("nan"), "since": np.datetime64("2012-05-01T10:30")}
    found[2] |= {"job": 1, "since": pd.NaT}
    found[3] |= {"night": pd.NA}
    return found


@pytest.mark.parametrize(
    "rows", [RECORDS, python_records(), frame(), arrow()], ids=["dicts", "python", "pandas", "arrow"]
)
def test_a_table_is_answered_whatever_its_type(client, rows):
    """As the same records without the client; the row with the unseen category is rejected with the reason."""
    found = client.predict(rows, model="crew")
    without = client._http.post("/predict", json={"records": RECORDS}).json()["predictions"]
    assert list(found.raw) == without
    assert found.reject[3]
    assert found.reasons[3][0] == UNSEEN
    assert UNSEEN not in str([found.reasons[row] for row in (0, 1, 2, 4)])
    if isinstance(rows, pd.DataFrame):
        assert list(frame().join(found.to_pandas()[["label", "reject"]]).index) == list("abcde")


def test_columns_are_named_by_class(client, crew_url):
    """Those of `to_pandas()`, also for numbers without names, with asyncio, and if the server has been asked before."""
    classes = client.model("crew").class_names
    expected = [f"{field}.{name}" for field in ("probabilities", "std") for name in classes]

    async def from_numbers() -> abstain.ServedPredictions:
        async with abstain.AsyncClient(crew_url, timeout=PATIENCE) as own:
            return await own.predict([[31, 0, 0, 1.5e9]], model="crew", fields=["probabilities", "std"])

    for found in (asyncio.run(from_numbers()), client.predict(RECORDS, model="crew", fields=["probabilities", "std"])):
        assert found.class_names == classes
        assert [*found.to_pandas()] == expected
    assert client.predict(RECORDS, fields=["label"]).class_names == ()


def test_a_table_is_answered_as_its_numbers(client):
    """A category is its code there, and a date its seconds since 1970; the server itself says the categories."""
    columns = {column.name: column for column in client.model("crew").columns}
    moment = datetime.datetime(2019, 3, 1, tzinfo=datetime.UTC).timestamp()
    numbers = [[31, columns["job"].categories.index("nurse"), columns["night"].categories.index("true"), moment]]
    named, plain = (client.predict(rows, model="crew") for rows in (RECORDS[:1], numbers))
    assert named.raw == plain.raw


def test_the_columns_of_a_model_are_described(client):
    """In the order of a row, with what each may hold."""
    age, job, night, since = client.model("crew").columns
    assert (age.name, age.kind, age.nullable, age.categories, age.unseen) == ("age", "number", True, (), None)
    assert 18 <= age.range[0] < age.range[1] <= 65
    assert job == ModelColumn(
        name="job", kind="category", nullable=True, categories=("1", "baker", "nurse"), unseen="reject"
    )
    assert night.categories == ("false", "true")
    assert (since.name, since.kind, since.categories) == ("since", "date", ())
    assert "2010-01-01" <= since.range[0] < since.range[1] <= "2023-12-31"


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            {"age": "old"},
            r"^data\[1\]\[0\] \(age\): expected a number, or null for a missing value, found the string 'old'",
        ),
        ({"since": "01/03/2024"}, r"^data\[1\]\[3\] \(since\): expected a date or time such as 2024-03-01"),
    ],
)
def test_a_wrong_value_is_told_by_row_and_column(client, change, text):
    """By the server's error, whose row is that of the caller also if it is sent in a second request."""
    rows = [RECORDS[0], {**RECORDS[1], **change}]
    with pytest.raises(abstain.InputError, match=text):
        client.predict(rows)

    async def in_two_requests() -> None:
        async with abstain.AsyncClient(client.url, timeout=PATIENCE) as own:
            await own.model("crew")
            own._session.models[None] = own._session.models["crew"]
            own._session.max_rows = 1
            await own.predict(rows)

    with pytest.raises(abstain.InputError, match=text):
        asyncio.run(in_two_requests())


def test_kept_numbers_of_a_model_stay_numbers(run, crew_store, tmp_path):
    """Also if the cell of a row with an error is none: it is in the error, and empty in its column."""
    (tmp_path / "rows.csv").write_text("id,job,age,night,since\nA7,1,31.50,true,\n8,nurse,old,false,\n9,baker,,true,\n")
    out = tmp_path / "out.parquet"
    keep = ["--keep", "age", "--keep", "job", "--keep", "id", "--fields", "label", "--errors", "null"]
    code, _, err = run("predict", "crew", "--data", tmp_path / "rows.csv", "--out", out, "--store", crew_store, *keep)
    assert code == 0, err
    found = parquet.read_table(out).to_pydict()
    assert (found["age"], found["job"], found["id"]) == ([31.5, None, None], ["1", "nurse", "baker"], ["A7", "8", "9"])
    assert "found 'old'" in found["error"][1]


@pytest.mark.parametrize(("source", "end"), [("rows.csv", ".jsonl"), ("rows.parquet", ".csv")])
def test_the_file_is_that_of_the_command_without_a_server(run, crew_store, crew_url, tmp_path, source, end):
    """Label, flags and reasons are the same, and the numbers but for the rounding of other batch sizes."""
    table = arrow()
    if source.endswith(".csv"):
        csv.write_csv(pa.Table.from_pylist([{"note": "a", **record} for record in RECORDS]), tmp_path / source)
    else:
        parquet.write_table(table, tmp_path / source)
    paths = {"store": tmp_path / f"offline{end}", "url": tmp_path / f"online{end}"}
    for (option, out), where in zip(paths.items(), (crew_store, crew_url), strict=True):
        options = ["--out", out, f"--{option}", where, "--keep", "note"]
        code, printed, err = run("predict", "crew", "--data", tmp_path / source, *options)
        assert code == 0, err
        assert re.fullmatch(r"rejected: [1-5] of 5 rows \(1 with an unseen category\)", err)
        assert printed == f"crew:1 predicted 5 rows into {out}\n"
    offline, online = map(read_predictions, paths.values())
    assert list(online) == list(offline)
    assert UNSEEN in str(online["reasons"])
    for name, values in offline.items():
        if isinstance(values[0], float):
            np.testing.assert_allclose(online[name], values, rtol=1e-4, atol=1e-5, err_msg=name)
        else:
            assert online[name] == values, name
