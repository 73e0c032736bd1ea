"""Files of rows: what cannot be read, or is no finite number, is refused by file, row and feature."""

import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from abstain.models.errors import DataError
from abstain.models.files.row_files import checked_inputs, read_npz, read_table
from abstain.models.tables.columns import Column
from abstain.models.tables.encoding import encode_table

SEEN = []


class Trap:
    """Fails the test if it is unpickled."""

    def __reduce__(self):
        return SEEN.append, ("unpickled",)


def refusal(read, *arguments):
    """What a reader says of what it refuses."""
    with pytest.raises(DataError) as error:
        read(*arguments)
    return str(error.value)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_are_read_as_they_were_written(tmp_path, save):
    """Every array by its name, its dtype and its bits."""
    arrays = {"x": np.arange(6, dtype=np.uint8).reshape(2, 3), "y": np.array([0.1, np.nan]), "names": np.array(["a"])}
    save(tmp_path / "rows.npz", **arrays)
    found = read_npz(tmp_path / "rows.npz")
    assert {name: (a.dtype, a.shape, a.tobytes()) for name, a in found.items()} == {
        name: (a.dtype, a.shape, a.tobytes()) for name, a in arrays.items()
    }


def test_object_arrays_are_refused_and_never_unpickled(tmp_path):
    """The error names the file, and nothing in it is run."""
    path = tmp_path / "rows.npz"
    np.savez(path, x=np.zeros((2, 2)), y=np.array([Trap(), Trap()], dtype=object))
    assert refusal(read_npz, path) == (
        f"{path}: cannot be read: expected an .npz of plain arrays, found no archive, or Python objects in it"
    )
    assert SEEN == []


def test_a_missing_file_is_named(tmp_path):
    """The path, and that it is not there."""
    expected = f"{tmp_path / 'rows.npz'}: no such file or embedded set; check the path"
    assert refusal(read_npz, tmp_path / "rows.npz") == expected


@pytest.mark.parametrize("content", [b"", b"x,y\n1,2\n", b"PK\x03\x04", b"\x93NUMPY\x01\x00"])
def test_what_is_no_npz_is_refused_by_name(tmp_path, content):
    """Empty, text, and the first bytes of a zip and of an .npy."""
    path = tmp_path / "rows.npz"
    path.write_bytes(content)
    assert refusal(read_npz, path).startswith(f"{path}: cannot be read: expected an .npz of plain arrays, found ")


def test_a_single_array_is_no_npz(tmp_path):
    """An .npy under another name."""
    with (tmp_path / "rows.npz").open("wb") as file:
        np.save(file, np.arange(3))
    assert "expected an .npz of plain arrays" in refusal(read_npz, tmp_path / "rows.npz")


def test_a_zip_of_other_files_is_no_npz(tmp_path):
    """Members that are not arrays are not returned as bytes."""
    with zipfile.ZipFile(tmp_path / "rows.npz", "w") as file:
        file.writestr("x", "1 2 3")
    assert "expected an .npz of plain arrays" in refusal(read_npz, tmp_path / "rows.npz")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_truncated_npz_is_refused_wherever_it_ends(tmp_path, save):
    """Every length short of the whole."""
    path = tmp_path / "rows.npz"
    save(path, x=np.arange(6.0).reshape(2, 3))
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        assert refusal(read_npz, path).startswith(f"{path}: cannot be read: ")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_damaged_npz_is_read_or_refused_but_never_crashes(tmp_path, save):
    """One changed byte at any place: arrays, or a refusal that names the file."""
    path = tmp_path / "rows.npz"
    save(path, x=np.arange(6.0).reshape(2, 3))
    content = path.read_bytes()
    outcomes = set()
    for place in range(len(content)):
        for mask in (0x01, 0x20, 0xFF):
            path.write_bytes(content[:place] + bytes([content[place] ^ mask]) + content[place + 1 :])
            try:
                outcomes.add({type(array) for array in read_npz(path).values()} <= {np.ndarray})
            except DataError as error:
                outcomes.add(str(error).startswith(f"{path}: cannot be read: "))
            except Exception as error:
                outcomes.add(f"{type(error).__name__}: {error}, byte {place}"[:80])
    assert outcomes == {True}


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e39, -1e39])
def test_a_number_that_float32_cannot_hold_is_named_by_row_and_feature(value):
    """Rows of features, images, and a single feature a row."""
    rows = np.zeros((4, 3))
    rows[2, 1] = value
    found = f"expected a finite number, found {value}; replace the value, or remove the row"
    assert refusal(checked_inputs, rows, "rows.npz, x") == f"rows.npz, x: row 2, feature [1]: {found}"
    images = np.zeros((4, 2, 3))
    images[3, 1, 2] = value
    assert refusal(checked_inputs, images, "rows.npz, x") == f"rows.npz, x: row 3, feature [1, 2]: {found}"
    assert refusal(checked_inputs, rows[:, 1], "rows.npz, x") == f"rows.npz, x: row 2, feature [0]: {found}"


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float16, np.float32, np.float64, bool])
def test_numbers_of_any_type_pass_unchanged(dtype):
    """Every dtype that holds real numbers, the largest float32 among them."""
    rows = np.ones((2, 3), dtype)
    np.testing.assert_array_equal(checked_inputs(rows, "x"), rows)
    largest = np.array([[float(np.finfo(np.float32).max)]])
    np.testing.assert_array_equal(checked_inputs(largest, "x"), largest)


def test_a_feature_axis_is_added_where_there_is_none():
    """`[rows]` is `[rows, 1]`."""
    assert checked_inputs(np.arange(5), "x").shape == (5, 1)


