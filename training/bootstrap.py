"""Intervals: how far a figure would move had other rows been drawn, at 95 %.

The percentile bootstrap (Efron, 1979) for what is computed over rows, exact binomial limits for shares, and DeLong's
variance for the area under a ROC curve. The model stays as it is: none of these tells how another fit would do.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, Int
from scipy import stats

from training.metrics import Terms, equal_mass_starts, finished, tied_means

RESAMPLES = 1000
LEVEL = 0.95
_AT_ONCE = 2_000_000
_AT_MOST = 20_000_000
Interval = list[float]


def mean_intervals(terms: Terms, resamples: int = RESAMPLES, seed: int = 0) -> dict[str, Interval]:
    """Bootstrap intervals of the metrics that are means over rows."""
    rows = len(next(iter(terms.values())))
    found = [
        {name: finished(name, values[drawn].mean(axis=1)) for name, values in terms.items()}
        for drawn in resampled(rows, resamples, seed)
    ]
    return {name: limits(np.concatenate([part[name] for part in found])) for name in terms}


def classification_intervals(
    terms: Terms, confidence: Float[np.ndarray, " rows"], resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, Interval]:
    """Bootstrap intervals of accuracy, NLL, Brier score, ECE and AURC.

    A resample is never as even as the rows, so its ECE is larger on average; the interval is moved back by that
    average rise, the bootstrap's estimate of bias (Efron & Tibshirani, 1993, chapter 10), and cut at 0.
    """
    rows, correct = len(confidence), terms["accuracy"]
    rising, falling = np.argsort(confidence, kind="stable"), np.argsort(-confidence, kind="stable")
    correct = tied_means(confidence, correct)
    gaps, errors = (correct - confidence)[rising], 1 - correct[falling]
    up, down = _places(rising), _places(falling)
    starts, counts = equal_mass_starts(rows), np.arange(1, rows + 1)
    eces, aurcs = [], []
    for drawn in resampled(rows, resamples, seed):
        # Sorted places are a resample in order of its confidence.
        ordered = gaps[np.sort(up[drawn], axis=1)]
        eces.append(np.abs(np.add.reduceat(ordered, starts, axis=1)).sum(axis=1) / rows)
        ordered = errors[np.sort(down[drawn], axis=1)]
        aurcs.append((np.cumsum(ordered, axis=1) / counts).mean(axis=1))
    ece = np.concatenate(eces)
    bias = ece.mean() - np.abs(np.add.reduceat(gaps, starts)).sum() / rows
    return mean_intervals(terms, resamples, seed) | {
        "ece": limits(np.maximum(ece - bias, 0)),
        "aurc": limits(np.concatenate(aurcs)),
    }


def resampled(rows: int, resamples: int, seed: int) -> Iterator[Int[np.ndarray, "chunk rows"]]:
    """Row numbers drawn with replacement, some resamples at a time; fewer, but 200, where there are very many rows."""
    rng = np.random.default_rng(seed)
    resamples = min(resamples, max(200, _AT_MOST // rows))
    chunk = max(1, _AT_ONCE // rows)
    for start in range(0, resamples, chunk):
        yield rng.integers(0, rows, (min(chunk, resamples - start), rows), dtype=np.int32)


def limits(values: Float[np.ndarray, " resamples"]) -> Interval:
    """The central 95 % of a statistic's resamples."""
    return np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]).tolist()


def share_interval(hits: int, rows: int) -> Interval:
    """Exact limits of a binomial share (Clopper & Pearson, 1934)."""
    tail = (1 - LEVEL) / 2
    low = stats.beta.ppf(tail, hits, rows - hits + 1) if hits else 0.0
    high = stats.beta.ppf(1 - tail, hits + 1, rows - hits) if hits < rows else 1.0
    return [float(low), float(high)]


def auroc_interval(familiar: Float[np.ndarray, " test"], strange: Float[np.ndarray, " ood"]) -> Interval:
    """Normal limits of an area under a ROC curve with the variance of DeLong et al. (1988), cut at 0 and 1.

    Sets that lie wholly apart have no variance to estimate, hence an interval of no width.
    """
    above = _share_below(np.sort(familiar), strange)
    below = _share_below(np.sort(strange), familiar)
    variance = sum(part.var(ddof=1) / len(part) if len(part) > 1 else 0.0 for part in (above, below))
    half = stats.norm.ppf((1 + LEVEL) / 2) * np.sqrt(variance)
    return [max(float(above.mean() - half), 0.0), min(float(above.mean() + half), 1.0)]


def _share_below(ascending: Float[np.ndarray, " others"], values: Float[np.ndarray, " rows"]) -> np.ndarray:
    """Of each value, the share of the others below it, ties counted half."""
    left, right = (np.searchsorted(ascending, values, side=side) for side in ("left", "right"))
    return (left + right) / (2 * len(ascending))


def _places(order: Int[np.ndarray, " rows"]) -> Int[np.ndarray, " rows"]:
    places = np.empty(len(order), np.int32)
    places[order] = np.arange(len(order), dtype=np.int32)
    return places
