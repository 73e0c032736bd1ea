"""Reads the arrays of an Orbax checkpoint: of variables, of a `TrainState`, or of a step of a `CheckpointManager`."""

from __future__ import annotations

import importlib
import logging
import math
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np

from abstain.models.errors import AbstainError, DataError
from abstain.models.files.row_files import check_room
from abstain.training.importing.found import Arrays

NO_PARAMETERS = {"opt_state", "step", "tx", "apply_fn"}
"""Entries of a `TrainState` at the top that no prediction depends on; they are not read."""
_NNX_VALUE = ".value"


def read_checkpoint(folder: Path) -> Arrays:
    """Reads the arrays of one checkpoint by their path, joined by dots, without the state of an optimiser.

    The shapes in the checkpoint's metadata are checked before anything is read.

    Raises:
        DataError: the folder is no checkpoint of Orbax, or a folder of several, or takes more memory than `data_limit`.
    """
    place = _place(folder)
    try:
        with _without_log():
            return _read(place)
    except AbstainError:
        raise
    except Exception as error:  # Orbax and TensorStore raise many types of errors for a damaged checkpoint.
        lines = [line for line in str(error).splitlines() if line]
        found = (lines or [type(error).__name__])[0][:300]
        raise DataError("cannot be read", where=str(folder), expected="an Orbax checkpoint", found=found) from error


def _place(folder: Path) -> Path:
    """Returns the folder with the arrays: a step of a `CheckpointManager` has them in `default`."""
    for place in (folder, folder / "default"):
        if (place / "_METADATA").is_file():
            return place
    steps = sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal() and path.is_dir())
    raise DataError(
        "cannot be read",
        where=str(folder),
        expected="an Orbax checkpoint, which has a file _METADATA",
        found=f"the steps {', '.join(map(str, steps[:5]))}" if steps else "a folder without it",
        fix=f"name one step, such as {folder / str(steps[-1])}" if steps else "name the folder of one checkpoint",
    )


def _read(folder: Path) -> Arrays:
    ocp: Any = importlib.import_module("orbax.checkpoint")
    with ocp.PyTreeCheckpointer() as checkpointer:
        # Orbax wants an absolute path.
        place = folder.resolve()
        found = checkpointer.metadata(place)
        tree: Any = getattr(found, "item_metadata", found)
        tree = getattr(tree, "tree", tree)
        if not isinstance(tree, dict):
            raise DataError("checkpoint", where=str(folder), expected="a dict of arrays", found=type(tree).__name__)
        wanted: dict[str, Any] = {
            name: branch for name, branch in cast("dict[str, Any]", tree).items() if name not in NO_PARAMETERS
        }
        leaves: Any = jax.tree.leaves(wanted)
        shapes = [(getattr(leaf, "shape", None) or (), getattr(leaf, "dtype", None)) for leaf in leaves]
        check_room(sum(math.prod(shape) * np.dtype(kind or "f8").itemsize for shape, kind in shapes), str(folder))
        as_numpy: Any = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted)
        arguments = ocp.args.PyTreeRestore(item=wanted, restore_args=as_numpy, partial_restore=True)
        restored: Any = checkpointer.restore(place, args=arguments)
    return {
        _name(path): np.asarray(leaf)
        for path, leaf in cast("list[tuple[Any, Any]]", jax.tree.leaves_with_path(restored))
    }


def _name(path: Any) -> str:
    """Returns the path with dots; NNX saves the number of a variable under `value`."""
    return jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(_NNX_VALUE)


@contextmanager
def _without_log() -> Generator[None]:
    """Switches Orbax's log off, which repeats the errors that it raises with their tracebacks."""
    logger = logging.getLogger("absl")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before
