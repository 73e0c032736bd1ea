"""Preprocessing against sklearn, and the way of a table's cells into numbers."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from abstain.models.errors import DataError
from abstain.models.prediction.preprocessing import Preprocessing, first_unknown_code, transform, transformed_shape
from abstain.models.tables.columns import Column
from abstain.models.tables.encoding import encode_table

COLOURS = ("blue", "green", "red")
COLUMNS = (
    Column(name="age", missing=30.0),
    Column(name="colour", categories=COLOURS, missing=2.0),
    Column(name="height", missing=1.7),
)
TABLE = Preprocessing(shift=(30.0, 0.0, 1.5), scale=(10.0, 1.0, 0.25), columns=COLUMNS)


def transformed(preprocessing, rows):
    """`transform` of every row, compiled."""
    return np.asarray(jax.jit(jax.vmap(lambda x: transform(preprocessing, x)))(jnp.asarray(rows, jnp.float32)))


def test_one_shift_and_scale_serve_all_pixels():
    """Pixels are shifted and scaled alike, and an image keeps its shape."""
    images = np.random.default_rng(0).integers(0, 256, (5, 4, 3))
    found = transformed(Preprocessing(shift=(33.0,), scale=(78.0,)), images)
    np.testing.assert_allclose(found, (images - 33.0) / 78.0, rtol=1e-6, atol=1e-6)


def test_standardising_is_sklearns():
    """A shift and a scale for each feature, of rows and of images, are StandardScaler."""
    rows = np.random.default_rng(0).normal(5, 3, (40, 6)).astype(np.float32)
    scaler = StandardScaler().fit(rows)
    preprocessing = Preprocessing(shift=tuple(scaler.mean_), scale=tuple(scaler.scale_))
    expected = scaler.transform(rows)
    np.testing.assert_allclose(transformed(preprocessing, rows), expected, atol=1e-5)
    found = transformed(preprocessing, rows.reshape(40, 2, 3))
    np.testing.assert_allclose(found, expected.reshape(40, 2, 3), atol=1e-5)


def test_categories_become_sklearns_one_hot_blocks():
    """Standardised numeric columns first, then a block for each column of categories."""
    rows = np.array([[20, 0, 1.5], [45, 2, 2.0], [30, 1, 1.0]])
    numbers = (rows[:, [0, 2]] - [30, 1.5]) / [10, 0.25]
    blocks = OneHotEncoder(categories=[range(3)], sparse_output=False).fit_transform(rows[:, [1]])
    np.testing.assert_allclose(transformed(TABLE, rows), np.hstack([numbers, blocks]), atol=1e-6)


def test_many_columns_are_no_larger_a_program():
    """A thousand columns of categories are compared at once: each on its own would take half a minute to compile."""
    columns = tuple(Column(name=f"c{place}", categories=COLOURS, missing=1.0) for place in range(1000))
    preprocessing = Preprocessing(columns=columns)
    row = jax.ShapeDtypeStruct((1000,), jnp.float32)
    program = jax.make_jaxpr(partial(transform, preprocessing))(row).jaxpr
    assert len(program.eqns) < 50
    codes = np.random.default_rng(0).integers(0, 3, (2, 1000))
    expected = np.eye(3, dtype=np.float32)[codes].reshape(2, 3000)
    np.testing.assert_array_equal(transformed(preprocessing, codes), expected)


def test_a_gap_is_filled_with_its_columns_stand_in():
    """NaN is answered as if `missing` had been sent, in numbers and in categories."""
    gaps = np.array([[np.nan, 0, 1.5], [45, np.nan, 2.0], [30, 1, np.nan]])
    filled = np.where(np.isnan(gaps), [30.0, 2.0, 1.7], gaps)
    np.testing.assert_array_equal(transformed(TABLE, gaps), transformed(TABLE, filled))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=5))
def test_the_shape_told_is_the_shape_made(widths):
    """`transformed_shape` is right for any mix of numbers and categories, the number of categories given."""
    columns = tuple(
        Column(name=f"c{i}", categories=tuple(map(str, range(width))), missing=0.0) for i, width in enumerate(widths)
    )
    preprocessing = Preprocessing(columns=columns)
    row = jax.ShapeDtypeStruct((len(widths),), jnp.float32)
    made = jax.eval_shape(partial(transform, preprocessing), row)
    assert made.shape == transformed_shape(preprocessing, row.shape)


def test_an_image_keeps_its_shape():
    """Without columns the network sees the feature shape."""
    assert transformed_shape(Preprocessing(), (28, 28, 3)) == (28, 28, 3)


def test_preprocessing_survives_json_to_the_last_bit():
    """A manifest's numbers are the fitted ones."""
    preprocessing = Preprocessing(shift=(0.1 + 0.2, 1 / 3), scale=(1e-17, np.pi), columns=COLUMNS[:2], target_scale=0.7)
    assert Preprocessing.model_validate_json(preprocessing.model_dump_json()) == preprocessing


def test_unknown_terms_are_refused():
    """A manifest from another version, or a typing mistake, is no preprocessing."""
    with pytest.raises(ValidationError, match="power"):
        Preprocessing(power=2.0)


