"""The predictive mixture of each row: all draws with equal weight; normals for a regression.

Log densities, CRPS and the distribution function need the draws, which the served summary does not have.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num
from scipy.special import logsumexp, ndtr
from scipy.stats import norm

from abstain.models.prediction.posterior import Posterior
from abstain.models.prediction.predictive import predict_draw
from abstain.models.prediction.preprocessing import on_host
from abstain.models.prediction.summaries import RegressionSummary
from abstain.training.data.rows import Rows


def pooled_log_likelihood(posterior: Posterior, rows: Rows) -> Float[np.ndarray, " rows"]:
    """Returns the log of the mean over draws of each row's likelihood, in nats, without recalibration."""
    if posterior.model.likelihood_functions.task == "regression":
        moments = draw_moments(posterior, rows.x)
        return mixture_log_density(moments[..., 0], np.sqrt(moments[..., 1]), rows.y)

    @jax.jit
    def of_draw(draw: Any, x: Array, y: Array) -> Array:
        predict = lambda row: predict_draw(posterior.model, draw, row[0])[row[1]]  # noqa: E731
        return jax.lax.map(predict, (x, y), batch_size=512)

    x = jnp.asarray(on_host(posterior.model.preprocessing, rows.x), jnp.float32)
    y = jnp.asarray(rows.y, jnp.int32)
    total = np.full(len(rows), -np.inf)
    for index in range(posterior.size):
        draw = jax.tree.map(lambda leaf, index=index: leaf[index], posterior.draws)
        total = np.logaddexp(total, np.asarray(of_draw(draw, x, y), np.float64))
    return total - np.log(posterior.size)


def squared_errors_and_nll(
    posterior: Posterior, summary: RegressionSummary, rows: Rows
) -> dict[str, Float[np.ndarray, " rows"]]:
    """Returns each row's squared error (`rmse`) and NLL (nats) of the served mixture."""
    return _point_terms(*served_mixture(posterior, summary, rows.x), summary, rows)


def _point_terms(
    means: Float[np.ndarray, "rows draws"],
    stds: Float[np.ndarray, "rows draws"],
    summary: RegressionSummary,
    rows: Rows,
) -> dict[str, np.ndarray]:
    return {
        "squared_error": (np.asarray(summary.mean) - rows.y) ** 2,
        "nll": -mixture_log_density(means, stds, rows.y),
    }


def regression_terms(posterior: Posterior, summary: RegressionSummary, rows: Rows) -> dict[str, np.ndarray]:
    """Returns each row's squared error (`rmse`), NLL (nats) and CRPS, and coverage and width of the central 95 %."""
    low, high = np.asarray(summary.quantiles)[:, 0], np.asarray(summary.quantiles)[:, -1]
    means, stds = served_mixture(posterior, summary, rows.x)
    return _point_terms(means, stds, summary, rows) | {
        "crps": mixture_crps(means, stds, rows.y),
        "coverage_95": ((rows.y >= low) & (rows.y <= high)).astype(np.float64),
        "interval_width": high - low,
    }


def served_mixture(
    posterior: Posterior, summary: RegressionSummary, x: Num[np.ndarray, "rows ..."]
) -> tuple[Float[np.ndarray, "rows draws"], Float[np.ndarray, "rows draws"]]:
    """Returns the means and standard deviations of each row's normals, scaled to the variance of the served summary.

    The summary includes the recalibration; the draws do not.
    """
    moments = draw_moments(posterior, x)
    means, variances = moments[..., 0], moments[..., 1]
    centre = means.mean(axis=1, keepdims=True)
    served = np.asarray(summary.aleatoric_variance, np.float64) + np.asarray(summary.epistemic_variance, np.float64)
    factor = np.sqrt(served / (variances.mean(axis=1) + means.var(axis=1)))[:, None]
    return centre + factor * (means - centre), factor * np.sqrt(variances)


def mixture_log_density(
    means: Float[np.ndarray, "rows draws"], stds: Float[np.ndarray, "rows draws"], y: Float[np.ndarray, " rows"]
) -> Float[np.ndarray, " rows"]:
    """Returns the log of the mean over draws of each target's density, in nats."""
    log_densities = norm.logpdf(y[:, None], means, stds)
    return logsumexp(log_densities, axis=1) - np.log(means.shape[1])


def draw_moments(posterior: Posterior, x: Num[np.ndarray, "rows ..."]) -> Float[np.ndarray, "rows draws 2"]:
    """Returns the mean and variance that each draw predicts for each row, in the target's units."""

    def of_row(row: Array) -> Array:
        return jax.vmap(lambda draw: predict_draw(posterior.model, draw, row))(posterior.draws)

    preprocessing = posterior.model.preprocessing
    inputs = jnp.asarray(on_host(preprocessing, x), jnp.float32)
    standard = np.asarray(jax.jit(partial(jax.lax.map, of_row, batch_size=64))(inputs), np.float64)
    target_scale, target_shift = preprocessing.target_scale, preprocessing.target_shift
    return standard * [target_scale, target_scale**2] + [target_shift, 0.0]


def mixture_crps(
    means: Float[np.ndarray, "rows draws"], stds: Float[np.ndarray, "rows draws"], y: Float[np.ndarray, " rows"]
) -> Float[np.ndarray, " rows"]:
    """Returns the CRPS of an equally weighted mixture of normals, in closed form (Grimit et al., 2006, eq. 5)."""

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


def probability_integral_transform(
    posterior: Posterior, summary: RegressionSummary, rows: Rows
) -> Float[np.ndarray, " rows"]:
    """Returns the mixture's distribution function at each target, uniform for calibrated predictions (Dawid, 1984)."""
    means, stds = served_mixture(posterior, summary, rows.x)
    return ndtr((rows.y[:, None] - means) / stds).mean(axis=1)
