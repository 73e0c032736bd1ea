"""Files that `abstain predict` writes: no cell is a formula, and the draft of a killed writer is removed."""

import csv
import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from pyarrow import parquet

from abstain.models.bundles.bundle import load
from abstain.models.errors import DataError
from abstain.models.files.drafts import LOCK, PREFIX, draft_of, sweep_drafts
from abstain.models.files.locks import hold
from abstain.models.files.row_files import read_table
from abstain.service.commands import predict_file
from abstain.training.config.data import DataConfig
from abstain.training.data.rows import text_codes
from abstain.training.data.sources import read_source
from tests.helpers.hostile_bundles import sign
from tests.helpers.paths import PROJECT
from tests.helpers.processes import PATIENCE

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
    """Writes a file of predictions with these columns."""
    predict_file._write(columns, path)


def cells(path):
    """The rows of a CSV as a spreadsheet reads them, the header first."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


@pytest.mark.parametrize("text", FORMULAS + TRICKY)
def test_text_that_begins_as_a_formula_gets_an_apostrophe(tmp_path, text):
    """As a label, as the first word of a list, and as a column's name; quotes and line breaks stay inside the cell."""
    out = tmp_path / "out.csv"
    write(out, label=[text, "plain"], prediction_set=[[text, "plain"], []], **{text: [1, 2]})
    assert cells(out) == [
        ["label", "prediction_set", f"'{text}"],
        [f"'{text}", f"'{text}|plain", "1"],
        ["plain", "", "2"],
    ]


@pytest.mark.parametrize("text", HARMLESS)
def test_other_text_is_unchanged(tmp_path, text):
    """Also class labels that are numbers."""
    write(tmp_path / "out.csv", label=[text])
    assert cells(tmp_path / "out.csv")[1:] == [[text]]


def test_numbers_stay_numbers(tmp_path):
    """Negative numbers of all types and booleans get no apostrophe."""
    write(tmp_path / "out.csv", mean=[-1.5, 2.0], index=[-3, 4], tiny=[-1e-30, -0.0], reject=[True, False])
    assert cells(tmp_path / "out.csv")[1:] == [["-1.5", "-3", "-1e-30", "true"], ["2", "4", "-0", "false"]]


def test_other_formats_have_the_names_unchanged(tmp_path):
    """Spreadsheets do not open them."""
    for ending in (".parquet", ".jsonl", ".npz"):
        write(tmp_path / f"out{ending}", label=FORMULAS)
    assert parquet.read_table(tmp_path / "out.parquet").column("label").to_pylist() == FORMULAS
    lines = (tmp_path / "out.jsonl").read_text("utf-8").split("\n")[:-1]
    assert [json.loads(line)["label"] for line in lines] == FORMULAS
    assert np.load(tmp_path / "out.npz")["label"].tolist() == FORMULAS


def test_the_command_writes_no_formula(run, store, tmp_path):
    """With class labels that look like formulas."""
    folder = tmp_path / "store" / "digits" / "1"
    shutil.copytree(store / "digits" / "1", folder)
    sign(folder, model__class_names=[f"=cmd|'/C {index}'!A0" for index in range(10)])
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
    """`fit` reads it as another class; `evaluate` refuses the row, because the model does not have this class."""
    out = tmp_path / "out.csv"
    write(out, label=["=a", "b"] * 4, entropy=[0.5, 1.0] * 4)
    assert read_table(out).column("label").to_pylist()[:2] == ["'=a", "b"]
    config = DataConfig(target="label")
    assert read_source(str(out), config, classify=True).class_names == ("'=a", "b")
    with pytest.raises(DataError, match=r"row 0: expected one of =a, b, found \"'=a\""):
        text_codes(["'=a"], {"=a": 0, "b": 1}, str(out))


# ---- drafts ----------------------------------------------------------------------------------------------------------

WRITER = """
import sys
from pathlib import Path
from abstain.service.commands import predict_file
write = predict_file._WRITERS[".csv"]
def slowly(columns, path):
    write(columns, path)
    print("writing", flush=True)
    sys.stdin.read()
predict_file._WRITERS[".csv"] = slowly
predict_file._write({"label": [sys.argv[2]]}, Path(sys.argv[1]))
"""


@contextmanager
def writer(out, label="late"):
    """A process that has written its draft, and continues at the end of its input."""
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(out), label],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=PROJECT,
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
    ) as process:
        try:
            assert process.stdout.readline() == "writing\n"
            yield process
        finally:
            process.kill()


def drafts(folder):
    """The drafts in a folder."""
    return sorted(folder.glob(f"{PREFIX}*"))


