"""Reads the files that `abstain predict` writes."""

import json

import numpy as np
import pyarrow as pa
from pyarrow import csv, parquet


def read_predictions(path):
    """A file of predictions as columns, for any ending; JSON lines are flattened as in the other formats."""
    if path.suffix == ".npz":
        with np.load(path) as file:
            return {name: file[name].tolist() for name in file.files}
    if path.suffix == ".parquet":
        return parquet.read_table(path).to_pydict()
    if path.suffix == ".csv":
        text = csv.ConvertOptions(column_types={"label": pa.string(), "prediction_set": pa.string()})
        return csv.read_csv(path, convert_options=text).to_pydict()

    def flat(value, name=""):
        if isinstance(value, dict):
            return {k: v for key, part in value.items() for k, v in flat(part, f"{name}.{key}".strip(".")).items()}
        if isinstance(value, list) and not all(isinstance(part, str) for part in value):
            return {f"{name}.{index}": part for index, part in enumerate(value)}
        return {name: "|".join(value) if isinstance(value, list) else value}

    rows = [flat(json.loads(line)) for line in path.read_text("utf-8").splitlines()]
    return {name: [row[name] for row in rows] for name in rows[0]}
