"""Tables as people have them: kinds of columns, index columns, labels, missing targets, and keys without effect."""

import datetime
import decimal

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import csv, parquet

from abstain.models.errors import CalibrationError, ConfigError, DataError
from abstain.models.files.model_rows import order_features
from abstain.models.networks.architectures import MLPSpec
from abstain.models.prediction.posterior import Model
from abstain.models.tables.columns import Column
from abstain.models.tables.encoding import encode_table
from abstain.training.calibration.pipeline import check_calibration_settings
from abstain.training.config.calibration import CalibrationConfig
from abstain.training.config.config import Config, recorded_settings
from abstain.training.config.data import DataConfig
from abstain.training.data.dataset import fit_preprocessing, split
from abstain.training.data.sources import read_inputs, read_source

ROWS = 60
RNG = np.random.default_rng(0)
NUMBERS = RNG.normal(size=ROWS).round(3)
LABELS = [("no", "yes")[int(number > 0)] for number in NUMBERS]


def frame(**columns):
    """A table with a number `a`, these columns, and the target `y`."""
    return pd.DataFrame({"a": NUMBERS, **columns, "y": LABELS})


def read(folder, table, *, classify=True, name="t.csv", **keys):
    """The source of a DataFrame or a text, written to a file."""
    path = folder / name
    if isinstance(table, str):
        path.write_text(table)
    elif name.endswith(".parquet"):
        table.to_parquet(path)
    else:
        table.to_csv(path, index=False)
    return read_source(str(path), DataConfig(**{"target": "y", **keys}), classify=classify)


def kinds(source):
    """The kind of each column."""
    return {column.name: column.kind for column in source.columns}


def refusal(kind, *arguments, **keys):
    """What a source is refused with."""
    with pytest.raises(kind) as error:
        read(*arguments, **keys)
    return str(error.value)


FLAGS = [row % 2 == 0 for row in range(ROWS)]
DAYS = pd.date_range("2024-03-01", periods=ROWS, freq="12h")
MIXED = frame(
    word=[("red", "blue", None)[row % 3] for row in range(ROWS)],
    flag=FLAGS,
    day=DAYS,
    money=[decimal.Decimal(row) / 100 for row in range(ROWS)],
    gaps=[None if row % 4 else row for row in range(ROWS)],
)


def test_kinds_are_detected_and_said(tmp_path):
    """Text and booleans are categories, dates are dates, the same from .csv and .parquet, with the same numbers."""
    expected = {
        "a": "number",
        "word": "category",
        "flag": "category",
        "day": "date",
        "money": "number",
        "gaps": "number",
    }
    sources = [read(tmp_path, MIXED, name=name) for name in ("t.csv", "t.parquet")]
    for source in sources:
        assert kinds(source) == expected
        assert "columns read as categories: 'word', 'flag'" in source.hints
        assert "columns read as dates, in seconds since 1970-01-01 UTC: 'day'" in source.hints
    np.testing.assert_array_equal(sources[0].train.x, sources[1].train.x)
    assert sources[0].train.x[1, 3] == datetime.datetime(2024, 3, 1, 12, tzinfo=datetime.UTC).timestamp()
    assert [column.categories for column in sources[0].columns] == [(), ("blue", "red"), ("false", "true"), (), (), ()]


def test_dates_keep_their_offset_from_1970(tmp_path):
    """Half a day remains distinct in float32, because the host subtracts the offset in float64."""
    source = read(tmp_path, MIXED[["day", "y"]])
    preprocessing = fit_preprocessing(source.train, DataConfig(), source.columns, classify=True)
    assert preprocessing.origin[0] == pytest.approx(source.train.x[:, 0].mean())
    assert preprocessing.columns[0].missing == np.median(source.train.x[:, 0])


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"categorical": ("gaps", "day")}, {"gaps": "category", "day": "category", "word": "category"}),
        ({"dates": ("day",), "numeric": ("money",)}, {"day": "date", "money": "number"}),
    ],
)
def test_keys_set_the_kind_of_a_column(tmp_path, keys, expected):
    """Also against the look of its cells; a column that a key names is not in the note."""
    source = read(tmp_path, MIXED, **keys)
    assert {name: kinds(source)[name] for name in expected} == expected
    assert not any(repr(name) in hint for hint in source.hints[:1] for name in keys.get("categorical", ()))


