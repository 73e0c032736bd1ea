"""Offline scoring: rows in a file, answers in a file, the same numbers as over HTTP."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np
import orjson
import pyarrow
import pyarrow.csv as arrow_csv
import pyarrow.parquet as arrow_parquet

from abstain.models.bundles.bundle import Bundle
from abstain.models.decisions.calibration import judge
from abstain.models.errors import DataError, InputError
from abstain.models.files.drafts import draft_of
from abstain.models.files.locks import disk_errors
from abstain.models.files.row_files import TABLES, checked_inputs, read_npz, read_table
from abstain.models.prediction.posterior import Model
from abstain.models.prediction.predictive import Predictor, buckets_for
from abstain.models.prediction.preprocessing import first_unknown_code
from abstain.service.predict import response
from abstain.service.python_rows import rows_of_table, shaped
from abstain.service.rows import check_finite

# pyarrow ships no types.
pa: Any = pyarrow
csv: Any = arrow_csv
parquet: Any = arrow_parquet
CHUNK_ROWS = 4096
ENDINGS = (".csv", ".parquet", ".npz", ".jsonl")
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""A spreadsheet may run text that begins with one of these; the last four are the full-width forms of the first four."""
_NUMBER = r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?"
_NUMBERS = re.compile(rf"{_NUMBER}(?:\|{_NUMBER})*")
Progress = Callable[[int, int], None]


def _silent(_done: int, _total: int) -> None:
    """No progress shown."""


def predict_file(
    bundle: Bundle,
    source: Path,
    out: Path,
    percentile: float | None = None,
    progress: Progress = _silent,
) -> int:
    """Scores every row of a file into another, which exists whole or not at all; returns the number of rows.

    The file is read before anything is compiled, and then only the batch sizes that so many rows need.

    Raises:
        DataError: a file's ending, its rows, or a row's prediction is wrong; or the answers cannot be written.
        CalibrationError: the calibration split is too small for the percentile.
    """
    if out.suffix not in ENDINGS:
        raise DataError("--out", expected=f"a file ending in {', '.join(ENDINGS)}", found=str(out))
    rows = read_rows(source, bundle.manifest.model)
    predictor = bundle.predictor(buckets_for(len(rows)))
    told = list(_answers(bundle, predictor, rows, source, percentile, progress))
    columns = {field: [value for part in told for value in part[field]] for field in told[0]}
    _write(columns, out)
    return len(rows)


def read_rows(source: Path, model: Model) -> np.ndarray:
    """The inputs in a file: `x_test` of an .npz if it has one, else `x`; the model's columns of a table.

    Raises:
        DataError: naming the file, and the array, column or row at fault.
    """
    if source.suffix in TABLES:
        rows: np.ndarray = rows_of_table(read_table(source), model, str(source))
    elif source.suffix == ".npz":
        arrays = read_npz(source)
        key = next((key for key in ("x_test", "x") if key in arrays), None)
        if key is None:
            raise DataError("arrays", where=str(source), expected="x, or x_test", found=", ".join(arrays))
        rows = checked_inputs(arrays[key], f"{source}, {key}")
    else:
        raise DataError("--data", expected="a file ending in .npz, .csv or .parquet", found=str(source))
    rows = shaped(rows, model, str(source))
    unknown = first_unknown_code(model.preprocessing, rows)
    if unknown:
        name = model.preprocessing.columns[unknown[1]].name
        raise DataError(
            f"column {name!r}", where=f"{source}, row {unknown[0]}", expected="a category's code", found=rows[unknown]
        )
    return rows


def _answers(
    bundle: Bundle, predictor: Predictor, rows: np.ndarray, source: Path, percentile: float | None, progress: Progress
) -> Iterator[dict[str, list[Any]]]:
    for start in range(0, len(rows), CHUNK_ROWS):
        chunk = rows[start : start + CHUNK_ROWS]
        prediction = predictor(chunk)
        try:
            check_finite(jax.tree.leaves(prediction))
        except InputError as error:
            raise DataError(str(error), where=f"{source}, rows from {start}") from error
        judgement = judge(bundle.calibration, prediction, percentile)
        yield response.columns(bundle.manifest.model, prediction, judgement)
        progress(start + len(chunk), len(rows))


def _write(columns: dict[str, list[Any]], out: Path) -> None:
    with disk_errors(out, kind=DataError):
        out.parent.mkdir(parents=True, exist_ok=True)
        with draft_of(out) as draft:
            _WRITERS[out.suffix](columns, draft)
            draft.chmod(0o644)


def _write_jsonl(columns: dict[str, list[Any]], path: Path) -> None:
    with path.open("wb") as file:
        for row in response.rows(columns, tuple(columns)):
            file.write(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE))


def _write_npz(columns: dict[str, list[Any]], path: Path) -> None:
    arrays: dict[str, Any] = {name: np.array(values) for name, values in _flat(columns).items()}
    np.savez_compressed(path, **arrays)


def _write_csv(columns: dict[str, list[Any]], path: Path) -> None:
    cells = {_as_text(name): [_as_text(value) for value in values] for name, values in _flat(columns).items()}
    csv.write_csv(pa.table(cells), path)


def _as_text(cell: Any) -> Any:
    """A cell with an apostrophe before it if it is text that a spreadsheet would run as a formula; any other as it is.

    Names of classes are data of whoever trained the model. Text that is a number, or numbers with bars between them, does
    no harm and stays: classes are often named -1 and 1.
    """
    if not isinstance(cell, str) or not cell.startswith(_FORMULA_STARTS) or _NUMBERS.fullmatch(cell):
        return cell
    return f"'{cell}"


def _write_parquet(columns: dict[str, list[Any]], path: Path) -> None:
    parquet.write_table(pa.table(_flat(columns)), path)


_WRITERS: dict[str, Callable[[dict[str, list[Any]], Path], None]] = {
    ".jsonl": _write_jsonl,
    ".npz": _write_npz,
    ".csv": _write_csv,
    ".parquet": _write_parquet,
}


def _flat(columns: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """One column for each number: `probabilities.3`, `scores.std.value`; lists of words joined by a bar."""
    flat: dict[str, list[Any]] = {}
    for field, values in columns.items():
        if field in {"reasons", "prediction_set"}:
            flat[field] = ["|".join(words) for words in values]
        else:
            _flatten(field, values, flat)
    return flat


def _flatten(name: str, values: list[Any], flat: dict[str, list[Any]]) -> None:
    first = values[0]
    if isinstance(first, dict):
        for key in cast("dict[str, Any]", first):
            _flatten(f"{name}.{key}", [value[key] for value in values], flat)
    elif isinstance(first, list):
        for index in range(len(cast("list[Any]", first))):
            _flatten(f"{name}.{index}", [value[index] for value in values], flat)
    else:
        flat[name] = values
