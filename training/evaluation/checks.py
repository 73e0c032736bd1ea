"""The gate: what a fit lacks to be relied on, in plain words.

Chains report their own shortfalls (`diagnostics.chain_shortfalls`). Here are those of the predictions, all by rows that
the fit has not learned from: a model that has learned nothing, draws that predict far worse than the mode they were made
around, and a decision that can never reject.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, Num
from scipy import stats

from abstain.models.bundles.shortfalls import Shortfall
from abstain.models.decisions.decision import COMBINED
from abstain.models.decisions.ranks import less_tolerance
from abstain.models.decisions.records import Calibration
from abstain.models.prediction.posterior import Posterior
from abstain.training.data.rows import Rows
from abstain.training.evaluation.metrics import Terms
from abstain.training.evaluation.mixtures import pooled_log_likelihood
from abstain.training.inference.problem import Fitted

ENOUGH_DRAWS = 20
GAIN_ERRORS = 2.33
"""Standard errors by which a model must beat the training frequencies: one of pure noise does in 1 % of fits."""
LEAST_GAIN = 1e-3
"""The least gain that counts, as a share of the score to beat (of at most a nat): less may be rounding."""
LOSS_ERRORS, LARGEST_LOSS = 3.0, 0.1
"""Standard errors, and nats a row, by both of which draws must fall behind their mode to fall short."""
MODE_ROWS = 2_000
"""Test rows that draws and mode are compared on, at most."""


def draws_notes(draws: int) -> tuple[str, ...]:
    """What a reader should know of few draws."""
    if draws >= ENOUGH_DRAWS:
        return ()
    if draws == 1:
        return ("one draw is kept, which has no spread: standard deviations and mutual information are 0",)
    low = 1 - np.sqrt(1 - 1 / draws)
    return (
        f"only {draws} draws are kept: standard deviations and mutual information are as coarse as that, and as they "
        f"divide by {draws}, not {draws - 1}, standard deviations are {low:.0%} low on average",
    )


def prediction_shortfalls(
    terms: Terms,
    average: Terms,
    y: Num[np.ndarray, " rows"],
    train: Num[np.ndarray, " train"],
    calibration: Calibration,
) -> tuple[Shortfall, ...]:
    """What the predictions lack.

    Args:
        terms: of the served predictions on the test part, each row's `nll` (nats) with its `brier` for classes, or its
            squared error (`rmse`) for a regression.
        average: the same of the average of these predictions, made for every row (`quality.average_terms`).
        y: the test part's targets: class indices, or numbers.
        train: the training part's.
    """
    return (*learning_shortfalls(terms, average, y, train), *decision_shortfalls(calibration))


def learning_shortfalls(
    terms: Terms, average: Terms, y: Num[np.ndarray, " rows"], train: Num[np.ndarray, " train"]
) -> tuple[Shortfall, ...]:
    """Says so where neither proper score is better than that of predictions that do not look at the row.

    Two such are tried: the training part's class frequencies, or the normal with the training targets' mean and standard
    deviation; and the model's own predictions, averaged. Accuracy would not do: of a rare event the best model there is
    may never say that it happens. A gain counts if its mean over rows exceeds `GAIN_ERRORS` of its standard error, by
    paired rows. By chance the training frequencies may be off by as much; the own average of a constant model is not.
    """
    classify = "brier" in terms
    what = "the class frequencies" if classify else "a normal with the mean and standard deviation"
    known = frequency_terms(y, train) if classify else normal_terms(y, train)
    guesses = {f"{what} of the training part": known, "the average of its own predictions": average}
    for words, guess in guesses.items():
        if not any(_is_better(name, guess[name], terms[name]) for name in guess):
            gain = guess["nll"] - terms["nll"]
            text = (
                f"it has learned nothing that {len(y)} test rows show: its log-likelihood is {-terms['nll'].mean():.4g} "
                f"nats a row, and always predicting {words} gives {-guess['nll'].mean():.4g} (difference "
                f"{gain.mean():.2g}, standard error {_standard_error(gain):.2g}); {_advice(gain, y, classify=classify)}"
            )
            return (Shortfall("learned_nothing", text),)
    return ()


def _advice(gain: Float[np.ndarray, " rows"], y: Num[np.ndarray, " rows"], *, classify: bool) -> str:
    """What to do: predictions that are not significantly worse either may only need more test rows."""
    if gain.mean() < -GAIN_ERRORS * _standard_error(gain):
        return "lower kl_weight or the prior's scale, or train longer"
    rarest = f", {np.unique(y, return_counts=True)[1].min()} of the rarest class," if classify else ""
    return f"{len(y)} test rows{rarest} may be too few to show what it has learned: test on more, or train longer"


def frequency_terms(y: Num[np.ndarray, " rows"], train: Num[np.ndarray, " train"]) -> Terms:
    """NLL and Brier score of each row under the training part's class frequencies.

    A class without training rows counts as half a row: its NLL stays finite.
    """
    y, train = y.astype(int), train.astype(int)
    counts = np.bincount(train, minlength=1 + max(y.max(), train.max()))
    shares = np.maximum(counts, 0.5) / np.maximum(counts, 0.5).sum()
    return {"nll": -np.log(shares[y]), "brier": 1 - 2 * shares[y] + (shares**2).sum()}


def normal_terms(y: Num[np.ndarray, " rows"], train: Num[np.ndarray, " train"]) -> Terms:
    """NLL and squared error of each row under the normal with the training targets' mean and standard deviation."""
    exact = train.astype(np.float64)
    mean, std = exact.mean(), max(float(exact.std()), float(np.finfo(np.float64).tiny))
    return {"nll": -stats.norm.logpdf(y.astype(np.float64), mean, std), "rmse": (y - mean) ** 2}


