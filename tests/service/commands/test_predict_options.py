"""`abstain predict --keep --fields --errors`: what is written beside the predictions, and in their place."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import csv, parquet

from abstain.models.bundles.bundle import load
from abstain.models.errors import DataError
from abstain.service.commands import predict_rows
from abstain.service.commands.predict_file import predict_file
from abstain.service.commands.predict_rows import read_input
from tests.helpers.paths import PROJECT
from tests.helpers.prediction_files import read_predictions

ROWS = np.linspace(-1, 1, 6)


@pytest.fixture
def predict(run, store, tmp_path):
    """Runs `abstain predict wave`, and keeps the column id; returns exit code, stdout, stderr, and the file it wrote."""

    def predict(data, *options, out="out.csv"):
        path = tmp_path / out
        kept = () if "--keep" in options or data.suffix == ".npz" else ("--keep", "id")
        code, printed, err = run("predict", "wave", "--data", data, "--out", path, "--store", store, *kept, *options)
        return code, printed, err, path

    return predict


@pytest.fixture
def table(tmp_path):
    """A CSV with an id column and the only input of the model, of which two cells are wrong."""
    path = tmp_path / "rows.csv"
    cells = [*map(str, ROWS)]
    cells[1], cells[4] = "unknown", "1e300"
    csv.write_csv(pa.table({"id": [f"n-{row}" for row in range(6)], "x0": cells}), path)
    return path


@pytest.fixture
def right(tmp_path):
    """The same without wrong cells."""
    path = tmp_path / "right.csv"
    csv.write_csv(pa.table({"id": [f"n-{row}" for row in range(6)], "x0": ROWS}), path)
    return path


def test_columns_are_kept_in_front(predict, right, store):
    """With their values, beside the same predictions: a model of arrays without names takes all other columns."""
    code, _, err, out = predict(right, "--keep", "id")
    assert code == 0, err
    found = read_predictions(out)
    assert [*found][:2] == ["id", "mean"]
    assert found["id"] == [f"n-{row}" for row in range(6)]
    expected = load(store / "wave" / "1").predictor()(ROWS[:, None].astype(np.float32)).summary.mean
    np.testing.assert_allclose(found["mean"], np.asarray(expected), rtol=1e-4, atol=1e-5)


KEPT = pa.table(
    {
        "x0": [*map(str, ROWS[:5]), "unknown"],
        "whole": pa.array([5, None, -7, 0, 2**53 + 1, 9], "int64"),
        "number": [0.5, 1e300, None, -2.25, 1.0, 3.0],
        "zip": ["01069", "10115", "20095", "5", "6", "7"],
        "version": ["1.10", "1.2", "2.0", "3.0", "4", "5"],
        "day": pa.array([0, 1, 2, 3, 4, None], "date32"),
        "price": pa.array([150, 2, 3, 4, 5, 6], "int64").cast(pa.decimal128(30, 2)),
    }
)


@pytest.mark.parametrize("errors", ["null", "refuse"])
@pytest.mark.parametrize("source", ["rows.csv", "rows.parquet"])
def test_kept_columns_keep_their_type(predict, tmp_path, source, errors):
    """A column of a CSV is of numbers if that changes none of its texts; types of a parquet file are as they were."""
    rows = KEPT if errors == "null" else KEPT.slice(0, 5)
    (csv.write_csv if source.endswith("csv") else parquet.write_table)(rows, tmp_path / source)
    names = KEPT.column_names[1:]
    keep = [part for name in names for part in ("--keep", name)]
    options = ["--errors", errors, "--fields", "mean"]
    code, _, err, out = predict(tmp_path / source, *keep, *options, out="out.parquet")
    assert code == 0, err
    found = parquet.read_table(out).select(names)
    if source.endswith("parquet"):
        assert found.cast(rows.select(names).schema).equals(rows.select(names))
        assert found.schema.types == rows.select(names).schema.types
    else:
        kinds = ["int64", "double", "string", "string", "string", "string"]
        assert [str(field.type) for field in found.schema] == kinds
        for name in names[:4]:
            assert found[name].to_pylist() == rows[name].to_pylist()
    for name in ("out.csv", "out.jsonl"):
        code, _, err, out = predict(tmp_path / source, *keep, *options, out=name)
        assert code == 0, err
    first = json.loads(out.read_text().splitlines()[0])
    assert (first["whole"], first["number"], first["zip"], first["day"]) == (5, 0.5, "01069", "1970-01-01")
    header, line = (tmp_path / "out.csv").read_text().splitlines()[:2]
    assert header.startswith('"whole","number","zip","version","day","price","mean"')
    assert line.startswith('5,0.5,"01069","1.10",')


def test_a_kept_column_that_a_format_cannot_hold_is_refused(predict, tmp_path):
    """Gaps in an array, and bytes in a CSV; no file is written. An array is never written as code."""
    rows = pa.table({"x0": ROWS, "whole": KEPT["whole"], "raw": [b"\xff"] * 6, "day": KEPT["day"].fill_null(0)})
    parquet.write_table(rows, tmp_path / "rows.parquet")
    keep = ["--keep", "whole", "--keep", "raw", "--keep", "day"]
    code, _, err, out = predict(tmp_path / "rows.parquet", *keep, out="out.npz")
    assert (code, out.exists()) == (1, False)
    assert "--keep whole: expected a value in each row, because an array has no empty cells, found 1 empty cells" in err
    code, _, err, out = predict(tmp_path / "rows.parquet", *keep)
    assert (code, out.exists()) == (1, False)
    assert "a column cannot be written: Invalid UTF8" in err
    parquet.write_table(rows.drop_columns(["whole", "raw"]), tmp_path / "rows.parquet")
    code, _, err, out = predict(tmp_path / "rows.parquet", "--keep", "day", out="out.npz")
    assert code == 0, err
    assert np.load(out, allow_pickle=False)["day"][1] == "1970-01-02"


def test_a_column_that_is_not_there_is_refused_with_the_nearest(predict, right):
    """Before anything is computed."""
    code, _, err, out = predict(right, "--keep", "ids")
    assert (code, out.exists()) == (1, False)
    assert "--keep ids: expected one of id, x0, found no such column; did you mean 'id'?" in err


def test_a_kept_column_with_the_name_of_a_field_is_refused(predict, tmp_path):
    """Unless the field is not written."""
    csv.write_csv(pa.table({"mean": ROWS, "x0": ROWS}), tmp_path / "rows.csv")
    code, _, err, out = predict(tmp_path / "rows.csv", "--keep", "mean")
    assert (code, out.exists()) == (1, False)
    assert "--keep mean: expected a column with a name of its own, found a field of that name" in err
    code, _, err, out = predict(tmp_path / "rows.csv", "--keep", "mean", "--fields", "reject")
    assert code == 0, err
    assert read_predictions(out)["mean"] == pytest.approx(ROWS.tolist())


def test_fields_choose_what_is_written(predict, right):
    """In their order; an unknown one is refused with the known ones."""
    code, _, err, out = predict(right, "--fields", "reject, mean")
    assert code == 0, err
    assert [*read_predictions(out)] == ["id", "reject", "mean"]
    code, _, err, _ = predict(right, "--fields", "means")
    assert code == 1
    assert "fields: expected some of mean, std" in err
    assert "did you mean 'mean'?" in err
    assert "--fields: expected names joined by commas" in predict(right, "--fields", "mean,")[2]


def test_a_row_with_an_error_gets_empty_cells_and_the_reason(predict, table, right):
    """The others have the numbers that they have without it; `refuse`, the default, refuses the file."""
    code, _, err, _ = predict(table)
    assert code == 1
    assert "row 1: column 'x0' must be numeric: expected a number, or an empty cell, found 'unknown'" in err
    for name in ("out.csv", "out.parquet"):
        code, printed, err, out = predict(
            table, "--errors", "null", "--keep", "id", "--fields", "mean,reject,interval", out=name
        )
        assert code == 0, err
        assert re.fullmatch(r"rejected: \d of 4 rows 2 of 6 rows have an error, see the column error", err)
        assert "predicted 4 rows" in printed
        found = (csv.read_csv if name.endswith("csv") else parquet.read_table)(out).to_pydict()
        assert [*found] == ["id", "mean", "reject", "interval.0", "interval.1", "error"]
        assert found["id"] == [f"n-{row}" for row in range(6)]
        assert [row for row in range(6) if found["mean"][row] is None] == [1, 4]
        assert found["error"][1].startswith(
            "column 'x0' must be numeric: expected a number, or an empty cell, found 'unknown'"
        )
        assert found["error"][4].startswith("column 'x0': expected a number within float32's range, found 1e+300")
        assert not any(found["error"][row] for row in (0, 2, 3, 5))
    _, _, _, out = predict(right, "--fields", "mean")
    for row in (0, 2, 3, 5):
        assert found["mean"][row] == pytest.approx(read_predictions(out)["mean"][row], rel=1e-4, abs=1e-5)


def test_json_lines_have_null(predict, table):
    """One object for each row of the file."""
    code, printed, err, out = predict(table, "--errors", "null", "--json", out="out.jsonl")
    assert code == 0, err
    assert json.loads(printed)["errors"] == 2
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["mean"] is None for row in rows] == [False, True, False, False, True, False]
    assert rows[0]["error"] is None


def test_arrays_cannot_hold_empty_cells(predict, table):
    """`--errors null` with an .npz is refused before the rows are read."""
    code, _, err, _ = predict(table, "--errors", "null", out="out.npz")
    assert code == 1
    assert "expected a .csv, .parquet or .jsonl file with --errors null" in err


def test_a_file_without_a_right_row_is_refused(predict, tmp_path):
    """With the error of its first row: a fault of a column is no fault of rows."""
    csv.write_csv(pa.table({"id": [1, 2, 3], "x0": ["a", "b", "c"]}), tmp_path / "rows.csv")
    code, _, err, _ = predict(tmp_path / "rows.csv", "--errors", "null")
    assert code == 1
    assert "row 0: column 'x0' must be numeric" in err


def test_the_errors_of_an_array(wave, tmp_path):
    """A gap of an array is an error of its row; the numbers of the others are those of the file."""
    x = ROWS[:, None].copy()
    x[3] = np.nan
    np.savez(tmp_path / "rows.npz", x=x, id=np.arange(6))
    given = read_input(tmp_path / "rows.npz", wave.manifest, ["id"], skip_errors=True)
    assert given.kept["id"].to_pylist() == [0, 1, 2, 3, 4, 5]
    assert given.errors is not None
    assert given.errors == {3: "x: feature [0]: expected a finite number, found nan"}
    np.testing.assert_array_equal(given.rows, np.delete(x, 3, axis=0))
    with pytest.raises(DataError, match=r"--keep x: .*expected one value for each of 6 rows"):
        read_input(tmp_path / "rows.npz", wave.manifest, ["x"])


def test_too_many_errors_are_no_errors_of_rows(wave, tmp_path, monkeypatch):
    """More than `MOST_ERRORS` refuse the file."""
    monkeypatch.setattr(predict_rows, "MOST_ERRORS", 20)
    x = np.full((22, 1), np.nan)
    x[-1] = 0
    np.savez(tmp_path / "rows.npz", x=x)
    with pytest.raises(DataError, match="expected at most 20 rows with an error"):
        read_input(tmp_path / "rows.npz", wave.manifest, skip_errors=True)


def test_probabilities_have_the_names_of_their_classes(digits, tmp_path):
    """`probabilities.seven` and `std.seven`; JSON lines keep the lists of `/predict`."""
    names = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    manifest = digits.manifest.model_copy(
        update={"model": digits.manifest.model.model_copy(update={"class_names": names})}
    )
    named = replace(digits, manifest=manifest)
    np.savez(tmp_path / "rows.npz", x=np.eye(8)[None] * np.arange(3)[:, None, None])
    for out in ("out.csv", "out.jsonl"):
        predict_file(named, tmp_path / "rows.npz", tmp_path / out, fields=("probabilities", "std"))
    header = [*read_predictions(tmp_path / "out.csv")]
    assert header == [f"{field}.{name}" for field in ("probabilities", "std") for name in names]
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    found = read_predictions(tmp_path / "out.csv")
    assert [row["probabilities"][7] for row in rows] == pytest.approx(found["probabilities.seven"], rel=1e-6)


WITHOUT_JAX = """
import sys
from dataclasses import replace
from abstain.service.commands.cli import main
sys.argv = ["abstain", *sys.argv[1:]]
try:
    main()