def test_the_next_writer_removes_the_draft_of_a_killed_one(tmp_path):
    """With its lock."""
    out = tmp_path / "out.csv"
    with writer(out) as killed:
        killed.kill()
        killed.wait()
    (left,) = drafts(tmp_path)
    assert sorted(path.name for path in left.iterdir()) == [LOCK, "draft.csv"]
    write(tmp_path / "other.parquet", label=["a"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other.parquet"]


def test_two_writers_of_one_file_do_not_disturb_each_other(tmp_path):
    """The draft of a running writer is never removed; both finish, and the file is that of the last one."""
    out = tmp_path / "out.csv"
    with writer(out, "first") as first, writer(out, "second") as second:
        assert len(drafts(tmp_path)) == 2
        write(out, label=["third"])
        sweep_drafts(tmp_path)
        assert len(drafts(tmp_path)) == 2
        assert cells(out) == [["label"], ["third"]]
        for process, label in ((second, "second"), (first, "first")):
            process.stdin.close()
            assert process.wait(timeout=PATIENCE) == 0
            assert cells(out) == [["label"], [label]]
    assert list(tmp_path.iterdir()) == [out]


def test_many_writers_at_once_leave_one_whole_file(tmp_path):
    """Each removes old drafts while others make, lock, rename and remove theirs; none of them fails."""
    out = tmp_path / "out.csv"

    def write_often(label):
        for _ in range(40):
            write(out, label=[label] * 50)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write_often, "abcdefgh"))
    (label,) = {row[0] for row in cells(out)[1:]}
    assert label in "abcdefgh"
    assert len(cells(out)) == 51
    assert list(tmp_path.iterdir()) == [out]


def folder_of(*names):
    """Makes a folder with files of these names."""

    def make(path):
        path.mkdir()
        for name in names:
            (path / name).write_text("mine")

    return make


def folder_in_folder(path):
    """A lock, and a folder of the user instead of the draft."""
    folder_of(LOCK)(path)
    (path / "draft").mkdir()
    (path / "draft" / "novel.txt").write_text("mine")


@pytest.mark.parametrize(
    "make",
    [
        lambda path: path.write_text("mine"),
        lambda path: path.symlink_to("elsewhere"),
        os.mkfifo,
        folder_of(),
        folder_of("novel.txt"),
        folder_of("draft.csv"),
        folder_of(LOCK, "draft.csv", "novel.txt"),
        folder_in_folder,
    ],
    ids=["file", "link", "pipe", "empty", "another's", "no lock", "one file too many", "folder"],
)
def test_a_file_or_folder_with_the_name_of_a_draft_stays(tmp_path, make):
    """A user's file or folder is not changed, and no lock is left in it."""
    folder_of(LOCK, "draft.csv")(tmp_path / "elsewhere")
    mine = tmp_path / f"{PREFIX}mine.csv"
    make(mine)
    before = sorted(map(str, tmp_path.rglob("*")))
    write(tmp_path / "out.csv", label=["a"])
    assert sorted(map(str, tmp_path.rglob("*"))) == sorted([*before, str(tmp_path / "out.csv")])


def test_a_failed_writer_leaves_the_old_file_and_no_draft(tmp_path):
    """Also if it fails before it has written."""
    out = tmp_path / "out.csv"
    out.write_text("before")

    def fail(draft):
        draft.write_text("half")
        raise KeyError

    with pytest.raises(KeyError), draft_of(out) as draft:
        fail(draft)
    with pytest.raises(FileNotFoundError), draft_of(out):
        pass
    assert [path.read_text() for path in tmp_path.iterdir()] == ["before"]


def test_predictions_are_written_without_locks(tmp_path, monkeypatch):
    """Some file systems have no locks; an old draft there is not removed."""

    def no_locks(*_):
        raise OSError(37, "No locks available")

    folder_of(LOCK, "draft.csv")(tmp_path / f"{PREFIX}left")
    monkeypatch.setattr("fcntl.flock", no_locks)
    write(tmp_path / "out.csv", label=["a"])
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{PREFIX}left", "out.csv"]


def test_a_draft_that_is_removed_before_it_is_locked_is_made_again(tmp_path, monkeypatch):
    """Between making its folder and making its lock."""
    made = []

    def hold_late(lock: Path, *, blocking: bool = True):
        made.append(lock)
        if len(made) < 3:
            lock.parent.rmdir()
        return hold(lock, blocking=blocking)

    monkeypatch.setattr("abstain.models.files.drafts.hold", hold_late)
    write(tmp_path / "out.csv", label=["a"])
    assert len(made) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["out.csv"]
