"""The body of `POST /predict`: the fast and the slow parser agree, and every error names the field."""

import json
import math
import time
import tracemalloc
from collections.abc import Callable

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from abstain.models.decisions.records import Levels
from abstain.models.errors import AbstainError, InputError, clip_repr
from abstain.models.networks.architectures import MLPSpec
from abstain.models.prediction.posterior import Model
from abstain.models.prediction.preprocessing import Preprocessing
from abstain.models.tables.columns import Column
from abstain.service.json_objects import parse_object
from abstain.service.predict.request import KEYS, PredictRequest, parse_predict
from abstain.service.rows import check_finite, check_rows

FLOAT32_MAX = float(np.finfo(np.float32).max)
LIMIT = 100

PAIRS = Model(network=MLPSpec(), likelihood="normal", feature_shape=(2,))
IMAGES = Model(network=MLPSpec(), likelihood="categorical", feature_shape=(2, 3), class_names=("a", "b"))
COLOURED = Model(network=MLPSpec(), likelihood="categorical", feature_shape=(2, 2, 3), class_names=("a", "b"))
TABLE = Model(
    network=MLPSpec(),
    likelihood="normal",
    preprocessing=Preprocessing(
        shift=(0.0, 0.0),
        scale=(1.0, 1.0),
        columns=(Column(name="age", missing=30), Column(name="town", categories=("Bonn", "Ulm"), missing=0)),
    ),
    feature_shape=(2,),
    feature_names=("age", "town"),
)


def rows_of(body: str | bytes, model: Model = PAIRS) -> np.ndarray:
    """The rows of a body, parsed and checked."""
    request = parse_predict(body if isinstance(body, bytes) else body.encode(), LIMIT)
    return check_rows(request.inputs, request.plain, model, LIMIT)


def refusal(body: str | bytes, model: Model = PAIRS) -> str:
    """The text of the error for a refused body."""
    with pytest.raises(InputError) as caught:
        rows_of(body, model)
    return str(caught.value)


def is_number(cell: object) -> bool:
    """Whether a cell is a number within float32's range; the oracle of the tests."""
    return isinstance(cell, int | float) and not isinstance(cell, bool) and abs(cell) <= FLOAT32_MAX


def test_a_request_with_all_keys_is_parsed():
    """Every key has its value, numbers as floats."""
    body = (
        b'{"inputs":[[1,2]],"model":"m@stable","percentile":95,"coverage":0.5,"max_error":0.1,"fields":["label","std"]}'
    )
    assert parse_predict(body, LIMIT) == PredictRequest(
        [[1, 2]], True, "m@stable", Levels(95.0, 0.5, 0.1), ("label", "std")
    )


def test_all_keys_except_the_inputs_are_optional():
    """A missing key is None; the model's own value replaces it later."""
    assert parse_predict(b'{"inputs":[[1]]}', LIMIT) == PredictRequest([[1]], True, None, Levels(), None)


def test_the_keys_are_those_of_the_contract():
    """Those of the rows, `model`, `percentile`, `coverage`, `max_error`, `fields`, and no other."""
    rows = {"inputs", "records", "columns", "data"}
    assert set(KEYS) == rows | {"model", "percentile", "coverage", "max_error", "fields"}


def test_rows_are_float32_in_the_models_shape():
    """Integers and floats become float32, in the same order."""
    rows = rows_of('{"inputs":[[1,2.5],[-3,4e2]]}')
    assert rows.dtype == np.float32
    np.testing.assert_array_equal(rows, np.array([[1, 2.5], [-3, 400]], np.float32))


@pytest.mark.parametrize("model", [IMAGES, COLOURED], ids=["grey", "coloured"])
def test_an_image_row_is_nested_or_flat(model):
    """Both forms give the same array, also mixed in one request."""
    rows = np.arange(3 * model.features, dtype=np.float32).reshape(3, *model.feature_shape)
    nested, flat = rows.tolist(), rows.reshape(3, -1).tolist()
    for inputs in (nested, flat, [nested[0], flat[1], nested[2]]):
        found = rows_of(json.dumps({"inputs": inputs}), model)
        np.testing.assert_array_equal(found, rows)
        assert found.dtype == np.float32


