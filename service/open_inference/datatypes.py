"""What all input tensors of the Open Inference Protocol share: datatypes, limits of their numbers, and parameters."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from typing import Any

import numpy as np

from abstain.models.errors import InputError, clip_repr
from abstain.service.json_objects import text_of

INPUT = "inputs"
DATATYPES: dict[str, np.dtype[Any]] = {
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
    **{f"INT{bits}": np.dtype(f"<i{bits // 8}") for bits in (8, 16, 32, 64)},
    **{f"UINT{bits}": np.dtype(f"<u{bits // 8}") for bits in (8, 16, 32, 64)},
}


def check_rows_count(rows: int, max_rows: int) -> int:
    """Returns a number of rows that a request may have.

    Raises:
        InputError: gives the limit.
    """
    if rows < 1:
        raise InputError(where=INPUT, expected="at least one row", found=clip_repr(rows))
    if rows > max_rows:
        raise InputError(
            where=INPUT, expected=f"at most {max_rows} rows", found=clip_repr(rows), fix="send them in several requests"
        )
    return rows


def check_content_type(parameters: dict[str, Any], where: str, known: tuple[str, ...]) -> str | None:
    """Returns the parameter `content_type`, by which clients of MLServer name a codec; None if there is none.

    Raises:
        InputError: it is none of the known ones.
    """
    codec = text_of(parameters, "content_type", where)
    if codec is not None and codec not in known:
        raise InputError(
            "content_type", where=where, expected=f"one of {', '.join(known)}, or none", found=clip_repr(codec)
        )
    return codec


def refuse_other_numbers(data: list[Any], datatype: str, place: Callable[[int], str]) -> None:
    """Refuses numbers in JSON that the datatype cannot hold: fractions of integers, and numbers beyond its exact limits.

    Args:
        data: finite numbers, nested or flat, as the client sent them, because float32 rounds integers.
        place: returns the place of a number in the request, from its index.
    """
    kind, bits = DATATYPES[datatype].kind, 8 * DATATYPES[datatype].itemsize
    if kind == "f" and bits > 16:
        return
    while data and isinstance(data[0], list):
        data = list(chain.from_iterable(data))
    numbers = np.array(data, np.float64)
    if kind == "f":
        limits, expected = np.finfo(np.float16), "a number"
        fits = np.abs(numbers) <= float(limits.max)
    else:
        limits, expected = np.iinfo(DATATYPES[datatype]), "an integer"
        fits = (numbers == np.trunc(numbers)) & (numbers >= float(limits.min)) & (numbers <= float(limits.max))
        # Beyond 2⁵³, float64 rounds integers as well.
        for index in np.flatnonzero(fits & (np.abs(numbers) >= 2.0**53)):
            fits[index] = int(limits.min) <= int(data[index]) <= int(limits.max)
    if not fits.all():
        first = int(np.argmin(fits))
        raise InputError(
            place(first), expected=f"{expected} from {limits.min} to {limits.max} ({datatype})", found=data[first]
        )
