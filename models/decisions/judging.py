"""Judging: the decision for new rows, from the scores of the calibration rows.

The calibration rows' scores give, at any percentile, the threshold above which a row is rejected, a conformal p-value for
every score, and prediction sets and intervals. With exchangeable rows a threshold at percentile P rejects at most
100 − P percent on average over calibration splits (Vovk et al., 2005). With `per_class` the same holds within each predicted
class (Mondrian; Vovk et al., 2003).
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Bool, Float, Int

from abstain.models.decisions.budget import Budget, limit_of, nats_of
from abstain.models.decisions.calibration import check_sizes, interval_inputs, predicted_labels, set_scores_of
from abstain.models.decisions.conformal import SetKind, interval
from abstain.models.decisions.decision import COMBINED, combine, contributions, main_scores
from abstain.models.decisions.ranks import coverage_rank, less_tolerance, percentile_rank, share_at_least
from abstain.models.decisions.records import Calibration, Judgement, Parts, ScoreJudgement
from abstain.models.decisions.risk import RiskLimit, choose_limit, is_ambiguous
from abstain.models.decisions.venn_abers import MAX_PROBABILITY, probability_intervals, second_class_probability
from abstain.models.errors import InputError
from abstain.models.prediction.predictive import Prediction
from abstain.models.prediction.summaries import ClassificationSummary
from abstain.models.tables.unseen import UNSEEN_SCORE

PROBABILITY_ROUNDING = 1e-5
"""Rounding error of a probability, relative to it."""
LEAST_PROBABILITY_ROUNDING = 1e-7
"""Rounding error of a probability near 0."""
SUM_ROUNDING = 2e-6
"""Rounding error of a sum of the most probable classes' probabilities."""


def judge(
    calibration: Calibration,
    prediction: Prediction,
    percentile: float | None = None,
    coverage: float | None = None,
    max_error: float | None = None,
) -> Judgement:
    """Judges a batch: the decision, each score's p-value and threshold, and the prediction sets or intervals.

    Args:
        percentile: strictly between 0 and 100; if None, the calibration's own.
        coverage: strictly between 0 and 1; if None, the calibration's own.
        max_error: the largest error of accepted rows, strictly between 0 and 1; if None, the calibration's own.

    Raises:
        CalibrationError: the calibration part is too small for the percentile, the coverage or the error.
        InputError: as `check_limited`.
    """
    risk = check_limited(calibration, percentile, max_error)
    percentile = calibration.percentile if percentile is None else percentile
    coverage = calibration.coverage if coverage is None else coverage
    check_sizes(calibration, prediction.summary.mean.shape[-1], percentile)
    decision = calibration.decision
    # An older bundle may have calibrated fewer scores than are computed now; the others are left out.
    values = {name: np.asarray(prediction.scores[name]) for name in calibration.scores}
    # All scores at once, here and below: with one call for each score, numpy's overhead would dominate for a single row.
    edges = less_tolerance(np.stack(list(values.values())), calibration.units)
    evidence, added = {}, {}
    if decision.name == COMBINED:
        # Values and edges in one array, which halves the calls.
        lowered = dict(zip(values, edges, strict=True))
        both = {name: np.concatenate([values[name], lowered[name]]) for name in decision.scores}
        evidence_of_both = calibration.evidence_of(both)
        rows = edges.shape[1]
        evidence = {name: nats[:rows] for name, nats in evidence_of_both.items()}
        whole = np.stack(list(evidence_of_both.values()))
        combined = combine(decision, whole)
        values[calibration.novelty_name] = combined[:rows]
        edges = np.concatenate([edges, combined[None, rows:]])
        added = dict(zip(decision.scores, contributions(decision, whole[:, :rows]), strict=True))
    mains = main_scores(added) if added else [decision.name] * edges.shape[1]
    parts = None
    if calibration.ambiguity is not None and calibration.budget is not None:
        names = calibration.novelty_name, calibration.ambiguity
        nats, nats_of_edges = _parts(calibration.budget, names, values, edges)
        values[COMBINED], edges = nats.max(axis=0), np.concatenate([edges, nats_of_edges.max(axis=0, keepdims=True)])
        rank = percentile_rank(percentile, calibration.rows)
        limits = [limit_of(cuts, calibration.rows + 1 - rank) for cuts in calibration.budget[:2]]
        novel, unsure = ~(nats_of_edges <= calibration.ascending[COMBINED][rank - 1])
        parts = Parts(*names, limits[0], limits[1], novel, unsure)
        less_sure = (nats[1] > nats[0]).tolist()
        mains = [calibration.ambiguity if less else main for less, main in zip(less_sure, mains, strict=True)]
    labels = predicted_labels(prediction.summary) if calibration.per_class else None
    scores = _judge_scores(calibration, values, edges, labels, percentile)
    reject = scores[calibration.decision_name].above
    if risk is not None and calibration.ambiguity is not None:
        names = calibration.decision_name, calibration.ambiguity
        novel = ~(values[names[0]].astype(np.float64) < calibration.least_novel)
        unsure = is_ambiguous(risk, values[names[1]])
        highest = math.nan if risk.threshold is None else risk.threshold
        parts = Parts(*names, calibration.least_novel, highest, novel, unsure)
        mains = [main if known else names[1] for main, known in zip(mains, novel.tolist(), strict=True)]
        reject = novel | unsure
    scores |= _limited_scores(scores, parts)
    radii = row_radii(calibration, values, percentile, coverage, prediction.summary.mean.shape[-1])
    members, ends = _conformal(calibration, prediction, radii)
    judgement = Judgement(
        percentile=percentile,
        coverage=coverage,
        decision=calibration.decision_name,
        reject=reject,
        scores=scores,
        evidence=evidence,
        contributions=added,
        main_scores=mains,
        members=members,
        interval=ends,
        parts=parts,
        risk=risk,
        probability_interval=_probability_interval(calibration, prediction),
    )
    return _with_unseen(calibration, judgement, labels) if UNSEEN_SCORE in scores else judgement