@pytest.mark.parametrize(
    ("cell", "found"),
    [
        ("NaN", "found nan"),
        ("Infinity", "found inf"),
        ("-Infinity", "found -inf"),
        ("1e999", "found inf"),
        ("1e39", "found 1e+39"),
        ("-3.5e38", "found -3.5e+38"),
        ('"99"', "expected a number, found the string '99'"),
        ('""', "expected a number, found the string ''"),
        ("null", "expected a number, found null"),
        ("true", "expected a number, found true"),
        ("false", "expected a number, found false"),
        ("{}", "expected a number, found an object"),
        ("9" * 400, "found an integer of 400 digits"),
        ("-" + "9" * 400, "found an integer of 400 digits"),
    ],
)
def test_a_cell_that_is_not_a_number_is_named(cell, found):
    """The error gives the row, the column and the value."""
    text = refusal(f'{{"inputs":[[1,2],[3,4],[5,{cell}]]}}')
    assert text.startswith("inputs[2][1]: expected a ")
    assert text.endswith(found)


@pytest.mark.parametrize(
    ("row", "model", "text"),
    [
        ([1], PAIRS, "inputs[1]: expected 2 numbers, found 1"),
        ([1, 2, 3], PAIRS, "inputs[1]: expected 2 numbers, found 3"),
        ([], PAIRS, "inputs[1]: expected 2 numbers, found 0"),
        (7, PAIRS, "inputs[1]: expected a list of 2 numbers, found the number 7"),
        ("ab", PAIRS, "inputs[1]: expected a list of 2 numbers, found the string 'ab'"),
        ({"a": 1}, PAIRS, "inputs[1]: expected a list of 2 numbers, found an object"),
        (None, PAIRS, "inputs[1]: expected a list of 2 numbers, found null"),
        ([[1, 2], [3, 4], [5, 6]], IMAGES, "inputs[1]: expected 2 lists, found 3"),
        ([[1, 2, 3], [4, 5]], IMAGES, "inputs[1][1]: expected 3 numbers, found 2"),
        ([[1, 2, 3], 4], IMAGES, "inputs[1][1]: expected a list of 3 numbers, found the number 4"),
        ([[1, 2, 3], [4, 5, "6"]], IMAGES, "inputs[1][1][2]: expected a number, found the string '6'"),
        ([1, 2, 3, 4, 5], IMAGES, "inputs[1]: expected 6 numbers, found 5"),
    ],
)
def test_a_row_of_another_shape_is_named(row, model, text):
    """The error gives the row, the position in it, and both sizes."""
    good = [0] * model.features
    assert refusal(json.dumps({"inputs": [good, row]}), model) == text


@pytest.mark.parametrize("cell", ["[]", "[1]", "[[1]]", "[" * 200 + "]" * 200])
def test_a_list_instead_of_a_number_is_named(cell):
    """The error for a list in a flat row names the column, for any shape of the model."""
    assert refusal(f'{{"inputs":[[1,{cell}]]}}').startswith("inputs[0][1]: expected a number, found a list")
    assert refusal(f'{{"inputs":[[1,2,3,{cell},5,6]]}}', IMAGES).startswith("inputs[0][3]: expected a number")


@pytest.mark.parametrize(
    ("inputs", "text"),
    [
        ("[]", "inputs: expected at least one row, found none"),
        ("{}", "inputs: expected a list of rows, found an object"),
        ("null", "inputs: expected a list of rows, found null"),
        ('"1"', "inputs: expected a list of rows, found the string '1'"),
        ("3", "inputs: expected a list of rows, found the number 3"),
    ],
)
def test_inputs_must_be_a_list_of_rows(inputs, text):
    """All other values are refused."""
    assert refusal(f'{{"inputs":{inputs}}}') == text


def test_rows_beyond_the_limit_are_refused_with_both_numbers():
    """The limit itself is accepted, one more row is not."""
    assert len(rows_of(json.dumps({"inputs": [[1, 2]] * LIMIT}))) == LIMIT
    text = refusal(json.dumps({"inputs": [[1, 2]] * (LIMIT + 1)}))
    assert text == "inputs: expected at most 100 rows, found 101; send them in several requests"


