"""The cost of a record: a request with one record, compared with the same row as numbers.

    python benchmarks/records.py [--rounds 3000]

For tables of several kinds of columns it prints the median microseconds of decoding and checking the body of a request with
one row, in one process: as numbers (`inputs`), as a record, and as lists with the columns' names. The forms take turns. No
model is loaded, because the cost does not depend on it.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from abstain.models.networks.architectures import MLPSpec
from abstain.models.prediction.posterior import Model
from abstain.models.prediction.preprocessing import Preprocessing
from abstain.models.tables.columns import Column
from abstain.service.predict.request import parse_predict, rows_of_request, texts_of_request

RESULTS = Path(__file__).resolve().parent / "results"
TABLES = {
    "8 numbers": (8, 0, 0),
    "8 numbers, 3 categories, 1 date": (8, 3, 1),
    "4 numbers, 8 categories": (4, 8, 0),
    "3 dates": (0, 0, 3),
    "100 numbers": (100, 0, 0),
}
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
    options = parser.parse_args()
    results = {name: measure(options.rounds, make_model(*counts)) for name, counts in TABLES.items()}
    sys.stdout.write(f"{'microseconds':34} {'numbers':>8} {'record':>8} {'lists':>8} {'record ÷ numbers':>18}\n")
    for name, times in results.items():
        ratio = times["record"] / times["numbers"]
        missed = "" if ratio <= TARGET else f"  MISSED: at most {TARGET}"
        cells = " ".join(f"{times[form]:8.1f}" for form in ("numbers", "record", "lists"))
        sys.stdout.write(f"{name:34} {cells} {ratio:18.2f}{missed}\n")
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "records.json").write_bytes(orjson.dumps(results, option=orjson.OPT_INDENT_2))
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
        network=MLPSpec(),
        likelihood="normal",
        preprocessing=preprocessing,
        feature_shape=(width,),
        feature_names=tuple(column.name for column in columns),
    )


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