def check_limited(
    calibration: Calibration, percentile: float | None, max_error: float | None = None
) -> RiskLimit | None:
    """Returns the limit of the error of accepted rows for a request; None if the calibration has none.

    With a limit, another percentile than the calibration's is refused: it would accept other rows.

    Args:
        percentile: the requested percentile; None for the calibration's own.
        max_error: the requested error; None for the calibration's own.

    Raises:
        InputError: another percentile, an error without a limit, or both a percentile and an error.
        CalibrationError: no limit is certified for the requested error.
    """
    if max_error is not None and calibration.risk is None:
        raise InputError(
            where="max_error",
            expected="no max_error, because this model was calibrated without a limit of the error",
            found=max_error,
            fix="leave it out, or calibrate the model with calibration.max_error",
        )
    if max_error is not None and percentile is not None:
        raise InputError(
            where="percentile", expected="no percentile with max_error", found=percentile, fix="leave out one of them"
        )
    if calibration.risk is None:
        return None
    if percentile not in {None, calibration.percentile}:
        raise InputError(
            where="percentile",
            expected=f"{calibration.percentile!r}, for which the error of accepted rows is limited",
            found=percentile,
            fix="leave it out",
        )
    return choose_limit(calibration.risk, calibration.other_limits, max_error)


def _parts(
    budget: Budget,
    names: tuple[str, str],
    values: dict[str, Float[np.ndarray, " batch"]],
    edges: Float[np.ndarray, "scores batch"],
) -> tuple[Float[np.ndarray, "2 batch"], Float[np.ndarray, "2 batch"]]:
    """Returns the evidence of both parts of the decision in nats, for the values of their scores and for the edges.

    Args:
        names: the scores of the two parts, novelty and ambiguity.
    """
    index, rows = {name: place for place, name in enumerate(values)}, edges.shape[1]
    both = [np.concatenate([values[name], edges[index[name]]]) for name in names]
    nats = np.stack([nats_of(cuts, part, len(budget.turns)) for cuts, part in zip(budget[:2], both, strict=True)])
    return nats[:, :rows], nats[:, rows:]


def _limited_scores(scores: dict[str, ScoreJudgement], parts: Parts | None) -> dict[str, ScoreJudgement]:
    """Returns the scores of the parts of a decision with the limits of the parts as their thresholds, where they have one."""
    if parts is None:
        return {}
    return {
        name: scores[name]._replace(threshold=np.full_like(scores[name].threshold, limit), above=above)
        for name, limit, above in (
            (parts.novelty, parts.novelty_limit, parts.novel),
            (parts.ambiguity, parts.ambiguity_limit, parts.ambiguous),
        )
        if math.isfinite(limit) and name != COMBINED
    }


def _with_unseen(calibration: Calibration, judgement: Judgement, labels: Int[np.ndarray, " batch"] | None) -> Judgement:
    """Rejects the rows with an unseen category, and ranks them above all others by the scores that decide.

    Values, and `above`, stay those of the scores; the threshold of `unseen` itself is 0 at every percentile. Such a row ties
    with the unseen calibration rows: of m among n, its p-value is (1 + m)/(n + 1).
    """
    count = judgement.scores[UNSEEN_SCORE]
    unseen = count.value > 0
    if labels is None:
        above, rows = calibration.unseen.sum(), calibration.rows
    else:
        by_class = {label: counts > 0 for label, counts in calibration.by_class[UNSEEN_SCORE].items()}
        above, rows = (np.array([measure(by_class[label]) for label in labels.tolist()]) for measure in (np.sum, len))
    p_values = (1 + above) / (rows + 1)
    ranked = {UNSEEN_SCORE: count._replace(threshold=np.zeros_like(count.threshold), above=unseen)}
    for name in {calibration.novelty_name, calibration.decision_name}:
        score = judgement.scores[name]
        ranked[name] = score._replace(
            p_value=np.where(unseen, p_values, score.p_value),
            percentile=np.where(unseen, 100 * (1 - p_values), score.percentile),
            extrapolated=np.where(unseen, above == 0, score.extrapolated),
        )
    parts, mains = judgement.parts, zip(judgement.main_scores, unseen.tolist(), strict=True)
    return judgement._replace(
        reject=judgement.reject | unseen,
        scores=judgement.scores | ranked,
        main_scores=[UNSEEN_SCORE if flag else main for main, flag in mains],
        parts=None if parts is None else parts._replace(novel=parts.novel | unseen),
    )


