"""Writes `.safetensors` by hand: the length of the header, the header, and the numbers."""

import json
from pathlib import Path

import numpy as np

NAMES = {"float32": "F32", "float64": "F64", "float16": "F16", "int64": "I64"}


def header_of(arrays: dict[str, np.ndarray]) -> dict[str, dict[str, object]]:
    """The header's entries."""
    header, position = {}, 0
    for name, array in arrays.items():
        end = position + array.nbytes
        header[name] = {
            "dtype": NAMES[str(array.dtype)],
            "shape": list(array.shape),
            "data_offsets": [position, end],
        }
        position = end
    return header


def write_safetensors(path: Path, arrays: dict[str, np.ndarray], header: object = None) -> Path:
    """Writes the arrays, with another header if one is given."""
    text = json.dumps(header_of(arrays) if header is None else header).encode()
    numbers = b"".join(np.ascontiguousarray(array).tobytes() for array in arrays.values())
    path.write_bytes(len(text).to_bytes(8, "little") + text + numbers)
    return path
