"""Chooses the reader for a source by its paths: .npz, netCDF, .safetensors, or folders of Orbax checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from abstain.models.errors import DataError
from abstain.models.files.row_files import read_npz
from abstain.models.networks.specs import NetworkSpec
from abstain.training.importing.found import Found, imported_file, stack_members
from abstain.training.importing.netcdf import read_netcdf
from abstain.training.importing.orbax import read_checkpoint
from abstain.training.importing.safetensors import read_safetensors
from abstain.training.importing.torch_layers import with_flax_names

NETCDF = {".nc", ".nc4", ".netcdf", ".h5"}
KINDS = "one .npz or netCDF file, or the .safetensors files or Orbax checkpoints (folders) of an ensemble"


def read_found(paths: Sequence[Path], network: NetworkSpec, layers: tuple[str, ...]) -> Found:
    """Reads the arrays of a source.

    Args:
        paths: one file of draws, or one file or folder for each network of an ensemble.
        network: the network that the arrays are for; those of PyTorch are converted for built-in ones.
        layers: PyTorch's linear layers in their order; empty to find the order.

    Raises:
        DataError: a source cannot be read, is damaged, too large, or given twice; or the sources do not go together.
        ConfigError: PyTorch's arrays are for another network than `mlp`, or `layers` does not fit.
    """
    if not paths:
        raise DataError("sources", expected=KINDS, found="none", fix="name the files of the draws")
    for path in paths:
        if not path.exists():
            raise DataError("no such file or folder", where=str(path), expected=KINDS, fix="check the path")
    kinds = {_kind(path) for path in paths}
    if len(kinds) > 1 or (kinds & {"npz", "netcdf"} and len(paths) > 1):
        found = ", ".join(path.name for path in paths[:5])
        raise DataError("sources", expected=KINDS, found=found, fix="import sources of one kind; of draws, one file")
    resolved = [path.resolve() for path in paths]
    for index, path in enumerate(resolved):
        if path in resolved[:index]:
            raise DataError("source", where=str(path), expected="each network once", found="the same path twice")
    files = tuple(map(imported_file, paths))
    where, kind = str(paths[0]), kinds.pop()
    if kind == "npz":
        return Found("npz", where, read_npz(paths[0]), files)
    if kind == "netcdf":
        return read_netcdf(paths[0])._replace(files=files)
    if kind == "orbax":
        return stack_members({str(path): read_checkpoint(path) for path in paths}, "orbax", files)
    members = {str(path): with_flax_names(read_safetensors(path), network, layers, str(path)) for path in paths}
    return stack_members(members, "safetensors", files)


def _kind(path: Path) -> str:
    suffix = path.suffix.lower()
    if path.is_dir():
        return "orbax"
    if suffix == ".npz":
        return "npz"
    if suffix in NETCDF:
        return "netcdf"
    if suffix == ".safetensors":
        return "safetensors"
    unpickled = suffix in {".pt", ".pth", ".bin", ".pkl", ".pickle"}
    raise DataError(
        "kind of source",
        where=str(path),
        expected=KINDS,
        found=f"a file {path.name}",
        fix="it may hold pickled code, which is never read: save the state dict with safetensors.torch.save_file"
        if unpickled
        else "save the draws as an .npz",
    )
