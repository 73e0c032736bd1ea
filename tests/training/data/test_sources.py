"""Data: every source, the three-way split, what is refused and how, and preprocessing against scikit-learn's."""

import gzip
from itertools import chain
from pathlib import Path

import jax
import numpy as np
import pyarrow as pa
import pytest
from pyarrow import csv, parquet
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from abstain.models.errors import DataError
from abstain.models.files.row_files import read_table
from abstain.models.prediction.posterior import Model
from abstain.models.prediction.preprocessing import Preprocessing, transform, transformed_shape
from abstain.models.tables.columns import Column
from abstain.models.tables.encoding import encode_table
from abstain.training.config.config import Config
from abstain.training.config.data import DataConfig
from abstain.training.data.dataset import Dataset, split, split_again
from abstain.training.data.sources import IDX_NAMES, read_inputs, read_source
from abstain.training.fit import build_model, load_dataset
from tests.helpers.paths import SHARED

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(60, 3)), np.arange(60) % 3
IDS = np.arange(200.0)


def npz(folder, **arrays):
    """An .npz of these arrays."""
    np.savez_compressed(folder / "rows.npz", **arrays)
    return str(folder / "rows.npz")


def source(folder, *, classify=True, config=None, **arrays):
    """Reads an .npz of these arrays."""
    return read_source(npz(folder, **arrays), config or DataConfig(), classify=classify)


def table(folder, text, *, classify=False, **terms):
    """Reads a .csv of this text with target `t`."""
    (folder / "t.csv").write_text(text, "utf-8")
    return read_source(str(folder / "t.csv"), DataConfig(**{"target": "t", **terms}), classify=classify)


def ids(dataset: Dataset):
    """The three parts' rows, by the numbers that `IDS` gave them."""
    return [rows.x[:, 0].astype(int).tolist() for rows in (dataset.train, dataset.calibration, dataset.test)]


# ---- the three parts -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("calibration", "test", "sizes"), [(0.25, 0.2, (120, 40, 40)), (30, 50, (120, 30, 50))])
def test_x_and_y_are_split_in_three(tmp_path, calibration, test, sizes):
    """The parts are disjoint, hold every row with its own target, have the requested sizes, and follow the seed."""
    config = DataConfig(calibration_size=calibration, test_size=test)
    found = source(tmp_path, x=IDS, y=2 * IDS, classify=False)
    first, again, other = (split(found, config, seed) for seed in (0, 0, 1))
    assert tuple(map(len, ids(first))) == sizes
    assert sorted(chain(*ids(first))) == list(range(200))
    for rows in (first.train, first.calibration, first.test):
        np.testing.assert_array_equal(rows.y, 2 * rows.x[:, 0])
    assert ids(first) == ids(again)
    assert ids(first)[2] != ids(other)[2]
    assert ids(split_again(found, config, 0, first.fingerprint)) == ids(first)
    assert split_again(found, config, 1, first.fingerprint) is None


def test_a_sources_own_parts_are_kept(tmp_path):
    """x_test is the test part as it stands; calibration is cut from x_train alone, or is x_calibration."""
    arrays = {"x_train": IDS[:150], "y_train": IDS[:150], "x_test": IDS[150:], "y_test": IDS[150:]}
    dataset = split(source(tmp_path, classify=False, **arrays), DataConfig(calibration_size=50), 0)
    train, calibration, test = ids(dataset)
    assert test == list(range(150, 200))
    assert (len(train), len(calibration), sorted(train + calibration)) == (100, 50, list(range(150)))
    own = {"x_calibration": IDS[:7] + 500, "y_calibration": IDS[:7]}
    dataset = split(source(tmp_path, classify=False, **arrays, **own), DataConfig(), 0)
    assert (len(ids(dataset)[0]), ids(dataset)[1]) == (150, list(range(500, 507)))


