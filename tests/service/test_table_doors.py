"""One table through every door: the same rows to the bit, and the same answers.

Records, lists, CSV, Arrow, tensors of `/v2`, Python and `abstain predict` are different ways to send the same values.
"""

import asyncio
import io
import json
import struct
from datetime import date, datetime, timedelta, timezone

import httpx
import numpy as np
import pyarrow as pa
import pytest
from pyarrow import csv, parquet

import abstain
from abstain.models.files.model_rows import rows_of_table
from abstain.models.files.row_files import read_table
from abstain.models.networks.architectures import MLPSpec
from abstain.models.prediction.posterior import Model
from abstain.models.prediction.preprocessing import Preprocessing
from abstain.models.tables.columns import Column
from abstain.service.http import build_app
from abstain.service.live_versions import LiveVersions
from abstain.service.open_inference.tensors import Signature, decode
from abstain.service.predict.request import parse_predict, rows_of_request
from abstain.service.predict.table_bodies import ARROW, CSV, rows_of_body
from abstain.service.process import Process, Traffic
from abstain.service.python_rows import rows_of
from abstain.service.settings import Settings
from abstain.training.config.reading import config_from_dict
from abstain.training.fit import fit
from tests.helpers.fits import silent

LENGTH = "Inference-Header-Content-Length"
RECORDS = [
    {"age": 31, "job": "nurse", "night": True, "pay": 2100.5},
    {"age": None, "job": "baker", "night": False, "pay": 1999.99},
    {"age": 58, "job": None, "night": None, "pay": None},
    {"age": 20, "job": "1", "night": True, "pay": 0.1},
    {"age": 45, "job": "nurse", "night": False, "pay": -3.0},
]
NAMES = ("age", "job", "night", "pay")
DATES = ["2024-03-01", None, "1969-12-31T23:59:59.5", "2024-03-01T10:00:00", "2038-01-19"]
DATED = [{**record, "since": since} for record, since in zip(RECORDS, DATES, strict=True)]
MARCH = 19_783 * 86_400.0
WITH_DATES = Model(
    network=MLPSpec(),
    likelihood="normal",
    preprocessing=Preprocessing(
        shift=(0.0,) * 5,
        scale=(1.0,) * 5,
        # float64 rows keep every second.
        origin=(0.0, 0.0, 0.0, 0.0, 1.7e9),
        unit=(1.0,) * 5,
        columns=(
            Column(name="age", missing=30.0),
            Column(name="job", categories=("1", "baker", "nurse"), missing=0.0),
            Column(name="night", categories=("false", "true"), missing=0.0),
            Column(name="pay", missing=0.0),
            Column(name="since", kind="date", missing=0.0),
        ),
    ),
    feature_shape=(5,),
    feature_names=(*NAMES, "since"),
)
NAN = float("nan")
ROWS = np.array(
    [
        [31, 2, 1, 2100.5, MARCH],
        [NAN, 1, 0, 1999.99, NAN],
        [58, NAN, NAN, NAN, -0.5],
        [20, 0, 1, 0.1, MARCH + 36_000],
        [45, 2, 0, -3, 2**31 - 11_648],
    ]
)


