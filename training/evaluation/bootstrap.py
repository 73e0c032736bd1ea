"""95 % intervals of metrics, for their variation over samples of rows.

share_interval                    proportions: exact binomial limits (Clopper & Pearson, 1934)
auroc_interval                    areas under a ROC curve: DeLong's variance on the logit scale, with Newcombe's interval
mean_intervals, …                 other means over rows: the percentile bootstrap (Efron, 1979)
calibrated_ece                    no interval: the ECE of a perfectly calibrated model on as many rows

The model is fixed: no interval covers the variation between fits.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import optimize, special, stats

from abstain.training.evaluation.metrics import Terms, equal_mass_starts, metric_from_means, metric_name, tied_means
from abstain.training.evaluation.results import Interval, Proportion

RESAMPLES = 1000
LEVEL = 0.95
_AT_ONCE = 2_000_000
_AT_MOST = 20_000_000
PROPORTIONS = {"accuracy", "coverage_95"}
"""The metrics that are 0 or 1 for each row."""


def mean_intervals(terms: Terms, resamples: int = RESAMPLES, seed: int = 0) -> dict[str, Interval]:
    """Returns the intervals of metrics that are means over rows: exact for proportions, bootstrap for the others.

    The percentile bootstrap fails for a proportion near 0 or 1: if all rows are correct, all resamples are.
    """
    rows = len(next(iter(terms.values())))
    averaged = {name: values for name, values in terms.items() if name not in PROPORTIONS}
    resampled = [
        {name: metric_from_means(name, values[drawn].mean(axis=1)) for name, values in averaged.items()}
        for drawn in resample_rows(rows, resamples, seed)
    ]
    return {
        metric_name(name): share_interval(int(values.sum()), rows)
        if name in PROPORTIONS
        else central_interval(np.concatenate([part[name] for part in resampled]))
        for name, values in terms.items()
    }


def classification_intervals(
    terms: Terms, confidence: Float[np.ndarray, " rows"], resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, Interval]:
    """Returns the intervals of accuracy (exact), NLL, Brier score, ECE and AURC (bootstrap).

    The ECE of a resample is larger on average than that of the rows. The interval is shifted by the bootstrap's estimate
    of this bias (Efron & Tibshirani, 1993, chapter 10), and cut off at 0.
    """
    rows, correct = len(confidence), terms["accuracy"]
    rising, falling = np.argsort(confidence, kind="stable"), np.argsort(-confidence, kind="stable")
    correct = tied_means(confidence, correct)
    gaps, errors = (correct - confidence)[rising], 1 - correct[falling]
    up, down = _positions(rising), _positions(falling)
    starts, counts = equal_mass_starts(rows), np.arange(1, rows + 1)
    eces, aurcs = [], []
    for drawn in resample_rows(rows, resamples, seed):
        # Sorted positions are a resample in order of its confidence.
        ordered = gaps[np.sort(up[drawn], axis=1)]
        eces.append(np.abs(np.add.reduceat(ordered, starts, axis=1)).sum(axis=1) / rows)
        ordered = errors[np.sort(down[drawn], axis=1)]
        aurcs.append((np.cumsum(ordered, axis=1) / counts).mean(axis=1))
    ece = np.concatenate(eces)
    bias = ece.mean() - np.abs(np.add.reduceat(gaps, starts)).sum() / rows
    return mean_intervals(terms, resamples, seed) | {
        "ece": central_interval(np.maximum(ece - bias, 0)),
        "aurc": central_interval(np.concatenate(aurcs)),
    }


def resample_rows(rows: int, resamples: int, seed: int) -> Iterator[Int[np.ndarray, "chunk rows"]]:
    """Yields row indices drawn with replacement, a chunk of resamples at a time; for very many rows, fewer resamples."""
    rng = np.random.default_rng(seed)
    resamples = min(resamples, max(200, _AT_MOST // rows))
    chunk = max(1, _AT_ONCE // rows)
    for start in range(0, resamples, chunk):
        yield rng.integers(0, rows, (min(chunk, resamples - start), rows), dtype=np.int32)


def central_interval(values: Float[np.ndarray, " resamples"]) -> Interval:
    """Returns the interval with the central 95 % of resampled values."""
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]).tolist()
    return low, high


def share_interval(hits: int | float, rows: int) -> Interval:
    """Returns the exact interval of the proportion `hits` / `rows` (Clopper & Pearson, 1934)."""
    tail = (1 - LEVEL) / 2
    low = stats.beta.ppf(tail, hits, rows - hits + 1) if hits else 0.0
    high = stats.beta.ppf(1 - tail, hits + 1, rows - hits) if hits < rows else 1.0
    return float(low), float(high)


def proportion(hits: Bool[np.ndarray, " rows"] | Float[np.ndarray, " rows"]) -> Proportion:
    """Returns the share of hits (0 or 1 for each row) with its exact interval."""
    return Proportion(float(hits.mean()), share_interval(int(hits.sum()), len(hits)))


def auroc_interval(familiar: Float[np.ndarray, " test"], strange: Float[np.ndarray, " ood"]) -> Interval:
    """Returns an interval of the area A under a ROC curve: the outer limits of two intervals, within 0 … 1.

    One is normal on the scale of log(A / (1 − A)), with the variance of DeLong et al. (1988); Pepe (2003, §5.2) gives it
    for areas near 1. That variance is estimated from the pairs in the wrong order; from few pairs it is too small. The
    other, method 5 of Newcombe (2006), uses the variance of an area A under a model and inverts the test of A. If no
    variance can be estimated, because the sets do not overlap or one has a single row, the first interval is the exact
    one of a proportion A of n independent pairs, where n is the number of rows of the smaller set. For a given A, the
    probability that all pairs are in the right order is at most the probability that these n pairs are.
    """
    above = _share_below(np.sort(familiar), strange)
    below = _share_below(np.sort(strange), familiar)
    area, pairs = float(above.mean()), min(len(familiar), len(strange))
    variance = sum(part.var(ddof=1) / len(part) for part in (above, below)) if pairs > 1 else 0.0
    first = _logit_interval(area, float(np.sqrt(variance))) if variance > 0 else share_interval(area * pairs, pairs)
    low = _newcombe_limit(area, len(familiar), len(strange))
    high = 1 - _newcombe_limit(1 - area, len(familiar), len(strange))
    return min(first[0], low), max(first[1], high)


def _logit_interval(share: float, error: float) -> Interval:
    """Returns the normal interval of a share strictly between 0 and 1, on the logit scale (delta method)."""
    half = stats.norm.ppf((1 + LEVEL) / 2) * error / (share * (1 - share))
    low, high = (float(special.expit(special.logit(share) + side * half)) for side in (-1, 1))
    return low, high


def _newcombe_limit(area: float, first: int, second: int) -> float:
    """Returns the lower limit A of method 5 of Newcombe (2006).

    (area − A)² = z² V(A)
    V(A) = A (1 − A) (1 + m (1 − A) / (2 − A) + m A / (1 + A)) / (first · second),   m = (first + second) / 2 − 1
    """
    z, half = float(stats.norm.ppf((1 + LEVEL) / 2)), (first + second) / 2 - 1

    def excess(a: float) -> float:
        model = a * (1 - a) * (1 + half * (1 - a) / (2 - a) + half * a / (1 + a)) / (first * second)
        return (area - a) ** 2 - z**2 * model

    tiny = 1e-12
    root: Any = optimize.brentq(excess, tiny, min(area, 1 - tiny)) if area > 1e-6 else 0.0
    return float(root)


def calibrated_ece(
    confidence: Float[np.ndarray, " rows"], resamples: int = RESAMPLES, seed: int = 0
) -> Float[np.ndarray, " resamples"]:
    """Samples the expected calibration error (ECE) of a perfectly calibrated model with these confidences.

    Each row is correct with the probability that the model states (Vaicenavicius et al., 2019, §4: consistency
    resampling, after Bröcker & Smith, 2007). Even then the ECE is positive, and larger for fewer rows.
    """
    rows = len(confidence)
    ordered = np.sort(confidence.astype(np.float64))
    tied = np.flatnonzero(np.diff(ordered, prepend=-1.0))
    sizes = np.diff(tied, append=rows)
    starts = equal_mass_starts(rows)
    rng = np.random.default_rng(seed)
    resamples = min(resamples, max(200, _AT_MOST // rows))
    chunk = max(1, _AT_ONCE // rows)
    eces: list[Float[np.ndarray, " chunk"]] = []
    for start in range(0, resamples, chunk):
        right = rng.random((min(chunk, resamples - start), rows)) < ordered
        shares = np.add.reduceat(right.astype(np.float64), tied, axis=1) / sizes
        gaps = np.repeat(shares, sizes, axis=1) - ordered
        eces.append(np.abs(np.add.reduceat(gaps, starts, axis=1)).sum(axis=1) / rows)
    return np.concatenate(eces)


def _share_below(ascending: Float[np.ndarray, " others"], values: Float[np.ndarray, " rows"]) -> np.ndarray:
    """Returns the share of `ascending` below each value; ties count half."""
    left, right = (np.searchsorted(ascending, values, side=side) for side in ("left", "right"))
    return (left + right) / (2 * len(ascending))


def _positions(order: Int[np.ndarray, " rows"]) -> Int[np.ndarray, " rows"]:
    positions = np.empty(len(order), np.int32)
    positions[order] = np.arange(len(order), dtype=np.int32)
    return positions