@pytest.mark.parametrize("index", [0, 1])
def test_split_index_picks_one_of_a_sources_own_splits(tmp_path, index):
    """The split with that index in train_idx and test_idx is used, and no other rows."""
    orders = np.stack([np.random.default_rng(i).permutation(200)[:100] for i in range(2)])
    arrays = {"x": IDS, "y": IDS, "train_idx": orders[:, :80], "test_idx": orders[:, 80:]}
    config = DataConfig(calibration_size=20, split_index=index)
    train, calibration, test = ids(split(source(tmp_path, classify=False, config=config, **arrays), config, 0))
    assert test == orders[index, 80:].tolist()
    assert sorted(train + calibration) == sorted(orders[index, :80])
    with pytest.raises(DataError, match=r"rows.npz: data.split_index: expected 0 … 1, found 2"):
        source(tmp_path, config=DataConfig(split_index=2), **arrays)


def test_uci_splits_are_the_standard_ones():
    """The 20 standard splits of a UCI set are as they are on disk."""
    path = SHARED / "uci" / "yacht.npz"
    if not path.exists():
        pytest.skip("needs ../shared/data/uci/yacht.npz")
    with np.load(path) as file:
        expected = file["x"][file["test_idx"][19]]
    config = DataConfig(split_index=19)
    np.testing.assert_array_equal(expected, read_source(str(path), config, classify=False).test.x)


def test_fingerprint_stands_for_every_row_and_its_part(tmp_path):
    """The same rows in the same parts have one fingerprint; another seed or one other number has another."""
    changed = Y.copy()
    changed[7] = (changed[7] + 1) % 3
    prints = [
        split(source(tmp_path, x=X, y=y), DataConfig(), seed).fingerprint
        for y, seed in ((Y, 0), (Y, 0), (Y, 1), (changed, 0))
    ]
    assert prints[0] == prints[1]
    assert len(set(prints)) == 3


# ---- sources ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int64, np.float16, np.float64])
def test_inputs_of_any_number_type_are_read_as_they_are(tmp_path, dtype):
    """Whole numbers and floats are inputs, kept in their own type, truth values as bytes; one number gains an axis."""
    x = (np.arange(60) % 2).astype(dtype)
    found = source(tmp_path, x=x, y=Y).train.x
    assert (found.shape, found.dtype) == ((60, 1), np.uint8 if dtype is bool else dtype)
    np.testing.assert_array_equal(x, found[:, 0])


@pytest.mark.parametrize(
    ("labels", "named", "names", "codes"),
    [
        ([2, 0, 1], None, ("0", "1", "2"), [2, 0, 1]),
        ([2.0, 0.0, 1.0], None, ("0", "1", "2"), [2, 0, 1]),
        ([[2], [0], [1]], None, ("0", "1", "2"), [2, 0, 1]),
        ([True, False, True], None, ("0", "1"), [1, 0, 1]),
        ([1, 0, 1], ["cat", "dog", "cow"], ("cat", "dog", "cow"), [1, 0, 1]),
        (["dog", "cat", "dog"], None, ("cat", "dog"), [1, 0, 1]),
        (["dog", "cat", "dog"], ["dog", "cat"], ("dog", "cat"), [0, 1, 0]),
        ([b"dog", b"cat", b"dog"], None, ("cat", "dog"), [1, 0, 1]),
        ([1, 0, 1], [b"cat", b"dog"], ("cat", "dog"), [1, 0, 1]),
    ],
)
def test_labels_become_class_indices(tmp_path, labels, named, names, codes):
    """Whole numbers, texts and bytes are labels; class_names, else the labels themselves, name the classes."""
    extra = {} if named is None else {"class_names": np.array(named)}
    found = source(tmp_path, x=X[:3], y=np.array(labels), **extra)
    assert found.class_names == names
    assert (found.train.y.dtype, found.train.y.tolist()) == (np.int32, codes)