def people(rows: int = 160) -> pa.Table:
    """Pay that depends on age, job and night work; `mood` is what a model can learn from it."""
    rng = np.random.default_rng(0)
    age, job, night = rng.integers(18, 66, rows), rng.integers(0, 3, rows), rng.integers(0, 2, rows)
    pay = 50.0 * age + 300.0 * job + rng.normal(0, 50, rows)
    return pa.table(
        {
            "age": age,
            "job": np.array(["baker", "nurse", "1"])[job],
            "night": np.array(["true", "false"])[night],
            "pay": pay,
            "mood": np.array(["bad", "good"])[(pay > 2400).astype(int)],
        }
    )


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A store with one model of a table."""
    folder = tmp_path_factory.mktemp("doors")
    csv.write_csv(people(), folder / "people.csv")
    config = config_from_dict(
        {
            "name": "people",
            "likelihood": "categorical",
            "draws": 4,
            "data": {"target": "mood", "categorical": ["job", "night"], "calibration_size": 40, "test_size": 20},
            "network": {"kind": "mlp", "hidden": [4]},
            "method": {"kind": "vi", "steps": 60, "reports": 1},
            "calibration": {"percentile": 90, "decision": ["entropy"]},
        }
    )
    fit(config, str(folder / "people.csv"), folder / "store", silent)
    return folder / "store"


@pytest.fixture(scope="module")
def versions(store):
    """The live version of the model; programs of one size are compiled."""
    versions = LiveVersions(store)
    versions.load_all(buckets=(8,))
    assert versions.reasons_not_ready() == []
    return versions


@pytest.fixture(scope="module")
def app(versions, tmp_path_factory):
    """The application of a server."""
    folder = tmp_path_factory.mktemp("app")
    return build_app(
        Settings(store=folder), Process(1, 1, folder), Traffic(), versions, lambda *_: None, lambda *_: None
    )


def send(app, method: str, path: str, content: bytes | str | None = None, **headers: str) -> httpx.Response:
    """The response of the application."""

    async def run() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
            return await client.request(method, path, content=content, headers=headers)

    return asyncio.run(run())


def lists(records: list[dict]) -> dict:
    """The rows as lists, in another order of the columns."""
    names = list(records[0])[::-1]
    return {"columns": names, "data": [[record[name] for name in names] for record in records]}


def table(records: list[dict]) -> pa.Table:
    """The rows as a table, with another column and another order."""
    names = list(records[0])[::-1]
    return pa.table({"note": ["a"] * 5, **{name: [record[name] for record in records] for name in names}})


def csv_body(records: list[dict]) -> bytes:
    """The rows as CSV."""
    sink = io.BytesIO()
    csv.write_csv(table(records), sink)
    return sink.getvalue()


def arrow_body(rows: pa.Table) -> bytes:
    """The rows as an IPC stream."""
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, rows.schema) as writer:
        writer.write_table(rows)
    return sink.getvalue()


def pandas_codec(records: list[dict]) -> bytes:
    """The request of MLServer's PandasCodec: FP64 with null for gaps, text as `str`, mixed columns as JSON texts."""

    def tensor(name: str, datatype: str, data: list, codec: str | None = None) -> dict:
        head = {"name": name, "datatype": datatype, "shape": [5, 1], "data": data}
        return head if codec is None else {**head, "parameters": {"content_type": codec}}

    values = {name: [record[name] for record in records] for name in records[0]}
    inputs = [tensor("since", "BYTES", values["since"], "datetime")] if "since" in values else []
    inputs += [
        tensor("pay", "FP64", values["pay"]),
        tensor("job", "BYTES", [json.dumps(value) for value in values["job"]], "pd_json"),
        tensor("night", "BYTES", [json.dumps(value) for value in values["night"]], "pd_json"),
        tensor("age", "FP64", values["age"]),
    ]
    return json.dumps({"parameters": {"content_type": "pd"}, "inputs": inputs}).encode()


def pack(values: list) -> bytes:
    """A BYTES tensor; a missing value is an empty element."""
    words = [
        b"" if value is None else (value if isinstance(value, str) else json.dumps(value)).encode() for value in values
    ]
    return b"".join(struct.pack("<I", len(word)) + word for word in words)


def triton(records: list[dict]) -> tuple[bytes, dict[str, str]]:
    """The binary request of Triton's client: NaN and empty elements are gaps."""
    inputs, tail = [], b""
    for name in reversed(records[0]):
        values, number = [record[name] for record in records], name in {"age", "pay"}
        data = np.array(values, "<f8").tobytes() if number else pack(values)
        head = {"name": name, "shape": [5], "datatype": "FP64" if number else "BYTES"}
        inputs.append({**head, "parameters": {"binary_data_size": len(data)}})
        tail += data
    text = json.dumps({"inputs": inputs}).encode()
    return text + tail, {LENGTH: str(len(text))}


def python_records(records: list[dict]) -> list[dict]:
    """The records with NaN for missing values, numpy's types, and dates."""
    found = [dict(record) for record in records]
    found[1]["age"], found[2]["pay"], found[0]["age"], found[0]["night"] = np.nan, float("nan"), np.int64(31), np.True_
    if "since" in found[0]:
        found[0]["since"], found[3]["since"] = date(2024, 3, 1), np.datetime64("2024-03-01T10:00")
        found[4]["since"] = datetime(2038, 1, 19, 1, tzinfo=timezone(timedelta(hours=1)))
    return found


def test_every_door_makes_the_same_rows(tmp_path):
    """To the bit, missing values included."""
    pandas = pytest.importorskip("pandas")
    model = WITH_DATES

    def predict(body: dict) -> np.ndarray:
        return rows_of_request(parse_predict(json.dumps(body).encode(), 10), model, 10)

    def infer(body: bytes, headers: dict[str, str]) -> np.ndarray:
        lower = {key.lower(): value for key, value in headers.items()}
        return decode(lower, body, Signature(model, {}, ("people",)), max_rows=10, max_bytes=2**20).rows

    rows = table(DATED)
    stamps = rows.set_column(1, "since", pa.array([datetime.fromisoformat(text) if text else None for text in DATES]))
    csv.write_csv(rows, tmp_path / "rows.csv")
    parquet.write_table(stamps, tmp_path / "rows.parquet")
    frame = pandas.DataFrame(DATED)
    doors = {
        "records": predict({"records": DATED}),
        "reordered": predict({"records": [dict(reversed(record.items())) for record in DATED]}),
        "lists": predict(lists(DATED)),
        "csv body": rows_of_body(csv_body(DATED), CSV, model, 10)[0],
        "arrow body": rows_of_body(arrow_body(rows), ARROW, model, 10)[0],
        "timestamps": rows_of_body(arrow_body(stamps), ARROW, model, 10)[0],
        "pandas codec": infer(pandas_codec(DATED), {}),
        "triton": infer(*triton(DATED)),
        "python": rows_of(python_records(DATED), model),
        "python's frame": rows_of(frame.to_dict("records"), model),
        "frame": rows_of(frame, model),
        "frame of timestamps": rows_of(stamps.to_pandas(), model),
        "records of timestamps": rows_of(stamps.drop(["note"]).to_pandas().to_dict("records"), model),
        "arrow": rows_of(rows, model),
        "csv file": rows_of_table(read_table(tmp_path / "rows.csv"), model, "rows"),
        "parquet": rows_of_table(read_table(tmp_path / "rows.parquet"), model, "rows"),
    }
    for door, found in doors.items():
        np.testing.assert_array_equal(found, ROWS, door)


