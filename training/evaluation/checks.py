"""Checks before publication: the shortfalls of a fit, as sentences for people.

`diagnostics.chain_shortfalls` finds those of chains. This module finds those of predictions, on rows that the fit did not
learn from: a model that has learned nothing, draws that predict far worse than the mode at their centre, and a decision
that can never reject.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int, Num
from scipy import stats

from abstain.models.bundles.shortfalls import Shortfall
from abstain.models.decisions.ranks import less_tolerance
from abstain.models.decisions.records import Calibration, Judgement
from abstain.models.decisions.risk import rows_needed
from abstain.models.prediction.posterior import Posterior
from abstain.models.prediction.predictive import Prediction
from abstain.training.data.rows import Rows
from abstain.training.evaluation.baselines import Baseline, training_baseline
from abstain.training.evaluation.metrics import Terms, average_metrics, metric_name
from abstain.training.evaluation.mixtures import pooled_log_likelihood
from abstain.training.inference.problem import Fitted
from abstain.training.notes import write_note

ENOUGH_DRAWS = 20
GAIN_ERRORS = 2.33
"""The number of standard errors by which a model must beat a baseline; a model of pure noise does so in 1 % of fits."""
LEAST_GAIN = 1e-3
"""The smallest gain that counts, as a share of the baseline's score (at most 1 nat); less may be rounding."""
LOSS_ERRORS, LARGEST_LOSS = 3.0, 0.1
"""Draws fall short if they are worse than their mode by this many standard errors and this many nats a row."""
HARDLY, CHANCE = 0.2, 0.01
"""A class is hardly ever predicted if it is for less than this share of as many rows as it has, and if not by this chance."""
RANKED_SHARE = 0.2
RANKED = 20
"""The least number of rows with high scores whose errors are compared with those of the others."""
MOST_NAMED = 5
"""The largest number of classes that a note names."""
MODE_ROWS = 2_000
"""The largest number of test rows on which draws and mode are compared."""


def draws_notes(draws: int) -> tuple[str, ...]:
    """Returns a note if there are few draws."""
    if draws >= ENOUGH_DRAWS:
        return ()
    if draws == 1:
        return ("one draw is kept, which has no spread: standard deviations and mutual information are 0",)
    low = 1 - np.sqrt(1 - 1 / draws)
    return (
        f"only {draws} draws are kept: standard deviations and mutual information are coarse, and as they divide by "
        f"{draws}, not {draws - 1}, standard deviations are {low:.0%} too small on average",
    )


def prediction_shortfalls(
    terms: Terms,
    average: Terms,
    y: Num[np.ndarray, " rows"],
    train: Num[np.ndarray, " train"],
    calibration: Calibration,
    part: str = "training",
    *,
    imported: bool = False,
) -> tuple[Shortfall, ...]:
    """Returns the shortfalls of the predictions and of the decision.

    Args:
        terms: the terms of the served predictions on the test part: each row's `nll` (nats) with its `brier` for classes, or its
            `squared_error` for a regression.
        average: the same for the average of these predictions (`quality.average_terms`).
        y: the test part's targets: class indices, or numbers.
        train: the training part's targets, or those of another part that is known before the test.
        part: the name of that part.
        imported: whether the network was trained elsewhere, so that the advice is not about a fit.
    """
    return (*learning_shortfalls(terms, average, y, train, part, imported=imported), *decision_shortfalls(calibration))


def learning_shortfalls(
    terms: Terms,
    average: Terms,
    y: Num[np.ndarray, " rows"],
    train: Num[np.ndarray, " train"],
    part: str = "training",
    *,
    imported: bool = False,
) -> tuple[Shortfall, ...]:
    """Returns a shortfall if neither proper score is better than that of a baseline, a prediction that ignores the row.

    There are two baselines: the training part's class frequencies, or the normal with the mean and standard deviation of
    the training targets; and the average of the model's own predictions. Accuracy cannot be used, because even the best
    model may never predict a rare event. A gain counts if its mean over paired rows exceeds `GAIN_ERRORS` standard
    errors. A constant model may beat the training frequencies by chance, but never its own average.
    """
    classify = "brier" in terms
    what = "the class frequencies" if classify else "a normal with the mean and standard deviation"
    known = frequency_terms(y, train) if classify else normal_terms(y, train)
    guesses = {f"{what} of the {part} part": known, "the average of its own predictions": average}
    for words, guess in guesses.items():
        if not any(_is_better(name, guess[name], terms[name]) for name in guess):
            gain = guess["nll"] - terms["nll"]
            text = (
                f"it has learned nothing that shows on {len(y)} test rows: its log-likelihood is {-terms['nll'].mean():.4g} "
                f"nats a row, and always predicting {words} gives {-guess['nll'].mean():.4g} (difference "
                f"{gain.mean():.2g}, standard error {_standard_error(gain):.2g}); {_advice(gain, y, classify=classify, imported=imported)}"
            )
            return (Shortfall("learned_nothing", text),)
    return ()