def test_a_table_reads_alike_from_csv_and_parquet(tmp_path):
    """Gaps, categories, dropped columns and targets are the same from either file."""
    columns = {"a": [1.5, None, 3.0, 4.0], "c": ["x", "y", None, "x"], "id": [7, 8, 9, 10], "t": ["u", "v", "u", "v"]}
    csv.write_csv(pa.table(columns), tmp_path / "t.csv")
    parquet.write_table(pa.table(columns), tmp_path / "t.parquet")
    config = DataConfig(target="t", categorical=("c",), drop=("id",))
    for name in ("t.csv", "t.parquet"):
        found = read_source(str(tmp_path / name), config, classify=True)
        np.testing.assert_array_equal(found.train.x, [[1.5, 0], [np.nan, 1], [3, np.nan], [4, 0]])
        assert (found.feature_names, found.class_names) == (("a", "c"), ("u", "v"))
        assert found.train.y.tolist() == [0, 1, 0, 1]
        assert [column.categories for column in found.columns] == [(), ("x", "y")]
        np.testing.assert_array_equal(found.train.x, encode_table(found.columns, read_table(tmp_path / name), name))


def test_number_classes_of_a_table_are_in_the_order_of_numbers(tmp_path):
    """A column of whole numbers gives classes 2 before 10."""
    assert table(tmp_path, "a,t\n1,10\n2,2\n3,10\n", classify=True).class_names == ("2", "10")


def idx(array):
    """An IDX file's bytes: its magic number, its shape, its data."""
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


IMAGES = {part: RNG.integers(0, 256, (rows, 4, 5)).astype(np.uint8) for part, rows in (("train", 30), ("test", 9))}
LABELS = {part: (np.arange(len(images)) % 3).astype(np.uint8) for part, images in IMAGES.items()}


def write_idx(folder, rename=lambda name: name, pack=bytes):
    """A folder of four IDX files."""
    for key, name in IDX_NAMES.items():
        part = key[2:]
        (folder / rename(name)).write_bytes(pack(idx((IMAGES if key[0] == "x" else LABELS)[part])))


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gz"])
@pytest.mark.parametrize("dot", ["-", "."])
def test_a_folder_of_idx_files_is_read(tmp_path, pack, dot):
    """MNIST's own files, packed or not, under either spelling of their names."""
    end = ".gz" if pack is gzip.compress else ""
    write_idx(tmp_path, lambda name: name.replace("-idx", f"{dot}idx") + end, pack)
    found = read_source(str(tmp_path), DataConfig(), classify=True)
    for part, rows in (("train", found.train), ("test", found.test)):
        np.testing.assert_array_equal(IMAGES[part], rows.x)
        np.testing.assert_array_equal(LABELS[part], rows.y)
    assert found.class_names == ("0", "1", "2")


def test_a_truncated_idx_file_is_refused_by_name(tmp_path):
    """Cut anywhere, an IDX file is refused with its path; an empty folder with the names it should hold."""
    with pytest.raises(DataError, match=r"no IDX files: expected train-images-idx3-ubyte, .*, found none of them"):
        read_source(str(tmp_path), DataConfig(), classify=True)
    write_idx(tmp_path)
    path = tmp_path / IDX_NAMES["y_test"]
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match=f"{path}: (header|length): expected .*, found "):
            read_source(str(tmp_path), DataConfig(), classify=True)


def crash(where):
    """The exceptions of reading a source, other than refusals."""
    try:
        read_source(where, DataConfig(), classify=True)
    except DataError:
        return None
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


@pytest.mark.parametrize("kind", ["npz", "gz"])
def test_a_damaged_file_is_refused_and_never_crashes(tmp_path, kind):
    """Whichever byte of a packed file is changed, reading it succeeds or is refused, and raises nothing else."""
    if kind == "npz":
        where = npz(tmp_path, x=X, y=Y)
        path = Path(where)
    else:
        write_idx(tmp_path, lambda name: f"{name}.gz", gzip.compress)
        where, path = str(tmp_path), tmp_path / f"{IDX_NAMES['x_train']}.gz"
    whole, crashes = path.read_bytes(), set()
    for trial in range(300):
        rng = np.random.default_rng(trial)
        damaged = bytearray(whole)
        damaged[rng.integers(len(whole))] ^= rng.integers(1, 256)
        path.write_bytes(damaged)
        crashes.add(crash(where))
    assert crashes <= {None}


