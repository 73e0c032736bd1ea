"""Offline prediction: reads rows from a file and writes predictions to a file, with the same numbers as over HTTP."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax
import numpy as np
import orjson
import pyarrow
import pyarrow.csv as arrow_csv
import pyarrow.parquet as arrow_parquet
from jaxtyping import Float

from abstain.models.bundles.bundle import Bundle
from abstain.models.decisions.discoveries import flag_discoveries, least_calibration_rows
from abstain.models.decisions.judging import check_limited, judge
from abstain.models.decisions.records import Calibration, Levels
from abstain.models.errors import DataError, InputError, convert
from abstain.models.files.drafts import draft_of
from abstain.models.files.locks import disk_errors
from abstain.models.files.model_rows import check_codes, reshape_rows, rows_of_table
from abstain.models.files.row_files import TABLES, checked_inputs, read_npz, read_table
from abstain.models.prediction.posterior import Model
from abstain.models.prediction.predictive import Predictor, buckets_for
from abstain.service.predict import response
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
ReportProgress = Callable[[int, int], None]


class PredictedFile(NamedTuple):
    """What was written: the number of rows, and how many of them have `fdr_reject`; None if it was not requested."""

    rows: int
    discoveries: int | None


class _Chunk(NamedTuple):
    """The fields of some rows, and the p-values of the score that tells whether a row is like the calibration rows."""

    columns: dict[str, list[Any]]
    p_values: Float[np.ndarray, " rows"]


def _silent(_done: int, _total: int) -> None:
    """Reports no progress."""


def predict_file(
    bundle: Bundle,
    source: Path,
    out: Path,
    percentile: float | None = None,
    progress: ReportProgress = _silent,
    fdr: float | None = None,
    max_error: float | None = None,
) -> PredictedFile:
    """Writes the prediction of every row of a file to another, all or none.

    The rows are read before compilation, so that only the batch sizes they need are compiled.

    Args:
        fdr: a false discovery rate, strictly between 0 and 1; adds the field `fdr_reject` (`models/decisions/discoveries.py`).
        max_error: the largest error of accepted rows, strictly between 0 and 1; the model's own if None.

    Raises:
        DataError: the ending of a file, a row or its prediction is invalid; or the predictions cannot be written.
        CalibrationError: the calibration part is too small for the percentile or the error.
        InputError: `fdr` for a calibration within each predicted class; or as `check_limited`.
    """
    check_ending(out)
    if fdr is not None:
        _check_one_ranking(bundle.calibration)
    check_limited(bundle.calibration, percentile, max_error)
    levels = Levels(percentile=percentile, max_error=max_error)
    rows = read_rows(source, bundle.manifest.model)
    predictor = bundle.predictor(buckets_for(len(rows)))
    chunks = list(_predict_chunks(bundle, predictor, rows, source, levels, progress))
    columns = {field: [value for chunk in chunks for value in chunk.columns[field]] for field in chunks[0].columns}
    flagged = None
    if fdr is not None:
        p_values = np.concatenate([chunk.p_values for chunk in chunks])
        flags = flag_discoveries(p_values, bundle.calibration.rows, fdr)
        columns["fdr_reject"], flagged = flags.tolist(), int(flags.sum())
    _write(columns, out)
    return PredictedFile(len(rows), flagged)


def check_ending(out: Path) -> None:
    """Refuses an output file with an ending that names no format.

    Raises:
        DataError: lists the endings.
    """
    if out.suffix not in ENDINGS:
        raise DataError("--out", expected=f"a file ending in {', '.join(ENDINGS)}", found=str(out))


def _check_one_ranking(calibration: Calibration) -> None:
    """Refuses a calibration that ranks rows of each predicted class apart: their p-values have different denominators."""
    if calibration.per_class:
        raise InputError(
            where="--fdr",
            expected="a version that ranks each row among all calibration rows",
            found="per_class = true, which ranks it among those of its predicted class",
            fix="leave out --fdr, or make such a version: abstain calibrate MODEL --data PATH --set per_class=false",
        )


def describe_discoveries(written: PredictedFile, fdr: float, calibration_rows: int) -> str:
    """Says how many rows are flagged at a false discovery rate, and whether the calibration part is too small to flag any."""
    verb = "is" if written.discoveries == 1 else "are"
    text = f"fdr {fdr!r}: {written.discoveries} of {written.rows} rows {verb} unlike the calibration rows"
    least = least_calibration_rows(fdr)
    if calibration_rows >= least:
        return text
    return (
        f"{text}; none can be flagged: expected at least {least} calibration rows, found {calibration_rows}; "
        "choose a larger --fdr, or calibrate with more rows"
    )


def read_rows(source: Path, model: Model) -> np.ndarray:
    """Reads the rows of a file: `x_test` of an .npz if it has one, else `x`; the model's columns of a table.

    Raises:
        DataError: names the file, and the invalid array, column or row.
    """
    if source.suffix in TABLES:
        rows: np.ndarray = rows_of_table(read_table(source), model, str(source))
    elif source.suffix == ".npz":
        rows = rows_of_npz(source)
    else:
        raise DataError("--data", expected="a file ending in .npz, .csv or .parquet", found=str(source))
    rows = reshape_rows(rows, model, str(source))
    check_codes(rows, model.preprocessing, str(source))
    return rows


def rows_of_npz(source: Path) -> np.ndarray:
    """Reads the array `x_test` of an .npz if it has one, else `x`.

    Raises:
        DataError: names the file, and the invalid array or row.
    """
    arrays = read_npz(source)
    key = next((key for key in ("x_test", "x") if key in arrays), None)
    if key is None:
        found = ", ".join(arrays) or "no arrays"
        raise DataError("arrays", where=str(source), expected="x_test or x", found=found)
    return checked_inputs(arrays[key], f"{source}, {key}")


def _predict_chunks(
    bundle: Bundle,
    predictor: Predictor,
    rows: np.ndarray,
    source: Path,
    levels: Levels,
    progress: ReportProgress,
) -> Iterator[_Chunk]:
    name = bundle.calibration.novelty_name
    for start in range(0, len(rows), CHUNK_ROWS):
        chunk = rows[start : start + CHUNK_ROWS]
        prediction = predictor(chunk)
        try:
            check_finite(jax.tree.leaves(prediction))
        except InputError as error:
            raise convert(error, DataError, f"{source}, rows from {start}") from error
        judgement = judge(bundle.calibration, prediction, *levels)
        columns = response.make_columns(bundle.manifest.model, prediction, judgement)
        yield _Chunk(columns, judgement.scores[name].p_value)
        progress(start + len(chunk), len(rows))


def _write(columns: dict[str, list[Any]], out: Path) -> None:
    with disk_errors(out, kind=DataError):
        out.parent.mkdir(parents=True, exist_ok=True)
        with draft_of(out) as draft:
            _WRITERS[out.suffix](columns, draft)
            draft.chmod(0o644)


write_predictions = _write
"""Writes the fields of all rows in the format that the ending of a path names, all or none; for `abstain predict --url`."""


def _write_jsonl(columns: dict[str, list[Any]], path: Path) -> None:
    with path.open("wb") as file:
        for row in response.make_rows(columns, tuple(columns)):
            file.write(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE))


def _write_npz(columns: dict[str, list[Any]], path: Path) -> None:
    arrays: dict[str, Any] = {name: np.array(values) for name, values in _flat(columns).items()}
    np.savez_compressed(path, **arrays)


def _write_csv(columns: dict[str, list[Any]], path: Path) -> None:
    cells = {_as_text(name): [_as_text(value) for value in values] for name, values in _flat(columns).items()}
    csv.write_csv(pa.table(cells), path)


def _as_text(cell: Any) -> Any:
    """Puts an apostrophe before text that a spreadsheet would run as a formula; returns any other cell unchanged.

    Class labels may be any text. A number as text, or numbers separated by bars, does no harm and is unchanged: class
    labels are often -1 and 1.
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
    """Makes one column for each number (`probabilities.3`, `scores.std.value`), and joins lists of words with bars."""
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
