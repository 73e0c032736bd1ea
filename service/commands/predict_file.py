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
from abstain.models.prediction.predictive import Predictor, buckets_for
from abstain.models.tables.unseen import UnseenTexts
from abstain.service.commands.predict_options import check_paths
from abstain.service.commands.predict_rows import InputRows, read_input
from abstain.service.commands.rejected_rows import FIELDS as COUNTED
from abstain.service.commands.rejected_rows import RejectedRows, count_rejected
from abstain.service.predict import response
from abstain.service.predict.class_columns import CLASS_FIELDS, class_keys
from abstain.service.rows import check_finite

# pyarrow ships no types.
pa: Any = pyarrow
csv: Any = arrow_csv
parquet: Any = arrow_parquet
CHUNK_ROWS = 4096
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""A spreadsheet may run text that begins with one of these; the last four are the full-width forms of the first four."""
_NUMBER = r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?"
_NUMBERS = re.compile(rf"{_NUMBER}(?:\|{_NUMBER})*")
ReportProgress = Callable[[int, int], None]


class PredictedFile(NamedTuple):
    """What was written: the number of rows, how many have `fdr_reject` (None: not requested), and how many are rejected."""

    rows: int
    discoveries: int | None
    rejected: RejectedRows


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
    *,
    fields: tuple[str, ...] | None = None,
    given: InputRows | None = None,
) -> PredictedFile:
    """Writes the prediction of every row of a file to another, all or none.

    The rows are read before compilation, so that only the batch sizes they need are compiled.

    Args:
        fdr: a false discovery rate, strictly between 0 and 1; adds the field `fdr_reject` (`models/decisions/discoveries.py`).
        max_error: the largest error of accepted rows, strictly between 0 and 1; the model's own if None.
        fields: the fields to write; all if None.
        given: the rows of `source`, if they have been read already, with columns to keep and rows with an error.

    Raises:
        DataError: the ending of a file, a row or its prediction is invalid; or the predictions cannot be written.
        CalibrationError: the calibration part is too small for the percentile or the error.
        InputError: a field is unknown; or `fdr` for a calibration within each predicted class; or as `check_limited`.
    """
    check_paths(source, out)
    model, calibration = bundle.manifest.model, bundle.calibration
    if fdr is not None:
        _check_one_ranking(calibration)
    check_limited(calibration, percentile, max_error)
    wanted = response.check_fields(
        model,
        fields,
        two_parts=calibration.ambiguity is not None,
        probability_interval=calibration.targets is not None,
    )
    levels = Levels(percentile=percentile, max_error=max_error)
    given = read_input(source, bundle.manifest) if given is None else given
    rows = given.rows
    predictor = bundle.predictor(buckets_for(len(rows)))
    chunks = list(_predict_chunks(bundle, predictor, rows, given.texts, source, levels, progress))
    columns = _joined(chunks, wanted)
    flagged = None
    if fdr is not None:
        p_values = np.concatenate([chunk.p_values for chunk in chunks])
        flags = flag_discoveries(p_values, calibration.rows, fdr)
        columns["fdr_reject"], flagged = flags.tolist(), int(flags.sum())
    write_predictions(columns, given, model.class_names, out)
    return PredictedFile(len(rows), flagged, count_rejected(_joined(chunks, COUNTED)))


def _joined(chunks: list[_Chunk], fields: tuple[str, ...]) -> dict[str, list[Any]]:
    """Returns those of the fields that the predictions have, for the rows of all chunks."""
    return {
        field: [value for chunk in chunks for value in chunk.columns[field]]
        for field in fields
        if field in chunks[0].columns
    }


def write_predictions(columns: dict[str, list[Any]], given: InputRows, class_names: tuple[str, ...], out: Path) -> None:
    """Writes the fields of all rows in the format that the ending of `out` names, all or none.

    Args:
        columns: the fields, with one value for each of the rows without an error.
        given: the rows of the input, with columns to keep and rows with an error.

    Raises:
        DataError: a kept column has the name of a field, or the file cannot be written.
    """
    if out.suffix != ".jsonl":
        columns = _name_classes(columns, class_names)
    _write(_with_kept(columns, given), out)


def _name_classes(columns: dict[str, list[Any]], classes: tuple[str, ...]) -> dict[str, list[Any]]:
    """Gives each number of a list over the classes the name of its class, for columns such as `probabilities.setosa`."""
    keys = class_keys(classes, len(classes))
    named = {
        field: [dict(zip(keys, row, strict=True)) for row in columns[field]]
        for field in CLASS_FIELDS
        if field in columns and classes
    }
    return columns | named


def _with_kept(columns: dict[str, list[Any]], given: InputRows) -> dict[str, Any]:
    """Puts the kept columns first, and the errors last; the rows with an error have no predictions.

    Raises:
        DataError: a kept column has the name of a field.
    """
    if given.errors:
        valid = iter(range(len(given.rows)))
        places = [None if row in given.errors else next(valid) for row in range(given.size)]
        columns = {
            field: [None if place is None else values[place] for place in places] for field, values in columns.items()
        }
    if given.errors is not None:
        columns = columns | {"error": [given.errors.get(row) for row in range(given.size)]}
    for name in given.kept:
        if name in columns or name.partition(".")[0] in columns:
            raise DataError(
                f"--keep {name}",
                expected="a column with a name of its own",
                found="a field of that name",
                fix="rename the column, or leave the field out with --fields",
            )
    return given.kept | columns


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


def _predict_chunks(
    bundle: Bundle,
    predictor: Predictor,
    rows: np.ndarray,
    texts: UnseenTexts,
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
        columns = response.make_columns(bundle.manifest.model, prediction, judgement, texts, start)
        yield _Chunk(columns, judgement.scores[name].p_value)
        progress(start + len(chunk), len(rows))


def _write(columns: dict[str, Any], out: Path) -> None:
    """Writes columns that are lists, or columns of Arrow.

    Raises:
        DataError: the disk cannot hold the file, or the format cannot hold a column.
    """
    with disk_errors(out, kind=DataError):
        out.parent.mkdir(parents=True, exist_ok=True)
        with draft_of(out) as draft:
            try:
                _WRITERS[out.suffix](columns, draft)
            except pa.ArrowException as error:
                what = f"a column cannot be written: {error}"
                raise DataError(what, where=str(out), fix="leave it out of --keep, or choose another format") from error
            draft.chmod(0o644)


def _write_jsonl(columns: dict[str, Any], path: Path) -> None:
    lists = {name: _listed(values) for name, values in columns.items()}
    with path.open("wb") as file:
        for row in response.make_rows(lists, tuple(lists)):
            # The default is for dates and decimals of kept columns.
            file.write(orjson.dumps(row, str, orjson.OPT_APPEND_NEWLINE))


def _write_npz(columns: dict[str, Any], path: Path) -> None:
    arrays: dict[str, Any] = {}
    for name, values in _flat(columns).items():
        if _is_kept(values) and values.null_count:
            raise DataError(
                f"--keep {name}",
                expected="a value in each row, because an array has no empty cells",
                found=f"{values.null_count} empty cells",
                fix="write a .csv, .parquet or .jsonl file",
            )
        array = np.array(_listed(values))
        # numpy would write objects, such as dates, as code that is run when they are read.
        arrays[name] = array.astype(str) if array.dtype == object else array
    np.savez_compressed(path, **arrays)


def _write_csv(columns: dict[str, Any], path: Path) -> None:
    cells: dict[str, Any] = {}
    for name, values in _flat(columns).items():
        typed = _is_kept(values) and not (pa.types.is_string(values.type) or pa.types.is_large_string(values.type))
        cells[_as_text(name)] = values if typed else [_as_text(value) for value in _listed(values)]
    csv.write_csv(pa.table(cells), path)


def _is_kept(values: Any) -> bool:
    """Whether a column is one of Arrow, kept from the input."""
    return isinstance(values, pa.ChunkedArray)


def _listed(values: Any) -> list[Any]:
    return values.to_pylist() if _is_kept(values) else values


def _as_text(cell: Any) -> Any:
    """Puts an apostrophe before text that a spreadsheet would run as a formula; returns any other cell unchanged.

    Class labels may be any text. A number as text, or numbers separated by bars, does no harm and is unchanged: class
    labels are often -1 and 1.
    """
    if not isinstance(cell, str) or not cell.startswith(_FORMULA_STARTS) or _NUMBERS.fullmatch(cell):
        return cell
    return f"'{cell}"


def _write_parquet(columns: dict[str, Any], path: Path) -> None:
    parquet.write_table(pa.table(_flat(columns)), path)


_WRITERS: dict[str, Callable[[dict[str, Any], Path], None]] = {
    ".jsonl": _write_jsonl,
    ".npz": _write_npz,
    ".csv": _write_csv,
    ".parquet": _write_parquet,
}


def _flat(columns: dict[str, Any]) -> dict[str, Any]:
    """Makes one column for each number (`probabilities.setosa`, `scores.std.value`), and joins lists of words with bars."""
    flat: dict[str, Any] = {}
    for field, values in columns.items():
        if _is_kept(values):
            flat[field] = values
        elif field in {"reasons", "prediction_set"}:
            flat[field] = [None if words is None else "|".join(words) for words in values]
        else:
            _flatten(field, values, flat)
    return flat


def _flatten(name: str, values: list[Any], flat: dict[str, Any]) -> None:
    # None: a row with an error.
    first = next((value for value in values if value is not None), None)
    if isinstance(first, dict):
        for key in cast("dict[str, Any]", first):
            _flatten(f"{name}.{key}", [None if value is None else value[key] for value in values], flat)
    elif isinstance(first, list):
        for index in range(len(cast("list[Any]", first))):
            _flatten(f"{name}.{index}", [None if value is None else value[index] for value in values], flat)
    else:
        flat[name] = values
