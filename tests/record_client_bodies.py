"""Records the requests that tritonclient and MLServer's PandasCodec make of four rows, for `test_client_bodies.py`.

    python tests/record_client_bodies.py tests/data/client_bodies.json [--url URL]

Run it in an environment of its own with pandas and `tritonclient[http]` or `mlserver`: the requests of what is not installed stay
as they are. With the URL of a server of the tests' model `crew`, tritonclient also sends its requests, and prints what it reads.
"""

import argparse
import base64
import importlib.util
import json
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import numpy as np

AGES = [31.0, None, 40.5, 64.0]
WHOLE_AGES = [31, 30, 40, 64]
JOBS = ["nurse", None, "1", "pilot"]
"""A category, a missing one, one that is a number, and one that was not in training."""
NIGHTS = [True, False, True, False]
DATES = ["2019-03-01", "2011-12-24T10:00:00", None, "2015-06-30"]


def main() -> None:
    """Replaces the requests of the clients that are installed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--url")
    options = parser.parse_args()
    recorded = json.loads(options.file.read_text()) if options.file.exists() else {}
    for package, record in (("tritonclient", triton_requests), ("mlserver", mlserver_requests)):
        if importlib.util.find_spec(package):
            recorded = {name: one for name, one in recorded.items() if not one["client"].startswith(package)}
            recorded |= {name: {"client": f"{package} {version(package)}", **one} for name, one in record(options.url)}
    options.file.write_text(json.dumps(dict(sorted(recorded.items())), indent=1) + "\n")


def entry(body: bytes, ages: list, length: int | None = None) -> dict:
    """A request and the records that it means; `length` is that of the JSON, if bytes follow it."""
    names = ("age", "job", "night", "since")
    records = [dict(zip(names, row, strict=True)) for row in zip(ages, JOBS, NIGHTS, DATES, strict=True)]
    content = {"length": length, "base64": base64.b64encode(body).decode()} if length else {"body": body.decode()}
    return {"records": records, **content}


def triton_requests(url: str | None) -> Iterator[tuple[str, dict]]:
    """One tensor for each column, with the types of several arrays."""
    ages = np.array([np.nan if age is None else age for age in AGES])
    nights = np.array(NIGHTS)
    yield from triton_request("triton binary FP64", AGES, ages, nights, url)
    yield from triton_request("triton binary FP32", AGES, ages.astype(np.float32), nights, url)
    yield from triton_request("triton binary INT64", WHOLE_AGES, np.array(WHOLE_AGES), nights, url)
    yield from triton_request("triton JSON INT64", WHOLE_AGES, np.array(WHOLE_AGES), nights, url)
    yield from triton_request("triton JSON FP32", WHOLE_AGES, np.float32(WHOLE_AGES), nights, url)
    texts = np.array(["true", "False", "TRUE", "false"], dtype=object)
    yield from triton_request("triton binary BYTES", AGES, ages, texts, url)
    yield from triton_request("triton JSON BYTES", WHOLE_AGES, np.array(WHOLE_AGES), texts, url)


def triton_request(
    name: str, meant: list, ages: np.ndarray, nights: np.ndarray, url: str | None
) -> Iterator[tuple[str, dict]]:
    """The request of some arrays, binary or JSON by its name; sent, too, if there is a server."""
    import tritonclient.http as triton
    from tritonclient.utils import np_to_triton_dtype

    binary = "binary" in name
    job, since = (np.array([value or "" for value in column], dtype=object) for column in (JOBS, DATES))
    inputs = []
    for column, array in {"since": since, "night": nights, "job": job, "age": ages}.items():
        tensor = triton.InferInput(column, [4, 1], np_to_triton_dtype(array.dtype))
        inputs.append(tensor.set_data_from_numpy(array.reshape(4, 1), binary_data=binary))
    wanted = ("label", "probabilities", "reject")
    outputs = [triton.InferRequestedOutput(output, binary_data=binary) for output in wanted]
    body, length = triton.InferenceServerClient.generate_request_body(inputs, outputs=outputs)
    yield name, entry(body if isinstance(body, bytes) else body.encode(), meant, length)
    if url:
        found = triton.InferenceServerClient(url.removeprefix("http://")).infer("crew", inputs, outputs=outputs)
        print(name, *(found.as_numpy(output).tolist() for output in wanted))


def mlserver_requests(_: str | None) -> Iterator[tuple[str, dict]]:
    """Frames by the codec, as the guide of MLServer sends them."""
    import pandas as pd
    from mlserver.codecs import PandasCodec

    # MLServer 1.7 takes no dates, no nullable types and no text type of pandas, and no gaps in columns of objects.
    texts = {
        name: pd.Series([value or "" for value in column], dtype=object)
        for name, column in (("job", JOBS), ("since", DATES))
    }
    frame = pd.DataFrame({"age": pd.Series(AGES, dtype=float), "night": NIGHTS, **texts})
    mixed = {"age": [31, 30.0, 40, 64], "night": [True, "False", "true", False], "job": ["nurse", "", 1, "pilot"]}
    frames = {
        "mlserver floats": (AGES, frame),
        "mlserver integers": (WHOLE_AGES, frame.assign(age=WHOLE_AGES)),
        "mlserver objects": (
            WHOLE_AGES,
            frame.assign(**{name: pd.Series(column, dtype=object) for name, column in mixed.items()}),
        ),
    }
    for name, (meant, content) in frames.items():
        request = PandasCodec.encode_request(content, use_bytes=False)
        yield name, entry(json.dumps(request.model_dump()).encode(), meant)
    request = PandasCodec.encode_request(frame)
    yield "mlserver bytes", entry(request.model_dump_json().encode(), AGES)


if __name__ == "__main__":
    main()
