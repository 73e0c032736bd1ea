"""One tensor for each column: what clients send becomes the rows of the same records, and each fault is named."""

import json
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from abstain.models.errors import AbstainError, InputError
from abstain.models.networks.architectures import MLPSpec
from abstain.models.prediction.posterior import Model
from abstain.models.prediction.preprocessing import Preprocessing
from abstain.models.tables.columns import Column
from abstain.service.open_inference.tensors import Signature, decode

LENGTH = "inference-header-content-length"
COLUMNS = (
    Column(name="age", missing=30.0),
    Column(name="job", categories=("0.1", "3", "nurse", "true"), missing=0.0),
    Column(name="since", kind="date", missing=0.0),
    Column(name="land", categories=("DE", "FR"), missing=0.0, unseen="reject"),
)


def model_of(*columns: Column) -> Model:
    """A model of a table with these columns."""
    width = len(columns)
    preprocessing = Preprocessing(shift=(0.0,) * width, scale=(1.0,) * width, columns=columns)
    names = tuple(column.name for column in columns)
    return Model(
        network=MLPSpec(), likelihood="normal", preprocessing=preprocessing, feature_shape=(width,), feature_names=names
    )


PEOPLE = model_of(*COLUMNS)
ARRAY = Model(network=MLPSpec(), likelihood="normal", feature_shape=(2,), feature_names=("x", "y"))


def tensor(name: str, datatype: str, data: list | None, **more) -> dict:
    """A tensor of two rows."""
    head = {"name": name, "datatype": datatype, "shape": [2], **more}
    return head if data is None else {**head, "data": data}


def people(**changes: dict | None) -> list[dict]:
    """A tensor for each column; None leaves a column out."""
    heads = {
        "land": tensor("land", "BYTES", ["FR", None]),
        "age": tensor("age", "FP64", [31, None]),
        "job": tensor("job", "BYTES", ["nurse", ""]),
        "since": tensor("since", "BYTES", ["1970-01-02", None]),
    }
    return [head for head in (heads | changes).values() if head is not None]


def rows_of(inputs: list, tail: bytes = b"", model: Model = PEOPLE) -> np.ndarray:
    """The rows of a request."""
    head = json.dumps({"inputs": inputs}).encode()
    headers = {LENGTH: str(len(head))} if tail else {}
    return decode(headers, head + tail, Signature(model, {}, ("people",)), max_rows=9, max_bytes=2**20).rows


def refusal(inputs: list, tail: bytes = b"", model: Model = PEOPLE) -> str:
    """The text of the error for a refused request."""
    with pytest.raises(InputError) as caught:
        rows_of(inputs, tail, model)
    return str(caught.value)


def test_tensors_in_any_order_are_rows():
    """Null and empty texts are missing values; the single tensor of numbers is still accepted."""
    expected = np.float32([[31, 2, 86_400, 1], [np.nan] * 4])
    np.testing.assert_array_equal(rows_of(people()), expected)
    np.testing.assert_array_equal(rows_of(people()[::-1]), expected)
    single = tensor("inputs", "FP32", [31, 2, 86_400, 1] * 2) | {"shape": [2, 4], "parameters": {"content_type": "np"}}
    np.testing.assert_array_equal(rows_of([single]), expected[[0, 0]])
    xy = [tensor("y", "INT32", [3, 4]), tensor("x", "FP32", [[1], [2]], shape=[2, 1])]
    np.testing.assert_array_equal(rows_of(xy, model=ARRAY), np.float32([[1, 3], [2, 4]]))


@pytest.mark.parametrize(
    ("change", "column", "expected"),
    [
        (tensor("job", "BOOL", [True, None]), 1, [3, np.nan]),
        (tensor("job", "INT64", [3, None]), 1, [1, np.nan]),
        (tensor("job", "FP64", [0.1, 3.0]), 1, [0, 1]),
        (tensor("job", "BYTES", ['"nurse"', "null"], parameters={"content_type": "pd_json"}), 1, [2, np.nan]),
        (tensor("job", "BYTES", ["true", "3"], parameters={"content_type": "pd_json"}), 1, [3, 1]),
        (tensor("job", "BYTES", ["nurse", "3"], parameters={"content_type": "str"}), 1, [2, 1]),
        (tensor("land", "BYTES", ["JP", "DE"]), 3, [-1, 0]),
        (tensor("age", "INT8", [-128, 127]), 0, [-128, 127]),
        (tensor("age", "BYTES", ["1.5", "null"], parameters={"content_type": "pd_json"}), 0, [1.5, np.nan]),
        (
            tensor("since", "BYTES", ["1970-01-01T00:00:01", ""], parameters={"content_type": "datetime"}),
            2,
            [1, np.nan],
        ),
    ],
)
def test_the_meaning_of_a_tensor(change, column, expected):
    """A number or boolean of a category is its text, not its code."""
    np.testing.assert_array_equal(rows_of(people(**{change["name"]: change}))[:, column], np.float32(expected))