@pytest.mark.parametrize("code", [-1.0, 3.0, 0.5, 1e30, np.inf])
def test_a_number_that_is_no_code_is_found(code):
    """Row and column of the first number that stands for no category."""
    rows = np.array([[20.0, 0, 1], [20.0, np.nan, 1], [20.0, code, 1], [20.0, 7, 1]])
    assert first_unknown_code(TABLE, rows) == (2, 1)


def test_codes_and_gaps_are_known():
    """Every code of a category passes, a gap too, and so does any number in a numeric column."""
    rows = np.array([[1e9, 0, -5], [np.nan, 1, 0], [3, 2, 0], [3, np.nan, 0]])
    assert first_unknown_code(TABLE, rows) is None


def test_integer_rows_are_checked_too():
    """Codes sent as integers, and uint8 pixels, are numbers as well as floats are."""
    assert first_unknown_code(TABLE, np.array([[20, 1, 1], [20, 9, 1]])) == (1, 1)
    assert first_unknown_code(Preprocessing(), np.zeros((2, 8, 8), np.uint8)) is None


def test_a_table_is_encoded_by_name():
    """Columns are found by name, whatever their order and company; gaps become NaN."""
    table = pa.table(
        {
            "height": [1.7, None, float("nan")],
            "other": ["x", "y", "z"],
            "colour": ["red", "", None],
            "age": [20, None, 40],
        }
    )
    expected = np.array([[20, 2, 1.7], [np.nan, np.nan, np.nan], [40, np.nan, np.nan]])
    np.testing.assert_array_equal(encode_table(COLUMNS, table, "rows.csv"), expected)


@pytest.mark.parametrize("values", [[1, 2], [1.0, 2.0], ["1", "2"]])
def test_a_category_is_the_same_as_number_and_as_text(values):
    """`1`, `1.0` and `"1"` are one category, however the file's reader typed the column."""
    column = Column(name="grade", categories=("1", "2"), missing=0.0)
    found = encode_table((column,), pa.table({"grade": values}), "rows.csv")
    np.testing.assert_array_equal(found, [[0], [1]])


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (
            {"age": [1], "height": [1.0]},
            "t.csv: columns are missing: expected colour, found age, height; add the columns, or rename them as in the fit",
        ),
        (
            {"age": [1, 2], "colour": ["red", "mauve"], "height": [1.0, 1.0]},
            "t.csv, row 1: column 'colour' holds a category the model was not trained on: "
            "expected one of blue, green, red, found 'mauve'; correct the category, or fit again with rows of it",
        ),
        (
            {"age": ["1", "old"], "colour": ["red"] * 2, "height": [1.0] * 2},
            "t.csv, row 1: column 'age' must be numeric: expected a number, or an empty cell, found 'old'; "
            "if it holds names, list it in data.categorical; if this cell marks a missing value, in data.na_values; if ids, "
            "list the column in data.drop, or set data.group to it if rows of one id belong together; else correct the cell",
        ),
        (
            {"age": [1, 2], "colour": ["red"] * 2, "height": [1.0, float("inf")]},
            "t.csv, row 1: column 'height': expected a number within float32's range, found inf; replace the value, "
            "or leave the cell empty",
        ),
        (
            {"age": [1e39, 2], "colour": ["red"] * 2, "height": [1.0, 1.0]},
            "t.csv, row 0: column 'age': expected a number within float32's range, found 1e+39; replace the value, "
            "or leave the cell empty",
        ),
    ],
)
def test_a_wrong_cell_is_named_by_column_and_row(table, message):
    """Missing columns, unseen categories, text and infinities: what, where, expected, found."""
    with pytest.raises(DataError) as error:
        encode_table(COLUMNS, pa.table(table), "t.csv")
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            [True, False],
            "row 0: column 'age' must be numeric: .*found values of type bool; list it in data.categorical",
        ),
        ([b"a", b"b"], "row 0: column 'age' must be numeric: .*found 'a' and 1 more row like it"),
        ([[1], [2]], "column 'age' cannot be read: .*found values of type list"),
    ],
)
def test_a_numeric_column_of_another_type_is_refused(values, message):
    """Booleans, bytes and lists are no numbers."""
    with pytest.raises(DataError, match=rf"t.csv.*{message}"):
        encode_table(COLUMNS[:1], pa.table({"age": values}), "t.csv")


def test_integers_beyond_float64s_are_numbers_too():
    """An identifier of nineteen digits is rounded like any number, not a crash."""
    found = encode_table(COLUMNS[:1], pa.table({"age": [1, 2**60 + 1]}), "t.parquet")
    np.testing.assert_array_equal(found, [[1.0], [2.0**60]])


def test_a_column_that_a_table_holds_twice_is_refused_by_name():
    """Which of two columns `age` is meant cannot be guessed."""
    table = pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["age", "age"])
    with pytest.raises(DataError, match=r"t.csv.*age"):
        encode_table(COLUMNS[:1], table, "t.csv")
