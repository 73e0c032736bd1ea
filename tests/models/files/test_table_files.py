"""Files of tables: every ending, delimiter, encoding and decimal mark gives the same cells, or is refused with the key that helps."""

import gzip
import io
import re

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import feather, ipc, parquet

from abstain.models.errors import BundleError, DataError
from abstain.models.files.reading import FileDialect, Reading, reading_of
from abstain.models.files.room import DATA_BYTES
from abstain.models.files.row_files import read_table, read_table_bytes, read_table_file
from abstain.models.tables.arrow_types import text_lengths
from abstain.service.predict.table_bodies import read_csv
from benchmarks.mutated_files import good_files, judge, mutate

CELLS = [["a", "c"], ["1.5", "grün"], ["-2", "b, c"], ["", "x"]]


def text(delimiter=",", mark=".", end="\n", space=""):
    """The table as text."""
    lines = [[cell.replace(".", mark) for cell in row] for row in CELLS]
    quoted = [[f'"{cell}"' if delimiter in cell else cell for cell in row] for row in lines]
    return "".join((delimiter + space).join(row) + end for row in quoted)


def cells(table):
    """Names and cells of a table of text; None as empty text."""
    rows = zip(*(column.to_pylist() for column in table.columns), strict=True)
    return [table.column_names, *[[(cell or "").strip() for cell in row] for row in rows]]


def written(folder, name, content):
    """A file with this text or these bytes."""
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder / name


def refusal(*arguments):
    """What the reader of tables says."""
    with pytest.raises(DataError) as error:
        read_table_file(*arguments)
    return str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "reading", "notes"),
    [
        ("t.csv", text(), {}, ()),
        ("T.CSV", text(end="\r\n"), {}, ()),
        ("t.csv", text(";"), {}, ("cells are separated by semicolons",)),
        ("t.csv", text(";", ","), {}, ("cells are separated by semicolons", "numbers have a decimal comma")),
        ("t.csv", text(";", ","), {"delimiter": ";", "decimal": ","}, ()),
        ("t.txt", text("\t"), {}, ("cells are separated by tabs",)),
        ("t.tsv", text("\t", ","), {}, ("cells are separated by tabs", "numbers have a decimal comma")),
        ("t.txt", text("|"), {}, ("cells are separated by bars",)),
        ("t.csv.gz", gzip.compress(text().encode()), {}, ()),
        ("t.TSV.GZ", gzip.compress(text("\t").encode()), {}, ("cells are separated by tabs",)),
        ("t.csv", text().encode("utf-8-sig"), {}, ()),
        ("t.csv", text().encode("utf-16"), {}, ("encoding utf-16",)),
        ("t.csv", text().encode("utf-32"), {}, ("encoding utf-32",)),
        ("t.csv", text().encode("utf-16-le"), {"encoding": "utf-16-le"}, ()),
        ("t.csv", text().encode("latin-1"), {"encoding": "latin-1"}, ()),
        ("t.csv", "# by hand, 2024\n" + text().replace("\n-2", "\n# more\n-2"), {"comment": "#"}, ()),
        ("t.csv", text().partition("\n")[2], {"column_names": ("a", "c")}, ()),
        ("t.csv", text(), {"column_names": ("a", "c")}, ()),
        ("t.csv", text().replace("x", "-"), {"na_values": ("-",)}, ()),
    ],
)
def test_a_table_has_the_same_cells_however_it_is_written(tmp_path, name, content, reading, notes):
    """By its ending, by detection, which is noted, or by the keys of the config; as a file and as bytes."""
    expected = [row[:] for row in CELLS]
    if "na_values" in reading:
        expected[-1][1] = ""
    path, reading = written(tmp_path, name, content), Reading(**reading)
    found = read_table_file(path, reading)
    assert (cells(found.table), found.notes) == (expected, notes)
    again = read_table_bytes(path.read_bytes(), "." + name.lower().partition(".")[2], "body", reading)
    assert cells(again.table) == expected


def test_blanks_after_the_comma_belong_to_no_name_and_no_quote(tmp_path):
    """As the files of UCI have them; a quote after a blank that contains a comma is refused."""
    found = read_table_file(written(tmp_path, "t.csv", 'a, c, d\n1, "x", " y"\n2, z, \n'))
    assert cells(found.table) == [["a", "c", "d"], ["1", "x", "y"], ["2", "z", ""]]
    assert found.notes == ("blanks beside the columns' names are removed",)
    assert "4 cells in" in refusal(written(tmp_path, "t.csv", 'a, c, d\n1, "x, y", 2\n'))
    message = refusal(written(tmp_path, "t.csv", 'a, c, d\n1, "x, 2\n'))
    assert "row 0: column 'c': expected a quote directly after the delimiter" in message