def test_every_door_gives_the_same_answers(app, store, run, tmp_path):
    """To the last digit: the rows are the same, and are computed in one batch."""
    bodies = [
        ("/predict", json.dumps({"records": RECORDS}), "application/json"),
        ("/predict", json.dumps(lists(RECORDS)), "application/json"),
        ("/predict?model=people", csv_body(RECORDS), f"{CSV}; charset=utf-8"),
        ("/predict", arrow_body(table(RECORDS)), ARROW),
    ]
    answers = []
    for path, body, kind in bodies:
        response = send(app, "POST", path, body, **{"Content-Type": kind})
        assert response.status_code == 200, response.text
        answers.append(response.json()["predictions"])
    assert all(answer == answers[0] for answer in answers)
    probabilities = np.float32([row["probabilities"] for row in answers[0]])
    reject = [row["reject"] for row in answers[0]]
    for body, headers in ((pandas_codec(RECORDS), {}), triton(RECORDS)):
        response = send(app, "POST", "/v2/models/people/infer", body, **headers)
        assert response.status_code == 200, response.text
        outputs = {output["name"]: output["data"] for output in response.json()["outputs"]}
        np.testing.assert_array_equal(np.float32(outputs["probabilities"]), probabilities.ravel())
        assert outputs["reject"] == reject
    loaded = abstain.load("people", store=store)
    for rows in (python_records(RECORDS), table(RECORDS)):
        predicted = loaded.predict(rows)
        np.testing.assert_array_equal(np.float32(predicted.probabilities), probabilities)
        assert predicted.reject.tolist() == reject
    csv.write_csv(table(RECORDS), tmp_path / "rows.csv")
    out = tmp_path / "out.jsonl"
    code, _, error = run("predict", "people", "--data", tmp_path / "rows.csv", "--out", out, "--store", store)
    assert code == 0, error
    assert [json.loads(line)["probabilities"] for line in out.read_text().splitlines()] == [
        row["probabilities"] for row in answers[0]
    ]


def test_clients_learn_the_columns(app):
    """Of a model by its name, and as inputs of `/v2`; ranges are rounded outwards, and no row is sent."""
    found = send(app, "GET", "/models/people").json()
    assert (found["name"], found["version"], found["task"], found["class_names"]) == (
        "people",
        1,
        "classification",
        ["bad", "good"],
    )
    columns = {column.pop("name"): column for column in found["columns"]}
    assert list(columns) == list(NAMES)
    assert columns["job"] == {
        "kind": "category",
        "nullable": True,
        "categories": ["1", "baker", "nurse"],
        "unseen": "reject",
    }
    ages = people()["age"].to_pylist()
    low, high = columns["age"]["range"]
    assert low <= min(ages) + 5
    assert high >= max(ages) - 5
    assert send(app, "GET", "/models/nobody").status_code == 404
    metadata = send(app, "GET", "/v2/models/people").json()
    first, *others = metadata["inputs"]
    assert first == {"name": "inputs", "datatype": "FP32", "shape": [-1, 4]}
    assert [(column["name"], column["datatype"], column["shape"]) for column in others] == [
        ("age", "FP64", [-1, 1]),
        ("job", "BYTES", [-1, 1]),
        ("night", "BYTES", [-1, 1]),
        ("pay", "FP64", [-1, 1]),
    ]
    assert others[1]["parameters"] == {"content_type": "str", **columns["job"]}
    config = send(app, "GET", "/v2/models/people/config").json()
    assert [
        (column["name"], column["data_type"], column["dims"], column["optional"]) for column in config["input"]
    ] == [
        ("inputs", "TYPE_FP32", [4], True),
        ("age", "TYPE_FP64", [1], True),
        ("job", "TYPE_STRING", [1], True),
        ("night", "TYPE_STRING", [1], True),
        ("pay", "TYPE_FP64", [1], True),
    ]