def test_all_offences_of_a_file_are_named_at_once(tmp_path):
    """A word among numbers, a day among dates, too many names, an empty column, and a missing target."""
    table = frame(
        age=["x" if row == 7 else str(row) for row in range(ROWS)],
        when=["1.3.2024" if row == 3 else "2024-03-01" for row in range(ROWS)],
        name=[f"person {row}" for row in range(ROWS)],
        none=[None] * ROWS,
    )
    table.loc[5, "y"] = None
    text = refusal(DataError, tmp_path, table)
    assert "5 columns cannot be read: (1) row 7: column 'age' must be numeric" in text
    assert "in data.na_values" in text
    assert "(2) row 3: column 'when': expected a date or time" in text
    assert "(3) column 'name' holds text: expected categories that repeat, found 60 different texts in 60 rows" in text
    assert "(4) column 'none' is empty" in text
    assert "(5) row 5: target column 'y': expected a value, found an empty cell" in text
    assert "data.drop_missing_target = true" in text
    assert kinds(read(tmp_path, table[["a", "name", "y"]].dropna(), categorical=("name",)))["name"] == "category"


@pytest.mark.parametrize("name", ["", "Unnamed: 0"])
def test_the_row_numbers_of_pandas_are_no_feature(tmp_path, name):
    """In a .csv with or without a name, in .parquet, and an unnamed column without values at the end of lines."""
    table = pd.DataFrame({name: range(ROWS), "a": NUMBERS, "y": LABELS})
    source = read(tmp_path, table)
    assert list(kinds(source)) == ["a"]
    assert source.hints[0].startswith(f"column {name!r} is left out: it is the index of the rows")
    index = pa.table({"a": NUMBERS, "y": LABELS, "__index_level_0__": range(ROWS)})
    parquet.write_table(index, tmp_path / "t.parquet")
    source = read_source(str(tmp_path / "t.parquet"), DataConfig(target="y"), classify=True)
    assert list(kinds(source)) == ["a"]
    assert list(kinds(read(tmp_path, "a,y,\n" + "1,no,\n2,yes,\n" * 30))) == ["a"]
    if name:
        assert list(kinds(read(tmp_path, table, numeric=(name,)))) == [name, "a"]


def test_a_column_with_values_has_a_name(tmp_path):
    """A name is never empty."""
    text = refusal(DataError, tmp_path, "a,,y\n" + "1,2,no\n2,3,yes\n" * 30)
    assert "a column has no name: expected a name for each column, found none for the column after 'a'" in text


def test_rows_without_a_target_are_left_out_on_request(tmp_path):
    """Of classes and of numbers; the others keep their order, and the note counts the rows."""
    table = frame()
    table.loc[[3, 50], "y"] = None
    source = read(tmp_path, table, drop_missing_target=True)
    np.testing.assert_array_equal(source.train.x[:, 0], np.delete(NUMBERS, [3, 50]))
    assert source.class_names == ("no", "yes")
    assert "2 of 60 rows are left out: their target is missing" in source.hints
    numbers = table.assign(y=np.where(table["y"].isna(), np.nan, 2 * NUMBERS))
    source = read(tmp_path, numbers, classify=False, drop_missing_target=True)
    np.testing.assert_array_equal(source.train.y, np.delete(2 * NUMBERS, [3, 50]))
    assert "found an empty cell, as in 1 other rows" in refusal(DataError, tmp_path, numbers, classify=False)


def test_zero_padded_codes_are_noted(tmp_path):
    """Postal codes would lose their zeros."""
    source = read(tmp_path, frame(post=[f"{row:05}" for row in range(ROWS)]))
    assert any(
        "column 'post' is read as numbers, although some begin with a zero, such as 00000" in hint
        for hint in source.hints
    )


