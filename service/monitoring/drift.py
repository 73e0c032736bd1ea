"""Watches for drift: what was judged goes, once a second and beside the requests, to `models/decisions/drift.py`'s mathematics.

Each worker watches the rows that it answered, with nothing shared. All workers and scores of a version share the
probability of a false alarm; the metrics show the worst worker. Where `ABSTAIN_STATE` names a folder a watch outlives
its process (`service/monitoring/drift_state.py`); else every process begins at epoch 1, and has the whole probability to itself.
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
from abstain.service.monitoring.drift_state import Saved, StateFile
from abstain.service.process import Process

log = logging.getLogger("abstain.drift")
_OWN = psutil.Process()

ALPHA = 0.01
"""The probability that a version's watch ever alarms falsely."""
SECONDS = 1.0
"""Between two looks."""
MOST_ROWS = 1_024
"""Of one look; what comes beyond is not watched, whatever it is."""

REST = 9.0
"""Seconds of rest for each of work: requests in the meantime would be held up by all of it."""


LAST_SECONDS = 0.5
"""How long a worker that stops waits for the step under way."""


def _never(_seconds: float) -> None:
    """No rest."""


class Seen(NamedTuple):
    """What was judged together."""

    live: Live
    judgement: Judgement


class VersionWatch:
    """One version's watch in this worker: the epoch, the last rows, and the gauges that show them.

    Args:
        process: this worker's place among the workers; all scores of all workers share `ALPHA`.
        state: the folder to keep the watch in over restarts; None keeps nothing.
    """

    def __init__(self, live: Live, process: Process, state: Path | None = None) -> None:
        calibration = live.bundle.calibration.plain_all_scores
        self._scores = tuple(calibration)
        self._rounding = _rounding(live.bundle.manifest.model, live.bundle.calibration, self._scores)
        self._random = np.random.default_rng()
        self._calibration = np.sort(self._dithered(np.stack(list(calibration.values()))))
        self._streams = len(self._scores) * process.workers
        self._model = (live.name, str(live.version))
        self._file = _state_file(live, process, state)
        saved = Saved(1, np.zeros(len(self._scores)))
        if self._file is not None:
            saved = self._file.load(*self._calibration.shape)
        self._epoch, self._crossed = saved.epoch, saved.crossed
        self._window = self._calibration[:, :0] if saved.window is None else saved.window
        self._watch = drift.begin(self._calibration) if saved.watch is None else saved.watch
        self._above = np.zeros(len(self._scores), bool)
        self._save_epoch()
        for name, crossed in zip(self._scores, self._crossed.tolist(), strict=True):
            metrics.DRIFT_CROSSED.labels(*self._model, name).set(crossed)
        self._tell()

    def saw(self, judgements: list[Judgement]) -> Iterator[None]:
        """Takes in what was judged, in its order; a step at a time."""
        values = self._dithered(
            np.stack(
                [np.concatenate([judgement.scores[name].value for judgement in judgements]) for name in self._scores]
            )
        )
        self._window = np.concatenate([self._window, values], axis=1)[:, -drift.WINDOW :]
        place = 0
        while place < values.shape[1]:
            end = min(values.shape[1], place + drift.room(self._watch))
            part = values[:, place:end]
            self._watch = drift.watched(self._watch, part, self._random.random(part.shape))
            self._look()
            if self._watch.rows == drift.EPOCH:
                self._epoch += 1
                self._watch = drift.begin(self._calibration)
                self._save_epoch()
            place = end
            yield

    def tell(self) -> Iterator[None]:
        """Sets the gauges; a step at a time. Those of the window only where it has enough rows."""
        self._tell()
        if self._window.shape[1] < drift.FEWEST:
            return
        for name, known, window in zip(self._scores, self._calibration, self._window, strict=True):
            statistic, p_value = drift.kolmogorov_smirnov(known, window)
            metrics.DRIFT_KS.labels(*self._model, name).set(statistic)
            metrics.DRIFT_KS_P.labels(*self._model, name).set(p_value)
            if len(known) >= drift.FEWEST:
                metrics.DRIFT_PSI.labels(*self._model, name).set(drift.stability_index(known, window))
            yield

    def close(self) -> None:
        """Writes down the whole watch, for the process that comes after this one; nothing may be watched after."""
        if self._file is not None:
            self._file.save(Saved(self._epoch, self._crossed, self._watch, self._window))
            self._file.close()

    def _save_epoch(self) -> None:
        """Writes down that this epoch has begun."""
        if self._file is not None:
            self._file.save(Saved(self._epoch, self._crossed))

    def _dithered(self, values: Float[np.ndarray, "scores rows"]) -> Float[np.ndarray, "scores rows"]:
        return drift.dithered(values, self._rounding, self._random.random(values.shape))

    def _tell(self) -> None:
        level = drift.alarm_level(ALPHA, self._streams, self._epoch)
        metrics.DRIFT_ROWS.labels(*self._model).set(self._watch.rows)
        for name, value in zip(self._scores, drift.log_martingale(self._watch).tolist(), strict=True):
            metrics.DRIFT_MARTINGALE.labels(*self._model, name).set(value)
            metrics.DRIFT_LEVEL.labels(*self._model, name).set(level)

    def _look(self) -> None:
        """Records when a martingale is at its level, and writes it down when it comes there."""
        above = drift.log_martingale(self._watch) >= drift.alarm_level(ALPHA, self._streams, self._epoch)
        self._crossed = np.where(above, time.time(), self._crossed)
        for place in np.flatnonzero(above).tolist():
            metrics.DRIFT_CROSSED.labels(*self._model, self._scores[place]).set(float(self._crossed[place]))
        if (above & ~self._above).any():
            self._save_epoch()
        self._above = above