finally:
    assert not {"jax", "flax", "numpyro", "sklearn", "matplotlib"} & set(sys.modules), "loaded"
"""


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["--version"], 0, ""),
        (["predict", "digits", "--data", "none.csv", "--out", "a.csv"], 1, "abstain: none.csv: no such file"),
        (["predict", "digits", "--data", "none.csv", "--out", "a.txt"], 1, "abstain: --out: expected a file ending in"),
        (["fit", "training/configs/digits-vi.toml", "--set", "stpes=1"], 1, "abstain: --set stpes: expected a key"),
        (
            ["fit", "training/configs/digits-vi.toml", "--set", "network.kind=lenets"],
            1,
            "network.kind: expected one of",
        ),
    ],
)
def test_what_is_wrong_without_a_model_is_said_without_jax(arguments, code, text):
    """JAX takes seconds to load; a process shows that nothing loads it."""
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_JAX, *arguments],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
    )
    assert (done.returncode, "loaded" in done.stderr) == (code, False), done.stderr
    assert text in done.stderr


def test_two_columns_of_one_name_are_refused(wave, tmp_path):
    """Whether one of them is kept or not."""
    (tmp_path / "rows.csv").write_text("id,id,x0\n1,2,0.5\n")
    for keep in (["id"], []):
        with pytest.raises(DataError, match="column 'id': expected one column of that name, found 2"):
            read_input(tmp_path / "rows.csv", wave.manifest, keep)
