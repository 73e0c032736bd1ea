"""What a worker observes of the two versions of a rollout: one observation for each caller, and metrics of all rows.

Handlers only append observations to a list. Once a second, a thread weighs them, and leaves the evidence in the run's folder for
the main process, which adds up that of all workers.
"""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from abstain.models.bundles.rollout_evidence import ServerEvidence, StoredEvidence
from abstain.models.bundles.rollouts import now
from abstain.models.decisions.comparison import (
    DISAGREEMENT,
    NO_EVIDENCE,
    PAIRED,
    canary_bounds,
    canary_difference,
    weigh,
)
from abstain.models.decisions.records import Judgement
from abstain.models.files.records import write_record
from abstain.models.prediction.predictive import Prediction
from abstain.models.prediction.summaries import ClassificationSummary
from abstain.service.batches import Share
from abstain.service.monitoring import metrics
from abstain.service.rollouts.callers import Callers
from abstain.service.rollouts.routing import Part, Side
from abstain.service.rollouts.state import evidence_path, read_state

log = logging.getLogger("abstain.rollouts")

SECONDS = 1.0
"""The time between two updates of the evidence."""
LEAST = 1e-300
"""The smallest e-value in the metrics."""
MAX_WAITING = 10_000
"""The most observations that wait for the thread; further ones are not counted. Which these are does not depend on answers."""


class Observed(NamedTuple):
    """The answer of one version to the rows of one request.

    Attributes:
        labels: the index of the most probable class of each row; None for regression.
        percentiles: the percentile of the decision's score among those of the calibration part.
    """

    reject: Bool[np.ndarray, " rows"]
    labels: Int[np.ndarray, " rows"] | None
    percentiles: Float[np.ndarray, " rows"]


def observe(prediction: Prediction, judgement: Judgement, rows: slice) -> Observed:
    """Returns what is compared of the answer to some rows of a batch."""
    summary = prediction.summary
    labels = np.asarray(summary.mean[rows]).argmax(axis=1) if isinstance(summary, ClassificationSummary) else None
    score = judgement.scores.get(judgement.decision)
    percentiles = np.zeros(0) if score is None else np.asarray(score.percentile[rows])
    return Observed(judgement.reject[rows], labels, percentiles)


def observe_shares(shares: list[Share]) -> Observed:
    """Returns what is compared of the answer to a request."""
    parts = [observe(share.answer.prediction, share.answer.judgement, share.rows) for share in shares]
    if len(parts) == 1:
        return parts[0]
    labels = [part.labels for part in parts if part.labels is not None]
    return Observed(
        np.concatenate([part.reject for part in parts]),
        np.concatenate(labels) if labels else None,
        np.concatenate([part.percentiles for part in parts]),
    )


class _Observation(NamedTuple):
    fingerprint: int | None
    reject: float
    label: float | None
    rows: int