def _is_better(name: str, guess: Float[np.ndarray, " rows"], found: Float[np.ndarray, " rows"]) -> bool:
    gain, size = guess - found, abs(float(guess.mean()))
    # The log density of a regression has the unit of its target as an offset: there a nat is the measure.
    least = LEAST_GAIN * (min(size, 1.0) if name == "nll" else size)
    return bool(gain.mean() > max(GAIN_ERRORS * _standard_error(gain), least))


def _standard_error(values: Float[np.ndarray, " rows"]) -> float:
    """Of the mean; infinite for one row."""
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else np.inf


def draws_shortfalls(fitted: Fitted, test: Rows) -> tuple[Shortfall, ...]:
    """Says so where the draws' mean prediction is far less likely than that of the mode that they were made around.

    Without recalibration, which would hide part of it. Draws of a posterior may well do a little worse than its mode;
    draws that do much worse come from an approximation that does not hold. Nothing for methods that have no mode.
    """
    if fitted.mode is None:
        return ()
    places = np.linspace(0, len(test) - 1, min(MODE_ROWS, len(test))).round().astype(int)
    rows = test.take(places)
    draws = pooled_log_likelihood(fitted.posterior, rows)
    mode = pooled_log_likelihood(Posterior(fitted.posterior.model, fitted.mode), rows)
    return behind_the_mode(draws, mode)


def behind_the_mode(draws: Float[np.ndarray, " rows"], mode: Float[np.ndarray, " rows"]) -> tuple[Shortfall, ...]:
    """The shortfall, from each row's log-likelihood (nats) under the draws and under their mode."""
    loss = mode - draws
    error = _standard_error(loss)
    if loss.mean() <= max(LARGEST_LOSS, LOSS_ERRORS * error):
        return ()
    text = (
        f"its draws predict far worse than the mode they were made around: their mean log-likelihood on {len(loss)} test "
        f"rows is {draws.mean():.4g} nats a row, and the mode's is {mode.mean():.4g} (difference {loss.mean():.2g}, "
        f"standard error {error:.2g}); the approximation of the posterior does not hold: choose another method or "
        "subset, or a narrower prior.scale"
    )
    return (Shortfall("behind_the_mode", text),)


def metric_shortfalls(metrics: Mapping[str, object]) -> tuple[Shortfall, ...]:
    """Which metrics are no numbers: a fit that publishes them must say so."""
    broken = [name for name, value in metrics.items() if isinstance(value, float) and not math.isfinite(value)]
    if not broken:
        return ()
    text = f"metrics on the test part that are not finite: {', '.join(broken)}; check the scale of the data and of the predictions"
    return (Shortfall("not_finite", text),)


def decision_shortfalls(calibration: Calibration) -> tuple[Shortfall, ...]:
    """What the decision lacks."""
    name = calibration.decision.name
    scores = calibration.ascending[name]
    # Scores that differ by their rounding only are one score, as they are for the flag.
    lowered = {
        score: less_tolerance(values, float(unit))
        for (score, values), unit in zip(calibration.scores.items(), calibration.units[:, 0], strict=True)
    }
    edges = calibration.combined(lowered) if name == COMBINED else lowered[name]
    if scores[0] < edges.max():
        return ()
    text = (
        f"its decision score, {name}, is the same for every calibration row ({scores[0]:.3g}), so "
        "that it tells nothing apart: one draw has no spread; choose another decision, or a method with more draws"
    )
    return (Shortfall("constant_decision", text),)