def test_float32s_largest_number_is_accepted_and_a_larger_one_refused():
    """The limit is that of float32, on both sides."""
    np.testing.assert_array_equal(
        rows_of(f'{{"inputs":[[{FLOAT32_MAX!r},{-FLOAT32_MAX!r}]]}}'), np.float32([[FLOAT32_MAX, -FLOAT32_MAX]])
    )
    beyond = math.nextafter(FLOAT32_MAX, math.inf)
    assert refusal(f'{{"inputs":[[{beyond!r},1]]}}').startswith("inputs[0][0]: expected a finite number")
    assert refusal(f'{{"inputs":[[{2 * int(FLOAT32_MAX)},1]]}}').startswith("inputs[0][0]: expected a finite number")


@pytest.mark.parametrize("number", [2**53 + 1, 2**63, 2**64, -(2**63) - 1, 10**38])
def test_large_integers_are_numbers(number):
    """An integer beyond 64 bits becomes the nearest float32."""
    np.testing.assert_array_equal(rows_of(f'{{"inputs":[[{number},0]]}}'), np.float32([[number, 0]]))


def test_an_error_in_a_table_names_the_column():
    """If the model has feature names."""
    assert refusal('{"inputs":[["x",0]]}', TABLE).startswith("inputs[0][0] (age): expected a number")


@pytest.mark.parametrize("code", [2, -1, 0.5])
def test_an_unknown_category_is_refused_with_the_known_ones(code):
    """A number that is not the code of a category is refused, and the codes are listed."""
    text = refusal(json.dumps({"inputs": [[40, 1], [40, code]]}), TABLE)
    assert text == (f"inputs[1][1] (town): expected a category's code (0 = Bonn, 1 = Ulm), found {np.float64(code)}")


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"", "body: expected JSON, found an empty body"),
        (b" \n", "body: expected JSON, found an empty body"),
        (b"hello", "body: expected JSON, found "),
        (b'{"inputs":[[1,2', "body: expected JSON, found unexpected end of data"),
        (b'{"inputs":[[1,2]]} x', "body: expected JSON, found unexpected content"),
        (b'{"inputs":[[1,2]],}', "body: expected JSON, found trailing comma"),
        (b"{'inputs':[[1,2]]}", "body: expected JSON, found "),
        (b'{"inputs":[[01,2]]}', "body: expected JSON, found "),
        (b'{"inputs":[[.5,2]]}', "body: expected JSON, found "),
        (b"[[1,2]]", "body: expected a JSON object, found a list of 1"),
        (b'"inputs"', "body: expected a JSON object, found the string 'inputs'"),
        (b"null", "body: expected a JSON object, found null"),
        (b"5", "body: expected a JSON object, found the number 5"),
        (b"true", "body: expected a JSON object, found true"),
        (b"NaN", "body: expected a JSON object, found the number nan"),
        (b"{}", "body: inputs: expected a list of rows, found no key 'inputs'"),
        (b'{"model":"caf\xe9","inputs":[[1,2]]}', "body: expected JSON in UTF-8, found an invalid byte at position 13"),
        ('{"inputs":[[1,2]]}'.encode("utf-16"), "body: expected JSON in UTF-8, found an invalid byte at position 0"),
        ('{"inputs":[[1,2]]}'.encode("utf-16-le"), "body: expected JSON, found "),
        ('{"inputs":[[1,2]]}'.encode("utf-32"), "body: expected JSON in UTF-8, found an invalid byte at position 0"),
        (b'\xef\xbb\xbf{"inputs":[[1,2]]}', "body: expected JSON, found UTF-8 byte order mark"),
        (b'{"inputs":[[1,2]],"rows":1}', "body: unknown key: expected one of inputs, records, columns, data, model"),
        (b'{"inputs":[[1,2]],"Model":"m"}', "body: unknown key: "),
        (b'{"inputs":[[1,2]],"\\ud800":1}', "body: unknown key: "),
        (b'{"inputs":[[1,2]],"model":"\\ud800"}', "model: expected Unicode text, found '\\ud800'"),
        (b"[" * 100_000, "body: expected JSON, found "),
        (b'{"inputs":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "body: expected JSON, found "),
    ],
)
def test_a_body_that_is_not_a_request_is_refused(body, text):
    """The error gives what is expected of the body and what was found."""
    assert refusal(body).startswith(text)