@pytest.mark.parametrize(
    ("x", "found"),
    [
        (np.array(["1", "2"]), "<U1 (2,)"),
        (np.array([1j]), "complex128 (1,)"),
        (np.array([None]), "object (1,)"),
        (np.float64(1), "float64 ()"),
        (np.array(["2026-11-22"], "M8[D]"), "datetime64[D] (1,)"),
        (np.array([1, 2], "m8[s]"), "timedelta64[s] (2,)"),
    ],
    ids=["text", "complex", "object", "scalar", "date", "duration"],
)
def test_what_is_no_array_of_numbers_is_refused_by_type(x, found):
    """Text, complex numbers, objects, dates and durations are no features; nor is a single number a batch."""
    expected = (
        f"rows.npz, x: inputs: expected numbers [rows, …features], found {found}; save the inputs as a numeric array"
    )
    assert refusal(checked_inputs, np.asarray(x), "rows.npz, x") == expected


COLUMNS = (Column(name="age", missing=0.0), Column(name="answer", categories=("false", "maybe", "true"), missing=1.0))


def written(folder, text, name="rows.csv"):
    """A file with this text or these bytes."""
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_csv_and_parquet_of_the_same_rows_are_the_same_numbers(tmp_path):
    """Gaps, numbers and categories, through either format."""
    pq.write_table(pa.table({"age": [1.5, None, 3.0], "answer": ["true", "maybe", None]}), tmp_path / "rows.parquet")
    path = written(tmp_path, "age,answer\n1.5,true\n,maybe\n3,\n")
    expected = [[1.5, 2], [np.nan, 1], [3, np.nan]]
    for name in (path, tmp_path / "rows.parquet"):
        np.testing.assert_array_equal(encode_table(COLUMNS, read_table(name), str(name)), expected)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("age,answer\n1,true\ninf,maybe\n", "row 1: column 'age': expected a number within float32's range, found inf"),
        ("age,answer\n1e39,maybe\n", "row 0: column 'age': expected a number within float32's range, found 1e+39"),
        ("age,answer\n1,maybe\n2,maybe\nold,maybe\n", "row 2: column 'age' must be numeric"),
        ("age,answer\n1,maybe\n2,no\n", "row 1: column 'answer' holds a category the model was not trained on"),
    ],
)
def test_a_wrong_cell_of_a_csv_is_named_by_row_and_column(tmp_path, text, message):
    """Rows are counted from 0, without the header."""
    path = written(tmp_path, text)
    assert refusal(encode_table, COLUMNS, read_table(path), str(path)).startswith(f"{path}, {message}")


@pytest.mark.parametrize("text", ["age,answer\n1,maybe\n2,true\n", "age,answer\n2,true\n", "age,answer\n2,TRUE\n"])
def test_a_category_does_not_depend_on_the_other_rows(tmp_path, text):
    """Some readers read a column of only `true` as booleans; here its cells are text."""
    columns = (COLUMNS[0], Column(name="answer", categories=("TRUE", "maybe", "true"), missing=1.0))
    last = text.split(",")[-1].strip()
    found = encode_table(columns, read_table(written(tmp_path, text)), "rows.csv")
    assert columns[1].categories[int(found[-1, 1])] == last


def test_a_code_with_a_leading_zero_keeps_it(tmp_path):
    """Postal codes are text, with or without a letter among them."""
    column = Column(name="post", categories=("02134", "SW1A"), missing=0.0)
    for text, codes in (("post\n02134\nSW1A\n", [[0], [1]]), ("post\n02134\n", [[0]])):
        found = encode_table((column,), read_table(written(tmp_path, text)), "rows.csv")
        np.testing.assert_array_equal(found, codes)


@pytest.mark.parametrize(
    ("name", "content", "found"),
    [
        ("rows.csv", "", "cannot be read: found Empty CSV file"),
        (
            "rows.csv",
            "a,b\n1,2\n3\n",
            "lines have another number of cells than the header: expected 2 cells, found line 3: 1 cells in '3'",
        ),
        ("rows.csv", "a,b\n", "rows: expected at least one, found an empty set"),
        ("rows.parquet", "", "cannot be read: found "),
        ("rows.parquet", "PAR1 and no more", "cannot be read: found "),
    ],
)
def test_what_is_no_table_is_refused_by_name(tmp_path, name, content, found):
    """Empty files, ragged rows, headers alone, and no parquet at all."""
    path = written(tmp_path, content, name)
    assert refusal(read_table, path).startswith(f"{path}: {found}")


@pytest.mark.parametrize("name", ["rows.csv", "rows.parquet"])
def test_a_missing_table_is_named(tmp_path, name):
    """The path, and that it is not there."""
    assert refusal(read_table, tmp_path / name).startswith(f"{tmp_path / name}: cannot be read: found ")


@pytest.mark.parametrize(
    "content", [b"age,answer,\xff\n1,maybe,2\n", b"age,answer,age\n1,maybe,2\n"], ids=["latin-1", "twice"]
)
def test_a_csv_whose_header_is_wrong_is_refused_by_name(tmp_path, content):
    """A header that is not UTF-8, or names a column twice."""
    path = written(tmp_path, content)
    assert refusal(lambda: encode_table(COLUMNS, read_table(path), str(path))).startswith(f"{path}")


def test_a_truncated_parquet_is_refused_wherever_it_ends(tmp_path):
    """Every length short of the whole."""
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"age": [1.0, 2.0]}), path)
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        assert refusal(read_table, path).startswith(f"{path}: cannot be read: ")