def packed(*texts: bytes) -> bytes:
    """A BYTES tensor."""
    return b"".join(struct.pack("<I", len(text)) + text for text in texts)


@pytest.mark.parametrize(
    ("name", "datatype", "data", "expected"),
    [
        ("age", "FP32", np.float32([1.5, np.nan]).tobytes(), [1.5, np.nan]),
        ("age", "INT64", np.int64([7, -7]).tobytes(), [7, -7]),
        ("job", "BYTES", packed(b"nurse", b""), [2, np.nan]),
        ("job", "FP32", np.float32([0.1, np.nan]).tobytes(), [0, np.nan]),
        ("job", "BOOL", b"\1\1", [3, 3]),
        ("since", "BYTES", packed(b"1970-01-01", b""), [0, np.nan]),
    ],
)
def test_binary_tensors_are_rows(name, datatype, data, expected):
    """Beside tensors in JSON; two binary tensors follow each other in their order."""
    found = rows_of(people(**{name: tensor(name, datatype, None, parameters={"binary_data_size": len(data)})}), data)
    np.testing.assert_array_equal(found[:, [column.name for column in COLUMNS].index(name)], np.float32(expected))
    land = packed(b"DE", b"FR")
    both = people(
        **{
            "land": tensor("land", "BYTES", None, parameters={"binary_data_size": len(land)}),
            name: tensor(name, datatype, None, parameters={"binary_data_size": len(data)}),
        }
    )
    np.testing.assert_array_equal(rows_of(both, land + data)[:, 3], [0, 1])


@pytest.mark.parametrize(
    ("inputs", "text"),
    [
        (people(age=None), "inputs: columns are missing: expected age, found job, since, land; send a tensor for each"),
        (
            [*people(), tensor("pay", "FP64", [1, 2])],
            "inputs: unknown column: expected the columns age, job, since, land",
        ),
        ([*people(), people()[0]], "inputs[4]: name: expected each column once, found 'land'"),
        ([*people(), tensor("inputs", "FP64", [1, 2])], "inputs: unknown column: expected the columns age, job, since"),
        ([*people(), 7], "inputs[4]: expected a JSON object, found the number 7"),
        ([*people(), {"datatype": "FP64"}], "inputs[4]: name: expected the name of a column, found no key 'name'"),
        (people(age=tensor("age", "FP64", [1, 2], shape=[3])), "inputs.age: shape: expected 2 rows, as in the tensor"),
        (
            people(age=tensor("age", "FP64", [1, 2], shape=[2, 2])),
            "inputs.age: shape: expected [n] or [n, 1], found [2, 2]",
        ),
        (
            people(age=tensor("age", "FP64", [1, 2], shape=[True])),
            "inputs.age: shape: expected [n] or [n, 1], found [True",
        ),
        (people(land=tensor("land", "BYTES", [], shape=[0])), "inputs: expected at least one row, found 0"),
        (
            people(land=tensor("land", "BYTES", [], shape=[10])),
            "inputs: expected at most 9 rows, found 10; send them in",
        ),
        (people(age=tensor("age", "FP8", [1, 2])), "inputs.age: datatype: expected one of BYTES, BOOL, FP16, FP32"),
        (people(age=tensor("age", "FP64", [1])), "inputs.age: data: expected 2 values, as in shape, found 1"),
        (people(age=tensor("age", "FP64", None)), "inputs.age: data: expected a list of 2 values, found no key 'data'"),
        (people(age=tensor("age", "FP64", [1, "2"])), "inputs.age[1]: expected a value of FP64, or null for a missing"),
        (
            people(age=tensor("age", "FP64", [1, True])),
            "inputs.age[1]: expected a value of FP64, or null for a missing",
        ),
        (
            people(age=tensor("age", "INT8", [1, 128])),
            "inputs.age[1]: expected an integer from -128 to 127 (INT8), found 128",
        ),
        (
            people(age=tensor("age", "INT8", [None, 1.5])),
            "inputs.age[1]: expected an integer from -128 to 127 (INT8), found",
        ),
        (
            people(age=tensor("age", "FP64", [1, 1e39])),
            "inputs.age[1]: expected a finite number within float32's range, or",
        ),
        (
            people(age=tensor("age", "BYTES", ["31", "32"])),
            "inputs.age[0]: expected a number, or null for a missing value",
        ),
        (
            people(age=tensor("age", "BOOL", [True, False])),
            "inputs.age[0]: expected a number, or null for a missing value",
        ),
        (
            people(job=tensor("job", "BYTES", ["nurse", 3])),
            "inputs.job[1]: expected a value of BYTES, or null for a missing",
        ),
        (
            people(job=tensor("job", "BYTES", ["nurse", "nurze"])),
            "inputs.job[1]: the category was not in training: expected",
        ),
        (people(since=tensor("since", "FP64", [0, 1])), "inputs.since[0]: expected a date or time such as 2024-03-01"),
        (
            people(job=tensor("job", "BYTES", ["nurse", "x"], parameters={"content_type": "pd_json"})),
            "inputs.job[0]: expected JSON, as pd_json says, found the string 'nurse'",
        ),
        (
            people(job=tensor("job", "BYTES", ["[]", "{}"], parameters={"content_type": "pd_json"})),
            "inputs.job[0]: expected a category as text (0.1, 3, nurse, true), or null for a missing value, found a list",
        ),
        (
            people(age=tensor("age", "FP64", [1, 2], parameters={"content_type": "base64"})),
            "inputs.age: parameters: content_type: expected one of np, pd, or none, found 'base64'",
        ),
        (
            people(age=tensor("age", "FP64", [1, 2], parameters={"binary_data_size": 16})),
            "inputs.age: data: expected either data or binary_data_size, found both",
        ),
        (
            people(age=tensor("age", "FP64", None, parameters={"binary_data_size": 16})),
            "inputs.age: binary_data_size: expected a number of bytes, at most the 0 that are left after the JSON",
        ),
    ],
)
def test_a_wrong_tensor_is_named(inputs, text):
    """By the column, and the row of a wrong value."""
    assert refusal(inputs).startswith(text)