@pytest.mark.parametrize(
    ("name", "content", "reading", "message"),
    [
        (
            "t.csv",
            text().encode("latin-1"),
            {},
            r"t.csv, line 2: the text is not UTF-8: .*set data.encoding, often .cp1252",
        ),
        ("t.csv", b"a,b\n1,2\n\xff,3\n", {"encoding": "utf-8"}, "t.csv, line 3: the text is not UTF-8"),
        ("t.csv", text().encode("utf-16-le"), {}, "bytes of zero: .*set data.encoding = .utf-16-le"),
        (
            "t.csv",
            "a,b|c\n1,2|3\n",
            {},
            "the delimiter is not certain: .*commas .2 cells. and bars .2 cells.; set data.delimiter",
        ),
        (
            "t.csv",
            "a;b\n1,500;x\n",
            {},
            "row 0, column 1: the decimal mark is not certain: .*found '1,500'; set data.decimal",
        ),
        ("t.csv", "a;b\n1,5;x\n2.5;y\n", {}, "the decimal mark is not certain: .*found '1,5', and '2.5' in row 1"),
        ("t.csv", 'a\n"1,5"\n1.234\n', {"decimal": ","}, "row 1: column 'a': expected a decimal comma, found '1.234'"),
        (
            "t.csv",
            "a;b\n1,5;1\n1.234;2\nNA;3\n",
            {"decimal": ","},
            "row 1: column 'a': expected a decimal comma, found '1.234'",
        ),
        (
            "t.csv",
            "a;b\n1,5;1\n-1.234.567;2\n;3\n",
            {},
            "row 1: column 'a': expected a decimal comma, found '-1.234.567'",
        ),
        (
            "t.csv",
            "a;b\n" + "1,5;1\n" * 300 + "1.234,5;2\nx;3\n",
            {"na_values": ("x",)},
            "row 300: column 'a': expected a decimal comma, found '1.234,5'",
        ),
        (
            "t.tsv",
            "a\tb\n12\t0.1\n-\t0.234\n4.000\t1.234\n",
            {},
            "row 2: column 'a': expected points that are certainly .*found '4.000'; .*set data.decimal",
        ),
        (
            "t.csv",
            "a,b\n1\n2,2\n3,4,5\n",
            {},
            "expected 2 cells, found line 2: 1 cells in '1' . line 4: 3 cells in '3,4,5'; .*data.comment",
        ),
        (
            "t.csv",
            "1,2,3\n",
            {"column_names": ("a", "b")},
            "data.column_names: expected a name for each of 3 columns, found 2",
        ),
        ("t.csv.gz", gzip.compress(text().encode())[:-3], {}, "cannot be read: found Compressed file ended"),
        ("t.csv.gz", text(), {}, "cannot be read: found Not a gzipped file"),
        ("t.arrow", text(), {}, "cannot be read: found "),
    ],
)
def test_what_is_not_certain_is_refused_with_the_key_that_decides(tmp_path, name, content, reading, message):
    """Encodings, delimiters, decimal marks, comments and headers; damaged packing."""
    found = refusal(written(tmp_path, name, content), Reading(**reading))
    assert re.search(message, found), found


@pytest.mark.parametrize(
    ("content", "reading", "expected"),
    [
        ("a;b\n4.000;1\n2.500;NA\n", {"decimal": "."}, [["4.000", "1"], ["2.500", "NA"]]),
        ("a;b\n4.000;1\n0.500;2\n", {}, [["4.000", "1"], ["0.500", "2"]]),
        ("a;b\n1.234;1\nx;2\ny;3\n", {}, [["1.234", "1"], ["x", "2"], ["y", "3"]]),
        ("a;c\n1,5;10,5\n2x;x\n-2,5e3;y\n?;\n", {}, [["1.5", "10,5"], ["2x", "x"], ["-2.5e3", "y"], ["?", ""]]),
        ("a;c\n1,5;10,5\n-9,9;11,5\n", {"na_values": ("-9,9",)}, [["1.5", "10.5"], ["", "11.5"]]),
    ],
)
def test_decimal_marks_are_those_of_columns_of_numbers(content, reading, expected):
    """The key decides, or a point that separates no thousands; a column that holds text keeps its commas and points."""
    found = read_table_bytes(content.encode(), ".csv", "body", Reading(**reading))
    assert cells(found.table)[1:] == expected


SEMICOLONS = {"delimiter": ";"}
COMMAS, POINTS = {**SEMICOLONS, "decimal": ","}, {**SEMICOLONS, "decimal": "."}


