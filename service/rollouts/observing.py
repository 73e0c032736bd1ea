"""What a worker observes of the two versions of a rollout: one observation for each caller, and metrics of all rows.

Handlers only append observations to a list. Once a second, a thread weighs them, and leaves the evidence in the run's folder for
the main process, which adds up that of all workers.
"""

from __future__ import annotations

import logging
import math
import secrets
import threading
import time
from collections import Counter
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
from abstain.service.rollouts.state import callers_path, evidence_path, read_state

log = logging.getLogger("abstain.rollouts")

SECONDS = 1.0
"""The time between two updates of the evidence."""
LEAST = 1e-300
"""The smallest e-value in the metrics."""
KEPT_TALLIES, KEPT_SECONDS = 8, 600.0
"""How many rollouts are kept although nothing was observed for so long."""
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
    """The observations of one rollout in this worker. It holds no version, so that one that is not served any more can go."""

    def __init__(self, part: Part, folder: Path) -> None:
        self.name, self.rollout = part.name, part.rollout
        self.center = center_of(part)
        self.used = time.monotonic()
        self.failed: Counter[Side] = Counter()
        self.dropped = 0
        self.lock = threading.Lock()
        self._waiting: list[_Observation] = []
        self._folder = folder
        self._path = evidence_path(folder, part.rollout, secrets.token_hex(8))
        self._callers: Callers | None = None
        self._evidence = ServerEvidence(rejects=StoredEvidence.of(NO_EVIDENCE), updated=now())

    def add(self, observation: _Observation) -> None:
        """Adds an observation, unless too many wait."""
        with self.lock:
            self.used = time.monotonic()
            if len(self._waiting) < MAX_WAITING:
                self._waiting.append(observation)

    def update(self) -> None:
        """Weighs the observations that wait, and leaves the evidence for the main process."""
        if self._callers is None:
            self._callers = Callers(callers_path(self._folder, self.rollout))
        with self.lock:
            waiting, self._waiting = self._waiting, []
            dropped, failed = self.dropped, self.failed.copy()
        before = self._evidence
        counts = {"dropped": dropped, "failed_baseline": failed["baseline"], "failed_candidate": failed["candidate"]}
        if not waiting and counts == before.model_dump(include={*counts}):
            return
        new = [each for each in waiting if each.fingerprint is None or self._callers.add(each.fingerprint)]
        rollout = self.rollout
        shadow = rollout.mode == "shadow"
        bounds = PAIRED if shadow else canary_bounds(rollout.share, self.center)
        rejects = before.rejects.read() + weigh(np.array([each.reject for each in new]), rollout.margin, bounds)
        differing = np.array([each.label for each in new if each.label is not None])
        labels = before.labels.read() if before.labels else NO_EVIDENCE
        labels += weigh(differing, rollout.margin, DISAGREEMENT)
        self._evidence = ServerEvidence(
            rejects=StoredEvidence.of(rejects),
            labels=StoredEvidence.of(labels) if labels.count else None,
            rows=before.rows + sum(each.rows for each in new),
            updated=now(),
            **counts,
        )
        write_record(self._path, self._evidence)