def _judge_scores(
    calibration: Calibration,
    values: dict[str, Float[np.ndarray, " batch"]],
    edges: Float[np.ndarray, "scores batch"],
    labels: Int[np.ndarray, " batch"] | None,
    percentile: float,
) -> dict[str, ScoreJudgement]:
    """Ranks every score among the calibration rows or, if `labels` are given, among the rows of the same predicted class."""
    if labels is None:
        return _rank(calibration.ascending, values, edges, percentile)
    numbers, flags = np.empty((3, *edges.shape)), np.empty((2, *edges.shape), bool)
    whole = {
        name: ScoreJudgement(np.empty_like(values[name]), *numbers[:, index], *flags[:, index])
        for index, name in enumerate(values)
    }
    for label in np.unique(labels).tolist():
        own = labels == label
        of_class = {name: calibration.by_class[name][label] for name in values}
        parts = _rank(of_class, {name: value[own] for name, value in values.items()}, edges[:, own], percentile)
        for name, part in parts.items():
            for target, source in zip(whole[name], part, strict=True):
                target[own] = source
    return whole


def _rank(
    ascending: dict[str, Float[np.ndarray, " rows"]],
    values: dict[str, Float[np.ndarray, " batch"]],
    edges: Float[np.ndarray, "scores batch"],
    percentile: float,
) -> dict[str, ScoreJudgement]:
    known = [ascending[name] for name in values]
    rows = len(known[0])
    p_values = np.array([share_at_least(of_score, own) for of_score, own in zip(known, edges, strict=True)])
    rank = percentile_rank(percentile, rows)
    limits = np.array([[of_score[rank - 1]] for of_score in known])
    # If no calibration row is at least as large, p has its smallest value, 1/(n + 1).
    extrapolated = p_values * (rows + 1) < 1.5
    columns = (100 * (1 - p_values), np.broadcast_to(limits, edges.shape), p_values, ~(edges <= limits), extrapolated)
    return {
        name: ScoreJudgement(value, *of_score)
        for (name, value), of_score in zip(values.items(), zip(*columns, strict=True), strict=True)
    }


def row_radii(
    calibration: Calibration,
    values: dict[str, Float[np.ndarray, " batch"]],
    percentile: float,
    coverage: float,
    classes: int,
) -> Float[np.ndarray, "#batch #groups"]:
    """Returns the radius of each row's set or interval; one row if all rows have the same, one group if all classes have.

    Args:
        values: the new rows' scores, with those of the parts of the decision.
        classes: the number of classes, ignored for regression.
    """
    if calibration.has_one_radius:
        return calibration.ascending_nonconformity[[[coverage_rank(coverage, calibration.radius_count) - 1]]].astype(
            np.float64
        )
    radii = calibration.radii(percentile, coverage, classes)
    if calibration.coverage_among == "all":
        return radii.clear[None]
    return radii.of_rows(np.stack([values[name] for name in calibration.part_names]))


def _conformal(
    calibration: Calibration, prediction: Prediction, radii: Float[np.ndarray, "#batch #groups"]
) -> tuple[Bool[np.ndarray, "batch classes"] | None, Float[np.ndarray, "batch 2"] | None]:
    if isinstance(prediction.summary, ClassificationSummary):
        tolerance = _set_tolerance(calibration.sets, prediction)
        return set_scores_of(calibration.sets, prediction) <= radii + tolerance, None
    return None, interval(calibration.intervals, *interval_inputs(prediction.summary), radii[:, 0])


def _probability_interval(calibration: Calibration, prediction: Prediction) -> Float[np.ndarray, "batch 2"] | None:
    labels = predicted_labels(prediction.summary)
    if calibration.venn_abers is None or labels is None:
        return None
    probability = second_class_probability(np.asarray(prediction.scores[MAX_PROBABILITY]), labels)
    return probability_intervals(calibration.venn_abers, probability)


def _set_tolerance(kind: SetKind, prediction: Prediction) -> Float[np.ndarray, "rows classes"] | float:
    """Returns by how much a class's score may exceed the radius because of rounding.

    The score of "lac" is 1 − p with the rounding error of p, which is far smaller for an improbable class than for a
    probable one. The other scores are sums of probabilities.
    """
    if kind != "lac":
        return SUM_ROUNDING
    return PROBABILITY_ROUNDING * np.asarray(prediction.summary.mean, np.float64) + LEAST_PROBABILITY_ROUNDING
