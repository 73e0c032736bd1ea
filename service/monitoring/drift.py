"""Detects drift: once a second, a thread gives the scores of new decisions to `models/decisions/drift.py`.

Each worker watches the rows of its own responses and shares no state. All workers and scores of a version share the
probability of a false alarm; the metrics show the worst worker. If `ABSTAIN_STATE` names a folder, a watch continues after
a restart (`service/monitoring/drift_state.py`); otherwise every process starts at epoch 1 with the whole probability.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil
from jaxtyping import Float

from abstain.models.decisions import drift
from abstain.models.decisions.records import Calibration, Judgement
from abstain.models.prediction.posterior import Model
from abstain.models.prediction.scores import SCORES
from abstain.service.live import Live
from abstain.service.monitoring import metrics
from abstain.service.monitoring.drift_state import SavedWatch, StateFile
from abstain.service.process import Process

log = logging.getLogger("abstain.drift")
_THIS_PROCESS = psutil.Process()

ALPHA = 0.01
"""The probability that a version's watch ever raises a false alarm."""
SECONDS = 1.0
"""The time between two updates, in seconds."""
MAX_ROWS = 1_024
"""The limit after which an update accepts no more decisions; it does not depend on their scores."""

REST = 9.0
"""Seconds of rest for each second of work, because the work delays requests."""
LAST_SECONDS = 0.5
"""The longest time that a stopping worker waits for the running step, in seconds."""


def _no_rest(_seconds: float) -> None:
    """Does not rest."""


class DecidedRows(NamedTuple):
    """The decisions on rows that one batch of a version holds."""

    live: Live
    judgement: Judgement


class VersionWatch:
    """One version's watch in this worker: the epoch, the last rows, and their gauges.

    Args:
        process: this worker's index and the number of workers; all scores of all workers share `ALPHA`.
        state: the folder that keeps the watch over restarts; None keeps nothing.
    """

    def __init__(self, live: Live, process: Process, state: Path | None = None) -> None:
        calibration = live.bundle.calibration.plain_all_scores
        self._scores = tuple(calibration)
        self._rounding = _rounding(live.bundle.manifest.model, live.bundle.calibration, self._scores)
        self._random = np.random.default_rng()
        self._calibration = np.sort(self._dither(np.stack(list(calibration.values()))))
        self._streams = len(self._scores) * process.workers
        self._model = (live.name, str(live.version))
        self._file = _state_file(live, process, state)
        saved = SavedWatch(1, np.zeros(len(self._scores)))
        if self._file is not None:
            saved = self._file.load(*self._calibration.shape)
        self._epoch, self._crossed = saved.epoch, saved.crossed
        self._window = self._calibration[:, :0] if saved.window is None else saved.window
        self._watch = drift.start_epoch(self._calibration) if saved.watch is None else saved.watch
        self._above = np.zeros(len(self._scores), bool)
        self._save_epoch()
        for name, crossed in zip(self._scores, self._crossed.tolist(), strict=True):
            metrics.DRIFT_CROSSED.labels(*self._model, name).set(crossed)
        self._set_martingale_gauges()

    def add(self, judgements: list[Judgement]) -> Iterator[None]:
        """Adds the scores of decisions, in their order; yields after every step."""
        values = self._dither(
            np.stack(
                [np.concatenate([judgement.scores[name].value for judgement in judgements]) for name in self._scores]
            )
        )
        self._window = np.concatenate([self._window, values], axis=1)[:, -drift.WINDOW :]
        start = 0
        while start < values.shape[1]:
            end = min(values.shape[1], start + drift.rows_allowed(self._watch))
            part = values[:, start:end]
            self._watch = drift.observe(self._watch, part, self._random.random(part.shape))
            self._record_alarms()
            if self._watch.rows == drift.EPOCH:
                self._epoch += 1
                self._watch = drift.start_epoch(self._calibration)
                self._save_epoch()
            start = end
            yield

    def set_gauges(self) -> Iterator[None]:
        """Sets the gauges; yields after every step. The gauges of the window need enough rows."""
        self._set_martingale_gauges()
        if self._window.shape[1] < drift.LEAST_ROWS:
            return
        for name, calibration, window in zip(self._scores, self._calibration, self._window, strict=True):
            statistic, p_value = drift.kolmogorov_smirnov(calibration, window)
            metrics.DRIFT_KS.labels(*self._model, name).set(statistic)
            metrics.DRIFT_KS_P.labels(*self._model, name).set(p_value)
            if len(calibration) >= drift.LEAST_ROWS:
                metrics.DRIFT_PSI.labels(*self._model, name).set(drift.stability_index(calibration, window))
            yield

    def close(self) -> None:
        """Saves the whole watch for the next process; no rows may be added afterwards."""
        if self._file is not None:
            self._file.save(SavedWatch(self._epoch, self._crossed, self._watch, self._window))
            self._file.close()

    def _save_epoch(self) -> None:
        """Saves that this epoch has begun."""
        if self._file is not None:
            self._file.save(SavedWatch(self._epoch, self._crossed))

    def _dither(self, values: Float[np.ndarray, "scores rows"]) -> Float[np.ndarray, "scores rows"]:
        return drift.dither(values, self._rounding, self._random.random(values.shape))

    def _set_martingale_gauges(self) -> None:
        level = drift.alarm_level(ALPHA, self._streams, self._epoch)
        metrics.DRIFT_ROWS.labels(*self._model).set(self._watch.rows)
        for name, value in zip(self._scores, drift.log_martingale(self._watch).tolist(), strict=True):
            metrics.DRIFT_MARTINGALE.labels(*self._model, name).set(value)
            metrics.DRIFT_LEVEL.labels(*self._model, name).set(level)

    def _record_alarms(self) -> None:
        """Records the time of every martingale at its alarm level, and saves it when one reaches the level."""
        above = drift.log_martingale(self._watch) >= drift.alarm_level(ALPHA, self._streams, self._epoch)
        self._crossed = np.where(above, time.time(), self._crossed)
        for index in np.flatnonzero(above).tolist():
            metrics.DRIFT_CROSSED.labels(*self._model, self._scores[index]).set(float(self._crossed[index]))
        if (above & ~self._above).any():
            self._save_epoch()
        self._above = above


