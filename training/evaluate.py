"""Evaluation: how good a posterior's predictions are, and how well its scores tell the strange from the familiar.

Metrics are of the served predictions, computed by the served code (`models.predictive.Predictor`) wherever the answer
has what they need; log densities and CRPS of regression need the draws and are computed here.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Num
from scipy.special import ndtr
from sklearn.metrics import average_precision_score, roc_auc_score

from models.bundle import load
from models.calibration import Calibration, ScoreJudgement, judge
from models.errors import DataError
from models.posterior import Posterior
from models.predictive import Prediction, log_prob_draw, predict_draw
from models.store import resolve
from models.summaries import ClassificationSummary, RegressionSummary
from training.config import DataConfig
from training.data import evaluation_rows
from training.rows import Rows
from training.sources import read_inputs, read_source

ECE_BINS = 15
Metrics = dict[str, Any]


def quality(posterior: Posterior, prediction: Prediction, rows: Rows) -> dict[str, float]:
    """`accuracy nll brier ece aurc`, or `rmse nll crps coverage_95 interval_width` in the target's units."""
    if isinstance(prediction.summary, ClassificationSummary):
        return classification_quality(np.asarray(prediction.summary.mean), rows.y)
    return regression_quality(posterior, prediction.summary, rows)


def classification_quality(
    probabilities: Float[np.ndarray, "rows classes"], labels: Int[np.ndarray, " rows"]
) -> dict[str, float]:
    """Accuracy; negative log-likelihood in nats; Brier score (sum over classes); ECE; area under risk–coverage."""
    probabilities = probabilities.astype(np.float64)
    correct = probabilities.argmax(axis=1) == labels
    true = probabilities[np.arange(len(labels)), labels]
    one_hot = np.eye(probabilities.shape[1])[labels]
    confidence = probabilities.max(axis=1)
    return {
        "accuracy": float(correct.mean()),
        "nll": float(-np.log(np.maximum(true, np.finfo(np.float32).tiny)).mean()),
        "brier": float(((probabilities - one_hot) ** 2).sum(axis=1).mean()),
        "ece": expected_calibration_error(confidence, correct),
        "aurc": area_under_risk_coverage(confidence, correct),
    }


def expected_calibration_error(
    confidence: Float[np.ndarray, " rows"], correct: Bool[np.ndarray, " rows"], bins: int = ECE_BINS
) -> float:
    """Mean |accuracy − confidence| over bins of equal mass (Nguyen & O'Connor, 2015)."""
    order = np.argsort(confidence, kind="stable")
    parts = [part for part in np.array_split(order, bins) if len(part)]
    return float(sum(len(part) * abs(correct[part].mean() - confidence[part].mean()) for part in parts) / len(order))


def area_under_risk_coverage(confidence: Float[np.ndarray, " rows"], correct: Bool[np.ndarray, " rows"]) -> float:
    """Mean error among the k most confident rows, averaged over k (Geifman & El-Yaniv, 2017)."""
    errors = ~correct[np.argsort(-confidence, kind="stable")]
    return float((np.cumsum(errors) / np.arange(1, len(errors) + 1)).mean())


def regression_quality(posterior: Posterior, summary: RegressionSummary, rows: Rows) -> dict[str, float]:
    """RMSE; NLL (nats) and CRPS of the mixture over draws; coverage and width of the central 95 % interval."""
    low, high = np.asarray(summary.quantiles)[:, 0], np.asarray(summary.quantiles)[:, -1]
    moments = draw_moments(posterior, rows.x)
    return {
        "rmse": float(np.sqrt(((np.asarray(summary.mean) - rows.y) ** 2).mean())),
        "nll": float(-mixture_log_density(posterior, rows).mean()),
        "crps": float(mixture_crps(moments[..., 0], np.sqrt(moments[..., 1]), rows.y).mean()),
        "coverage_95": float(((rows.y >= low) & (rows.y <= high)).mean()),
        "interval_width": float((high - low).mean()),
    }


def mixture_log_density(posterior: Posterior, rows: Rows) -> Float[np.ndarray, " rows"]:
    """Log of the mean over draws of each regression target's density, nats, in the target's units."""

    def of_row(x: Array, y: Array) -> Array:
        log_probs = jax.vmap(lambda draw: log_prob_draw(posterior.model, draw, x, y))(posterior.draws)
        return jax.nn.logsumexp(log_probs) - jnp.log(posterior.size)

    terms = posterior.model.preprocessing
    x, y = (
        jnp.asarray(rows.x, jnp.float32),
        jnp.asarray((rows.y - terms.target_shift) / terms.target_scale, jnp.float32),
    )
    standard = np.asarray(jax.jit(partial(jax.lax.map, lambda row: of_row(*row), batch_size=64))((x, y)))
    # The density of y is that of the standardised target divided by dy/dz.
    return standard - np.log(terms.target_scale)