# ---- other writers ---------------------------------------------------------------------------------------------------


def written_by_others(folder, columns, rows):
    """The rows of a fitted model's columns in files of several writers."""
    rows.to_csv(folder / "pandas.csv", index=False)
    german = rows.astype({"money": float})  # pandas writes decimals with a point beside numbers with a comma
    german.to_csv(folder / "german.csv", index=False, sep=";", decimal=",", encoding="utf-16")
    rows.to_parquet(folder / "pandas.parquet")
    table = pa.Table.from_pandas(rows, preserve_index=False)
    with pa.OSFile(str(folder / "t.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    csv.write_csv(table, folder / "arrow.csv")
    return [folder / name for name in ("pandas.csv", "german.csv", "pandas.parquet", "t.arrow", "arrow.csv")]


def test_a_model_reads_the_files_of_all_writers_alike(tmp_path):
    """Booleans, whole numbers with gaps, dates and decimals: fitted on one file, read from five, bit by bit."""
    table = MIXED.assign(grp=pd.array([None if row % 5 == 0 else row % 3 for row in range(ROWS)], dtype="Int64"))
    source = read(tmp_path, table, categorical=("grp",))
    model = Model(
        network=MLPSpec(),
        likelihood="categorical",
        preprocessing=fit_preprocessing(source.train, DataConfig(), source.columns, classify=True),
        feature_shape=source.train.x.shape[1:],
        feature_names=source.feature_names,
        class_names=source.class_names,
    )
    for path in written_by_others(tmp_path, source.columns, table):
        np.testing.assert_array_equal(read_inputs(str(path), model), source.train.x, str(path))
        again = read_source(str(path), DataConfig(target="y"), model, classify=True)
        np.testing.assert_array_equal(again.train.y, source.train.y)


def test_columns_of_earlier_fits_keep_the_blanks_of_their_names():
    """A reader of today removes them from the file."""
    found = encode_table((Column(name=" b"), Column(name="a")), pa.table({"a": [1], "b": [2]}), "t.csv")
    np.testing.assert_array_equal(found, [[2.0, 1.0]])


# ---- arrays ----------------------------------------------------------------------------------------------------------


def arrays(folder, **members):
    """An .npz file."""
    np.savez(folder / "rows.npz", **members)
    return str(folder / "rows.npz")


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        ([1, 2, 3], ("1", "2", "3")),
        ([10, 20, 30], ("10", "20", "30")),
        ([1.0, 2.0, 4.0], ("1", "2", "4")),
        ([-1, 1, 1], ("-1", "1")),
        ([0, 1, 3], ("0", "1", "3")),
        ([0, 1, 2], ("0", "1", "2")),
    ],
)
def test_labels_that_are_no_indices_keep_their_names(tmp_path, labels, names):
    """They need not start at 0, and may have gaps; a fitted model finds its classes by name."""
    y, x = np.array(labels * 20), np.zeros((60, 2))
    source = read_source(arrays(tmp_path, x=x, y=y), DataConfig(), classify=True)
    assert source.class_names == names
    assert [source.class_names[code] for code in source.train.y] == [str(int(label)) for label in y]
    model = Model(network=MLPSpec(), likelihood="categorical", feature_shape=(2,), class_names=names)
    few = read_source(arrays(tmp_path, x=x[:1], y=y[1:2]), DataConfig(), model, classify=True)
    assert few.train.y.tolist() == [names.index(str(int(y[1])))]
    with pytest.raises(DataError, match=r"y, row 0: expected .*, found 99"):
        read_source(arrays(tmp_path, x=x[:2], y=np.array([99, labels[0]])), DataConfig(), model, classify=True)


def test_a_class_without_a_training_row_is_named(tmp_path):
    """Of a table whose only row of a class is in another part."""
    labels = np.array(["no", "yes"] * 30, dtype=object)
    notes = []
    for row in range(ROWS):
        table = pd.DataFrame({"a": NUMBERS, "y": np.where(np.arange(ROWS) == row, "rare", labels)})
        notes += [
            note for note in split(read(tmp_path, table), DataConfig(target="y"), 0).notes if "cannot be learnt" in note
        ]
        if notes:
            break
    assert notes[0].startswith(
        "1 class has no row in the training part, and cannot be learnt: 'rare'; add rows, or set"
    )


