"""Computes the rows of requests with the candidate of a shadow, after they have been answered, while the worker is idle."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from abstain.models.decisions.judging import judge
from abstain.models.decisions.records import Levels
from abstain.service.loading import text_of, unexpected
from abstain.service.rollouts.observing import Observed, RolloutWatch, observe
from abstain.service.rollouts.routing import Part
from abstain.service.rows import check_finite

log = logging.getLogger("abstain.rollouts")

MOST_ROWS = 64
"""The most rows of one request that a shadow computes: its first ones."""
MOST_WAITING, MOST_BYTES = 256, 2**26
"""The most requests that wait, and the most bytes of their rows; further ones are dropped."""
BATCH_ROWS = 64
"""The most rows that are computed together."""
OLDEST_SECONDS = 10.0
"""Requests that have waited longer are dropped."""
LOOK_SECONDS = 0.002
"""The time between two looks whether the worker is idle."""


class Shadow(NamedTuple):
    """A request that has been answered by the baseline."""

    part: Part
    rows: Float[np.ndarray, "rows ..."]
    levels: Levels
    baseline: Observed
    seconds: float
    answered: float


class ShadowQueue:
    """The requests that a worker is to compute with a candidate; computed by a thread.

    Args:
        watch: gets both answers.
        idle: whether no request waits or is computed.
        share: the largest share of the time that the thread computes.
    """

    def __init__(self, watch: RolloutWatch, idle: Callable[[], bool], share: float) -> None:
        self._watch = watch
        self._idle = idle
        self._rest = 1 / share - 1
        self._waiting: deque[Shadow] = deque()
        self._bytes = 0
        self._lock = threading.Lock()
        self._some = threading.Event()

    def start(self) -> None:
        """Starts the thread."""

        def follow() -> None:
            while True:
                self._some.wait()
                try:
                    busy = self.step()
                except Exception:
                    log.exception("a shadow cannot be computed")
                    busy = 1.0
                time.sleep(max(LOOK_SECONDS, busy * self._rest))

        threading.Thread(target=follow, name="shadow", daemon=True).start()

    def add(
        self, part: Part, rows: Float[np.ndarray, "rows ..."], levels: Levels, baseline: Observed, seconds: float
    ) -> None:
        """Adds a request that has been answered, or drops it if too many wait."""
        first_rows = rows[:MOST_ROWS]
        if len(self._waiting) >= MOST_WAITING or self._bytes + first_rows.nbytes > MOST_BYTES:
            self._watch.note_dropped(part)
            return
        with self._lock:
            self._bytes += first_rows.nbytes
        labels = None if baseline.labels is None else baseline.labels[:MOST_ROWS]
        first = Observed(baseline.reject[:MOST_ROWS], labels, baseline.percentiles[:MOST_ROWS])
        # A copy: the rows may be a view of the whole body of the request.
        self._waiting.append(Shadow(part, first_rows.copy(), levels, first, seconds, time.monotonic()))
        self._some.set()

    def step(self) -> float:
        """Computes the oldest requests that share a candidate and levels, if the worker is idle.

        Returns:
            The seconds that it took; 0 if nothing was computed.
        """
        while self._waiting and self._waiting[0].answered < time.monotonic() - OLDEST_SECONDS:
            self._watch.note_dropped(self._take().part)
        if not self._waiting:
            self._some.clear()
            if self._waiting:  # Added meanwhile.
                self._some.set()
            return 0.0
        if not self._idle():
            return 0.0
        started = time.perf_counter()
        self._compute(self._take_batch())
        return time.perf_counter() - started

    def _take(self) -> Shadow:
        oldest = self._waiting.popleft()
        with self._lock:
            self._bytes -= oldest.rows.nbytes
        return oldest

    def _take_batch(self) -> list[Shadow]:
        batch = [self._take()]
        first, rows = batch[0], len(batch[0].rows)
        while self._waiting:
            following = self._waiting[0]
            rows += len(following.rows)
            if (
                following.part.candidate is not first.part.candidate
                or following.levels != first.levels
                or rows > BATCH_ROWS
            ):
                break
            batch.append(self._take())
        return batch

    def _compute(self, batch: list[Shadow]) -> None:
        """Computes requests together; each alone if that fails, as one row may make all fail."""
        started = time.perf_counter()
        try:
            found = _answers(batch)
        except Exception as error:
            if len(batch) > 1:
                for each in batch:
                    self._compute([each])
                return
            part = batch[0].part
            name = f"{part.name}:{part.candidate.version}"
            log.warning("%s cannot compute the rows of a shadow: %s", name, text_of(error), exc_info=unexpected(error))
            self._watch.note_shadow_failure(part, batch[0].baseline)
            return
        seconds = time.perf_counter() - started
        for each, observed in zip(batch, found, strict=True):
            self._watch.note_shadow(each.part, each.baseline, observed, (each.seconds, seconds))


def _answers(batch: list[Shadow]) -> list[Observed]:
    """Computes the answers of the candidate to requests that share it and their levels.

    Raises:
        AbstainError: a prediction is not finite, or the candidate's calibration is too small for the levels.
    """
    candidate = batch[0].part.candidate
    prediction = candidate.predictor(np.concatenate([each.rows for each in batch]))
    check_finite(jax.tree.leaves(prediction))
    judgement = judge(candidate.bundle.calibration, prediction, *batch[0].levels)
    ends = np.cumsum([len(each.rows) for each in batch]).tolist()
    return [
        observe(prediction, judgement, slice(end - len(each.rows), end)) for each, end in zip(batch, ends, strict=True)
    ]
