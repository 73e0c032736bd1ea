"""What a worker's watch for drift keeps over restarts, in the folder that `ABSTAIN_STATE` names.

    STATE/drift/DIGEST/of-WORKERS/worker-1.epoch-37.npz

One file for each version (by its digest) and worker. Every epoch has its share of the probability of a false alarm,
and no share may be spent twice. So the epoch's number is part of the file's name, where damage to the contents does not
reach it, and it is written down before the epoch's first row is watched. The contents are complete only after a clean
stop; the file of a running worker holds no more than when alarms were crossed. Therefore a worker that is stopped and
started goes on where it was, and one that is killed, or that replaces a killed one, begins the next epoch.

With another number of workers, each has another share of an epoch. A folder for each number of workers, and epochs
beyond all those of the other folders, see to it that the shares of one epoch never add up to more than the whole.
"""

from __future__ import annotations

import fcntl
import io
import logging
import os
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from abstain.models.decisions import drift

log = logging.getLogger("abstain.drift")

FORMAT = 1
_UNREADABLE = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)


class Saved(NamedTuple):
    """Where a watch is to go on.

    Attributes:
        epoch: its number, from 1.
        crossed: when each score's martingale was last at its level, in seconds since 1970; 0 for never.
        watch: of the epoch so far; None if it has to begin.
        window: the last rows' values.
    """

    epoch: int
    crossed: Float[np.ndarray, " scores"]
    watch: drift.Watch | None = None
    window: Float[np.ndarray, "scores rows"] | None = None


class StateFile:
    """The file of one version's watch in one worker; held by this process alone, as long as it lives.

    Raises:
        OSError: the folder cannot be written, or another process holds the file.
    """

    def __init__(self, state: Path, digest: str, worker: int, workers: int) -> None:
        self._folder = state / "drift" / digest.removeprefix("sha256:") / f"of-{workers}"
        self._name = f"worker-{worker}"
        self._folder.mkdir(parents=True, exist_ok=True)
        # The system lets go of it when the process ends, however it ends.
        self._lock = (self._folder / f"{self._name}.lock").open("wb")
        fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def load(self, scores: int, calibration_rows: int) -> Saved:
        """What was saved; contents that cannot be used are set aside, and the next epoch begins.

        Args:
            scores: how many are watched.
            calibration_rows: how many values of each are ranked against when an epoch begins.
        """
        fresh = Saved(1 + max(map(_last_epoch, self._other_numbers_of_workers()), default=0), np.zeros(scores))
        last = _last_epoch(self._folder, self._name)
        if not last:
            return fresh
        following = fresh._replace(epoch=max(fresh.epoch, last + 1))
        path = self._path(last)
        if not path.exists():
            return following
        try:
            saved = _read(path.read_bytes(), last, scores, calibration_rows)
        except _UNREADABLE as error:
            aside = path.with_suffix(".damaged")
            path.rename(aside)
            log.warning("%s is damaged (%s); set aside as %s, epoch %d begins", path, error, aside, following.epoch)
            return following
        if saved.watch is None or last < fresh.epoch:
            return following._replace(crossed=saved.crossed)
        return saved

    def save(self, saved: Saved) -> None:
        """Writes the file beside, renames it into place, and removes those of earlier epochs.

        A failure is logged, not raised: the watch goes on.
        """
        draft = self._folder / f"{self._name}.draft"
        try:
            with draft.open("wb") as file:
                file.write(_written(saved))
                file.flush()
                os.fsync(file.fileno())
            draft.rename(self._path(saved.epoch))
            for earlier in self._folder.glob(f"{self._name}.epoch-*.npz"):
                if _epoch_of(earlier) < saved.epoch:
                    earlier.unlink()
        except OSError as error:
            log.error("%s: the state of the drift watch cannot be written: %s", self._path(saved.epoch), error)

    def close(self) -> None:
        """Lets another process have the file."""
        self._lock.close()

    def _path(self, epoch: int) -> Path:
        return self._folder / f"{self._name}.epoch-{epoch}.npz"

    def _other_numbers_of_workers(self) -> list[Path]:
        return [folder for folder in self._folder.parent.glob("of-*") if folder != self._folder]


def _last_epoch(folder: Path, worker: str = "worker-*") -> int:
    """The largest epoch of a folder's files, whatever their contents; 0 where there is none."""
    return max(map(_epoch_of, folder.glob(f"{worker}.epoch-*")), default=0)


def _epoch_of(path: Path) -> int:
    number = path.stem.rpartition("-")[2]
    return int(number) if number.isdecimal() else 0


def _written(saved: Saved) -> bytes:
    arrays: dict[str, np.ndarray] = {"format": np.array(FORMAT), "crossed": saved.crossed}
    if saved.watch is not None and saved.window is not None:
        watch = saved.watch
        arrays |= {"ranked": np.stack(watch.ranked), "counts": watch.counts, "begun": watch.begun}
        arrays |= {"window": saved.window}
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, **arrays)
    return file.getvalue()


def _read(content: bytes, epoch: int, scores: int, calibration_rows: int) -> Saved:
    """The record in a file; ValueError or another of `_UNREADABLE` where it is not a whole one."""
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        _check(arrays["format"].tolist() == FORMAT, f"format {FORMAT}")
        crossed = arrays["crossed"]
        _check(crossed.shape == (scores,) and bool(np.isfinite(crossed).all()), f"the crossings of {scores} scores")
        if "ranked" not in arrays:
            return Saved(epoch, crossed)
        ranked, counts, begun, window = (arrays[name] for name in ("ranked", "counts", "begun", "window"))
    rows = int(counts.sum() // scores)
    bets = 1 + rows // drift.EVERY
    bins = len(drift.EDGES) - 1
    _check(counts.shape == (scores, bins) and bool((counts >= 0).all()), "counts")
    _check(bool((counts.sum(axis=1) == rows).all()) and rows < drift.EPOCH, "as many ranks of every score")
    _check(begun.shape == (bets, scores, bins) and bool(((begun >= 0) & (begun <= counts)).all()), "bets")
    _check(ranked.shape == (scores, calibration_rows + rows), "the calibration's values and the stream's")
    _check(bool((np.diff(ranked, axis=1) >= 0).all()), "ascending values")
    _check(window.ndim == 2 and len(window) == scores and bool(np.isfinite(window).all()), "window")
    return Saved(epoch, crossed, drift.Watch(tuple(ranked), counts, begun, rows), window[:, -drift.WINDOW :])


def _check(holds: bool, expected: str) -> None:
    if not holds:
        raise ValueError(f"expected {expected}")
