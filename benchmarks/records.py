"""The cost of a record: a request with records, compared with the same rows as numbers.

    python benchmarks/records.py [--rounds 3000] [--requests 300]

For tables of several kinds of columns it prints the median microseconds of decoding and checking the body of a request with
one row, in one process: as numbers (`inputs`), as a record, and as lists with the columns' names. The forms take turns. No
model is loaded, because the cost does not depend on it.

Then a server with one worker answers 1, 10 and 100 rows of tables with 8 and 30 columns: the median milliseconds of requests
over one connection, whose forms take turns, so that other work on the machine slows all of them. The network is small (20 draws of
32 units) and the requests ask for two fields, so that little else hides the cost.
"""

from __future__ import annotations

import argparse
import http.client
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from servers import abstain_command, free_port, publish_random, run_server, save_results

from abstain.models.networks.architectures import MLPSpec
from abstain.models.prediction.posterior import Model
from abstain.models.prediction.preprocessing import Preprocessing
from abstain.models.tables.columns import Column
from abstain.service.predict.request import parse_predict, rows_of_request, texts_of_request

TABLES = {
    "8 numbers": (8, 0, 0),
    "8 numbers, 3 categories, 1 date": (8, 3, 1),
    "4 numbers, 8 categories": (4, 8, 0),
    "3 dates": (0, 0, 3),
    "100 numbers": (100, 0, 0),
}
SERVED = {
    "8 numbers": (8, 0, 0),
    "4 numbers, 3 categories, 1 date": (4, 3, 1),
    "30 numbers": (30, 0, 0),
    "20 numbers, 8 categories, 2 dates": (20, 8, 2),
}
SIZES = (1, 10, 100)
TARGET = 1.5
"""The largest cost of a record, in units of the cost of the numbers."""
VALUES: dict[str, tuple[Any, float]] = {
    "number": (2.5, 2.5),
    "category": ("name 5", 5),
    "date": ("2024-03-01", 1_709_251_200),
}
"""The value of a record, and the number of a row, for each kind of column."""