@pytest.mark.parametrize("key", ["percentile", "coverage", "max_error"])
@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("0", "found 0"),
        ("-1", "found -1"),
        ("101", "found 101"),
        ("1e999", "found inf"),
        ("NaN", "found nan"),
        ('"99"', "found the string '99'"),
        ("true", "found true"),
        ("null", "found null"),
        ("[]", "found a list of 0"),
        ("{}", "found an object"),
    ],
)
def test_a_level_must_be_a_number_within_its_range(key, value, found):
    """Percentiles lie strictly between 0 and 100, coverages between 0 and 1."""
    end = {"percentile": 100, "coverage": 1, "max_error": 1}[key]
    text = refusal(f'{{"inputs":[[1,2]],"{key}":{value}}}')
    assert text == f"{key}: expected a number above 0 and below {end}, {found}"
    assert refusal(f'{{"inputs":[[1,2]],"{key}":{end}}}').endswith(f"found {end}")


@pytest.mark.parametrize("value", ["null", "3", "true", "[]", '["m"]', "{}"])
def test_a_models_name_must_be_a_string(value):
    """Null is refused, too."""
    assert refusal(f'{{"inputs":[[1,2]],"model":{value}}}').startswith("model: expected a string, found ")


@pytest.mark.parametrize("value", ["null", "3", '"label"', "[]", "{}", "[1]", "[null]", '["label",["std"]]'])
def test_fields_must_be_a_list_of_strings(value):
    """An empty list is refused, too."""
    assert refusal(f'{{"inputs":[[1,2]],"fields":{value}}}').startswith("fields: expected a list of field names")


@pytest.mark.parametrize(
    ("body", "key"),
    [
        ('{"inputs":[[1,2]],"inputs":[[1,2]]}', "inputs"),
        ('{"inputs":[[1,2]],"\\u0069nputs":[[1,2]]}', "inputs"),
        ('{"inputs":[[1,2]],"model":"a","model":"a"}', "model"),
        ('{"inputs":[[1,2]],"percentile":98,"percentile":99}', "percentile"),
        ('{"inputs":[[1,2],{"a":1,"a":2}]}', "a"),
        ('{"inputs":[[1,2]],"model":{"b":[{"c":1,"c":1}]}}', "c"),
        ('{"inputs":[[NaN,2]],"inputs":[[1,2]]}', "inputs"),
    ],
)
def test_duplicate_keys_are_refused(body, key):
    """Two equal keys are ambiguous, in any spelling and at any position."""
    assert refusal(body) == f"body: duplicate key: expected each key once, found '{key}'"


def test_quotes_within_a_text_do_not_make_a_duplicate():
    """A model's name may contain keys, words and quotes; no model has this name."""
    name = 'true "inputs": null, "inputs": \\ false'
    request = parse_predict(json.dumps({"inputs": [[1, 2]], "model": name}).encode(), LIMIT)
    assert request.model == name
    np.testing.assert_array_equal(check_rows(request.inputs, request.plain, PAIRS, LIMIT), np.float32([[1, 2]]))


@pytest.mark.parametrize("depth", [500, 990, 1005, 1020, 1100, 100_000])
@pytest.mark.parametrize(("opening", "closing"), [('{"a":', "}"), ("[", "]")], ids=["objects", "lists"])
def test_deep_nesting_is_a_client_error(depth, opening, closing):
    """At any depth: no limit of a parser becomes a server error."""
    assert refusal(f'{{"inputs":[[1,2],{opening * depth}1{closing * depth}]}}')
    assert refusal(f'{{"inputs":[[1,2]],"model":{opening * depth}1{closing * depth}}}')


def peak_of(act: Callable[[], object]) -> int:
    """The peak of memory that Python allocates during a call, in bytes."""
    tracemalloc.start()
    try:
        assert act()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_body_of_objects_is_refused_before_it_is_parsed():
    """Parsed, they would need a hundred times their bytes."""
    body = b'{"inputs":[' + b",".join([b'{"a":{}}'] * 200_000) + b"]}"
    assert refusal(body) == "body: expected at most 1,100 JSON objects, found 400,001 opening braces"
    assert peak_of(lambda: refusal(body)) < len(body)