class _Tally:
    """The observations of one rollout in this worker."""

    def __init__(self, part: Part, folder: Path) -> None:
        self.part = part
        self.path = evidence_path(folder, part.rollout, os.getpid())
        self.waiting: list[_Observation] = []
        self.dropped = 0
        self._callers = Callers(folder / f"callers-{part.rollout.id}")
        self._center = part.baseline.bundle.calibration.expected_reject_rate
        self._rejects, self._labels = NO_EVIDENCE, NO_EVIDENCE
        self._rows, self._noted_drops = 0, 0

    def update(self) -> None:
        """Weighs the observations that wait, and leaves the evidence for the main process."""
        waiting, self.waiting = self.waiting, []
        dropped = self.dropped
        if not waiting and dropped == self._noted_drops:
            return
        new = [each for each in waiting if each.fingerprint is None or self._callers.add(self._keyed(each.fingerprint))]
        rollout = self.part.rollout
        shadow = rollout.mode == "shadow"
        bounds = PAIRED if shadow else canary_bounds(rollout.share, self._center)
        self._rejects += weigh(np.array([each.reject for each in new]), rollout.margin, bounds)
        labels = [each.label for each in new if each.label is not None]
        self._labels += weigh(np.array(labels), rollout.margin, DISAGREEMENT)
        self._rows += sum(each.rows for each in new)
        self._noted_drops = dropped
        write_record(self.path, self._record(with_labels=shadow and self._labels.count > 0))

    def _record(self, *, with_labels: bool) -> ServerEvidence:
        return ServerEvidence(
            rejects=StoredEvidence.of(self._rejects),
            labels=StoredEvidence.of(self._labels) if with_labels else None,
            rows=self._rows,
            dropped=self._noted_drops,
            updated=now(),
        )

    def _keyed(self, fingerprint: int) -> int:
        """Returns the caller's place in the table: a shadow observes a caller once in each window, a canary only once.

        The same caller always gets the same version of a canary, so its later observations would not be independent.
        """
        rollout = self.part.rollout
        if rollout.mode == "canary":
            return fingerprint
        window = int(time.time() // (rollout.window_hours * 3600))
        return (fingerprint + window * 0x9E3779B97F4A7C15) % 2**64


class RolloutWatch:
    """The rollouts of a worker.

    Args:
        folder: the folder of the run.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._tallies: dict[str, _Tally] = {}
        self._lock = threading.Lock()

    def start(self) -> None:
        """Starts the thread that weighs observations."""

        def follow() -> None:
            while True:
                time.sleep(SECONDS)
                try:
                    self.update()
                except Exception:
                    log.exception("the evidence of a rollout cannot be updated; it is tried again")

        threading.Thread(target=follow, name="rollouts", daemon=True).start()

    def update(self) -> None:
        """Weighs what was observed since the last update, and shows in the metrics what the main process makes of it."""
        for tally in [*self._tallies.values()]:
            tally.update()
            name, rollout = tally.part.name, tally.part.rollout
            state = read_state(self._folder, name)
            if state is not None and state.rollout.id == rollout.id:
                labels = name, str(rollout.candidate)
                if state.state != "running":  # What has ended must not raise an alert.
                    state = state.model_copy(update={"promote": 1.0, "abort": 1.0})
                metrics.ROLLOUT_EVIDENCE.labels(*labels, "promote").set(math.log(max(state.promote, LEAST)))
                metrics.ROLLOUT_EVIDENCE.labels(*labels, "abort").set(math.log(max(state.abort, LEAST)))

    def note_canary(self, part: Part, observed: Observed, seconds: float) -> None:
        """Notes the answer that a caller of a canary got, and how long the computation took."""
        _count(part, part.side, observed, seconds)
        difference = canary_difference(
            float(observed.reject.mean()),
            part.rollout.share,
            part.baseline.bundle.calibration.expected_reject_rate,
            candidate=part.side == "candidate",
        )
        self._add(part, _Observation(part.fingerprint, difference, None, len(observed.reject)))

    def note_shadow(self, part: Part, baseline: Observed, candidate: Observed, seconds: tuple[float, float]) -> None:
        """Notes the answers of both versions to the same rows, and how long each computation took."""
        _count(part, "baseline", baseline, seconds[0])
        _count(part, "candidate", candidate, seconds[1])
        difference = float(candidate.reject.mean()) - float(baseline.reject.mean())
        label = None
        metrics.SHADOW_DROPPED.labels(
            part.name, str(part.rollout.candidate)
        )  # Its first value is 0, so that a rate of it exists.
        if baseline.labels is not None and candidate.labels is not None:
            differ = baseline.labels != candidate.labels
            label = float(differ.mean())
            labels = part.name, str(part.rollout.candidate)
            metrics.SHADOW_ROWS.labels(*labels, "other").inc(int(differ.sum()))
            metrics.SHADOW_ROWS.labels(*labels, "same").inc(int((~differ).sum()))
        self._add(part, _Observation(part.fingerprint, difference, label, len(baseline.reject)))

    def note_dropped(self, part: Part) -> None:
        """Notes a request that a shadow did not compute."""
        self._tally(part).dropped += 1
        metrics.SHADOW_DROPPED.labels(part.name, str(part.rollout.candidate)).inc()

    def _add(self, part: Part, observation: _Observation) -> None:
        waiting = self._tally(part).waiting
        if len(waiting) < MAX_WAITING:
            waiting.append(observation)

    def _tally(self, part: Part) -> _Tally:
        own_id = part.rollout.id
        tally = self._tallies.get(own_id)
        if tally is None:
            with self._lock:
                tally = self._tallies.get(own_id) or _Tally(part, self._folder)
                # A model has one rollout at a time: earlier ones have ended.
                kept = {key: each for key, each in self._tallies.items() if each.part.name != part.name}
                self._tallies = {**kept, own_id: tally}
        return tally


def _count(part: Part, side: Side, observed: Observed, seconds: float) -> None:
    """Counts the answer of one version in the metrics of rollouts."""
    labels = part.name, str(part.rollout.candidate), side
    rejected = int(observed.reject.sum())
    metrics.ROLLOUT_ROWS.labels(*labels, "rejected").inc(rejected)
    metrics.ROLLOUT_ROWS.labels(*labels, "accepted").inc(len(observed.reject) - rejected)
    metrics.ROLLOUT_SECONDS.labels(*labels).observe(seconds)
    if len(observed.percentiles):
        metrics.ROLLOUT_PERCENTILE.labels(*labels).observe_all(observed.percentiles)