@pytest.mark.parametrize(
    ("content", "usual", "expected", "dialect"),
    [
        ("a;b\n4.000;1\n", POINTS, [["4.000", "1"]], SEMICOLONS),
        ("a;b\n1,500;1\n", COMMAS, [["1.500", "1"]], COMMAS),
        ("a;b\n1,500;x\n", POINTS, [["1,500", "x"]], SEMICOLONS),
        ("a;b\n1,5;1\n", POINTS, [["1.5", "1"]], COMMAS),
        ("a;b\n0.5;1\n", COMMAS, [["0.5", "1"]], POINTS),
        ("a;b\n1;2\n", COMMAS, [["1", "2"]], COMMAS),
        ("a;b\n1;2\n", {**SEMICOLONS}, [["1", "2"]], SEMICOLONS),
        ("a\n1,5\n", COMMAS, [["1.5"]], COMMAS),
        ("a,b|c\n1,2|3\n", {"delimiter": "|"}, [["1.2", "3"]], {"delimiter": "|", "decimal": ","}),
        ("a,b\n4.000,1\n", COMMAS, [["4.000", "1"]], {"delimiter": ",", "decimal": "."}),
    ],
)
def test_the_dialect_of_the_training_file_decides_where_a_file_is_not_certain(content, usual, expected, dialect):
    """A certain file is read as it is; a mark that only appears after the examined lines is evidence, too."""
    reading = Reading(dialect=FileDialect(**usual))
    found = read_table_bytes(content.encode(), ".csv", "body", reading)
    assert (cells(found.table)[1:], found.dialect) == (expected, FileDialect(**dialect))


@pytest.mark.parametrize(
    ("content", "usual", "message"),
    [
        ("a;b\n4.000;1\n", COMMAS, "row 0: column 'a': expected a decimal comma, found '4.000'"),
        ("a;b\n" + "1;1\n" * 300 + "4.000;1\n", COMMAS, "row 300: column 'a': expected a decimal comma"),
        ("a;b\n4.000;1\n", SEMICOLONS, "row 0: column 'a': expected points that are certainly"),
        ("a\tb\n4.000\t1\n", POINTS, "row 0: column 'a': expected points that are certainly"),
        ("a,b|c\n1,2|3\n", COMMAS, "the delimiter is not certain"),
    ],
)
def test_a_file_that_the_training_file_does_not_explain_is_refused(content, usual, message):
    """Points where the training file has commas; a training file without marks; another delimiter."""
    with pytest.raises(DataError, match=message):
        read_table_bytes(content.encode(), ".csv", "body", Reading(dialect=FileDialect(**usual)))


@pytest.mark.parametrize(
    ("content", "kinds", "expected"),
    [
        ("a;c\n1,5;10,5\n2;11,5\n", {"c": "category"}, [["1.5", "10,5"], ["2", "11,5"]]),
        ("a;c\n1.5;10,5\n2;11,5\n", {"c": "category"}, [["1.5", "10,5"], ["2", "11,5"]]),
        ("a;c\nx;1,5\ny;2\n1,5;2\n", {"a": "number"}, [["x", "1.5"], ["y", "2"], ["1.5", "2"]]),
    ],
)
def test_decimal_commas_are_read_by_the_kinds_that_are_known(content, kinds, expected):
    """A category keeps its text, and says nothing about the decimal mark; a number is one among text."""
    found = read_table_bytes(content.encode(), ".csv", "body", Reading(kinds=kinds))
    assert cells(found.table)[1:] == expected


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('a,c\n1,5" pipe\n# note\n2,x\n', [["1", '5" pipe'], ["2", "x"]]),
        ('a,c\n1,"two\n# lines"\n# note, "x\n2,x\n', [["1", "two\n# lines"], ["2", "x"]]),
        ('a,c\n1,"a ""b"" c"\n# note\n2,"x, ""y\n# z"\n', [["1", 'a "b" c'], ["2", 'x, "y\n# z']]),
        ('a;c\n1;5,"\n# note\n2;x\n', [["1", '5,"'], ["2", "x"]]),
        ("# note\ra,c\r1,x\r# more\r2,y\r", [["1", "x"], ["2", "y"]]),
        ("# note\r\na,c\r\n1,x\r\n# more\r\n2,y", [["1", "x"], ["2", "y"]]),
    ],
)
def test_a_comment_is_a_line_that_begins_with_its_mark_outside_quoted_cells(tmp_path, content, expected):
    """After a quote inside a cell, and with each kind of line end; read whole and in pieces of any size."""
    reading = Reading(comment="#")
    for found in (
        read_table_bytes(content.encode(), ".csv", "body", reading),
        read_table_file(written(tmp_path, "t.csv.gz", gzip.compress(content.encode())), reading),
    ):
        assert cells(found.table)[1:] == expected


def test_the_columns_of_a_file_with_returns_are_those_of_its_first_line(monkeypatch):
    """Not the commas of all its lines."""
    monkeypatch.setenv(DATA_BYTES, "1000000")
    content = b"a,b\r" + b"1,2\r" * 1000
    assert read_table_bytes(content, ".csv", "body").table.num_rows == 1000
    assert read_csv(content, Reading(), 2000, 10).num_rows == 1000


