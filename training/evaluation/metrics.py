"""Metrics: pure functions of predictions and targets.

A metric that is a mean over rows is returned as its terms, one number per row. The same terms give the metric, its
bootstrap interval, and the metric of the accepted rows.

classification_terms, expected_calibration_error, …    how good the probabilities are
area_under_risk_coverage, risk_at_coverage              how well the confidence ranks correct rows first
separation                                              how well a score separates two sets
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Bool, Float, Int, Num
from sklearn.metrics import average_precision_score, roc_auc_score

from abstain.training.evaluation.reliability import ReliabilityBins
from abstain.training.evaluation.results import Separation

ECE_BINS = 15
COVERAGES = (0.5, 0.8, 0.9, 0.95, 0.99)
Terms = dict[str, Float[np.ndarray, " rows"]]
"""The terms of each metric that is a mean over rows, one number per row. The metric of `squared_error` is `rmse`."""


def average_metrics(terms: Terms) -> dict[str, float]:
    """Averages terms of at least one row to metrics."""
    return {
        metric_name(term): float(metric_from_means(term, values.mean(keepdims=True))[0])
        for term, values in terms.items()
    }


def metric_name(term: str) -> str:
    """Returns the name of the metric that the mean of a term gives."""
    return "rmse" if term == "squared_error" else term


def metric_from_means(term: str, means: Float[np.ndarray, " resamples"]) -> Float[np.ndarray, " resamples"]:
    """Converts means of a term to its metric: the RMSE is the root of the mean squared error."""
    return np.sqrt(means) if term == "squared_error" else means


# ---- classification --------------------------------------------------------------------------------------------------


def classification_terms(
    probabilities: Float[np.ndarray, "rows classes"], labels: Int[np.ndarray, " rows"]
) -> dict[str, Float[np.ndarray, " rows"]]:
    """Returns each row's accuracy (0 or 1), negative log-likelihood (nats) and Brier score (sum over classes)."""
    probabilities = probabilities.astype(np.float64)
    true = probabilities[np.arange(len(labels)), labels]
    one_hot = np.eye(probabilities.shape[1])[labels]
    return {
        "accuracy": (probabilities.argmax(axis=1) == labels).astype(np.float64),
        "nll": -np.log(np.maximum(true, np.finfo(np.float32).tiny)),
        "brier": ((probabilities - one_hot) ** 2).sum(axis=1),
    }


def classification_quality(
    probabilities: Float[np.ndarray, "rows classes"], labels: Int[np.ndarray, " rows"]
) -> dict[str, float]:
    """Computes accuracy, NLL (nats), Brier score (sum over classes), ECE, and area under the risk–coverage curve."""
    terms = classification_terms(probabilities, labels)
    confidence, correct = probabilities.max(axis=1).astype(np.float64), terms["accuracy"] == 1
    return average_metrics(terms) | {
        "ece": expected_calibration_error(confidence, correct),
        "aurc": area_under_risk_coverage(confidence, correct),
    }