def main() -> int:
    """Measures, prints, and writes `benchmarks/results/records.json`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3000)
    parser.add_argument("--requests", type=int, default=300, help="requests of each form and size over HTTP")
    options = parser.parse_args()
    results = {name: measure(options.rounds, make_model(*counts)) for name, counts in TABLES.items()}
    sys.stdout.write(f"{'microseconds':34} {'numbers':>8} {'record':>8} {'lists':>8} {'record ÷ numbers':>18}\n")
    for name, times in results.items():
        ratio = times["record"] / times["numbers"]
        missed = "" if ratio <= TARGET else f"  MISSED: at most {TARGET}"
        cells = " ".join(f"{times[form]:8.1f}" for form in ("numbers", "record", "lists"))
        sys.stdout.write(f"{name:34} {cells} {ratio:18.2f}{missed}\n")
    with tempfile.TemporaryDirectory() as folder:
        served = measure_served(options.requests, Path(folder))
    sys.stdout.write(
        f"\n{'milliseconds over HTTP':42} {'numbers':>8} {'records':>8} {'lists':>8} {'records ÷ numbers':>18}\n"
    )
    for name, times in served.items():
        ratio = times["records"] / times["numbers"]
        missed = "" if ratio <= TARGET else f"  MISSED: at most {TARGET}"
        cells = " ".join(f"{times[form]:8.2f}" for form in ("numbers", "records", "lists"))
        sys.stdout.write(f"{name:42} {cells} {ratio:18.2f}{missed}\n")
    save_results("records", {"in one process, microseconds": results, "over HTTP, milliseconds": served})
    return 0


def make_model(numbers: int, categories: int, dates: int) -> Model:
    """Makes a model of a table with these numbers of columns, in random order."""
    names = tuple(f"name {code}" for code in range(12))
    columns = [
        *(Column(name=f"number {place}", missing=0.0) for place in range(numbers)),
        *(Column(name=f"category {place}", categories=names, missing=0.0) for place in range(categories)),
        *(Column(name=f"date {place}", kind="date", missing=0.0) for place in range(dates)),
    ]
    random.Random(0).shuffle(columns)  # noqa: S311
    width = len(columns)
    preprocessing = Preprocessing(shift=(0.0,) * width, scale=(1.0,) * width, columns=tuple(columns))
    return Model(
        network=MLPSpec(hidden=(32,)),
        likelihood="categorical",
        preprocessing=preprocessing,
        feature_shape=(width,),
        feature_names=tuple(column.name for column in columns),
        class_names=("a", "b", "c"),
    )


def measure_served(requests: int, folder: Path) -> dict[str, dict[str, float]]:
    """Returns the median milliseconds of each form, for each table and number of rows."""
    store, rng = folder / "store", np.random.default_rng(0)
    tables = {f"table-{place}": make_model(*counts) for place, counts in enumerate(SERVED.values())}
    for name, model in tables.items():
        rows = random_rows(model, 400, rng)
        publish_random(store, name, model, rows, rng.integers(0, 3, 400), calibration_rows=150, draws=20)
    port, times = free_port(), dict[str, dict[str, float]]()
    with run_server("records", port, abstain_command(port, store), folder):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        for (name, model), title in zip(tables.items(), SERVED, strict=True):
            for size in SIZES:
                bodies = bodies_of(model, random_rows(model, size, rng), name)
                answers = {form: ask(connection, body) for form, body in bodies.items()}
                if len({*answers.values()}) > 1:
                    sys.exit(f"{title}: the answers differ: {answers}")
                found: dict[str, list[float]] = {form: [] for form in bodies}
                for _ in range(requests):
                    for form, body in bodies.items():
                        started = time.perf_counter_ns()
                        ask(connection, body)
                        found[form].append((time.perf_counter_ns() - started) / 1e6)
                medians = {form: float(np.median(values)) for form, values in found.items()}
                times[f"{title}, {size} row{'s' if size > 1 else ''}"] = medians
        connection.close()
    return times


def ask(connection: http.client.HTTPConnection, body: bytes) -> bytes:
    """Sends a request over an open connection; returns its predictions."""
    connection.request("POST", "/predict", body, {"Content-Type": "application/json"})
    response = connection.getresponse()
    content = response.read()
    if response.status != 200:
        sys.exit(content.decode())
    return orjson.dumps(orjson.loads(content)["predictions"])


def random_rows(model: Model, count: int, rng: np.random.Generator) -> np.ndarray:
    """Draws rows of numbers, as `inputs` has them: three decimals, codes of categories, and seconds of whole days."""
    drawn: dict[str, Any] = {
        "number": lambda: rng.normal(10, 5, count).round(3),
        "category": lambda: rng.integers(0, 12, count),
        "date": lambda: rng.integers(14_000, 20_000, count) * 86_400,
    }
    return np.column_stack([drawn[column.kind]() for column in model.preprocessing.columns]).astype(np.float64)


def bodies_of(model: Model, rows: np.ndarray, name: str) -> dict[str, bytes]:
    """Returns the bodies of a request for some rows, in each form."""
    columns = model.preprocessing.columns
    values: dict[str, Any] = {
        "number": float,
        "category": lambda code: f"name {int(code)}",
        "date": lambda seconds: str(np.datetime64(int(seconds), "s").astype("datetime64[D]")),
    }
    data = [[values[column.kind](cell) for column, cell in zip(columns, row, strict=True)] for row in rows.tolist()]
    names = [column.name for column in columns]
    forms: dict[str, dict[str, Any]] = {
        "numbers": {"inputs": rows.tolist()},
        "records": {"records": [dict(zip(names, row, strict=True)) for row in data]},
        "lists": {"columns": names, "data": data},
    }
    return {form: orjson.dumps({**body, "model": name, "fields": ["label", "reject"]}) for form, body in forms.items()}


def measure(rounds: int, model: Model) -> dict[str, float]:
    """Returns the median microseconds of each form of one row; all of them make the same row."""
    columns = model.preprocessing.columns
    record = {column.name: VALUES[column.kind][0] for column in columns}
    forms: dict[str, dict[str, Any]] = {
        "numbers": {"inputs": [[VALUES[column.kind][1] for column in columns]]},
        "record": {"records": [record]},
        "lists": {"columns": list(record), "data": [list(record.values())]},
    }
    bodies = {name: orjson.dumps({**body, "model": "table"}) for name, body in forms.items()}
    for body in bodies.values():
        np.testing.assert_array_equal(decode(body, model), decode(bodies["numbers"], model))
    microseconds: dict[str, list[float]] = {name: [] for name in bodies}
    for _ in range(rounds):
        for name, body in bodies.items():
            started = time.perf_counter_ns()
            decode(body, model)
            microseconds[name].append((time.perf_counter_ns() - started) / 1e3)
    return {name: float(np.median(times)) for name, times in microseconds.items()}


def decode(body: bytes, model: Model) -> np.ndarray:
    """Returns the rows of a body, parsed and checked; also looks for unseen categories, as the server does."""
    request = parse_predict(body, 100)
    rows = rows_of_request(request, model, 100)
    texts_of_request(request, model, rows)
    return rows


if __name__ == "__main__":
    sys.exit(main())
