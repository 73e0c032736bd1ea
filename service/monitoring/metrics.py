"""The metrics that Prometheus reads. Import it in workers only, after `process.join_run` has set the folder of metrics.

Counters and histograms of all workers add up; no label takes a value from a request.
"""

from __future__ import annotations

import os
from collections import Counter
from itertools import compress
from pathlib import Path

import jax.monitoring
import numpy as np
import prometheus_client as prometheus

from abstain.models.decisions.records import Judgement
from abstain.models.prediction.posterior import Model
from abstain.models.prediction.predictive import Prediction
from abstain.models.prediction.summaries import ClassificationSummary
from abstain.models.tables.unseen import rejecting_columns
from abstain.service.compat.prometheus import BatchHistogram, exposition_of_all, keep_process_id

_MODEL = ("model", "version")
if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
    keep_process_id()


_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_NATS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.4, 0.7, 1.0, 1.5, 2.0, 3.0, 5.0)
_PERCENTILES = (1, 5, 10, 25, 50, 75, 90, 95, 99, 99.5, 99.9, 100)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 1024, 4096, 16384)

REQUESTS = prometheus.Counter("abstain_requests_total", "HTTP responses", ["route", "code"])
REQUEST_SECONDS = prometheus.Histogram(
    "abstain_request_seconds", "Time from the head of a request to the end of its response", ["route"], buckets=_SECONDS
)
ROWS = prometheus.Counter("abstain_rows_total", "Predicted rows", _MODEL)
REJECTED = prometheus.Counter(
    "abstain_rejected_total", "Rejected rows, by the score that contributes most", [*_MODEL, "reason"]
)
REJECTED_BY_PART = prometheus.Counter(
    "abstain_rejected_by_part_total",
    "Rejected rows by the part of a decision of two parts; a row that is novel and ambiguous counts for both",
    [*_MODEL, "part"],
)
UNSEEN = prometheus.Counter(
    "abstain_unseen_total", "Rows with a category that the training part lacks, by column", [*_MODEL, "column"]
)
ENTROPY = BatchHistogram("abstain_entropy_nats", "Predictive entropy of rows", _MODEL, buckets=_NATS)
INFORMATION = BatchHistogram(
    "abstain_mutual_information_nats",
    "Mutual information of the label and the parameters, of rows",
    _MODEL,
    buckets=_NATS,
)
SCORE_PERCENTILE = BatchHistogram(
    "abstain_score_percentile",
    "Percentile of the scores of rows among those of the calibration part",
    [*_MODEL, "score"],
    buckets=_PERCENTILES,
)
BATCH_ROWS = prometheus.Histogram("abstain_batch_rows", "Rows computed together", _MODEL, buckets=_ROWS)
QUEUE_SECONDS = prometheus.Histogram(
    "abstain_queue_seconds", "Time a request waits before it is computed", buckets=_SECONDS
)
COMPILES = prometheus.Counter("abstain_compiles_total", "Programs compiled by XLA; constant while the server is ready")
MODEL_INFO = prometheus.Gauge(
    "abstain_model_info",
    "1 for every served version",
    [*_MODEL, "digest", "method", "draws"],
    multiprocess_mode="livemax",
)
MODEL_SOUND = prometheus.Gauge(
    "abstain_model_sound",
    "1 if a version passed all publication checks, 0 if it failed one",
    _MODEL,
    multiprocess_mode="livemin",
)
EXPECTED_REJECTS = prometheus.Gauge(
    "abstain_expected_reject_ratio",
    "Share of familiar rows that a version is calibrated to reject",
    _MODEL,
    multiprocess_mode="livemax",
)
EXPECTED_REJECTS_BY_PART = prometheus.Gauge(
    "abstain_expected_reject_by_part_ratio",
    "Share of familiar rows that each part of a decision of two parts rejects",
    [*_MODEL, "part"],
    multiprocess_mode="livemax",
)
MODEL_LOADS = prometheus.Counter(
    "abstain_model_loads_total", "Versions by the outcome of loading", [*_MODEL, "outcome"]
)
WORKERS = prometheus.Gauge(
    "abstain_workers", "Number of workers that the server is set to run", multiprocess_mode="mostrecent"
)
WORKERS_READY = prometheus.Gauge(
    "abstain_workers_ready", "Number of workers that have loaded every served version", multiprocess_mode="mostrecent"
)
WORKER_MEMORY = prometheus.Gauge(
    "abstain_worker_memory_bytes", "Resident memory of a worker", ["worker"], multiprocess_mode="livemostrecent"
)
WORKER_CPU = prometheus.Gauge(
    "abstain_worker_cpu_seconds",
    "Processor time that a worker has used since its start",
    ["worker"],
    multiprocess_mode="livemostrecent",
)