# ---- refusals --------------------------------------------------------------------------------------------------------


def spoilt(array, place, value):
    """A copy with one number replaced."""
    array = array.copy()
    array[place] = value
    return array


@pytest.mark.parametrize(
    ("arrays", "classify", "message"),
    [
        ({"x_train": X}, True, "array y_train is missing: found x_train"),
        ({"y": Y}, True, "array x is missing: found y"),
        ({"a": Y}, True, "arrays: expected x_train, y_train, x_test, y_test; or x, y, found a"),
        ({"x": X, "y": Y[:-1]}, True, r"y: expected shape \(60,\), one target a row, found shape \(59,\)"),
        ({"x": X[:0], "y": Y[:0]}, True, "x: expected at least one row, found an empty set"),
        ({"x": X[:, :0], "y": Y}, True, "x: expected at least one feature, found shape"),
        ({"x": X.astype(str), "y": Y}, True, r"x: inputs: expected numbers \[rows, …features\], found <U"),
        ({"x": X.astype(object), "y": Y}, True, "cannot be read: expected an .npz of plain arrays"),
        ({"x": X + 1j, "y": Y}, True, "x: inputs: expected numbers .*, found complex128"),
        (
            {"x": spoilt(X, (4, 1), np.nan), "y": Y},
            True,
            r"x: row 4, feature \[1\]: expected a finite number, found nan",
        ),
        ({"x": spoilt(X, (4, 1), 1e39), "y": Y}, True, r"x: row 4, feature \[1\]: expected a finite number, found 1e"),
        ({"x_train": X, "y_train": Y, "x_test": X[:, :2], "y_test": Y}, True, r"feature shape: expected one for all"),
        ({"x": X, "y": Y, "feature_names": np.array(["a"])}, True, "feature_names: expected 3 names, found 1"),
        (
            {"x": X, "y": spoilt(Y, 5, -1), "class_names": np.array(list("abc"))},
            True,
            "y, row 5: expected a class 0 … 2, found -1",
        ),
        ({"x": X, "y": spoilt(Y, 5, 9), "class_names": np.array(list("abc"))}, True, "y, row 5: .* 0 … 2, found 9"),
        (
            {"x": X, "y": spoilt(Y.astype(float), 5, 0.5)},
            True,
            "y: row 5: expected a class index, .*found 0.5; set lik",
        ),
        ({"x": X, "y": spoilt(Y.astype(float), 5, np.nan)}, True, "y: row 5: expected a class index, .*found nan"),
        (
            {"x": X, "y": np.arange(60) * 1000},
            True,
            'targets: .*found 60 classes for 60 rows; set likelihood = "norm',
        ),
        (
            {"x_train": X, "y_train": Y, "x_test": X, "y_test": Y.astype(str)},
            True,
            "y_test: targets: expected class ind",
        ),
        (
            {"x": X[:2], "y": np.array(["a", "z"]), "class_names": np.array(list("ab"))},
            True,
            "row 1: expected one of a, b, found 'z'",
        ),
        ({"x": X, "y": spoilt(Y.astype(float), 5, np.inf)}, False, "y: row 5: expected a finite target, found inf"),
        ({"x": X, "y": Y.astype(str)}, False, "y: targets: expected numbers, found <U"),
        (
            {"x": X, "y": Y, "train_idx": Y, "test_idx": Y},
            True,
            r"train_idx: expected integers \[splits, rows\], found",
        ),
        ({"x": X, "y": Y, "train_idx": [[0, 60]], "test_idx": [[1]]}, True, r"train_idx\[0\]: .* 0 … 59, found 60"),
        ({"x": X, "y": Y, "train_idx": [[0, -1]], "test_idx": [[1]]}, True, r"train_idx\[0\]: .* 0 … 59, found -1"),
        ({"x": X, "y": Y, "train_idx": [[0, 2]], "test_idx": np.zeros((1, 0), int)}, True, r"test_idx\[0\]: expected"),
    ],
)
def test_wrong_arrays_are_refused(tmp_path, arrays, classify, message):
    """Arrays that are missing, of the wrong length, type or range are refused by file, array and row."""
    with pytest.raises(DataError, match=f"rows.npz.*{message}"):
        source(tmp_path, classify=classify, **arrays)