def _advice(gain: Float[np.ndarray, " rows"], y: Num[np.ndarray, " rows"], *, classify: bool, imported: bool) -> str:
    """Returns the advice: more test rows, unless the predictions are significantly worse than the baseline."""
    if gain.mean() < -GAIN_ERRORS * _standard_error(gain):
        if imported:
            order = "the order of the columns and of the classes" if classify else "the order of the columns"
            return f"check that {order}, the scaling and the activation are those of the training"
        return "lower kl_weight or the prior's scale, or train longer"
    rarest = f", {np.unique(y, return_counts=True)[1].min()} of the rarest class," if classify else ""
    more = "use more test rows" if imported else "use more test rows, or train longer"
    return f"{len(y)} test rows{rarest} may be too few to show what it has learned: {more}"


def frequency_terms(y: Num[np.ndarray, " rows"], train: Num[np.ndarray, " train"]) -> Terms:
    """Returns the NLL and Brier score of each row under the training part's class frequencies.

    A class without training rows counts as half a row, so that its NLL is finite.
    """
    classes = 1 + int(max(y.max(), train.max()))
    terms = training_baseline(train, tuple(map(str, range(classes)))).terms(y)
    return {name: terms[name] for name in ("nll", "brier")}


def normal_terms(y: Num[np.ndarray, " rows"], train: Num[np.ndarray, " train"]) -> Terms:
    """Returns the NLL and squared error of each row under a normal with the training targets' mean and standard deviation."""
    return training_baseline(train, ()).terms(y)


def prediction_notes(
    terms: Terms,
    prediction: Prediction,
    y: Num[np.ndarray, " rows"],
    baseline: Baseline,
    shortfalls: Sequence[Shortfall],
    *,
    weighted: bool,
) -> tuple[str, ...]:
    """Returns the notes on classes that are hardly ever predicted, and on metrics no better than the baseline's.

    Args:
        terms, y: as in `prediction_shortfalls`.
        prediction: the served predictions on the test part.
        baseline: the baseline of the training part.
        shortfalls: those of the fit; a model that has learned nothing needs no note about it.
        weighted: whether the fit has class weights.
    """
    notes: tuple[str, ...] = ()
    if baseline.names:
        predicted = np.asarray(prediction.summary.mean).argmax(axis=1)
        terms = terms | {"accuracy": (predicted == y).astype(np.float64)}
        notes = rare_class_notes(baseline.names, predicted, y, weighted=weighted)
    if any(shortfall.code == "learned_nothing" for shortfall in shortfalls):
        return notes
    return (*notes, *baseline_notes(terms, baseline, y))


def decision_notes(judgement: Judgement, prediction: Prediction, y: Num[np.ndarray, " rows"]) -> tuple[str, ...]:
    """Returns the note on a decision of novelty alone that ranks the test rows the wrong way (`ranking_notes`)."""
    if judgement.parts is not None:
        return ()
    score, mean = judgement.scores[judgement.decision].value, np.asarray(prediction.summary.mean)
    if mean.ndim == 2:
        return ranking_notes(score, (mean.argmax(axis=1) != y).astype(np.float64), "the share of wrong answers")
    return ranking_notes(score, (mean - y.astype(np.float64)) ** 2, "the mean squared error")


def ranking_notes(
    score: Float[np.ndarray, " rows"], errors: Float[np.ndarray, " rows"], error_name: str
) -> tuple[str, ...]:
    """Returns a note if the rows that the decision finds strangest have smaller errors than the others.

    Such a decision may find strange rows, but accepting fewer rows makes the accepted ones worse. About the fifth of the rows with
    the highest score, which does not divide ties, is compared with the others by a one-sided rank test at `CHANCE` (Mann &
    Whitney, 1947); for errors of 0 and 1 that is the exact test of Fisher (1922).

    Args:
        score: the decision score of each test row.
        errors: whether each row's class is wrong, or its squared error.
        error_name: what the mean of the errors is called, as in "the share of wrong answers".
    """
    high = score > np.quantile(score, 1 - RANKED_SHARE, method="higher")
    if min(high.sum(), (~high).sum()) < RANKED or errors[high].mean() >= errors[~high].mean():
        return ()
    if np.isin(errors, (0, 1)).all():
        chance = stats.hypergeom.cdf(errors[high].sum(), len(errors), int(errors.sum()), int(high.sum()))
    else:
        chance = stats.mannwhitneyu(errors[high], errors[~high], alternative="less").pvalue
    if chance > CHANCE:
        return ()
    text = (
        f"of {len(score)} test rows, {error_name} is "
        f"{errors[high].mean():.3g} among the {int(high.sum())} with the highest score, and {errors[~high].mean():.3g} among the "
        "others; the decision finds rows unlike the training rows: to reject doubtful answers too, set "
        "calibration.novelty_share or calibration.max_error"
    )
    return (write_note("ranks_wrongly", text),)