def test_feature_names_of_arrays_are_honoured(tmp_path):
    """Another order is reordered by name; names that the model does not have are refused."""
    model = Model(
        network=MLPSpec(),
        likelihood="categorical",
        feature_shape=(2,),
        feature_names=("a", "b"),
        class_names=("0", "1"),
    )
    x, y = np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([0, 1])
    path = arrays(tmp_path, x=x, y=y, feature_names=np.array(["b", "a"]))
    np.testing.assert_array_equal(read_inputs(path, model), x[:, ::-1])
    np.testing.assert_array_equal(read_source(path, DataConfig(), model, classify=True).train.x, x[:, ::-1])
    wrong = {"feature_names": np.array([b"a", b"c"])}
    with pytest.raises(
        DataError, match=r"feature_names: expected the model's: a, b, found 2 names, without b and with c"
    ):
        order_features(x, wrong, model, "rows.npz")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"drop": ("a",)},
            "data.drop: expected a table; arrays have no named columns, found .npz; leave out what has no",
        ),
        ({"target": "quality"}, "data.target: expected a table"),
        ({"categorical": ("a",), "delimiter": ";"}, "data.categorical, data.delimiter: expected a table"),
    ],
)
def test_keys_of_tables_are_refused_for_arrays(tmp_path, keys, message):
    """They would have no effect; `target = "y"` names the array of the targets."""
    path = arrays(tmp_path, x=np.zeros((4, 1)), y=np.array([0, 1, 0, 1]))
    with pytest.raises(ConfigError, match=message):
        read_source(path, DataConfig(**keys), classify=True)
    read_source(path, DataConfig(target="y"), classify=True)


def test_keys_that_contradict_or_have_no_effect_are_refused(tmp_path):
    """A column in two keys; a delimiter for .parquet."""
    text = refusal(ConfigError, tmp_path, MIXED, numeric=("word",), categorical=("word",))
    assert text.startswith("data.categorical and data.numeric: expected each column once, found 'word' 2 times")
    assert refusal(ConfigError, tmp_path, MIXED, drop=("y",)).startswith("data.drop and data.target: ")
    text = refusal(ConfigError, tmp_path, MIXED, name="t.parquet", delimiter=";")
    assert "data.delimiter: expected a text table (.csv, .tsv, .txt, .csv.gz, .tsv.gz, .txt.gz), found .parquet" in text


def test_a_file_without_header_is_told_how(tmp_path):
    """Its first row would be the names."""
    text = "5.1,3.5,no\n" + "4.9,3.0,yes\n" * 40
    assert "if the file has no header, name its columns in data.column_names" in refusal(DataError, tmp_path, text)
    source = read(tmp_path, text, column_names=("a", "b", "y"))
    assert source.train.x[0].tolist() == [5.1, 3.5]


def test_settings_without_effect_are_not_recorded():
    """So earlier versions can read the manifest."""
    recorded = recorded_settings(Config(name="t", data=DataConfig(target="y", delimiter=";")))["data"]
    assert recorded["delimiter"] == ";"
    assert not {"numeric", "dates", "encoding", "na_values", "drop_missing_target", "class_weights"} & {*recorded}


def test_too_few_calibration_rows_name_the_values_that_would_do():
    """The number of rows for the percentile, and the percentile for the rows."""
    model = Model(network=MLPSpec(), likelihood="categorical", feature_shape=(2,), class_names=("0", "1"))
    with pytest.raises(CalibrationError) as error:
        check_calibration_settings(CalibrationConfig(), model, np.zeros(48, int))
    assert str(error.value) == (
        "calibration.percentile: the 99th percentile needs a larger calibration part: expected at least 99 rows, found 48 "
        "rows; set data.calibration_size = 99, if the source has so many rows, or calibrate with more rows; or set "
        "calibration.percentile = 97.5"
    )
