"""The journal of a fit: it keeps finished work on disk, so that a resumed fit does not repeat it.

A fit is a sequence of passages (`map`, `warm-up`, `sampling` …), each a sequence of blocks. After every block its trace
and the state for the next block are written to disk atomically. An interrupted fit runs again from the start with the
same keys: finished passages return their saved result at once, and the interrupted one continues. So the resumed fit has
the same draws, bit for bit.

    FOLDER/fit.json               the settings of the fit
    FOLDER/PASSAGE/00007.npz      the trace of one block
    FOLDER/PASSAGE/state.npz      the state after the last block, and the number of steps in each block

Arrays are npz without pickle. Traces are read one at a time, so that a long run is never in memory as a whole.
"""

from __future__ import annotations

import math
import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from abstain.models.errors import ConfigError, DataError
from abstain.models.files.locks import disk_errors
from abstain.progress import ProgressCallback

RESUME = "free space there or make it writable, then run the same command with --resume: finished work is not repeated"
"""The advice if an error of the disk ends a fit."""
Trace = dict[str, np.ndarray]
"""The trace of a block: arrays by name, step axis 0."""
Block = Callable[[Any, int], tuple[Any, Trace, dict[str, float]]]
"""(state, steps) -> (next state, trace, figures to show)."""


class Passage(NamedTuple):
    """The result of a passage: the state at its end, and the traces of its blocks."""

    state: Any
    traces: Traces


class Traces:
    """The traces of a passage's blocks, from memory or from disk."""

    def __init__(self, blocks: Sequence[Trace | Path]) -> None:
        self._blocks = blocks

    def __iter__(self) -> Iterator[Trace]:
        """Yields the trace of each block."""
        return (_read(block) if isinstance(block, Path) else block for block in self._blocks)

    def column(self, name: str) -> np.ndarray:
        """Returns the values of one name over all steps."""
        parts = [_read(block, name)[name] if isinstance(block, Path) else block[name] for block in self._blocks]
        return np.concatenate(parts)

    def rows(self, name: str, steps: np.ndarray) -> np.ndarray:
        """Returns the values of one name at some steps (ascending), read block by block."""
        parts, first = [], 0
        for block in self._blocks:
            values = (_read(block, name) if isinstance(block, Path) else block)[name]
            inside = steps[(steps >= first) & (steps < first + len(values))] - first
            parts.append(values[inside])
            first += len(values)
        return np.concatenate(parts)


class Journal:
    """Runs the passages of a fit, reports progress, and keeps states and traces.

    Args:
        folder: the folder to write to; if None, everything stays in memory and the fit cannot be resumed.
        progress: called after every block.
    """

    def __init__(self, folder: Path | None = None, progress: ProgressCallback | None = None) -> None:
        self.folder = folder
        self.progress = progress

    def run(self, name: str, start: Callable[[], Any], block: Block, steps: int, reports: int) -> Passage:
        """Runs a passage of `steps` steps in about `reports` blocks, or the rest of it.

        Args:
            start: returns the state before the first block; also called when resuming, for the tree structure.
            block: advances a state by `steps` steps.
            reports: the number of blocks of a new passage; a lengthened passage keeps its block size.

        Raises:
            ConfigError: the passage has more steps than requested.
            DataError: the saved state cannot be read or belongs to another fit.
        """
        state = start()
        structure = jax.tree.structure(state)
        folder = self.folder / name if self.folder else None
        size, done = math.ceil(steps / reports), 0
        blocks: list[Trace | Path] = []
        if folder and (folder / "state.npz").is_file():
            leaves, size, sizes = _read_state(folder)
            state = jax.tree.unflatten(
                structure, [_restore_leaf(leaf, saved) for leaf, saved in _pair_leaves(state, leaves, folder)]
            )
            done = sum(sizes)
            blocks = [folder / f"{index:05}.npz" for index in range(len(sizes))]
            if done > steps:
                raise ConfigError(
                    "--resume",
                    where=str(folder),
                    expected=f"at least {done} steps of {name}, which are done",
                    found=steps,
                    fix="leave --resume out to start again",
                )
        elif folder:
            sizes = []
            with disk_errors(folder, RESUME):
                folder.mkdir(parents=True, exist_ok=True)
        else:
            sizes = []
        while done < steps:
            now = min(size, steps - done)
            state, trace, facts = block(state, now)
            done += now
            sizes.append(now)
            if folder:
                path = folder / f"{len(blocks):05}.npz"
                _write(path, trace)
                _write(folder / "state.npz", _state_arrays(state, size, sizes))
                blocks.append(path)
            else:
                blocks.append(trace)
            if self.progress:
                self.progress(done, steps, passage=name, **facts)
        return Passage(state, Traces(blocks))