def test_a_row_of_the_wrong_length_gets_the_names_of_the_columns():
    """In their order; of very many names, the first."""
    assert (
        refusal('{"inputs":[[1]]}', TABLE)
        == "inputs[0]: expected 2 numbers, found 1; a row holds, in this order: age, town"
    )
    names = tuple(f"column {number}" for number in range(200))
    wide = Model(network=MLPSpec(), likelihood="normal", feature_shape=(200,), feature_names=names)
    error = refusal('{"inputs":[[1]]}', wide)
    assert error.endswith("…")
    assert len(error) < 400


def test_a_body_of_lists_is_refused_before_it_is_parsed():
    """Thirty kilobytes, compressed, would take gigabytes; an image of any size may be sent as one flat list."""
    body = b'{"inputs":[' + b"[]," * 1_000_000 + b"[]]}"
    expected = "body: expected at most 1,000,000 JSON lists, found 1,000,002 opening brackets; send fewer rows in one"
    assert refusal(body).startswith(expected)
    assert peak_of(lambda: refusal(body)) < len(body)
    with pytest.raises(InputError, match=f"^{expected}"):
        parse_object(body, ("inputs",))


def test_errors_show_the_beginning_of_a_long_list():
    """The text is that of the whole list, cut; only its beginning is converted."""
    numbers = [9] * 1_000_000
    for value in (numbers, [numbers, numbers], tuple(numbers), [[numbers]], "x" * 1_000_000):
        assert len(clip_repr(value)) == 60
        assert peak_of(lambda value=value: clip_repr(value)) < 100_000
    for value in ([1, [2.5, "a"], None, {"b": [1]}], (), (1,), "it's", b"ab", [[]] * 19, list(range(100))):
        text = repr(value)
        assert clip_repr(value) == (text if len(text) <= 60 else f"{text[:59]}…")


MANY_LISTS = b",".join([b"[[]]"] * 200_000)


@pytest.mark.parametrize(
    ("body", "found"),
    [
        (b'{"inputs":[null,%s]}' % MANY_LISTS, f"inputs: expected at most {LIMIT} rows, found 200001"),
        (b'{"inputs":[[null,%s]]}' % MANY_LISTS, "inputs[0]: expected 2 numbers, found 200001"),
    ],
    ids=["too many rows", "one row"],
)
def test_a_body_is_in_memory_once(body, found):
    """Python's parser, which finds duplicate keys, does not run if orjson found too many rows, and never while orjson's
    result is still in memory.
    """
    assert refusal(body).startswith(found)
    assert peak_of(lambda: refusal(body)) < 1.2 * peak_of(lambda: orjson.loads(body))


def test_a_body_of_the_open_inference_protocol_is_in_memory_once():
    """The same holds for `/v2`, with the same limit of objects."""
    body = b'{"inputs":[{"name":"inputs","data":[null,%s]}]}' % MANY_LISTS
    content, plain = parse_object(body, ("inputs",))
    assert not plain
    assert len(content["inputs"][0]["data"]) == 200_001
    del content
    assert peak_of(lambda: parse_object(body, ("inputs",))) < 1.2 * peak_of(lambda: orjson.loads(body))
    objects = b'{"inputs":[%s]}' % b",".join([b"{}"] * 1001)
    with pytest.raises(InputError, match=r"^body: expected at most 1,000 JSON objects, found 1,002 opening braces$"):
        parse_object(objects, ("inputs",))


def test_many_keys_take_time_in_proportion_to_their_number():
    """A few hundred kilobytes of keys cannot keep a server busy."""
    keys = ",".join(f'"k{number}":1' for number in range(30_000))
    started = time.perf_counter()
    assert refusal(f'{{"inputs":[{{{keys}}}]}}').startswith("inputs[0]: expected a list of 2 numbers")
    assert time.perf_counter() - started < 2