def test_sources_that_are_none_are_refused(tmp_path):
    """A path that does not exist is refused with the embedded sets' names; a text file as no .npz."""
    with pytest.raises(
        DataError, match=r"nope: no such file: expected a path, or one of digits, sine, .*, found nothing"
    ):
        read_source("nope", DataConfig(), classify=True)
    with pytest.raises(DataError, match=r"nope.csv: cannot be read: found .*No such file"):
        read_source("nope.csv", DataConfig(target="t"), classify=True)
    (tmp_path / "t.npz").write_text("no arrays")
    with pytest.raises(DataError, match=r"t.npz: cannot be read: expected an .npz of plain arrays"):
        read_source(str(tmp_path / "t.npz"), DataConfig(), classify=True)


def test_parts_too_large_for_the_rows_are_refused(tmp_path):
    """A part that would leave no rows is refused by its key, with the sizes that would do; so is no training part."""
    found = source(tmp_path, x=X, y=Y)
    with pytest.raises(DataError, match=r"data.test_size: expected between 1 and 59 of 60 rows, found 60 rows"):
        split(found, DataConfig(test_size=60), 0)
    with pytest.raises(DataError, match=r"data.calibration_size: expected between 1 and 49 of 50 rows, found 500 rows"):
        split(found, DataConfig(test_size=10, calibration_size=500), 0)
    with pytest.raises(DataError, match="training rows: expected x_train and y_train, or x and y, found neither"):
        split(source(tmp_path, x_test=X, y_test=Y), DataConfig(), 0)


@pytest.mark.parametrize(
    ("text", "terms", "message"),
    [
        ("a,t\n1,2\n", {"target": None}, "data.target: expected the name of the column .* set it .* one of a, t"),
        ("a,t\n1,2\n", {"target": "q"}, "data.target: expected one of a, t, found q"),
        ("a,t\n1,2\n", {"categorical": ("b",)}, "data.categorical: expected one of a, t, found b"),
        (
            "a,t\n1,2\n",
            {"drop": ("a",)},
            "columns: expected at least one feature in addition to the target, found none",
        ),
        ("a,t\n1,2\n3,\n", {}, "row 1: target column 't': expected a value, found an empty cell; fill it in"),
        (
            "a,t\n1,2\n3,x\n",
            {},
            "row 1: column 't' must be numeric: expected a number.*found 'x'; if it names classes, set likelihood = .cat",
        ),
        (
            "a,t\n1,2\nx,4\n",
            {},
            "row 1: column 'a' must be numeric: .*found 'x'; if it holds names, list it in data.categorical",
        ),
        ("a,t\n1,2\ninf,4\n", {}, "row 1: column 'a': expected a number within float32's range, found inf"),
        ("a,b,t\n1,,2\n3,,4\n", {}, "column 'b' is empty: expected at least one number, found only gaps"),
        ("a,b,t\n1,,2\n3,,4\n", {"categorical": ("b",)}, "column 'b' is empty: expected at least one category"),
        ("a,t\n1,2,3\n", {}, "lines have another number of cells .*expected 2 cells, found line 2: 3 cells in '1,2,3'"),
        ("a,a,t\n1,2,3\n", {}, "column 'a': expected one column of that name, found 2"),
        ("a,t\n", {}, "rows: expected at least one, found an empty set"),
        ("", {}, "cannot be read: found Empty CSV file"),
    ],
)
def test_wrong_tables_are_refused(tmp_path, text, terms, message):
    """The error names the table's file, column and row."""
    with pytest.raises(DataError, match=f"t.csv.*{message}"):
        table(tmp_path, text, **terms)


