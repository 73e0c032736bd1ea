"""The rows of one table through every door: a server's bodies, the client, `/v2`, and files that other programs wrote.

`benchmarks/public_tables.py` uses it. The reference is `abstain predict` of a CSV that pandas wrote. A row differs if a word or a
flag does (label, reject, reasons, prediction set), or a number by more than `TOLERANCE`.
"""

from __future__ import annotations

import math
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
import orjson
import pyarrow

import abstain
from abstain.models.bundles.bundle import Bundle, load
from abstain.models.errors import AbstainError
from abstain.models.files.model_rows import rows_of_table
from abstain.models.files.row_files import read_table
from abstain.models.tables.columns import UNSEEN, Column
from abstain.service.commands.predict_file import predict_file
from abstain.service.compilation import keep_compiled
from benchmarks.servers import PYTHON, abstain_command, environment, free_port, run_server

# pyarrow ships no types.
pa: Any = pyarrow
Frame = Any
Answers = list[dict[str, Any]]
TOLERANCE = 1e-6
"""The difference that batches of two sizes may have, as a share of the largest number of the row; scores are compared with scores."""
WAIT = 300.0
V2_FIELDS = {"label", "reject", "probabilities", "mean", "std", "entropy", "interval"}
"""The fields of `/predict` that `/v2` has, too."""


class Door(NamedTuple):
    """What came through one door: the rows compared, those that differ, and the largest difference of a number."""

    rows: int
    differing: int
    largest: float
    example: str = ""
    """The first difference, or why the door refused the rows."""


def compare_doors(store: Path, name: str, frame: Frame, folder: Path) -> dict[str, Door]:
    """Serves the only version of a store, and sends rows through every door.

    Args:
        store: an absolute path, because a server starts in another folder.
        frame: the rows as the package has them, with all columns of the table.
        folder: an absolute path, for files and the server's log.
    """
    folder.mkdir(parents=True, exist_ok=True)
    compiled = folder.parent / "compiled"
    keep_compiled(compiled)
    bundle = load(store / name / "1")
    frame.to_csv(folder / "pandas.csv", index=False)
    reference = predict_offline(store, name, folder / "pandas.csv", compiled)
    files = {door: write(frame, folder) for door, write in WRITERS.items()}
    doors = {door: compare(reference, lambda path=path: predict_here(bundle, path)) for door, path in files.items()}
    port = free_port()
    with (
        run_server(name, port, abstain_command(port, store), folder, ABSTAIN_COMPILED=str(compiled)) as server,
        httpx.Client(base_url=server.url, timeout=WAIT) as http,
    ):
        columns = bundle.manifest.model.preprocessing.columns
        cells = {column.name: cells_of(frame[column.name]) for column in columns}
        records = [dict(zip(cells, row, strict=True)) for row in zip(*cells.values(), strict=True)]
        lists = {"columns": [*cells], "data": [[*record.values()] for record in records]}
        rows, is_known = numbers_of(folder / "pandas.csv", bundle, columns)
        known = [answer for answer, keep in zip(reference, is_known, strict=True) if keep]
        stream = stream_of(frame)
        client = abstain.Client(server.url, timeout=WAIT)
        bodies: dict[str, tuple[Answers, Callable[[], Answers]]] = {
            "records": (reference, lambda: ask(http, {"records": records})),
            "one record at a time": (
                reference[:20],
                lambda: [ask(http, {"records": [record]})[0] for record in records[:20]],
            ),
            "columns and data": (reference, lambda: ask(http, lists)),
            "numbers": (known, lambda: ask(http, {"inputs": rows[is_known].tolist()})),
            "CSV body": (reference, lambda: send(http, "text/csv", (folder / "pandas.csv").read_bytes())),
            "Arrow body": (reference, lambda: send(http, "application/vnd.apache.arrow.stream", stream)),
            "client, DataFrame": (reference, lambda: [dict(row) for row in client.predict(frame).raw]),
            "/v2, one tensor per column": (
                [{key: row[key] for key in row if key in V2_FIELDS} for row in reference],
                lambda: ask_v2(http, name, columns, frame),
            ),
        }
        doors |= {door: compare(expected, answer) for door, (expected, answer) in bodies.items()}
        client.close()
    return doors


