"""Bounds for what is random: each holds with probability ≥ 1 − 1e-6 if the sampler is right, whatever the key.

A mean over samples is normal about the truth with its Monte Carlo standard error, MCSE = std / √ESS. Of `count` means
held at once, the bound is the normal quantile of 1e-6 / count (Bonferroni), times `SLACK`: with an ESS of a thousand and
more the MCSE itself is known to about a tenth.

A bound grows with the MCSE, so one that is too wide would let a wrong sampler pass: `assert_variances` asks besides
that a standard deviation 10 % off would have been seen.
"""

import numpy as np
from arviz_stats.base.array import array_stats
from scipy import stats

FALSE_ALARM, SLACK = 1e-6, 1.15
AXES = {"chain_axis": 0, "draw_axis": 1}


def z_bound(count):
    """In standard errors, for `count` means at once."""
    return SLACK * stats.norm.isf(FALSE_ALARM / (2 * count))


def mean_and_error(values):
    """The mean over chains and samples, and its Monte Carlo standard error."""
    values = np.asarray(values, np.float64)
    return values.mean(axis=(0, 1)), array_stats.mcse(values, method="mean", **AXES)


def assert_means(values, exact, exact_error=0.0):
    """The mean of every column `[chains, samples, columns]` is what is known, or estimated with a standard error."""
    mean, error = mean_and_error(values)
    scores = np.abs(mean - exact) / np.hypot(error, exact_error)
    assert scores.max() < z_bound(scores.size), scores


def assert_variances(values, mean, variance):
    """So is the mean square about a known mean; and a standard deviation 10 % off, a variance 19 % off, would be seen."""
    squares = (np.asarray(values, np.float64) - mean) ** 2
    assert_means(squares, variance)
    error = array_stats.mcse(squares, method="mean", **AXES)
    assert (error * z_bound(error.size) < 0.19 * np.asarray(variance)).all(), error / variance


def assert_chains_agree(values):
    """No R-hat is larger than chance makes it.

    With m half-chains, each worth n independent samples, R-hat² = 1 + χ²/((m − 1) n) in the mean and, by its χ² of m − 1
    degrees of freedom, above the quantile of 1e-6 / values hardly ever. n comes from the chains less their own means: chains
    that disagree do not lower it. R-hat by ranks is the larger of that of the values and of their distances from
    the median; so n is the smaller ESS of both.
    """
    values = np.asarray(values, np.float64)
    chains, _, columns = values.shape
    rhat = array_stats.rhat(values, method="rank", **AXES)
    folded = np.abs(values - np.median(values, axis=(0, 1)))
    own = [array_stats.ess(both - both.mean(axis=1, keepdims=True), method="mean", **AXES) for both in (values, folded)]
    halves = np.minimum(*own) / (2 * chains)
    quantile = stats.chi2.isf(FALSE_ALARM / (2 * columns), 2 * chains - 1) / (2 * chains - 1)
    bound = np.sqrt(1 + SLACK**2 * quantile / halves)
    assert (rhat < bound).all(), (rhat, bound)
