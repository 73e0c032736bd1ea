"""Numbers as categories: one row through every door, for integers beyond 64 bits and for floats of few digits."""

import io
import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from abstain.models.errors import InputError
from abstain.models.networks.architectures import MLPSpec
from abstain.models.prediction.posterior import Model
from abstain.models.prediction.preprocessing import Preprocessing
from abstain.models.tables.columns import Column
from abstain.service.client.rows import rows_to_send
from abstain.service.open_inference.tensors import Signature, decode
from abstain.service.predict.request import parse_predict, rows_of_request
from abstain.service.predict.table_bodies import ARROW, CSV, rows_of_body
from abstain.service.python_rows import rows_of

LARGE = [2**63, 2**64 - 1, 2**64, 2**70, -(2**63), -(2**63) - 1, 2**63 - 1, 2**53 + 1]
SIGNED, UNSIGNED = (
    [number for number in LARGE if low <= number < high] for low, high in ((-(2**63), 2**63), (0, 2**64))
)
FEW = np.array([0.1, 0.7, 0.25], np.float32)


def model_of(categories, na_values=()):
    """A model of a number and a category, whose rows are float64."""
    columns = (
        Column(name="n", missing=0.0, na_values=na_values),
        Column(name="c", categories=tuple(categories), missing=0.0, na_values=na_values),
    )
    scaling = {"shift": (0.0,) * 2, "scale": (1.0,) * 2, "origin": (1e9, 0.0), "unit": (1.0,) * 2}
    return Model(
        network=MLPSpec(),
        likelihood="normal",
        preprocessing=Preprocessing(**scaling, columns=columns),
        feature_shape=(2,),
        feature_names=("n", "c"),
    )


def predict(body, model):
    """The rows of a body of `/predict`."""
    return rows_of_request(parse_predict(body, 100), model, 100)


def client(rows, model):
    """The rows that a client sends."""
    return predict(rows_to_send(rows).select(["n", "c"], ["c"]).body(slice(0, None), {}), model)


def arrow(values, model):
    """The rows of an Arrow body."""
    sink, rows = io.BytesIO(), pa.table({"n": values, "c": values})
    with pa.ipc.new_stream(sink, rows.schema) as writer:
        writer.write_table(rows)
    return rows_of_body(sink.getvalue(), ARROW, model, 100)[0]


def infer(values, datatype, model, codec=None):
    """The rows of a request of `/v2`: JSON, or the bytes of an array."""
    binary = isinstance(values, np.ndarray)
    parameters = {"binary_data_size": values.nbytes} if binary else {"content_type": codec} if codec else {}
    head = {"datatype": datatype, "shape": [len(values)], "parameters": parameters}
    inputs = [{"name": name, **head, **({} if binary else {"data": values})} for name in "nc"]
    text = json.dumps({"inputs": inputs}).encode()
    tail = values.tobytes() * 2 if binary else b""
    headers = {"inference-header-content-length": str(len(text))}
    return decode(headers, text + tail, Signature(model, {}, ("m",)), max_rows=100, max_bytes=2**20).rows


def records(values):
    """The values as records."""
    return [{"n": value, "c": value} for value in values]


@pytest.mark.parametrize(
    ("values", "door"),
    [
        (LARGE, lambda rows, model: predict(json.dumps({"records": records(rows)}).encode(), model)),
        (
            LARGE,
            lambda rows, model: predict(
                json.dumps({"columns": ["c", "n"], "data": [[row, row] for row in rows]}).encode(), model
            ),
        ),
        (
            LARGE,
            lambda rows, model: rows_of_body(
                "".join(["n,c\n", *(f"{row},{row}\n" for row in rows)]).encode(), CSV, model, 100
            )[0],
        ),
        (LARGE, lambda rows, model: infer([json.dumps(row) for row in rows], "BYTES", model, "pd_json")),
        (LARGE, lambda rows, model: rows_of(records(rows), model)),
        (LARGE, lambda rows, model: rows_of(pd.DataFrame(records(rows), dtype=object), model)),
        (LARGE, lambda rows, model: client(records(rows), model)),
        (LARGE, lambda rows, model: arrow(pa.array(rows, pa.decimal128(38, 0)), model)),
        (UNSIGNED, lambda rows, model: arrow(pa.array(rows, pa.uint64()), model)),
        (UNSIGNED, lambda rows, model: infer(rows, "UINT64", model)),
        (UNSIGNED, lambda rows, model: infer(np.array(rows, np.uint64), "UINT64", model)),
        (UNSIGNED, lambda rows, model: client(pd.DataFrame(records(rows), dtype=np.uint64), model)),
        (SIGNED, lambda rows, model: infer(rows, "INT64", model)),
        (SIGNED, lambda rows, model: infer(np.array(rows, np.int64), "INT64", model)),
    ],
)
def test_a_large_integer_is_the_same_at_every_door(values, door):
    """As a number the nearest float64, as a category with all of its digits."""
    categories = sorted(map(str, LARGE))
    expected = [[float(value), categories.index(str(value))] for value in values]
    np.testing.assert_array_equal(door(values, model_of(categories)), expected)


@pytest.mark.parametrize(
    ("datatype", "number"), [("INT64", 2**63), ("INT64", -(2**63) - 1), ("UINT64", 2**64), ("UINT64", -1)]
)
def test_an_integer_beyond_its_datatype_is_refused(datatype, number):
    """The limits are those of the text, before it becomes a float."""
    with pytest.raises(InputError, match=rf"inputs.n\[0\]: expected an integer from .*{datatype}"):
        infer([number], datatype, model_of(["1"]))


@pytest.mark.parametrize(
    "door",
    [
        lambda rows, model: rows_of(pd.DataFrame({"n": rows, "c": rows}), model),
        lambda rows, model: rows_of(pd.DataFrame({"n": rows, "c": rows}).to_dict("records"), model),
        lambda rows, model: rows_of(records(rows), model),
        lambda rows, model: client(pd.DataFrame({"n": rows, "c": rows}), model),
        lambda rows, model: client(pa.table({"n": rows, "c": rows}), model),
        lambda rows, model: client(records(rows), model),
        lambda rows, model: arrow(pa.array(rows), model),
        lambda rows, model: infer(rows, "FP32", model),
        lambda rows, model: predict(json.dumps({"records": records(rows.tolist())}).encode(), model),
    ],
)
@pytest.mark.parametrize("na_values", [(), ("-9",)])
def test_a_float32_is_its_shortest_text_as_a_category_and_its_value_as_a_number(door, na_values):
    """Also after it became a float64 on its way."""
    found = door(FEW, model_of(["0.1", "0.25", "0.7"], na_values))
    np.testing.assert_array_equal(found, np.stack([FEW.astype(np.float64), [0, 2, 1]], axis=1))


def test_a_float64_that_no_float32_is_equal_to_keeps_its_text():
    """0.10000000149011613 is another category than 0.1; so is the widened float32, if it has a name of its own."""
    with pytest.raises(InputError, match="the category was not in training"):
        rows_of([{"n": 0, "c": 0.10000000149011613}], model_of(["0.1"]))
    assert rows_of([{"n": 0, "c": float(FEW[0])}], model_of(["0.1", "0.10000000149011612"]))[0, 1] == 1
