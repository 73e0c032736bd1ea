"""Fits a recalibration to the calibration part: a temperature for classes, a factor on deviations for numbers.

`models/prediction/temperature.py` applies a recalibration to predictions.

A temperature is fitted as if one more row were wrong, an average row whose label is its runner-up, the second most probable
class. The labels of few rows of a good model may all be right by chance. Then likelihood alone would choose temperature 0, and
the next error would cost more than all rows gained. One more error is how Platt (1999) limits the targets of his sigmoid:
with m right answers of m, the next one is wrong with probability about 1/(m + 2) (Laplace's rule of succession).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from abstain.models.prediction.temperature import Recalibration

# A model that is more than twenty times over- or underconfident has a fault that no factor corrects.
BOUNDS = (0.05, 20.0)

_SMALLEST_PROBABILITY = float(np.finfo(np.float32).tiny)
_GRID = 13
_GOLDEN = (math.sqrt(5) - 1) / 2
_LOG_TOLERANCE = 1e-6
_CHUNK_NUMBERS = 2_000_000
# Less than a billionth of a nat is a rounding error of the search, not a gain.
_GAIN_DECIMALS = 9


class Candidate(NamedTuple):
    """A recalibration, and what the rows that it was fitted to say for it.

    Attributes:
        gain: how much it raises the log-likelihood of these rows, in nats.
        deviation: how many standard errors the error of these rows is above the stated one without it.
    """

    recalibration: Recalibration
    gain: float
    deviation: float


def fit_pooled(mean_probabilities: Float[np.ndarray, "rows classes"], labels: Int[np.ndarray, " rows"]) -> float:
    """Returns the temperature T within `BOUNDS` that minimises the negative log-likelihood of `temper_pooled`.

    Temperature scaling (Guo et al., 2017) of the logarithm of the pooled probability (Rahaman & Thiery, 2021), as if one more
    row were wrong.
    """
    log_mean, second = np.log(_floor(mean_probabilities)), runner_up(mean_probabilities)

    def loss(temperature: float) -> float:
        right, wrong = (_tempered_log(log_mean, chosen, temperature).mean() for chosen in (labels, second))
        return -float(right + wrong / len(labels))

    return _minimise(loss)


def runner_up(probabilities: Float[np.ndarray, "rows classes"]) -> Int[np.ndarray, " rows"]:
    """Returns each row's second most probable class."""
    return np.argsort(-probabilities, axis=1, kind="stable")[:, 1]


def fit_draws(log_probabilities: Float[np.ndarray, "draws rows classes"], labels: Int[np.ndarray, " rows"]) -> float:
    """Returns the T that minimises the negative log-likelihood of the mean over draws of softmax(log p_s / T).

    As in `fit_pooled`, as if one more row were wrong.

    Args:
        log_probabilities: the normalised log probabilities of every draw, in nats.
        labels: the true classes.
    """
    second = np.concatenate([runner_up(_pooled(part, 1.0)) for part in _row_chunks(log_probabilities)])
    return _minimise(lambda temperature: _draws_loss(log_probabilities, labels, second, temperature))


def fit_variance(
    mean: Float[np.ndarray, " rows"], variance: Float[np.ndarray, " rows"], targets: Float[np.ndarray, " rows"]
) -> float:
    """Returns the factor c on standard deviations that maximises the Gaussian likelihood, within `BOUNDS`.

    Standard-deviation scaling, c² = mean((y − μ)²/σ²) (Laves et al., 2020, equation 10; Levi et al., 2022).

    Args:
        mean: μ, in the target's units.
        variance: σ², in squared units.
        targets: y.
    """
    return float(np.clip(np.sqrt(np.mean(_squares(mean, variance, targets))), *BOUNDS))


def deviation_of_classes(probabilities: Float[np.ndarray, "rows classes"], labels: Int[np.ndarray, " rows"]) -> float:
    """Returns how many standard errors the mean of −ln p of the true class is above the mean entropy.

    The difference of a row is the derivative of its log-likelihood by the logarithm of a pooled temperature, at 1: its score.
    """
    floored = _floor(probabilities)
    entropy = -(floored * np.log(floored)).sum(axis=1)
    return standard_errors(-np.log(floored[np.arange(len(labels)), labels]) - entropy)


def deviation_of_numbers(
    mean: Float[np.ndarray, " rows"], variance: Float[np.ndarray, " rows"], targets: Float[np.ndarray, " rows"]
) -> float:
    """Returns how many standard errors the mean of (y − μ)²/σ² is above 1; the arguments are those of `fit_variance`."""
    return standard_errors(_squares(mean, variance, targets) - 1)


def standard_errors(scores: Float[np.ndarray, " rows"]) -> float:
    """Returns Σ s / √Σ s², which is about standard normal if the scores have mean 0, whatever their distribution.

    This is Rao's (1948) score test with the empirical variance, so it is also valid if the likelihood is wrong (White, 1982).
    A single extreme row has a deviation of at most 1.
    """
    root = math.sqrt(float(np.sum(np.square(scores))))
    return float(np.sum(scores)) / root if root > 0 else 0.0


def _squares(mean: np.ndarray, variance: np.ndarray, targets: np.ndarray) -> Float[np.ndarray, " rows"]:
    spread = np.maximum(np.asarray(variance, np.float64), _SMALLEST_PROBABILITY)
    return (np.asarray(targets, np.float64) - mean) ** 2 / spread