def test_a_number_to_predict_is_not_taken_for_classes(tmp_path):
    """Nearly as many targets as rows; a few classes, or many of several rows each, are classes."""
    numbers = "a,t\n" + "".join(f"{place},{place / 7:.2f}\n" for place in range(40))
    with pytest.raises(DataError, match=r"t.csv: target column 't': expected classes .* found 40 different .*normal"):
        table(tmp_path, numbers, classify=True)
    for each, classes in ((1, 20), (2, 30)):
        rows = "a,t\n" + "".join(f"{place},c{place % classes}\n" for place in range(each * classes))
        assert len(table(tmp_path, rows, classify=True).class_names) == classes


def test_a_category_never_seen_is_refused_by_row(tmp_path):
    """A table with a category that the model was not trained on is refused with those that it knows."""
    columns = table(tmp_path, "c,t\nx,1\ny,2\n", categorical=("c",)).columns
    (tmp_path / "new.csv").write_text("c\nx\n\nz\n", "utf-8")
    with pytest.raises(DataError, match=r"row 1: column 'c' holds a category .*: expected one of x, y, found 'z'"):
        encode_table(columns, read_table(tmp_path / "new.csv"), "new.csv")


def test_a_fitted_model_needs_its_own_columns_and_no_others(tmp_path, mixed):
    """A table to evaluate may lack the columns that the fit dropped, and hold others."""
    _, model, _ = mixed
    config = DataConfig(target="t", categorical=("colour", "size"), drop=("id",))
    (tmp_path / "new.csv").write_text("t,size,colour,b,a,more\n5,1,red,1000,,x\n", "utf-8")
    found = read_source(str(tmp_path / "new.csv"), config, model, classify=False).train
    codes = [
        column.categories.index(name)
        for column, name in zip(model.preprocessing.columns[2:], ("red", "1"), strict=True)
    ]
    np.testing.assert_array_equal(found.x, [[np.nan, 1000, *codes]])
    assert found.y.tolist() == [5]


def test_a_column_of_gaps_is_read_whatever_its_type(tmp_path):
    """A column of a later table that has only gaps is all gaps, although its type is unknown."""
    columns = table(tmp_path, "a,c,t\n1,x,1\n2,y,2\n", categorical=("c",)).columns
    (tmp_path / "new.csv").write_text("a,c\n,\n,\n", "utf-8")
    assert np.isnan(encode_table(columns, read_table(tmp_path / "new.csv"), "new.csv")).all()


@pytest.mark.parametrize("cell", ["01", "1.50", "true"])
def test_a_category_is_its_text_whatever_the_other_columns_are(tmp_path, cell):
    """A category that looks like a number or a truth value is the same in a file where all cells look so."""
    columns = table(tmp_path, f"c,t\n{cell},1\nother,2\n", categorical=("c",)).columns
    (tmp_path / "new.csv").write_text(f"c\n{cell}\n{cell}\n", "utf-8")
    codes = encode_table(columns, read_table(tmp_path / "new.csv"), "new.csv")
    assert codes[:, 0].tolist() == [columns[0].categories.index(cell.replace("1.50", "1.5"))] * 2


def test_inputs_of_another_set_are_those_to_test_on(tmp_path):
    """The rows of an OOD set are x_test, else x; labels are ignored, and its shape must be the model's."""
    model = Model(network={"kind": "mlp"}, likelihood="categorical", feature_shape=(3,), class_names=("a", "b"))
    strange = {"y_test": np.array(["nonsense"]), "y": Y}
    np.testing.assert_array_equal(X[:9], read_inputs(npz(tmp_path, x=X, x_test=X[:9], **strange), model))
    np.testing.assert_array_equal(X, read_inputs(npz(tmp_path, x=X, y=Y), model))
    for arrays, message in (
        ({"x": X[:, :2]}, r"shape \(3,\), found shape \(2,\)"),
        ({"x": X[:0]}, "at least one, found none"),
    ):
        with pytest.raises(DataError, match=r"rows.npz: rows: expected " + message):
            read_inputs(npz(tmp_path, **arrays), model)
    with pytest.raises(DataError, match="arrays: expected x_test or x, found y"):
        read_inputs(npz(tmp_path, y=Y), model)


