"""Bounds for random results: each holds with probability ≥ 1 − 1e-6 for every random key if the sampler is correct.

A mean over samples is normal around the true value with the Monte Carlo standard error, MCSE = std / √ESS. For `count`
means at once, the bound is the normal quantile of 1e-6 / count (Bonferroni) times `SLACK`, because the MCSE itself is only
known to about a tenth for an ESS of a thousand.

A bound grows with the MCSE, so a bound that is too wide would accept a wrong sampler. Therefore `assert_variances` also
checks that a standard deviation 10 % off would fail.
"""

import numpy as np
from arviz_stats.base.array import array_stats
from scipy import stats

FALSE_ALARM, SLACK = 1e-6, 1.15
AXES = {"chain_axis": 0, "draw_axis": 1}


def z_bound(count):
    """The bound for `count` means at once, in standard errors."""
    return SLACK * stats.norm.isf(FALSE_ALARM / (2 * count))


def mean_and_error(values):
    """The mean over chains and samples, and its Monte Carlo standard error."""
    values = np.asarray(values, np.float64)
    return values.mean(axis=(0, 1)), array_stats.mcse(values, method="mean", **AXES)


def assert_means(values, exact, exact_error=0.0):
    """Checks the mean of every column of `[chains, samples, columns]` against exact values or estimates with an error."""
    mean, error = mean_and_error(values)
    scores = np.abs(mean - exact) / np.hypot(error, exact_error)
    assert scores.max() < z_bound(scores.size), scores


def assert_variances(values, mean, variance):
    """Checks the mean square around a known mean; also that a standard deviation 10 % off (variance 19 %) would fail."""
    squares = (np.asarray(values, np.float64) - mean) ** 2
    assert_means(squares, variance)
    error = array_stats.mcse(squares, method="mean", **AXES)
    assert (error * z_bound(error.size) < 0.19 * np.asarray(variance)).all(), error / variance


def assert_chains_agree(values):
    """Checks that no R-hat is larger than chance explains.

    With m half-chains of n independent samples each, R-hat² = 1 + χ²/((m − 1) n) with m − 1 degrees of freedom, so it
    exceeds the quantile of 1e-6 / values almost never. n is computed after subtracting each chain's mean, so that chains that
    disagree do not lower it. Rank R-hat is the larger of the R-hat of the values and of their distances from the median, so
    n is the smaller ESS of both.
    """
    values = np.asarray(values, np.float64)
    chains, _, columns = values.shape
    rhat = array_stats.rhat(values, method="rank", **AXES)
    folded = np.abs(values - np.median(values, axis=(0, 1)))
    ess = [array_stats.ess(both - both.mean(axis=1, keepdims=True), method="mean", **AXES) for both in (values, folded)]
    halves = np.minimum(*ess) / (2 * chains)
    quantile = stats.chi2.isf(FALSE_ALARM / (2 * columns), 2 * chains - 1) / (2 * chains - 1)
    bound = np.sqrt(1 + SLACK**2 * quantile / halves)
    assert (rhat < bound).all(), (rhat, bound)