def equal_mass_starts(rows: int, bins: int = ECE_BINS) -> Int[np.ndarray, " filled"]:
    """Returns the first row of each non-empty bin, if ordered rows are cut into bins of sizes as equal as possible."""
    sizes = np.full(min(bins, rows), rows // bins)
    sizes[: rows % bins] += 1
    return np.cumsum(sizes) - sizes


def tied_means(
    confidence: Float[np.ndarray, " rows"], values: Float[np.ndarray, " rows"]
) -> Float[np.ndarray, " rows"]:
    """Replaces the values of rows with equal confidence by their mean, so that no metric depends on the rows' order."""
    _, group = np.unique(confidence, return_inverse=True)
    return (np.bincount(group, weights=values) / np.bincount(group))[group]


def expected_calibration_error(
    confidence: Float[np.ndarray, " rows"], correct: Bool[np.ndarray, " rows"], bins: int = ECE_BINS
) -> float:
    """Returns the mean |accuracy − confidence| over bins of equal mass (Nguyen & O'Connor, 2015); ties count by their mean."""
    order = np.argsort(confidence, kind="stable")
    gaps = (tied_means(confidence, correct.astype(np.float64)) - confidence.astype(np.float64))[order]
    return float(np.abs(np.add.reduceat(gaps, equal_mass_starts(len(order), bins))).sum() / len(order))


def reliability_bins(
    confidence: Float[np.ndarray, " rows"], correct: Bool[np.ndarray, " rows"], bins: int = ECE_BINS
) -> ReliabilityBins:
    """Returns the bins of `expected_calibration_error`, which is their mean |accuracy − confidence|, weighted by rows."""
    order = np.argsort(confidence, kind="stable")
    starts = equal_mass_starts(len(order), bins)
    sizes = np.diff(starts, append=len(order))
    ordered = confidence[order].astype(np.float64)
    right = tied_means(confidence, correct.astype(np.float64))[order]
    return ReliabilityBins(
        rows=tuple(sizes.tolist()),
        low=tuple(ordered[starts].tolist()),
        high=tuple(ordered[starts + sizes - 1].tolist()),
        confidence=tuple((np.add.reduceat(ordered, starts) / sizes).tolist()),
        accuracy=tuple((np.add.reduceat(right, starts) / sizes).tolist()),
    )


def adaptive_calibration_error(
    probabilities: Float[np.ndarray, "rows classes"], labels: Int[np.ndarray, " rows"], bins: int = ECE_BINS
) -> float:
    """Returns the mean |frequency − mean probability| over classes and bins of equal mass (ACE; Nixon et al., 2019)."""
    order = np.argsort(probabilities, axis=0, kind="stable")
    exact = probabilities.astype(np.float64)
    hits = (labels[:, None] == np.arange(probabilities.shape[1])).astype(np.float64)
    tied = np.stack([tied_means(*pair) for pair in zip(exact.T, hits.T, strict=True)], axis=1)
    gaps = np.take_along_axis(tied - exact, order, axis=0)
    starts = equal_mass_starts(len(labels), bins)
    sizes = np.diff(starts, append=len(labels))
    return float(np.abs(np.add.reduceat(gaps, starts, axis=0) / sizes[:, None]).mean())


def classwise_calibration_error(
    probabilities: Float[np.ndarray, "rows classes"], labels: Int[np.ndarray, " rows"], bins: int = ECE_BINS
) -> float:
    """Returns the mean over classes of the ECE of the class's probability, in bins of equal width (Kull et al., 2019)."""
    rows, classes = probabilities.shape
    exact = probabilities.astype(np.float64)
    gaps = (labels[:, None] == np.arange(classes)) - exact
    # Bins (j/b, (j + 1)/b], the first with its lower end.
    cells = np.clip(np.ceil(exact * bins) - 1, 0, bins - 1).astype(np.int64) * classes + np.arange(classes)
    sums = np.bincount(cells.ravel(), weights=gaps.ravel(), minlength=bins * classes)
    return float(np.abs(sums).sum() / rows / classes)


# ---- selection -------------------------------------------------------------------------------------------------------


def area_under_risk_coverage(confidence: Float[np.ndarray, " rows"], correct: Bool[np.ndarray, " rows"]) -> float:
    """Returns the mean error among the k most confident rows, averaged over k (Geifman & El-Yaniv, 2017)."""
    return float(risks(confidence, (~correct).astype(np.float64)).mean())


def risks(confidence: Float[np.ndarray, " rows"], losses: Float[np.ndarray, " rows"]) -> Float[np.ndarray, " rows"]:
    """Returns the mean loss among the k most confident rows, for k = 1 … rows; averaged over all orders of tied rows."""
    ordered = tied_means(confidence, losses)[np.argsort(-confidence, kind="stable")]
    return np.cumsum(ordered) / np.arange(1, len(ordered) + 1)


def risk_at_coverage(confidence: Float[np.ndarray, " rows"], losses: Float[np.ndarray, " rows"]) -> dict[str, float]:
    """Returns the selective risk: the mean loss of the ⌈c·rows⌉ most confident rows, for each coverage c of `COVERAGES`."""
    at = risks(confidence, losses)
    return {str(coverage): float(at[math.ceil(round(coverage * len(at), 9)) - 1]) for coverage in COVERAGES}


# ---- separating OOD rows from test rows ---------------------------------------------------------------------------


def auroc(familiar: Num[np.ndarray, " test"], strange: Num[np.ndarray, " ood"]) -> float:
    """Returns the area under the ROC curve, with OOD rows as positive."""
    truth = np.repeat([0, 1], [len(familiar), len(strange)])
    return float(roc_auc_score(truth, np.concatenate([familiar, strange])))


def separation(familiar: Float[np.ndarray, " test"], strange: Float[np.ndarray, " ood"]) -> Separation:
    """Measures how well a score separates an OOD set from the test rows, without a threshold; OOD is positive."""
    truth = np.concatenate([np.zeros(len(familiar)), np.ones(len(strange))])
    values = np.concatenate([familiar, strange])
    return Separation(
        auroc=auroc(familiar, strange),
        aupr=float(average_precision_score(truth, values)),
        fpr95=float((strange <= np.quantile(familiar, 0.95, method="higher")).mean()),
    )