def test_codes_in_an_npz_are_those_of_the_models_categories(tmp_path):
    """A number that is no code of its column is refused in every part and in an OOD set; the error lists the codes."""
    columns = (Column(name="age"), Column(name="town", categories=("Bonn", "Ulm")))
    model = Model(
        network={"kind": "mlp"},
        likelihood="normal",
        feature_shape=(2,),
        preprocessing=Preprocessing(columns=columns),
    )
    good, bad = np.array([[30.0, 0], [99, 1]]), np.array([[30.0, 0], [30, 99]])
    targets = np.zeros(2)

    def read(**arrays):
        return read_source(npz(tmp_path, **arrays), DataConfig(), model, classify=False)

    np.testing.assert_array_equal(read(x=good, y=targets).train.x, good)
    np.testing.assert_array_equal(read_inputs(npz(tmp_path, x=good), model), good)
    codes = r"row 1: column 'town': expected a category's code \(0 = Bonn, 1 = Ulm\), found 99.0"
    for part in ("_train", "_calibration", "_test", ""):
        with pytest.raises(DataError, match=f"rows.npz, x{part}, {codes}"):
            read(**{f"x{part}": bad, f"y{part}": targets})
    with pytest.raises(DataError, match=f"rows.npz, {codes}"):
        read_inputs(npz(tmp_path, x=bad), model)


def test_an_ood_set_may_be_a_table_for_a_model_fitted_on_arrays(tmp_path):
    """The columns are found by the model's feature names, or taken in order if it has none; images may be flat."""
    (tmp_path / "ood.csv").write_text("b,id,a\n1,x,2\n3,y,4\n", "utf-8")
    named = Model(network={"kind": "mlp"}, likelihood="normal", feature_shape=(2,), feature_names=("a", "b"))
    np.testing.assert_array_equal(read_inputs(str(tmp_path / "ood.csv"), named), [[2, 1], [4, 3]])
    (tmp_path / "plain.csv").write_text("b,a,c,d\n1,2,5,6\n", "utf-8")
    for shape in ((4,), (2, 2)):
        unnamed = Model(network={"kind": "mlp"}, likelihood="normal", feature_shape=shape)
        found = read_inputs(str(tmp_path / "plain.csv"), unnamed)
        np.testing.assert_array_equal(found, np.reshape([1, 2, 5, 6], (1, *shape)))


# ---- preprocessing ---------------------------------------------------------------------------------------------------


@pytest.fixture
def mixed(tmp_path):
    """A table of two numeric and two categorical columns, three of them with gaps; its dataset, its model, its cells."""
    rng = np.random.default_rng(1)
    cells = {
        "a": [None if rng.random() < 0.2 else float(value) for value in rng.lognormal(3, 2, 200)],
        "b": (1000 + rng.normal(size=200)).tolist(),
        "colour": [[None, "red", "green", "blue"][i] for i in rng.choice(4, 200, p=[0.1, 0.2, 0.3, 0.4])],
        "size": [[None, 1, 2, 10][i] for i in rng.choice(4, 200, p=[0.1, 0.2, 0.3, 0.4])],
        "t": rng.normal(50, 9, 200).tolist(),
    }
    csv.write_csv(pa.table(cells), tmp_path / "mixed.csv")
    data = DataConfig(source=str(tmp_path / "mixed.csv"), target="t", categorical=("colour", "size"))
    config = Config(name="mixed", likelihood="normal", data=data)
    dataset = load_dataset(config, None)
    model = build_model(config, dataset)
    places = [cells["t"].index(target) for target in dataset.train.y]
    return dataset, model, {name: np.array(values, dtype=object)[places, None] for name, values in cells.items()}