def draw_moments(posterior: Posterior, x: Num[np.ndarray, "rows ..."]) -> Float[np.ndarray, "rows draws 2"]:
    """Mean and variance that each draw predicts for each row, in the target's units."""

    def of_row(row: Array) -> Array:
        return jax.vmap(lambda draw: predict_draw(posterior.model, draw, row))(posterior.draws)

    terms = posterior.model.preprocessing
    standard = np.asarray(jax.jit(partial(jax.lax.map, of_row, batch_size=64))(jnp.asarray(x, jnp.float32)), np.float64)
    return standard * [terms.target_scale, terms.target_scale**2] + [terms.target_shift, 0.0]


def mixture_crps(
    means: Float[np.ndarray, "rows draws"], stds: Float[np.ndarray, "rows draws"], y: Float[np.ndarray, " rows"]
) -> Float[np.ndarray, " rows"]:
    """CRPS of an equally weighted mixture of normals, in closed form (Grimit et al., 2006, eq. 5)."""

    def absolute_moment(mean: np.ndarray, std: np.ndarray) -> np.ndarray:
        z = mean / std
        return mean * (2 * ndtr(z) - 1) + 2 * std * np.exp(-0.5 * z**2) / np.sqrt(2 * np.pi)

    crps = np.empty(len(y))
    for row in range(len(y)):
        mean, std = means[row].astype(np.float64), stds[row].astype(np.float64)
        to_target = absolute_moment(y[row] - mean, std).mean()
        among_draws = absolute_moment(mean[:, None] - mean, np.hypot(std[:, None], std)).mean()
        crps[row] = to_target - 0.5 * among_draws
    return crps


def reject_rates(calibration: Calibration, prediction: Prediction, percentile: float | None = None) -> dict[str, float]:
    """The share of rows above each score's threshold, and under `reject` the share that the decision rejects."""
    judgement = judge(calibration, prediction, percentile)
    rates = {name: float(score.above.mean()) for name, score in judgement.scores.items()}
    return rates | {"reject": float(judgement.reject.mean())}


def detection(
    calibration: Calibration, familiar: Prediction, strange: Prediction, percentile: float | None = None
) -> dict[str, dict[str, float]]:
    """How well each score, and under `reject` the decision, tells an OOD set from the test set; OOD is positive.

    `auroc`, `aupr`; `fpr95`: the share of OOD rows that pass where 95 % of the test rows do; `detection`: the share
    of OOD rows above the threshold that calibration has set.
    """
    of_familiar, of_strange = (judge(calibration, each, percentile) for each in (familiar, strange))
    found = {name: score_detection(of_familiar.scores[name], judged) for name, judged in of_strange.scores.items()}
    return found | {"reject": found[of_strange.decision]}


def score_detection(familiar: ScoreJudgement, strange: ScoreJudgement) -> dict[str, float]:
    """One score's row of `detection`."""
    values = np.concatenate([familiar.value, strange.value])
    truth = np.repeat([0, 1], [len(familiar.value), len(strange.value)])
    return {
        "auroc": float(roc_auc_score(truth, values)),
        "aupr": float(average_precision_score(truth, values)),
        "fpr95": float((strange.value <= np.quantile(familiar.value, 0.95)).mean()),
        "detection": float(strange.above.mean()),
    }


def evaluate_version(store: Path, model: str, where: str, percentile: float | None, ood: dict[str, str]) -> Metrics:
    """What `abstain evaluate` prints: the quality of a version on a source's test part, and on OOD sets.

    Args:
        where: a path or the name of an embedded set.
        ood: paths, or embedded sets, by the name to report them under.
    """
    name, version = resolve(store, model)
    bundle = load(store / name / str(version))
    manifest, posterior = bundle.manifest, bundle.posterior
    config = DataConfig.model_validate(manifest.data.settings)
    task = manifest.model.law.task
    source = read_source(where, config, manifest.model, classify=task == "classification")
    rows = evaluation_rows(source, config, manifest.seed)
    if rows.x.shape[1:] != manifest.model.feature_shape:
        raise DataError("feature shape", where=where, expected=manifest.model.feature_shape, found=rows.x.shape[1:])
    predictor = bundle.predictor((256,))
    familiar = predictor(rows.x)
    strange = {name: predictor(read_inputs(path, manifest.model)) for name, path in ood.items()}
    return {
        "model": f"{name}:{version}",
        "rows": len(rows),
        **quality(posterior, familiar, rows),
        "percentile": bundle.calibration.percentile if percentile is None else percentile,
        "reject_rate": reject_rates(bundle.calibration, familiar, percentile),
        "ood": {name: detection(bundle.calibration, familiar, found, percentile) for name, found in strange.items()},
    }