@pytest.mark.parametrize(
    ("name", "datatype", "data", "text"),
    [
        ("age", "FP64", b"\0" * 8, "inputs.age: binary_data_size: expected 16, for 2 rows of FP64, found 8"),
        (
            "age",
            "FP64",
            np.float64([0, np.inf]).tobytes(),
            "inputs.age[1]: expected a finite number within float32's range",
        ),
        ("job", "BOOL", b"\0\2", "inputs.job[1]: expected a byte 0 or 1, found 2"),
        ("job", "BYTES", packed(b"nurse"), "inputs.job[1]: expected a length in four bytes, and as many bytes of text"),
        (
            "job",
            "BYTES",
            packed(b"nurse", b"3", b"3"),
            "inputs.job: binary_data_size: expected 14, for 2 texts, found 19",
        ),
        ("job", "BYTES", packed(b"nurse", b"\xff"), "inputs.job[1]: expected text in UTF-8, found other bytes"),
        ("job", "BYTES", b"\xff\xff\xff\xffnurse", "inputs.job[0]: expected a length in four bytes, and as many bytes"),
    ],
)
def test_wrong_binary_data_are_named(name, datatype, data, text):
    """Lengths of texts are checked before they are read."""
    head = tensor(name, datatype, None, parameters={"binary_data_size": len(data)})
    assert refusal(people(**{name: head}), data).startswith(text)


def test_bytes_that_no_tensor_claims_are_refused():
    """They could be a tensor that the client has forgotten."""
    assert refusal(people(), b"abc") == "inputs: binary data: expected binary_data_size bytes, found 3 bytes more"


def test_a_column_named_inputs_leaves_the_single_tensor():
    """A tensor of this name is the single one, as ever."""
    one = model_of(Column(name="inputs", missing=0.0), Column(name="x", missing=0.0))
    assert refusal([tensor("inputs", "FP64", [1, 2]), tensor("x", "FP64", [1, 2])], model=one).startswith(
        "inputs: expected one tensor, named inputs, found 2"
    )


def test_many_columns_may_each_have_a_tensor():
    """More objects than a request with one tensor may have."""
    wide = model_of(*(Column(name=f"c{number}", missing=0.0) for number in range(1200)))
    heads = [tensor(f"c{number}", "FP32", [number, 1]) for number in range(1200)]
    assert rows_of(heads, model=wide)[0].tolist() == list(range(1200))


JUNK = st.one_of(
    st.none(), st.booleans(), st.integers(-(10**20), 10**20), st.floats(), st.text(max_size=3), st.just([])
)


@settings(max_examples=150, deadline=None)
@given(
    name=st.sampled_from([column.name for column in COLUMNS]),
    key=st.sampled_from(["name", "datatype", "shape", "data", "parameters"]),
    value=st.one_of(
        JUNK,
        st.sampled_from(["FP16", "UINT64", "BOOL", "BYTES"]),
        st.lists(JUNK, max_size=3),
        st.dictionaries(st.sampled_from(["binary_data_size", "content_type"]), JUNK),
    ),
    tail=st.binary(max_size=20),
)
def test_any_tensor_is_rows_or_a_client_error(name, key, value, tail):
    """No other exception is raised."""
    inputs = [head | ({key: value} if head["name"] == name else {}) for head in people()]
    try:
        rows = rows_of(inputs, tail)
    except AbstainError:
        return
    assert rows.shape == (2, 4)
