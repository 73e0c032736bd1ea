"""The journal of a fit: what has been done is written down, and not done again.

A fit is a story of passages (`map`, `warm-up`, `sampling` …), each a run of blocks. After every block its trace and the
state that the next block starts from are on disk, each renamed into place. A fit that was killed tells its story again
from the top with the same keys: passages that were finished return at once what they came to, and one that was cut off
goes on where it was. So the resumed fit ends in the same draws, bit for bit.

    FOLDER/fit.json               what is being fitted; another fit's journal is refused
    FOLDER/PASSAGE/00007.npz      the trace of one block
    FOLDER/PASSAGE/state.npz      the state after the last block, and how many blocks there are

Arrays are npz without pickle. Traces are read back one by one, so that a long run never lies in memory as a whole.
"""

from __future__ import annotations

import math
import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from abstain.models.errors import ConfigError, DataError
from abstain.models.files.locks import disk_errors

RESUME = "free space there or make it writable, then run the same command with --resume: what is done is not done again"
"""What to do where a disk ends a fit."""
Trace = dict[str, np.ndarray]
"""What a block leaves behind, step axis 0."""
Block = Callable[[Any, int], tuple[Any, Trace, dict[str, float]]]
"""(state, steps) -> (next state, trace, figures to show)."""


@runtime_checkable
class Progress(Protocol):
    """Where a fit says how far it is; the CLI draws a bar of it, a test may record it."""

    def __call__(self, done: int, total: int, passage: str = "", **facts: float) -> None:
        """`done` of `total` steps of a passage are behind us, and these are the latest figures."""


class Passage(NamedTuple):
    """What a passage came to: the state at its end, and the traces of its blocks."""

    state: Any
    traces: Traces


class Traces:
    """The traces of a passage's blocks, from memory or from disk."""

    def __init__(self, blocks: Sequence[Trace | Path]) -> None:
        self._blocks = blocks

    def __iter__(self) -> Iterator[Trace]:
        """One block's trace after the other."""
        return (_read(block) if isinstance(block, Path) else block for block in self._blocks)

    def column(self, name: str) -> np.ndarray:
        """One name's values over all steps."""
        parts = [_read(block, name)[name] if isinstance(block, Path) else block[name] for block in self._blocks]
        return np.concatenate(parts)

    def rows(self, name: str, steps: np.ndarray) -> np.ndarray:
        """One name's values at some steps (ascending), read block by block."""
        parts, first = [], 0
        for block in self._blocks:
            values = (_read(block, name) if isinstance(block, Path) else block)[name]
            here = steps[(steps >= first) & (steps < first + len(values))] - first
            parts.append(values[here])
            first += len(values)
        return np.concatenate(parts)


class Journal:
    """Runs the passages of a fit, shows how far they are, and keeps what they leave.

    Args:
        folder: where to write; without one, all stays in memory and nothing can be resumed.
        progress: told after every block.
    """

    def __init__(self, folder: Path | None = None, progress: Progress | None = None) -> None:
        self.folder = folder
        self.progress = progress

    def run(self, name: str, start: Callable[[], Any], block: Block, steps: int, reports: int) -> Passage:
        """Runs a passage of `steps` steps in about `reports` blocks, or what is left of it.

        Args:
            start: the state that the first block starts from; also called on the way to a resumed one, for its form.
            block: takes a state `steps` steps further.
            reports: into how many blocks a fresh passage is cut. A lengthened one keeps its blocks' size.
        """
        state = start()
        structure = jax.tree.structure(state)
        folder = self.folder / name if self.folder else None
        size, done = math.ceil(steps / reports), 0
        blocks: list[Trace | Path] = []
        if folder and (folder / "state.npz").is_file():
            leaves, size, sizes = _read_state(folder)
            state = jax.tree.unflatten(structure, [_like(leaf, kept) for leaf, kept in _paired(state, leaves, folder)])
            done = sum(sizes)
            blocks = [folder / f"{place:05}.npz" for place in range(len(sizes))]
            if done > steps:
                raise ConfigError(
                    "--resume",
                    where=str(folder),
                    expected=f"at least the {done} steps of {name} that are done",
                    found=steps,
                    fix="leave --resume out to begin anew",
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
    leaves = {f"leaf_{place:05}": _plain(leaf) for place, leaf in enumerate(jax.tree.leaves(state))}
    return leaves | {"size": np.array(size), "sizes": np.array(sizes)}


def _read_state(folder: Path) -> tuple[list[np.ndarray], int, list[int]]:
    arrays = _read(folder / "state.npz")
    if not {"size", "sizes"} <= set(arrays):
        raise _foreign(folder, "size and sizes", ", ".join(arrays))
    leaves = [arrays[name] for name in sorted(arrays) if name.startswith("leaf_")]
    return leaves, int(arrays["size"]), arrays["sizes"].tolist()


def _paired(state: Any, leaves: list[np.ndarray], folder: Path) -> list[tuple[Any, np.ndarray]]:
    expected = jax.tree.leaves(state)
    forms = [(_plain(leaf).shape, _plain(leaf).dtype) for leaf in expected]
    if forms != [(leaf.shape, leaf.dtype) for leaf in leaves]:
        raise _foreign(folder, f"{len(expected)} arrays of this version's shapes", f"{len(leaves)} others")
    return list(zip(expected, leaves, strict=True))


def _foreign(folder: Path, expected: str, found: str) -> DataError:
    return DataError(
        "does not hold the state of this fit",
        where=str(folder / "state.npz"),
        expected=expected,
        found=found,
        fix="fit without --resume",
    )


def _plain(leaf: Any) -> np.ndarray:
    """A leaf as numpy; a PRNG key by its data."""
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return np.asarray(leaf)


def _like(leaf: Any, kept: np.ndarray) -> Any:
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(jnp.asarray(kept))
    return jnp.asarray(kept) if isinstance(leaf, jax.Array) else kept


def _write(path: Path, arrays: dict[str, np.ndarray]) -> None:
    def save(file: IO[bytes]) -> None:
        np.savez(file, **arrays)  # pyright: ignore[reportArgumentType]

    with disk_errors(path, RESUME):
        write_beside(path, save)


def write_beside(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Writes a file beside, and renames it into place once it is on the disk; what fails leaves nothing.

    Raises:
        OSError: the disk is full, read-only or fails.
    """
    beside = path.with_suffix(".part")
    try:
        with beside.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def _read(path: Path, *names: str) -> Trace:
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            return {name: file[name] for name in names or file.files}
    # What a damaged file makes numpy and zipfile raise is of many kinds: a lone array has no `with`, an empty file no end.
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
            "cannot be read", where=str(path), found=str(error), fix="fit without --resume to begin again"
        ) from error