def _state_arrays(state: Any, size: int, sizes: list[int]) -> dict[str, np.ndarray]:
    leaves = {f"leaf_{index:05}": _as_numpy(leaf) for index, leaf in enumerate(jax.tree.leaves(state))}
    return leaves | {"size": np.array(size), "sizes": np.array(sizes)}


def _read_state(folder: Path) -> tuple[list[np.ndarray], int, list[int]]:
    arrays = _read(folder / "state.npz")
    if not {"size", "sizes"} <= set(arrays):
        raise _wrong_state_error(folder, "size and sizes", ", ".join(arrays))
    leaves = [arrays[name] for name in sorted(arrays) if name.startswith("leaf_")]
    return leaves, int(arrays["size"]), arrays["sizes"].tolist()


def _pair_leaves(state: Any, leaves: list[np.ndarray], folder: Path) -> list[tuple[Any, np.ndarray]]:
    expected = jax.tree.leaves(state)
    forms = [(_as_numpy(leaf).shape, _as_numpy(leaf).dtype) for leaf in expected]
    if forms != [(leaf.shape, leaf.dtype) for leaf in leaves]:
        raise _wrong_state_error(folder, f"{len(expected)} arrays of this version's shapes", f"{len(leaves)} others")
    return list(zip(expected, leaves, strict=True))


def _wrong_state_error(folder: Path, expected: str, found: str) -> DataError:
    return DataError(
        "is not the state of this fit",
        where=str(folder / "state.npz"),
        expected=expected,
        found=found,
        fix="fit without --resume",
    )


def _as_numpy(leaf: Any) -> np.ndarray:
    """Converts a leaf to numpy, and a random key to its data."""
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return np.asarray(leaf)


def _restore_leaf(leaf: Any, saved: np.ndarray) -> Any:
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(jnp.asarray(saved))
    return jnp.asarray(saved) if isinstance(leaf, jax.Array) else saved


def _write(path: Path, arrays: dict[str, np.ndarray]) -> None:
    def save(file: IO[bytes]) -> None:
        np.savez(file, **arrays)  # pyright: ignore[reportArgumentType]

    with disk_errors(path, RESUME):
        write_atomically(path, save)


def write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Writes a temporary file and renames it once it is on disk; a failure leaves no file.

    Raises:
        OSError: the disk is full, read-only or fails.
    """
    part_file = path.with_suffix(".part")
    try:
        with part_file.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        part_file.replace(path)
    except BaseException:
        part_file.unlink(missing_ok=True)
        raise


def _read(path: Path, *names: str) -> Trace:
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            return {name: file[name] for name in names or file.files}
    # For a damaged file numpy and zipfile raise many types of exceptions.
    except (
        OSError,
        ValueError,
        KeyError,
        EOFError,
        TypeError,
        NotImplementedError,
        RuntimeError,
        struct.error,
        zlib.error,
        zipfile.BadZipFile,
    ) as error:
        raise DataError(
            "cannot be read", where=str(path), found=str(error), fix="fit without --resume to start again"
        ) from error