def test_preprocessing_is_scikit_learns(mixed):
    """Imputation, standardising and one-hot encoding of the training part equal scikit-learn's own transformers."""
    dataset, model, cells = mixed
    filled = {column.name: column.missing for column in model.preprocessing.columns}
    names = {column.name: column.categories for column in model.preprocessing.columns}
    words = {
        name: np.vectorize(lambda cell: cell and str(cell), otypes=[object])(cells[name]) for name in ("colour", "size")
    }
    numeric = {name: SimpleImputer(strategy="constant", fill_value=filled[name]) for name in ("a", "b")}
    expected = np.concatenate(
        [
            make_pipeline(fill, StandardScaler()).fit_transform(cells[name].astype(float))
            for name, fill in numeric.items()
        ]
        + [
            make_pipeline(
                SimpleImputer(strategy="constant", missing_values=None, fill_value=names[name][int(filled[name])]),
                OneHotEncoder(sparse_output=False),
            ).fit_transform(words[name])
            for name in words
        ],
        axis=1,
    )
    found = jax.vmap(lambda row: transform(model.preprocessing, row))(dataset.train.x.astype(np.float32))
    assert transformed_shape(model.preprocessing, model.feature_shape) == (8,)
    np.testing.assert_allclose(expected, found, atol=2e-4)  # `b` is 1000 ± 1: float32 keeps 6e-5 of its spread
    scaler = StandardScaler().fit(cells["t"].astype(float))
    assert model.preprocessing.target_shift == pytest.approx(scaler.mean_[0])
    assert model.preprocessing.target_scale == pytest.approx(scaler.scale_[0])


def test_gaps_are_filled_from_the_training_part_alone(mixed):
    """Gaps are filled with the training rows' median or most frequent category, as in scikit-learn."""
    _, model, cells = mixed
    filled = {column.name: column for column in model.preprocessing.columns}
    median = SimpleImputer(strategy="median").fit(cells["a"].astype(float)).statistics_[0]
    assert filled["a"].missing == pytest.approx(median, rel=1e-12)
    most = SimpleImputer(strategy="most_frequent", missing_values=None).fit(cells["colour"]).statistics_[0]
    assert filled["colour"].categories[int(filled["colour"].missing)] == most


@pytest.mark.parametrize("dtype", [np.uint8, np.float64])
def test_range_maps_the_training_pixels_to_0_and_1(tmp_path, dtype):
    """`inputs = "range"` maps the smallest number of the training part to 0 and the largest to 1, whatever the dtype."""
    images = (np.arange(40 * 2 * 3) % 97 + 5).reshape(40, 2, 3).astype(dtype)
    config = Config(name="a", data=DataConfig(source=npz(tmp_path, x=images, y=np.arange(40) % 2), inputs="range"))
    dataset = load_dataset(config, None)
    low, high = float(dataset.train.x.min()), float(dataset.train.x.max())
    preprocessing = build_model(config, dataset).preprocessing
    found = jax.vmap(lambda row: transform(preprocessing, row))(images.astype(np.float32))
    np.testing.assert_allclose((images.astype(float) - low) / (high - low), found, atol=1e-6)


def test_a_feature_that_never_varies_does_no_harm(tmp_path):
    """A constant feature is shifted to 0 and not divided by its spread of 0, as scikit-learn does."""
    x = np.stack([np.full(60, 7.0), np.arange(60.0)], axis=1)
    config = Config(name="a", data=DataConfig(source=npz(tmp_path, x=x, y=Y)))
    dataset = load_dataset(config, None)
    preprocessing = build_model(config, dataset).preprocessing
    found = jax.vmap(lambda row: transform(preprocessing, row))(dataset.train.x.astype(np.float32))
    np.testing.assert_allclose(StandardScaler().fit_transform(dataset.train.x), found, atol=1e-6)