def test_a_prediction_that_is_not_finite_names_its_row():
    """The first row that overflows is named, whichever output is not finite."""
    fine = np.zeros((4, 2), np.float32)
    wrong = fine.copy()
    wrong[2, 1] = np.inf
    check_finite([fine, fine[:, 0]])
    with pytest.raises(
        InputError, match=r"^inputs\[2\]: the prediction overflows float32: expected a row on the scale"
    ):
        check_finite([fine, wrong])
    wrong[1, 0] = np.nan
    with pytest.raises(InputError, match=r"^inputs\[1\]"):
        check_finite([wrong])


CELLS = st.one_of(
    st.integers(-(10**45), 10**45), st.floats(), st.booleans(), st.none(), st.text(max_size=3), st.just([]), st.just({})
)
NUMBERS = st.one_of(st.integers(-(10**20), 10**20), st.floats(-FLOAT32_MAX, FLOAT32_MAX))
PAIR = st.tuples(NUMBERS, NUMBERS)


@settings(deadline=None)
@given(rows=st.lists(PAIR, min_size=1, max_size=6), cell_index=st.integers(0, 11), cell=CELLS)
def test_a_cell_is_accepted_if_and_only_if_it_is_a_number(rows, cell_index, cell):
    """Compared with the oracle `is_number`, for any cell at any position."""
    inputs = [list(row) for row in rows]
    row, feature = (cell_index // 2) % len(inputs), cell_index % 2
    inputs[row][feature] = cell
    body = json.dumps({"inputs": inputs})
    if is_number(cell):
        np.testing.assert_array_equal(rows_of(body), np.array(inputs, np.float64).astype(np.float32))
    else:
        assert refusal(body).startswith(f"inputs[{row}][{feature}]: expected a ")


@settings(deadline=None)
@given(rows=st.lists(PAIR, min_size=1, max_size=6))
def test_the_check_of_each_cell_returns_the_same_rows(rows):
    """The check in Python, which only unusual bodies need, agrees with numpy exactly."""
    request = parse_predict(json.dumps({"inputs": rows}).encode(), LIMIT)
    assert request.plain
    slow = check_rows(request.inputs, False, PAIRS, LIMIT)
    np.testing.assert_array_equal(check_rows(request.inputs, request.plain, PAIRS, LIMIT), slow)


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=4)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.sampled_from([*KEYS, "a", "b"]), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=300, deadline=None)
@given(content=st.dictionaries(st.sampled_from([*KEYS, "other"]), JSON, max_size=6))
def test_any_json_is_rows_or_an_abstain_error(content):
    """No other exception is raised."""
    try:
        rows = rows_of(json.dumps(content))
    except AbstainError:
        return
    assert rows.shape == (len(content["inputs"]), 2)
    assert np.isfinite(rows).all()


@settings(max_examples=300, deadline=None)
@given(body=st.binary(max_size=40))
def test_any_bytes_are_an_abstain_error(body):
    """No other exception is raised for a body that is not JSON."""
    with pytest.raises(AbstainError, match=r"^body: "):
        parse_predict(body, LIMIT)


@settings(deadline=None)
@given(
    keys=st.lists(st.sampled_from(["inputs", "model", "percentile", "coverage", "fields"]), min_size=1, max_size=7),
    escaped=st.lists(st.booleans(), min_size=7, max_size=7),
)
def test_a_duplicate_key_is_always_found(keys, escaped):
    """With any order and spelling of the keys."""
    values = {
        "inputs": "[[1,2]]",
        "model": '"a \\" true"',
        "percentile": "99",
        "coverage": "0.5",
        "fields": '["std","null"]',
    }
    spelt = [f"\\u{ord(key[0]):04x}{key[1:]}" if escape else key for key, escape in zip(keys, escaped, strict=False)]
    body = "{" + ",".join(f'"{text}":{values[key]}' for text, key in zip(spelt, keys, strict=True)) + "}"
    if len(set(keys)) < len(keys):
        assert refusal(body).startswith("body: duplicate key: ")
    elif "inputs" not in keys:
        assert refusal(body).startswith("body: inputs: ")
    else:
        np.testing.assert_array_equal(rows_of(body), np.float32([[1, 2]]))