def _rounding(model: Model, calibration: Calibration, scores: tuple[str, ...]) -> Float[np.ndarray, " scores"]:
    """Returns the rounding error of each score near 0; standard deviations of a target are in the target's units."""
    in_target_units = SCORES["regression"] if model.likelihood_functions.task == "regression" else ()
    units = {name: model.preprocessing.target_scale if name in in_target_units else 1.0 for name in scores}
    combined = drift.combined_rounding(calibration.evidence_maps, units)
    return drift.absolute_rounding(scores, np.array(list(units.values())), combined)


def _state_file(live: Live, process: Process, state: Path | None) -> StateFile | None:
    """Opens the watch's file; None if no folder is set, or if the file cannot be used, which is logged."""
    if state is None:
        return None
    try:
        return StateFile(state, live.bundle.manifest.digest, process.index or 0, process.workers)
    except OSError as error:
        log.error(
            "%s: the drift watch cannot keep its state in ABSTAIN_STATE=%s: %s; expected a folder that this process "
            "can write to and no other server uses; the watch starts at epoch 1 and its state is not saved",
            live.described,
            state,
            error,
        )
        return None


class DriftWatch:
    """Watches the decisions of every version in this worker.

    Args:
        state: the folder that keeps the watches over restarts; None keeps nothing.
    """

    def __init__(self, process: Process, state: Path | None = None) -> None:
        self._process = process
        self._state = state
        self._pending: deque[DecidedRows] = deque()
        self._rows = 0
        self._versions: dict[tuple[str, int, str], VersionWatch] = {}
        self._served: set[tuple[str, int, str]] | None = None
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def note(self, live: Live, judgement: Judgement) -> None:
        """Keeps decisions for the next update; costs almost nothing."""
        if self._rows < MAX_ROWS:
            self._rows += len(judgement.reject)
            self._pending.append(DecidedRows(live, judgement))

    def forget(self, served: list[Live]) -> None:
        """Ends the watches of all versions that are not served any more, at the next update."""
        self._served = {_key(live) for live in served}

    def start(self) -> None:
        """Starts a thread that updates the watches once a second until the worker stops."""

        def watch() -> None:
            while not self._stopping.is_set():
                self.update(self._stopping.wait)
                self._stopping.wait(SECONDS)

        self._thread = threading.Thread(target=watch, name="drift", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread, adds the remaining decisions, and saves every watch; called once, when the worker stops."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(LAST_SECONDS)
            if self._thread.is_alive():
                log.warning("drift detection did not end in time; its saved state is that of the epoch's start")
                return
        self.update()
        for version in self._versions.values():
            version.close()

    def update(self, rest: Callable[[float], object] = _no_rest) -> None:
        """Adds the decisions since the last update and sets the gauges; logs an error instead of raising it.

        Args:
            rest: rests for a number of seconds, after every step, so that other threads can run.
        """
        try:
            start = time.perf_counter()
            for _ in self._steps():
                rest(REST * (time.perf_counter() - start))
                start = time.perf_counter()
            _set_resource_gauges(self._process.index or 0)
        except Exception:
            log.exception("drift detection failed")

    def _steps(self) -> Iterator[None]:
        self._rows = 0
        served = self._served
        decided: dict[tuple[str, int, str], list[Judgement]] = {}
        while self._pending:
            live, judgement = self._pending.popleft()
            key = _key(live)
            if served is not None and key not in served | self._versions.keys():
                continue
            if key not in self._versions:
                self._versions[key] = VersionWatch(live, self._process, self._state)
            decided.setdefault(key, []).append(judgement)
        for key, judgements in decided.items():
            yield from self._versions[key].add(judgements)
            yield from self._versions[key].set_gauges()
        for key in self._versions.keys() - served if served is not None else ():
            self._versions.pop(key).close()


def _key(live: Live) -> tuple[str, int, str]:
    return live.name, live.version, live.bundle.manifest.digest


def _set_resource_gauges(worker: int) -> None:
    metrics.WORKER_MEMORY.labels(str(worker)).set(_THIS_PROCESS.memory_info().rss)
    metrics.WORKER_CPU.labels(str(worker)).set(time.process_time())