def baseline_notes(terms: Terms, baseline: Baseline, y: Num[np.ndarray, " rows"]) -> tuple[str, ...]:
    """Returns a note with the headline metrics that do not show that the model is better than the baseline.

    `learning_shortfalls` asks only for one better proper score. Here the reader of a single figure is warned, above all of
    an accuracy that the majority class alone would have. A gain counts as there: by 2.33 standard errors over paired rows.

    Args:
        terms: the terms of the served predictions on the test part: `accuracy`, `nll` (nats) and `brier`, or
            `squared_error` and `nll`.
        y: the test part's targets: class indices, or numbers.
    """
    known = baseline.terms(y)
    # Predictions that are not finite are a shortfall (`metric_shortfalls`).
    finite = [name for name in known if np.isfinite(terms[name]).all() and np.isfinite(known[name]).all()]
    unclear = [_comparison(name, known[name], terms[name]) for name in finite if not _gains(name, known, terms)]
    if not unclear or len(y) < 2:
        return ()
    constant = repr(baseline.guess) if baseline.names else f"the mean of the {baseline.part} part, {baseline.guess:.4g}"
    return (
        f"not shown on {len(y)} test rows to be better than a baseline that always predicts {constant}: "
        f"{'; '.join(unclear)}; judge the model by its other metrics",
    )


def _gains(name: str, guess: Terms, found: Terms) -> bool:
    """Whether a metric is better than that of a guess; of the metrics, only the accuracy is better if it is larger."""
    return _is_better(name, *((1 - terms[name] if name == "accuracy" else terms[name]) for terms in (guess, found)))


def _comparison(name: str, guess: Float[np.ndarray, " rows"], found: Float[np.ndarray, " rows"]) -> str:
    """Returns the metric of the model and of a guess, and the mean difference of their terms with its standard error."""
    own, other = (average_metrics({name: terms})[metric_name(name)] for terms in (found, guess))
    what = "mean difference of squared errors" if name == "squared_error" else "difference"
    gap = found - guess
    return (
        f"{metric_name(name)} {own:.4g} against {other:.4g} ({what} {gap.mean():.2g}, standard error "
        f"{_standard_error(gap):.2g})"
    )


def rare_class_notes(
    names: tuple[str, ...], predicted: Int[np.ndarray, " rows"], y: Int[np.ndarray, " rows"], *, weighted: bool
) -> tuple[str, ...]:
    """Returns a note with the classes that are hardly ever predicted on the test part.

    That is no fault by itself: the best model never predicts a rare event whose probability is always below one half. But an
    application that uses only the label would never hear of the class.

    A class is named if it is predicted for less than `HARDLY` times as many rows as it has, and if that is not chance:
    Let b be its rows with another prediction, and d the rows of other classes that are predicted as it. If the class were
    predicted as often as it occurs, b would follow Binomial(b + d, ½) (McNemar, 1947; exact). So the probability of at least
    b must be at most `CHANCE`, divided by the number of classes (Bonferroni): a fit whose classes are all predicted as often
    as they occur gets the note with at most this probability. Of two classes, one with 7 rows or fewer is never named.

    Args:
        names: the names of all classes.
        predicted, y: the most probable class and the true one.
        weighted: whether the fit has class weights already.
    """
    rare: list[str] = []
    for label, name in enumerate(names):
        true, answered = y == label, predicted == label
        missed, false = int((true & ~answered).sum()), int((answered & ~true).sum())
        chance = float(stats.binom.sf(missed - 1, missed + false, 0.5))
        if answered.sum() < HARDLY * true.sum() and chance <= CHANCE / len(names):
            rare.append(f"{name!r} (predicted {answered.sum()}, true {true.sum()})")
    if not rare:
        return ()
    more = f" and {len(rare) - MOST_NAMED} more" if len(rare) > MOST_NAMED else ""
    weights = "" if weighted else ', or with data.class_weights = "balanced" if it learns too little about a rare class'
    return (
        f"hardly ever predicted on {len(y)} test rows: {', '.join(rare[:MOST_NAMED])}{more}; instead of the label, use the "
        "probability of such a class with a threshold that suits the cost of missing it; or fit with more rows of it"
        f"{weights}",
    )


