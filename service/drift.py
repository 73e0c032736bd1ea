"""Watches for drift: what was judged goes, once a second and beside the requests, to `models/drift.py`'s mathematics.

Each worker watches the rows that it answered, with nothing shared: what a worker's death loses is its epoch. All
workers and scores of a version share the probability of a false alarm; the metrics show the worst worker.
"""

from __future__ import annotations

import logging
import resource
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from models import drift
from models.calibration import Judgement
from service import metrics
from service.process import Process
from service.serving import Live

log = logging.getLogger("abstain.drift")

ALPHA = 0.01
"""The probability that a version's watch ever alarms falsely."""
SECONDS = 1.0
"""Between two looks."""
MOST_ROWS = 1_024
"""Of one look; what comes beyond is not watched, whatever it is."""

REST = 9.0
"""Seconds of rest for each of work: requests in the meantime would be held up by all of it."""


def _never(_seconds: float) -> None:
    """No rest."""


class Seen(NamedTuple):
    """What was judged together."""

    live: Live
    judgement: Judgement


class VersionWatch:
    """One version's watch in this worker: the epoch, the last rows, and the gauges that tell of them.

    Args:
        streams: how many are watched beside one another: scores times workers.
    """

    def __init__(self, live: Live, workers: int) -> None:
        calibration = live.bundle.calibration
        self._scores = tuple(calibration.all_scores)
        self._calibration = np.stack([calibration.ascending[name] for name in self._scores])
        self._streams = len(self._scores) * workers
        self._model = (live.name, str(live.version))
        self._random = np.random.default_rng()
        self._window: Float[np.ndarray, "scores rows"] = self._calibration[:, :0]
        self._epoch = 1
        self._watch = drift.begin(self._calibration)
        for name in self._scores:
            metrics.DRIFT_CROSSED.labels(*self._model, name).set(0)
        self._tell()

    def saw(self, judgements: list[Judgement]) -> Iterator[None]:
        """Takes in what was judged, in its order; a step at a time."""
        values = np.stack(
            [np.concatenate([judgement.scores[name].value for judgement in judgements]) for name in self._scores]
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
            place = end
            yield

    def tell(self) -> Iterator[None]:
        """Sets the gauges; a step at a time."""
        self._tell()
        for name, known, window in zip(self._scores, self._calibration, self._window, strict=True):
            statistic, p_value = drift.kolmogorov_smirnov(known, window)
            metrics.DRIFT_KS.labels(*self._model, name).set(statistic)
            metrics.DRIFT_KS_P.labels(*self._model, name).set(p_value)
            metrics.DRIFT_PSI.labels(*self._model, name).set(drift.stability_index(known, window))
            yield

    def _tell(self) -> None:
        level = drift.alarm_level(ALPHA, self._streams, self._epoch)
        metrics.DRIFT_ROWS.labels(*self._model).set(self._watch.rows)
        for name, value in zip(self._scores, drift.log_martingale(self._watch).tolist(), strict=True):
            metrics.DRIFT_MARTINGALE.labels(*self._model, name).set(value)
            metrics.DRIFT_LEVEL.labels(*self._model, name).set(level)

    def _look(self) -> None:
        """Writes down when a martingale is at its level."""
        level = drift.alarm_level(ALPHA, self._streams, self._epoch)
        for name, value in zip(self._scores, drift.log_martingale(self._watch).tolist(), strict=True):
            if value >= level:
                metrics.DRIFT_CROSSED.labels(*self._model, name).set(time.time())


class DriftWatch:
    """This worker's watch over every version that it answers for; a version that is new begins anew."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._seen: deque[Seen] = deque()
        self._rows = 0
        self._versions: dict[tuple[str, int], VersionWatch] = {}

    def note(self, live: Live, judgement: Judgement) -> None:
        """Keeps for the next look what has been judged; costs next to nothing."""
        if self._rows < MOST_ROWS:
            self._rows += len(judgement.reject)
            self._seen.append(Seen(live, judgement))

    def start(self) -> None:
        """Looks once a second, in a thread, as long as the worker lives."""

        def watch() -> None:
            while True:
                self.look(time.sleep)
                time.sleep(SECONDS)

        threading.Thread(target=watch, name="drift", daemon=True).start()

    def look(self, rest: Callable[[float], None] = _never) -> None:
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
                self._versions[key] = VersionWatch(live, self._process.workers)
            judged.setdefault(key, []).append(judgement)
        for key, judgements in judged.items():
            yield from self._versions[key].saw(judgements)
            yield from self._versions[key].tell()


def _tell_resources(worker: int) -> None:
    pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
    metrics.WORKER_MEMORY.labels(str(worker)).set(pages * resource.getpagesize())
    metrics.WORKER_CPU.labels(str(worker)).set(time.process_time())