# ---- files -----------------------------------------------------------------------------------------------------------


def predict_offline(store: Path, name: str, path: Path, compiled: Path) -> Answers:
    """Returns what `abstain predict` writes for a file."""
    out = path.with_suffix(".jsonl")
    command = [str(PYTHON.with_name("abstain")), "predict", name, "--store", str(store)]
    subprocess.run(
        [*command, "--data", str(path), "--out", str(out)],
        check=True,
        env=environment(ABSTAIN_COMPILED=str(compiled)),
        capture_output=True,
    )
    return read_answers(out)


def predict_here(bundle: Bundle, path: Path) -> Answers:
    """Returns the same for another file without another process."""
    out = path.with_name(f"{path.name}.jsonl")
    predict_file(bundle, path, out)
    return read_answers(out)


def read_answers(path: Path) -> Answers:
    """Reads predictions in JSON lines."""
    return [orjson.loads(line) for line in path.read_bytes().splitlines()]


def by_arrow(frame: Frame, folder: Path) -> Path:
    """Writes a CSV by pyarrow."""
    from pyarrow import csv  # noqa: PLC0415

    csv.write_csv(pa.Table.from_pandas(frame, preserve_index=False), folder / "arrow.csv")
    return folder / "arrow.csv"


def by_polars(frame: Frame, folder: Path) -> Path:
    """Writes a CSV by Polars."""
    import polars as pl  # noqa: PLC0415

    pl.from_pandas(frame).write_csv(folder / "polars.csv")
    return folder / "polars.csv"


def parquet(frame: Frame, folder: Path) -> Path:
    """Writes a parquet file by pandas."""
    frame.to_parquet(folder / "pandas.parquet", index=False)
    return folder / "pandas.parquet"


def semicolons(frame: Frame, folder: Path) -> Path:
    """Writes a CSV as spreadsheets of many countries do."""
    frame.to_csv(folder / "semicolons.csv", index=False, sep=";", decimal=",")
    return folder / "semicolons.csv"


WRITERS = {
    "file by pyarrow": by_arrow,
    "file by Polars": by_polars,
    "parquet": parquet,
    "semicolons, decimal commas": semicolons,
}


# ---- bodies ----------------------------------------------------------------------------------------------------------


def cells_of(series: Any) -> list[Any]:
    """Returns the cells of a column as JSON has them: null for a gap, and dates as text."""
    gaps = series.isna().tolist()
    return [
        None if gap else cell.isoformat() if hasattr(cell, "isoformat") else cell
        for cell, gap in zip(series.astype(object).tolist(), gaps, strict=True)
    ]