def _is_better(name: str, guess: Float[np.ndarray, " rows"], found: Float[np.ndarray, " rows"]) -> bool:
    gain, size = guess - found, abs(float(guess.mean()))
    # The log density of a regression shifts with the unit of its target, so its least gain is at most `LEAST_GAIN` nats.
    least = LEAST_GAIN * (min(size, 1.0) if name == "nll" else size)
    return bool(gain.mean() > max(GAIN_ERRORS * _standard_error(gain), least))


def _standard_error(values: Float[np.ndarray, " rows"]) -> float:
    """Returns the standard error of the mean; infinite for one row."""
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else np.inf


def draws_shortfalls(fitted: Fitted, test: Rows) -> tuple[Shortfall, ...]:
    """Returns a shortfall if the draws' mean prediction is far less likely than that of the mode at their centre.

    Recalibration is left out, because it would hide part of the loss. Draws may predict a little worse than the mode;
    much worse means that the approximation of the posterior is bad. Methods without a mode do not have this shortfall.
    """
    if fitted.mode is None:
        return ()
    positions = np.linspace(0, len(test) - 1, min(MODE_ROWS, len(test))).round().astype(int)
    rows = test.take(positions)
    draws = pooled_log_likelihood(fitted.posterior, rows)
    mode = pooled_log_likelihood(Posterior(fitted.posterior.model, fitted.mode), rows)
    return behind_the_mode(draws, mode)


def behind_the_mode(draws: Float[np.ndarray, " rows"], mode: Float[np.ndarray, " rows"]) -> tuple[Shortfall, ...]:
    """Returns the shortfall of draws that predict worse than their mode; arguments are log-likelihoods (nats)."""
    loss = mode - draws
    error = _standard_error(loss)
    if loss.mean() <= max(LARGEST_LOSS, LOSS_ERRORS * error):
        return ()
    text = (
        f"its draws predict far worse than the mode they were made around: their mean log-likelihood on {len(loss)} test "
        f"rows is {draws.mean():.4g} nats a row, and the mode's is {mode.mean():.4g} (difference {loss.mean():.2g}, "
        f"standard error {error:.2g}); the approximation of the posterior is bad: choose another method or "
        "subset, or a narrower prior.scale"
    )
    return (Shortfall("behind_the_mode", text),)


def metric_shortfalls(metrics: Mapping[str, object]) -> tuple[Shortfall, ...]:
    """Returns a shortfall that names the metrics that are not finite."""
    broken = [name for name, value in metrics.items() if isinstance(value, float) and not math.isfinite(value)]
    if not broken:
        return ()
    text = f"metrics on the test part that are not finite: {', '.join(broken)}; check the scale of the data and of the predictions"
    return (Shortfall("not_finite", text),)


def decision_shortfalls(calibration: Calibration) -> tuple[Shortfall, ...]:
    """Returns a shortfall if the decision score is the same for every calibration row, or no error limit is certified."""
    risk = calibration.risk
    if risk is not None and risk.threshold is None:
        few = risk.familiar_rows < rows_needed(risk.max_error, risk.confidence)
        advice = (
            f"too few of {calibration.rows} rows are below the novelty threshold, because others tie with it: choose another "
            "calibration.decision, or calibrate with more rows"
            if few
            else "raise calibration.max_error, lower calibration.confidence, calibrate with more rows, or improve the model"
        )
        text = (
            f"it rejects every row: no threshold limits the error of accepted rows to {risk.max_error:g} with confidence "
            f"{risk.confidence:g} by {risk.familiar_rows} calibration rows; {advice}"
        )
        return (Shortfall("no_error_limit", text),)
    name = calibration.novelty_name
    scores = calibration.ascending[name]
    # Scores that differ only by rounding count as equal, as they do for the reject flag.
    lowered = {
        score: less_tolerance(values, float(unit))
        for (score, values), unit in zip(calibration.scores.items(), calibration.units[:, 0], strict=True)
    }
    edges = lowered[name] if name in lowered else calibration.combined(lowered)
    if scores[0] < edges.max():
        return ()
    text = (
        f"its decision score, {name}, is the same for every calibration row ({scores[0]:.3g}), so "
        "it cannot separate rows: one draw has no spread; choose another decision, or a method with more draws"
    )
    return (Shortfall("constant_decision", text),)
