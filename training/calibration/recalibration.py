"""Chooses a recalibration by likelihood, on calibration rows that do not set the radius of sets and intervals.

A radius from the rows that the recalibration was fitted to is a little too small, because these rows fit the recalibrated
predictions better than new rows do. So a random part of the calibration rows chooses the recalibration, and only the others
set the radius; given the recalibration, they are exchangeable with new rows. Scores are computed before recalibration, so all
rows set their thresholds.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Num
from scipy.stats import chi2, norm

from abstain.models.decisions.ranks import percentile_rank, rows_needed
from abstain.models.prediction.posterior import Model, Posterior
from abstain.models.prediction.predictive import NONE, Predictor, predict_draw
from abstain.models.prediction.preprocessing import on_host
from abstain.models.prediction.summaries import RegressionSummary
from abstain.models.prediction.temperature import Recalibration, RecalibrationChoice
from abstain.training.calibration.temperature import (
    Candidate,
    choose_temperature,
    deviation_of_numbers,
    fit_variance,
    variance_gain,
)
from abstain.training.config.calibration import CalibrationConfig
from abstain.training.data.rows import Rows

BUCKETS = (256,)
"""One bucket is enough for calibration and evaluation, which have thousands of rows."""
SHARE = 0.2
"""The share of the calibration rows that choose the recalibration. Without them the bounds of the coverage are wider by an
eighth, 1/√(1 − SHARE)."""
FEWEST = 50
"""The least number of these rows: a number fitted to m rows costs on average 1/(2m) nats per row (Akaike, 1974), .01 here …"""
MOST = 1_000
"""… and the largest number, where it costs .0005, which no metric shows."""
MOST_SHARE = 1 / 3
"""The largest share of the calibration rows that `FEWEST` may take."""
LEVEL = 0.05
"""The probability that a recalibration is applied to a model that needs none."""
LEAST_DEVIATION = float(norm.ppf(1 - LEVEL / 2))
"""The least deviation of the observed error from the stated one, in standard errors."""
CANDIDATES = {"classification": 2, "regression": 1}
"""The number of recalibrations that are fitted: temperatures, pooled and of each draw; or a factor."""


class Chosen(NamedTuple):
    """The recalibration to apply, how it was chosen, and the rows that set the radius: all rows if None."""

    recalibration: Recalibration = NONE
    choice: RecalibrationChoice | None = None
    radius_rows: Int[np.ndarray, " radius"] | None = None


def choose_recalibration(settings: CalibrationConfig, posterior: Posterior, rows: Rows, seed: int) -> Chosen:
    """Chooses the recalibration that the settings request.

    The likeliest recalibration is applied if two tests at `LEVEL` reject that none is needed. The rows count as independent.

    - Likelihood ratio: twice the gain has asymptotically a χ² distribution with one degree of freedom (Wilks, 1938). The level
      is divided by the number of candidates.
    - Score (`standard_errors`): the gain may come from one row with an extreme error, which says little about new rows.

    Args:
        rows: the calibration rows, augmented if the settings say so.
    """
    if settings.recalibrate == "none":
        return Chosen()
    least_gain = least_gain_of(posterior.model)
    own, others = set_aside(settings, posterior.model, rows.y, seed)
    if not len(own):
        return Chosen(choice=RecalibrationChoice(rows=0, least_gain=least_gain, least_deviation=LEAST_DEVIATION))
    best = fit_recalibration(posterior, rows.take(own))
    choice = RecalibrationChoice(
        rows=len(own),
        radius_rows=None if others is None else len(others),
        best=best.recalibration,
        gain=best.gain,
        least_gain=least_gain,
        deviation=best.deviation,
        least_deviation=LEAST_DEVIATION,
    )
    applied = is_significant(best, least_gain)
    # Also if none is applied: that choice, too, depends on the rows that made it.
    return Chosen(best.recalibration if applied else NONE, choice, others)


def is_significant(best: Candidate, least_gain: float) -> bool:
    """Whether both tests reject that no recalibration is needed."""
    return best.gain >= least_gain and abs(best.deviation) >= LEAST_DEVIATION


def least_gain_of(model: Model) -> float:
    """Returns the gain in log-likelihood, in nats, from which on a recalibration is applied: 2.51 for classes, else 1.92."""
    return float(chi2.ppf(1 - LEVEL / CANDIDATES[model.likelihood_functions.task], df=1)) / 2


def set_aside(
    settings: CalibrationConfig, model: Model, y: Num[np.ndarray, " rows"], seed: int
) -> tuple[Int[np.ndarray, " own"], Int[np.ndarray, " radius"] | None]:
    """Chooses at random the rows that choose the recalibration; returns their indices and those of the others, ascending.

    If too few others would be left for the coverage, in all, of a class or accepted, there are no such rows. Intervals by
    "normalised" residuals are the same with every factor on the standard deviations, which their radius is divided by. There
    all rows do both.

    Returns:
        The others are None if all rows set the radius.
    """
    rows = len(y)
    if model.likelihood_functions.task == "regression" and settings.intervals == "normalised":
        return np.arange(rows if rows >= FEWEST else 0), None
    count = min(max(round(SHARE * rows), FEWEST), MOST)
    if count > MOST_SHARE * rows or rows - count < rows_needed(settings.coverage):
        return np.arange(0), None
    order = np.random.default_rng([seed, 13]).permutation(rows)
    own, others = np.sort(order[:count]), np.sort(order[count:])
    if _fewest_in_a_group(settings, model, y, others) < rows_needed(settings.coverage):
        return np.arange(0), None
    return own, others


def _fewest_in_a_group(
    settings: CalibrationConfig, model: Model, y: Num[np.ndarray, " rows"], others: Int[np.ndarray, " radius"]
) -> int:
    """Returns the least number of rows over which the coverage will be set, of all classes, even if all others are accepted."""
    counts = [len(others)]
    if settings.coverage_per_class:
        counts = np.bincount(y[others].astype(int), minlength=len(model.class_names)).tolist()
    rejected = len(y) + 1 - percentile_rank(settings.percentile, len(y)) if settings.coverage_among == "accepted" else 0
    return min(counts) - rejected


def fit_recalibration(posterior: Posterior, rows: Rows) -> Candidate:
    """Fits a temperature for pooled or for each draw's probabilities, or for a regression a factor, by likelihood."""
    if posterior.model.likelihood_functions.task == "classification":
        return choose_temperature(draw_log_probabilities(posterior, rows.x), rows.y.astype(int))
    summary = cast("RegressionSummary", Predictor(posterior, BUCKETS)(rows.x).summary)
    variance = np.asarray(summary.aleatoric_variance) + np.asarray(summary.epistemic_variance)
    preprocessing = posterior.model.preprocessing
    unit = preprocessing.target_scale if preprocessing.float64_target else 1.0
    scaled = np.asarray(summary.mean) / unit, variance / unit**2, rows.y / unit
    factor = fit_variance(*scaled)
    best = Recalibration(kind="variance", factor=factor)
    return Candidate(best, variance_gain(*scaled, factor), deviation_of_numbers(*scaled))


def draw_log_probabilities(
    posterior: Posterior, x: Num[np.ndarray, "rows ..."]
) -> Float[np.ndarray, "draws rows classes"]:
    """Computes the log probabilities that each draw predicts for each row, in nats."""

    @jax.jit
    def of_draw(draw: Any, x: Array) -> Array:
        return jax.lax.map(partial(predict_draw, posterior.model, draw), x, batch_size=512)

    rows = jnp.asarray(on_host(posterior.model.preprocessing, x), jnp.float32)
    draws = range(posterior.size)
    return np.stack([of_draw(jax.tree.map(lambda leaf, s=s: leaf[s], posterior.draws), rows) for s in draws])
