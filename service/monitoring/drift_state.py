"""The state of drift detection that a worker keeps over restarts, in the folder that `ABSTAIN_STATE` names.

    STATE/drift/DIGEST/of-WORKERS/worker-1.epoch-37.npz

There is one file for each version (by its digest) and worker. Every epoch has a share of the probability of a false
alarm, and no share may be used twice. So the epoch's number is part of the file's name, where damage to the contents
cannot change it, and the file is written before the epoch's first row is watched. The contents are complete only after a
clean stop; the file of a running worker holds only the times of alarms. Therefore a worker that stops and starts again
continues where it was, and one that is killed, or replaces a killed one, starts the next epoch.

With another number of workers, each has another share of an epoch. So each number of workers has its own folder, and
starts with an epoch after those of all other folders: the shares of one epoch never add up to more than the whole.
"""

from __future__ import annotations

import fcntl
import io
import logging
import os
import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from abstain.models.decisions import drift

log = logging.getLogger("abstain.drift")

FORMAT = 1
_UNREADABLE = (OSError, ValueError, KeyError, EOFError, RuntimeError, MemoryError, zipfile.BadZipFile, zlib.error)
"""What zipfile and numpy raise for a damaged file; RuntimeError for one that seems to be encrypted."""


class SavedWatch(NamedTuple):
    """The state from which a watch continues.

    Attributes:
        epoch: the number of the epoch, from 1.
        crossed: when each score's martingale was last at its alarm level, in seconds since 1970; 0 for never.
        watch: the state within the epoch; None if the epoch starts.
        window: the scores of the last rows.
    """

    epoch: int
    crossed: Float[np.ndarray, " scores"]
    watch: drift.EpochState | None = None
    window: Float[np.ndarray, "scores rows"] | None = None


class StateFile:
    """The file of one version's watch in one worker; locked by this process until it ends.

    Raises:
        OSError: the folder cannot be written, or another process holds the file.
    """

    def __init__(self, state: Path, digest: str, worker: int, workers: int) -> None:
        self._folder = state / "drift" / digest.removeprefix("sha256:") / f"of-{workers}"
        self._name = f"worker-{worker}"
        self._folder.mkdir(parents=True, exist_ok=True)
        # The system releases the lock when the process ends, however it ends.
        self._lock = (self._folder / f"{self._name}.lock").open("wb")
        fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def load(self, scores: int, calibration_rows: int) -> SavedWatch:
        """Loads the saved state; renames a damaged file and starts the next epoch.

        Args:
            scores: the number of watched scores.
            calibration_rows: the number of calibration values of each score.
        """
        fresh = SavedWatch(1 + max(map(_last_epoch, self._other_numbers_of_workers()), default=0), np.zeros(scores))
        last = _last_epoch(self._folder, self._name)
        if not last:
            return fresh
        following = fresh._replace(epoch=max(fresh.epoch, last + 1))
        path = self._path(last)
        if not path.exists():
            return following
        try:
            saved = _parse(path.read_bytes(), last, scores, calibration_rows)
        except _UNREADABLE as error:
            renamed = path.with_suffix(".damaged")
            path.rename(renamed)
            log.warning("%s is damaged (%s); renamed to %s, epoch %d starts", path, error, renamed, following.epoch)
            return following
        if saved.watch is None or last < fresh.epoch:
            return following._replace(crossed=saved.crossed)
        return saved

    def save(self, saved: SavedWatch) -> None:
        """Writes the file under another name, renames it, and removes the files of earlier epochs.

        A failure is logged, not raised: the watch continues.
        """
        draft = self._folder / f"{self._name}.draft"
        try:
            with draft.open("wb") as file:
                file.write(_serialize(saved))
                file.flush()
                os.fsync(file.fileno())
            draft.rename(self._path(saved.epoch))
            for earlier in self._folder.glob(f"{self._name}.epoch-*.npz"):
                if _epoch_of(earlier) < saved.epoch:
                    earlier.unlink()
        except OSError as error:
            log.error("%s: the state of the drift watch cannot be written: %s", self._path(saved.epoch), error)

    def close(self) -> None:
        """Releases the lock of the file."""
        self._lock.close()

    def _path(self, epoch: int) -> Path:
        return self._folder / f"{self._name}.epoch-{epoch}.npz"

    def _other_numbers_of_workers(self) -> list[Path]:
        return [folder for folder in self._folder.parent.glob("of-*") if folder != self._folder]


def _last_epoch(folder: Path, worker: str = "worker-*") -> int:
    """Returns the largest epoch in the names of a folder's files; 0 if there is none."""
    return max(map(_epoch_of, folder.glob(f"{worker}.epoch-*")), default=0)


def _epoch_of(path: Path) -> int:
    number = path.stem.rpartition("-")[2]
    return int(number) if number.isdecimal() else 0


def _serialize(saved: SavedWatch) -> bytes:
    arrays: dict[str, np.ndarray] = {"format": np.array(FORMAT), "crossed": saved.crossed}
    if saved.watch is not None and saved.window is not None:
        watch = saved.watch
        arrays |= {"ranked": np.stack(watch.ranked), "counts": watch.counts, "begun": watch.begun}
        arrays |= {"window": saved.window}
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, **arrays)
    return file.getvalue()


def _parse(content: bytes, epoch: int, scores: int, calibration_rows: int) -> SavedWatch:
    """Parses the contents of a file.

    Raises:
        ValueError: or another of `_UNREADABLE`; the contents are damaged or incomplete.
    """
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        _check(arrays["format"].tolist() == FORMAT, f"format {FORMAT}")
        crossed = arrays["crossed"]
        _check(crossed.shape == (scores,) and bool(np.isfinite(crossed).all()), f"alarm times of {scores} scores")
        if "ranked" not in arrays:
            return SavedWatch(epoch, crossed)
        ranked, counts, begun, window = (arrays[name] for name in ("ranked", "counts", "begun", "window"))
    rows = int(counts.sum() // scores)
    bets = 1 + rows // drift.BET_ROWS
    bins = len(drift.EDGES) - 1
    _check(counts.shape == (scores, bins) and bool((counts >= 0).all()), f"counts of {bins} bins for {scores} scores")
    _check(bool((counts.sum(axis=1) == rows).all()) and rows < drift.EPOCH, "equally many ranks of every score")
    _check(begun.shape == (bets, scores, bins) and bool(((begun >= 0) & (begun <= counts)).all()), "valid bets")
    _check(ranked.shape == (scores, calibration_rows + rows), "the values of the calibration and of the epoch's rows")
    _check(bool((np.diff(ranked, axis=1) >= 0).all()), "ascending values")
    _check(window.ndim == 2 and len(window) == scores and bool(np.isfinite(window).all()), "a finite window")
    return SavedWatch(epoch, crossed, drift.EpochState(tuple(ranked), counts, begun, rows), window[:, -drift.WINDOW :])


def _check(holds: bool, expected: str) -> None:
    if not holds:
        raise ValueError(f"expected {expected}")
