"""Reads netCDF files: those of ArviZ, with a group `posterior`, and others, whose variables are the parameters.

A netCDF4 file is an HDF5 file. It is read as such, because an HDF5 file may refer to other files, and state arrays of any size:
both are refused before an array is read.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from abstain.models.errors import AbstainError, DataError, clip_repr
from abstain.models.files.row_files import check_is_file, check_room
from abstain.training.importing.found import Arrays, Found

_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_DEPTH = 8
POSTERIOR = "posterior"


def read_netcdf(path: Path) -> Found:
    """Reads the variables of the group `posterior`, or of the whole file if it has no such group.

    Raises:
        DataError: the file is damaged, no netCDF4, refers to other files, or takes more memory than `data_limit`.
    """
    import h5py  # noqa: PLC0415 - only this reader needs it

    check_is_file(path)
    try:
        with path.open("rb") as file:
            head = file.read(len(_SIGNATURE))
        if head != _SIGNATURE:
            found = "an older netCDF" if head.startswith(b"CDF") else "something else"
            raise DataError(
                "cannot be read",
                where=str(path),
                expected="a netCDF4 file",
                found=found,
                fix='save it by ArviZ\'s to_netcdf with engine="h5netcdf"',
            )
        with h5py.File(path, "r") as file:
            arviz = POSTERIOR in file and isinstance(file.get(POSTERIOR), h5py.Group)
            return _read(file[POSTERIOR] if arviz else file, str(path), arviz=arviz)
    except AbstainError:
        raise
    except Exception as error:  # h5py raises many types of errors for a damaged file.
        found = str(error)[:300] or type(error).__name__
        raise DataError("cannot be read", where=str(path), expected="a netCDF4 file", found=found) from error


def _read(group: Any, where: str, *, arviz: bool) -> Found:
    variables = dict(_variables(group, where))
    taken = 0
    for name, variable in variables.items():
        taken = check_room(variable.dtype.itemsize * math.prod(variable.shape), f"{where}, {name}", "the draws", taken)
    arrays: Arrays = {}
    for name, variable in variables.items():
        dimensions = [scales[0].name.rpartition("/")[2] if len(scales) else "" for scales in variable.dims]
        if arviz and dimensions[:2] != ["chain", "draw"]:
            raise DataError(
                f"variable {name!r}",
                where=where,
                expected="the dimensions chain, draw, …",
                found=", ".join(dimensions) or "none",
                fix="save it as ArviZ does",
            )
        arrays[name] = np.asarray(variable[()])
    return Found("arviz" if arviz else "netcdf", where, arrays)


def _variables(group: Any, where: str, path: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Yields the variables of a group and of the groups inside it, but not the coordinates of dimensions."""
    import h5py  # noqa: PLC0415

    for name in group:
        place = f"{path}/{name}" if path else str(name)
        # A group may be inside of itself.
        if depth > _DEPTH or not isinstance(group.get(name, getlink=True), h5py.HardLink):
            raise _refused(place, where, "nested too deeply" if depth > _DEPTH else "a link")
        item = group[name]
        if isinstance(item, h5py.Group):
            yield from _variables(item, where, place, depth + 1)
        elif not isinstance(item, h5py.Dataset) or item.external or item.is_virtual:
            raise _refused(place, where, "numbers in another file")
        elif not item.is_scale:
            if item.dtype.kind not in "fiub":
                raise _refused(place, where, f"type {clip_repr(str(item.dtype))}")
            yield place, item


def _refused(name: str, where: str, found: str) -> DataError:
    return DataError(f"variable {clip_repr(name)}", where=where, expected="numbers in this file", found=found)