def center_of(part: Part) -> float:
    """Returns the usual reject rate of the baseline, which observations of a canary are measured from."""
    return part.baseline.bundle.calibration.expected_reject_rate


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
                self.update()

        threading.Thread(target=follow, name="rollouts", daemon=True).start()

    def update(self) -> None:
        """Weighs what was observed since the last update, and shows in the metrics what the main process makes of it."""
        for own_id, tally in [*self._tallies.items()]:
            try:
                tally.update()
                self._set_gauges(tally)
            except Exception:
                log.exception("%s: the evidence on a rollout cannot be updated; it is tried again", tally.name)
            # Requests in progress may belong to a rollout that has ended.
            if len(self._tallies) > KEPT_TALLIES and time.monotonic() > tally.used + KEPT_SECONDS:
                with self._lock:
                    self._tallies = {key: each for key, each in self._tallies.items() if key != own_id}

    def _set_gauges(self, tally: _Tally) -> None:
        state = read_state(self._folder, tally.name)
        labels = tally.name, str(tally.rollout.candidate)
        running = state is not None and state.rollout.id == tally.rollout.id and state.state == "running"
        for verdict in ("promote", "abort"):
            # What has ended must not raise an alert.
            value = math.log(max(getattr(state, verdict), LEAST)) if running else 0.0
            metrics.ROLLOUT_EVIDENCE.labels(*labels, verdict).set(value)

    def note_canary(self, part: Part, observed: Observed, seconds: float) -> None:
        """Notes the answer that a caller of a canary got, and how long the computation took."""
        _count(part, part.side, observed, seconds)
        self._add_canary(part, float(observed.reject.mean()), len(observed.reject))

    def note_failure(self, part: Part) -> None:
        """Notes that a request was not answered after its side was chosen.

        It counts as rejected: a candidate that answers only what it can answer is not as good. A baseline of a shadow that fails
        leaves nothing to compare.
        """
        tally = self._tally(part)
        with tally.lock:
            tally.failed[part.side] += 1
        metrics.ROLLOUT_FAILED.labels(part.name, str(part.rollout.candidate), part.side).inc()
        if part.rollout.mode == "canary":
            self._add_canary(part, 1.0, 0)

    def _add_canary(self, part: Part, rejected: float, rows: int) -> None:
        tally = self._tally(part)
        candidate = part.side == "candidate"
        difference = canary_difference(rejected, part.rollout.share, tally.center, candidate=candidate)
        tally.add(_Observation(part.fingerprint, difference, None, rows))

    def note_shadow(self, part: Part, baseline: Observed, candidate: Observed, seconds: tuple[float, float]) -> None:
        """Notes the answers of both versions to the same rows, and how long each computation took."""
        _count(part, "baseline", baseline, seconds[0])
        _count(part, "candidate", candidate, seconds[1])
        labels = part.name, str(part.rollout.candidate)
        metrics.SHADOW_DROPPED.labels(*labels)  # Its first value is 0, so that a rate of it exists.
        label = None
        if baseline.labels is not None and candidate.labels is not None:
            differ = baseline.labels != candidate.labels
            label = float(differ.mean())
            metrics.SHADOW_ROWS.labels(*labels, "other").inc(int(differ.sum()))
            metrics.SHADOW_ROWS.labels(*labels, "same").inc(int((~differ).sum()))
        difference = float(candidate.reject.mean()) - float(baseline.reject.mean())
        self._tally(part).add(_Observation(part.fingerprint, difference, label, len(baseline.reject)))

    def note_shadow_failure(self, part: Part, baseline: Observed) -> None:
        """Notes that the candidate could not compute the rows of a request: as rejected, and with other labels."""
        tally = self._tally(part)
        with tally.lock:
            tally.failed["candidate"] += 1
        metrics.ROLLOUT_FAILED.labels(part.name, str(part.rollout.candidate), "candidate").inc()
        label = None if baseline.labels is None else 1.0
        difference = 1.0 - float(baseline.reject.mean())
        tally.add(_Observation(part.fingerprint, difference, label, len(baseline.reject)))

    def note_dropped(self, part: Part) -> None:
        """Notes a request that a shadow did not compute, because the server was busy."""
        tally = self._tally(part)
        with tally.lock:
            tally.dropped += 1
        metrics.SHADOW_DROPPED.labels(part.name, str(part.rollout.candidate)).inc()

    def _tally(self, part: Part) -> _Tally:
        own_id = part.rollout.id
        tally = self._tallies.get(own_id)
        if tally is None:
            with self._lock:
                tally = self._tallies.get(own_id) or _Tally(part, self._folder)
                self._tallies = {**self._tallies, own_id: tally}
        return tally


def _count(part: Part, side: Side, observed: Observed, seconds: float) -> None:
    """Counts the answer of one version in the metrics of rollouts."""
    labels = part.name, str(part.rollout.candidate), side
    rejected = int(observed.reject.sum())
    metrics.ROLLOUT_ROWS.labels(*labels, "rejected").inc(rejected)
    metrics.ROLLOUT_ROWS.labels(*labels, "accepted").inc(len(observed.reject) - rejected)
    metrics.ROLLOUT_FAILED.labels(*labels)  # As above.
    metrics.ROLLOUT_SECONDS.labels(*labels).observe(seconds)
    if len(observed.percentiles):
        metrics.ROLLOUT_PERCENTILE.labels(*labels).observe_all(observed.percentiles)