def _rounding(model: Model, calibration: Calibration, scores: tuple[str, ...]) -> Float[np.ndarray, " scores"]:
    """How exactly a model's scores are computed near 0: standard deviations of a target are in the target's units."""
    in_target_units = SCORES["regression"] if model.law.task == "regression" else ()
    units = {name: model.preprocessing.target_scale if name in in_target_units else 1.0 for name in scores}
    combined = drift.combined_rounding(calibration.evidence_maps, units)
    return drift.absolute_rounding(scores, np.array(list(units.values())), combined)


def _state_file(live: Live, process: Process, state: Path | None) -> StateFile | None:
    """The watch's file; None where none is asked for, or none is to be had, which the log says."""
    if state is None:
        return None
    try:
        return StateFile(state, live.bundle.manifest.digest, process.index or 0, process.workers)
    except OSError as error:
        log.error(
            "%s:%d: the drift watch cannot keep its state in ABSTAIN_STATE=%s: %s; expected a folder that this process "
            "can write and no other server uses; the watch begins at epoch 1 and nothing is kept",
            live.name,
            live.version,
            state,
            error,
        )
        return None


class DriftWatch:
    """This worker's watch over every version that it answers for; a version that is new begins anew.

    Args:
        state: the folder to keep watches in over restarts; None keeps nothing.
    """

    def __init__(self, process: Process, state: Path | None = None) -> None:
        self._process = process
        self._state = state
        self._seen: deque[Seen] = deque()
        self._rows = 0
        self._versions: dict[tuple[str, int], VersionWatch] = {}
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def note(self, live: Live, judgement: Judgement) -> None:
        """Keeps for the next look what has been judged; costs next to nothing."""
        if self._rows < MOST_ROWS:
            self._rows += len(judgement.reject)
            self._seen.append(Seen(live, judgement))

    def start(self) -> None:
        """Looks once a second, in a thread, as long as the worker lives."""

        def watch() -> None:
            while not self._stopping.is_set():
                self.look(self._stopping.wait)
                self._stopping.wait(SECONDS)

        self._thread = threading.Thread(target=watch, name="drift", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread, takes in what is left, and saves every watch; called once, when the worker stops."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(LAST_SECONDS)
            if self._thread.is_alive():
                log.warning("the watch for drift did not end in time; its state is that of the epoch's start")
                return
        self.look()
        for version in self._versions.values():
            version.close()

    def look(self, rest: Callable[[float], object] = _never) -> None:
        """Takes in what has been judged since the last look, and sets the gauges; whatever fails, requests must not.

        Args:
            rest: is called after every step with the seconds for which others should have the interpreter.
        """
        try:
            began = time.perf_counter()
            for _ in self._steps():
                rest(REST * (time.perf_counter() - began))
                began = time.perf_counter()
        except Exception:
            log.exception("the watch for drift failed")
        _tell_resources(self._process.index or 0)

    def _steps(self) -> Iterator[None]:
        self._rows = 0
        judged: dict[tuple[str, int], list[Judgement]] = {}
        while self._seen:
            live, judgement = self._seen.popleft()
            key = live.name, live.version
            if key not in self._versions:
                self._versions[key] = VersionWatch(live, self._process, self._state)
            judged.setdefault(key, []).append(judgement)
        for key, judgements in judged.items():
            yield from self._versions[key].saw(judgements)
            yield from self._versions[key].tell()


def _tell_resources(worker: int) -> None:
    metrics.WORKER_MEMORY.labels(str(worker)).set(_OWN.memory_info().rss)
    metrics.WORKER_CPU.labels(str(worker)).set(time.process_time())