# The largest or smallest value of all live workers, whichever is worse; alarm times also of workers that have ended.
_SCORE = [*_MODEL, "score"]
DRIFT_MARTINGALE = prometheus.Gauge(
    "abstain_drift_log_martingale",
    "Logarithm of the test martingale against exchangeability with the calibration part, nats",
    _SCORE,
    multiprocess_mode="livemax",
)
DRIFT_LEVEL = prometheus.Gauge(
    "abstain_drift_alarm_level",
    "Value of the log martingale that raises an alarm, nats",
    _SCORE,
    multiprocess_mode="livemax",
)
DRIFT_CROSSED = prometheus.Gauge(
    "abstain_drift_crossed_timestamp_seconds",
    "Time at which the log martingale was last at its alarm level, in seconds since 1970; 0 if it never was",
    _SCORE,
    multiprocess_mode="max",
)
DRIFT_ROWS = prometheus.Gauge(
    "abstain_drift_rows", "Rows of this epoch that the martingales include", _MODEL, multiprocess_mode="livesum"
)
DRIFT_KS = prometheus.Gauge(
    "abstain_drift_ks",
    "Two-sample Kolmogorov–Smirnov statistic of the last rows against the calibration part",
    _SCORE,
    multiprocess_mode="livemax",
)
DRIFT_KS_P = prometheus.Gauge(
    "abstain_drift_ks_p_value",
    "p-value of abstain_drift_ks, valid for a single test",
    _SCORE,
    multiprocess_mode="livemin",
)
DRIFT_PSI = prometheus.Gauge(
    "abstain_drift_psi",
    "Population stability index of the last rows against the calibration part, nats",
    _SCORE,
    multiprocess_mode="livemax",
)

# The version in these is the candidate of the rollout.
_SIDE = [*_MODEL, "side"]
ROLLOUT_ROWS = prometheus.Counter(
    "abstain_rollout_rows_total", "Rows of a rollout by the version that predicted them", [*_SIDE, "decision"]
)
ROLLOUT_FAILED = prometheus.Counter(
    "abstain_rollout_failed_total",
    "Requests of a rollout that the version could not answer; they count as rejected",
    _SIDE,
)
ROLLOUT_SECONDS = prometheus.Histogram(
    "abstain_rollout_seconds",
    "Time from a parsed request to its answer, or of a shadow's computation",
    _SIDE,
    buckets=_SECONDS,
)
ROLLOUT_PERCENTILE = BatchHistogram(
    "abstain_rollout_percentile",
    "Percentile of the decision's score of rows of a rollout among those of the calibration part",
    _SIDE,
    buckets=_PERCENTILES,
)
SHADOW_ROWS = prometheus.Counter(
    "abstain_shadow_rows_total", "Rows of a shadow by whether both versions predict the same label", [*_MODEL, "label"]
)
SHADOW_DROPPED = prometheus.Counter(
    "abstain_shadow_dropped_total", "Requests that a shadow did not compute, because the server was busy", _MODEL
)
ROLLOUT_EVIDENCE = prometheus.Gauge(
    "abstain_rollout_log_e_value",
    "Natural logarithm of the e-value for promoting or aborting a rollout",
    [*_MODEL, "verdict"],
    multiprocess_mode="mostrecent",
)

CONTENT_TYPE = prometheus.CONTENT_TYPE_LATEST


def count_compiles() -> None:
    """Counts every program that XLA compiles in this process from now on."""

    def count(event: str, duration_secs: float, **_details: str | int) -> None:  # noqa: ARG001 - JAX names it
        if event == "/jax/core/compile/backend_compile_duration":
            COMPILES.inc()

    jax.monitoring.register_event_duration_secs_listener(count)


def exposition() -> bytes:
    """Returns the metrics of all workers, in Prometheus's text format."""
    folder = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    return exposition_of_all(Path(folder)) if folder else prometheus.generate_latest()


def record_prediction(name: str, version: int, prediction: Prediction, judgement: Judgement) -> None:
    """Counts predicted rows by their decision, their uncertainty and the percentiles of their scores."""
    model = (name, str(version))
    ROWS.labels(*model).inc(len(judgement.reject))
    for reason, rejected in Counter(compress(judgement.main_scores, judgement.reject)).items():
        REJECTED.labels(*model, reason).inc(rejected)
    if judgement.parts is not None:
        REJECTED_BY_PART.labels(*model, "novel").inc(judgement.parts.novel.sum())
        REJECTED_BY_PART.labels(*model, "ambiguous").inc(judgement.parts.ambiguous.sum())
    summary = prediction.summary
    ENTROPY.labels(*model).observe_all(np.asarray(summary.entropy))
    if isinstance(summary, ClassificationSummary):
        INFORMATION.labels(*model).observe_all(np.asarray(summary.mutual_information))
    for name_of_score, score in judgement.scores.items():
        SCORE_PERCENTILE.labels(*model, name_of_score).observe_all(score.percentile)


def record_unseen(name: str, version: int, model: Model, prediction: Prediction) -> None:
    """Counts rows with an unseen category, by column: the names are the model's, so there are few label values."""
    if prediction.unseen is None or not np.any(prediction.unseen):
        return
    counts = np.asarray(prediction.unseen).sum(axis=0).tolist()
    for index, rows in zip(rejecting_columns(model.preprocessing.columns), counts, strict=True):
        if rows:
            UNSEEN.labels(name, str(version), model.preprocessing.columns[index].name).inc(rows)