def numbers_of(path: Path, bundle: Bundle, columns: tuple[Column, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the rows as numbers, gaps filled as the model fills them, and which of them numbers can express."""
    rows = np.asarray(rows_of_table(read_table(path), bundle.manifest.model, str(path)), np.float64)
    rows = np.where(np.isnan(rows), [column.missing for column in columns], rows)
    categorical = [column.kind == "category" for column in columns]
    return rows, ~(rows[:, categorical] == UNSEEN).any(axis=1)


def stream_of(frame: Frame) -> bytes:
    """Returns an Arrow stream of a frame."""
    table = pa.Table.from_pandas(frame, preserve_index=False)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def ask(http: httpx.Client, body: dict[str, Any]) -> Answers:
    """Sends a JSON body to `/predict`."""
    content = orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)
    return send(http, "application/json", content)


def send(http: httpx.Client, media: str, body: bytes) -> Answers:
    """Sends a body to `/predict`."""
    response = http.post("/predict", content=body, headers={"Content-Type": media})
    if response.status_code != 200:
        raise RefusedError(response.text)
    return orjson.loads(response.content)["predictions"]


class RefusedError(Exception):
    """A server's answer to a body that it refuses."""


def ask_v2(http: httpx.Client, name: str, columns: tuple[Column, ...], frame: Frame) -> Answers:
    """Sends one tensor for each column to `/v2`, and returns the outputs as `/predict` returns them."""
    inputs = [tensor(column, frame[column.name]) for column in columns]
    response = http.post(f"/v2/models/{name}/infer", content=orjson.dumps({"inputs": inputs}))
    if response.status_code != 200:
        raise RefusedError(response.text)
    outputs = {output["name"]: output for output in orjson.loads(response.content)["outputs"]}
    rows = len(frame)
    values = {
        key: np.reshape(np.array(output["data"], object), output["shape"]).tolist() for key, output in outputs.items()
    }
    if "lower" in values:
        values["interval"] = [list(pair) for pair in zip(values["lower"], values["upper"], strict=True)]
    return [{key: values[key][row] for key in values if key in V2_FIELDS} for row in range(rows)]


def tensor(column: Column, series: Any) -> dict[str, Any]:
    """Returns the tensor of a column: INT64 or BOOL where pandas has such a type, FP64 for other numbers, BYTES for text."""
    kind, cells = getattr(series.dtype, "kind", "O"), cells_of(series)
    datatype = {"i": "INT64", "u": "INT64", "b": "BOOL", "f": "FP64"}.get(kind, "BYTES")
    if datatype == "BYTES":
        cells = [None if cell is None else str(cell) for cell in cells]
    if column.kind == "category" and datatype == "FP64":
        cells = [None if cell is None else float(cell) for cell in cells]
    return {"name": column.name, "datatype": datatype, "shape": [len(cells)], "data": cells}


# ---- comparison ------------------------------------------------------------------------------------------------------


def compare(expected: Answers, answer: Callable[[], Answers]) -> Door:
    """Compares the answers of a door with the reference; rows that it refuses all differ."""
    try:
        found = answer()
    except (AbstainError, RefusedError) as error:
        return Door(len(expected), len(expected), math.inf, str(error)[:600])
    if len(found) != len(expected):
        return Door(len(expected), len(expected), math.inf, f"{len(found)} answers")
    differing, largest, example = 0, 0.0, ""
    for row, (one, other) in enumerate(zip(expected, found, strict=True)):
        size = largest_number({key: value for key, value in one.items() if key != "scores"})
        distances = {
            key: distance(one[key], other.get(key), largest_number(one[key]) if key == "scores" else size)
            for key in one
        }
        worst = max(distances, key=lambda key: distances[key])
        largest = max(largest, distances[worst])
        if distances[worst] > TOLERANCE:
            differing += 1
            example = example or f"row {row}, {worst}: {str(one[worst])[:200]}, found {str(other.get(worst))[:200]}"
    return Door(len(expected), differing, largest, example)


def distance(one: Any, other: Any, size: float) -> float:
    """Returns the largest difference of the numbers in two values, as a share of `size`; infinity for other words."""
    numbers, words = split_leaves(one)
    found, others = split_leaves(other)
    if words != others or len(numbers) != len(found):
        return math.inf
    # `/v2` sends float32, which JSON may write in more digits than the number needs.
    return max(
        (0.0 if np.float32(a) == np.float32(b) else abs(a - b) / size for a, b in zip(numbers, found, strict=True)),
        default=0.0,
    )


def largest_number(value: Any) -> float:
    """Returns the largest size of a number in a value; 1 if it has none, or only zeros."""
    return max(map(abs, split_leaves(value)[0]), default=1.0) or 1.0


def split_leaves(value: Any) -> tuple[list[float], list[Any]]:
    """Returns the numbers in a value, and all else with the keys, in one order."""
    if isinstance(value, dict):
        parts = [(key, split_leaves(part)) for key, part in value.items()]
        return [n for _, part in parts for n in part[0]], [w for key, part in parts for w in (key, *part[1])]
    if isinstance(value, list | tuple):
        parts = [split_leaves(part) for part in value]
        return [n for part in parts for n in part[0]], [w for part in parts for w in part[1]]
    if isinstance(value, float | int) and not isinstance(value, bool):
        return [float(value)], []
    return [], [value]