def variance_gain(
    mean: Float[np.ndarray, " rows"],
    variance: Float[np.ndarray, " rows"],
    targets: Float[np.ndarray, " rows"],
    factor: float,
) -> float:
    """Returns how much a factor c on standard deviations raises the Gaussian log-likelihood of the rows, in nats.

    It is Σ (1 − 1/c²)·(y − μ)²/(2σ²) − ln c; the arguments are those of `fit_variance`.
    """
    return float(np.sum((1 - factor**-2) * _squares(mean, variance, targets) / 2 - math.log(factor)))


def choose_temperature(
    log_probabilities: Float[np.ndarray, "draws rows classes"], labels: Int[np.ndarray, " rows"]
) -> Candidate:
    """Returns the recalibration with the least negative log-likelihood: none, or a temperature, pooled or for each draw.

    The likelihood is that of the served probabilities (`summaries.with_labels_of`) on these rows alone; the first of equal
    ones is chosen.

    Args:
        log_probabilities: the normalised log probabilities of every draw, in nats.
        labels: the true classes.
    """
    mean = np.concatenate([_pooled(part, 1.0) for part in _row_chunks(log_probabilities)])
    pooled, draws = fit_pooled(mean, labels), fit_draws(log_probabilities, labels)
    tempered = np.concatenate([_pooled(part, draws) for part in _row_chunks(log_probabilities)])
    kept = np.where((tempered.argmax(axis=1) == mean.argmax(axis=1))[:, None], tempered, mean)
    log_mean = np.log(_floor(mean))
    candidates = [
        (_loss(mean, labels), Recalibration()),
        (-float(_tempered_log(log_mean, labels, pooled).mean()), Recalibration(kind="pooled", factor=pooled)),
        (_loss(kept, labels), Recalibration(kind="draws", factor=draws)),
    ]
    least, best = min(candidates, key=lambda candidate: round(candidate[0], _GAIN_DECIMALS))
    return Candidate(best, len(labels) * (candidates[0][0] - least), deviation_of_classes(mean, labels))


def _minimise(loss: Callable[[float], float]) -> float:
    """Returns the temperature with the least loss: the best of a grid, then a golden-section search between its neighbours.

    The pooled loss is convex in 1/T and has one minimum; the loss of a mixture may have several.
    """
    grid: list[float] = np.linspace(math.log(BOUNDS[0]), math.log(BOUNDS[1]), _GRID).tolist()
    best = int(np.argmin([loss(math.exp(log)) for log in grid]))
    low, high = grid[max(best - 1, 0)], grid[min(best + 1, _GRID - 1)]
    left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
    at_left, at_right = loss(math.exp(left)), loss(math.exp(right))
    while high - low > _LOG_TOLERANCE:
        if at_left <= at_right:
            high, right, at_right = right, left, at_left
            left = high - _GOLDEN * (high - low)
            at_left = loss(math.exp(left))
        else:
            low, left, at_left = left, right, at_right
            right = low + _GOLDEN * (high - low)
            at_right = loss(math.exp(right))
    return float(np.clip(math.exp((low + high) / 2), *BOUNDS))


def _draws_loss(log_probabilities: np.ndarray, labels: np.ndarray, second: np.ndarray, temperature: float) -> float:
    """Returns the mean negative log-likelihood with one more wrong row, in nats per row."""
    losses, start = 0.0, 0
    for part in _row_chunks(log_probabilities):
        pooled, own = _pooled(part, temperature), slice(start, start + part.shape[1])
        losses += part.shape[1] * (_loss(pooled, labels[own]) + _loss(pooled, second[own]) / len(labels))
        start = own.stop
    return losses / len(labels)


def _row_chunks(log_probabilities: np.ndarray) -> Iterator[np.ndarray]:
    """Yields chunks of rows that are small enough for copies in double precision."""
    draws, rows, classes = log_probabilities.shape
    step = max(1, _CHUNK_NUMBERS // (draws * classes))
    for start in range(0, rows, step):
        yield log_probabilities[:, start : start + step]


def _pooled(log_probabilities: np.ndarray, temperature: float) -> Float[np.ndarray, "rows classes"]:
    scaled = np.asarray(log_probabilities, np.float64) / temperature
    powers = np.exp(scaled - scaled.max(axis=-1, keepdims=True))
    return (powers / powers.sum(axis=-1, keepdims=True)).mean(axis=0)


def _loss(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Returns the mean negative log-likelihood, in nats per row."""
    return float(-np.log(_floor(probabilities[np.arange(len(labels)), labels])).mean())


def _tempered_log(log_mean: np.ndarray, labels: np.ndarray, temperature: float) -> Float[np.ndarray, " rows"]:
    scaled = log_mean / temperature
    largest = scaled.max(axis=-1)
    return scaled[np.arange(len(labels)), labels] - largest - np.log(np.exp(scaled - largest[:, None]).sum(axis=-1))


def _floor(probabilities: np.ndarray) -> Float[np.ndarray, "..."]:
    """Raises probabilities of 0 to a tiny number, so that no true class makes the loss infinite."""
    return np.maximum(np.asarray(probabilities, np.float64), _SMALLEST_PROBABILITY)