def test_a_mark_after_the_examined_lines_is_evidence():
    """The training file had commas, this one has points."""
    content = ("a;b\n" + "1;1\n" * 300 + "0.5;1\n").encode()
    found = read_table_bytes(content, ".csv", "body", Reading(dialect=FileDialect(**COMMAS)))
    assert (found.table["a"][-1].as_py(), found.dialect) == ("0.5", FileDialect(**POINTS))


TABLE = pa.table({"a": [1.5, None], "c": ["grün", "x"], "l": [[1], [2]], "k": pa.array(["u", "v"]).dictionary_encode()})


@pytest.mark.parametrize("compression", [None, "lz4", "zstd"])
@pytest.mark.parametrize("kind", [ipc.new_file, ipc.new_stream])
@pytest.mark.parametrize("ending", [".arrow", ".feather", ".Feather"])
def test_arrow_files_and_streams_are_read(tmp_path, compression, kind, ending):
    """Packed or not; a column of lists keeps its type and loses its values, as in parquet."""
    sink = io.BytesIO()
    with kind(sink, TABLE.schema, options=ipc.IpcWriteOptions(compression=compression)) as writer:
        writer.write_table(TABLE)
    path = written(tmp_path, f"t{ending}", sink.getvalue())
    parquet.write_table(TABLE, tmp_path / "t.parquet")
    for found in (read_table(path), read_table(tmp_path / "t.parquet")):
        assert found.select(["a", "c", "k"]).to_pylist() == TABLE.select(["a", "c", "k"]).to_pylist()
        assert found["l"].null_count == 2


def test_the_first_version_of_feather_is_refused_by_name(tmp_path):
    """It is no Arrow IPC."""
    assert "found Feather version 1" in refusal(written(tmp_path, "t.feather", b"FEA1" + bytes(40)))


def test_packed_arrow_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    """A small file whose buffers claim much, one text very often, and one column of nothing but gaps."""
    zeros = pa.table({"a": np.zeros(2_000_000)})
    feather.write_feather(zeros, tmp_path / "zeros.arrow", compression="zstd")
    assert (tmp_path / "zeros.arrow").stat().st_size < 20_000
    often = pa.DictionaryArray.from_arrays(np.zeros(100_000, np.int32), pa.array(["a" * 1000]))
    feather.write_feather(pa.table({"a": often}), tmp_path / "often.arrow", compression="zstd")
    feather.write_feather(pa.table({"a": pa.nulls(2_000_000)}), tmp_path / "gaps.arrow")
    packed = gzip.compress(b"a\n" + b"\n" * 12_000_000)
    written(tmp_path, "lines.csv.gz", packed)
    monkeypatch.setenv(DATA_BYTES, "10000000")
    for name in ("zeros.arrow", "often.arrow", "gaps.arrow", "lines.csv.gz"):
        assert "take too much memory" in refusal(tmp_path / name)


def test_the_keys_of_a_fit_are_read_from_its_manifest():
    """Other settings do not matter; a value that no fit writes is an error of the bundle."""
    reading = reading_of({"target": "y", "delimiter": ";", "na_values": ["?"]})
    assert reading == Reading(delimiter=";", na_values=("?",))
    assert reading_of({"source": "t.csv"}) == Reading()
    with pytest.raises(BundleError, match=r"data.settings.delimiter: expected Input should be .*found x"):
        reading_of({"delimiter": "x"})


@pytest.mark.parametrize("name", good_files())
def test_a_damaged_file_is_read_right_or_refused(tmp_path, name):
    """Twenty changed files of each format; `benchmarks/mutated_files.py` has more."""
    good = good_files()[name]
    assert judge(tmp_path / name, good, good).kind == "read"
    outcomes = [judge(tmp_path / name, mutate(good, np.random.default_rng(seed)), good) for seed in range(20)]
    assert [outcome for outcome in outcomes if outcome.kind not in {"read", "refused"}] == []


def test_views_of_text_are_counted_as_they_will_be_decoded(tmp_path):
    """Many views may lie in the same bytes."""
    lengths = [1000, 5, 0, 40]
    views = pa.array(["x" * length for length in lengths], pa.string_view())
    sink = io.BytesIO()
    with ipc.new_stream(sink, pa.schema([("a", views.type)])) as writer:
        writer.write_table(pa.table({"a": views.slice(1)}))
    assert read_table(written(tmp_path, "t.arrow", sink.getvalue())).num_rows == 3
    assert text_lengths(views).to_pylist() == lengths
    assert text_lengths(views.slice(1)).to_pylist() == lengths[1:]
