"""The fields of each prediction, for responses over HTTP and for the files of `abstain predict`."""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from abstain.models.decisions.ranks import ordinal
from abstain.models.decisions.records import PARTS, PROBABILITY_INTERVAL, Judgement
from abstain.models.errors import InputError, clip_repr, suggest
from abstain.models.prediction.posterior import Model
from abstain.models.prediction.predictive import Prediction
from abstain.models.prediction.summaries import QUANTILES, ClassificationSummary, RegressionSummary
from abstain.models.tables.unseen import NO_TEXTS, UnseenTexts, rejecting_columns, unseen_reason

ONE_MINUS_MAX = "1 − the largest probability"
"""What the score `max_probability` is, in reasons."""
FIELDS: dict[Literal["classification", "regression"], tuple[str, ...]] = {
    "classification": (
        "label",
        "index",
        "probabilities",
        "std",
        "entropy",
        "aleatoric_entropy",
        "mutual_information",
        "reject",
        "reasons",
        "scores",
        "prediction_set",
    ),
    "regression": (
        "mean",
        "std",
        "aleatoric_std",
        "epistemic_std",
        "entropy",
        "quantiles",
        "interval",
        "reject",
        "reasons",
        "scores",
    ),
}


def fields_of(
    task: Literal["classification", "regression"], *, two_parts: bool, probability_interval: bool = False
) -> tuple[str, ...]:
    """Returns the fields of a response, in their order.

    Args:
        two_parts: whether the decision has a novelty part and an ambiguity part.
        probability_interval: whether the calibration has probability intervals.
    """
    fields = (*FIELDS[task], PROBABILITY_INTERVAL) if probability_interval else FIELDS[task]
    after = fields.index("reject") + 1
    return (*fields[:after], *PARTS, *fields[after:]) if two_parts else fields


def check_fields(
    model: Model, fields: tuple[str, ...] | None, *, two_parts: bool = False, probability_interval: bool = False
) -> tuple[str, ...]:
    """Returns the requested fields, or all if none are requested.

    Args:
        two_parts: as in `fields_of`.
        probability_interval: as in `fields_of`.

    Raises:
        InputError: a field is unknown, or requested twice.
    """
    task = model.likelihood_functions.task
    known = fields_of(task, two_parts=two_parts, probability_interval=probability_interval)
    for field in fields or ():
        if field not in known:
            expected = f"some of {', '.join(known)}"
            raise InputError(where="fields", expected=expected, found=clip_repr(field), fix=suggest(field, known))
    if fields and len(set(fields)) < len(fields):
        found = f"{len(fields)} fields, {len(set(fields))} of them different"
        raise InputError(where="fields", expected="each field once", found=found)
    return fields or known


def make_columns(
    model: Model, prediction: Prediction, judgement: Judgement, texts: UnseenTexts = NO_TEXTS, first_row: int = 0
) -> dict[str, list[Any]]:
    """Makes every field of the predictions, each with one entry per row.

    Args:
        texts: unseen categories, where they are known.
        first_row: the index of the first row in `texts`.
    """
    summary = prediction.summary
    if isinstance(summary, ClassificationSummary):
        columns = _classification(model, summary, judgement)
    else:
        columns = _regression(summary, judgement)
    columns |= {
        "reject": judgement.reject.tolist(),
        "reasons": reject_reasons(model, prediction, judgement, texts, first_row),
        "scores": _scores(judgement),
    }
    if judgement.parts is not None:
        columns |= {"novel": judgement.parts.novel.tolist(), "ambiguous": judgement.parts.ambiguous.tolist()}
    interval = judgement.probability_interval
    if interval is not None:
        columns[PROBABILITY_INTERVAL] = interval.tolist()
    task, two_parts = model.likelihood_functions.task, judgement.parts is not None
    known = fields_of(task, two_parts=two_parts, probability_interval=interval is not None)
    return {field: columns[field] for field in known}


def make_rows(columns: dict[str, list[Any]], fields: tuple[str, ...]) -> list[dict[str, Any]]:
    """Makes one object per row from columns, with the requested fields."""
    return [
        dict(zip(fields, values, strict=True)) for values in zip(*(columns[field] for field in fields), strict=True)
    ]


def reject_reasons(
    model: Model, prediction: Prediction, judgement: Judgement, texts: UnseenTexts = NO_TEXTS, first_row: int = 0
) -> list[list[str]]:
    """Names what explains each rejection; an empty list for an accepted row.

    Unseen categories come first. For a combined decision, the scores above their own percentile follow, the one with the largest
    weighted contribution first. If no score is above it, the one with the largest contribution is named with its percentile. For
    a decision of two parts, the reasons of each part begin with its name.

    Args:
        texts: unseen categories, where they are known.
        first_row: the index of the first row in `texts`.
    """
    reasons: list[list[str]] = [[] for _ in judgement.reject]
    parts = judgement.parts
    unseen = _unseen_columns(model, prediction)
    for row in np.flatnonzero(judgement.reject).tolist():
        columns = unseen.get(row, ())
        known = [(model.preprocessing.columns[index].name, texts.get((first_row + row, index))) for index in columns]
        found = [unseen_reason(column, text) for column, text in known]
        name = judgement.decision if parts is None else parts.novelty
        limited = parts is None or math.isfinite(parts.novelty_limit)
        novel = parts is None or parts.novel[row]
        # A row with an unseen category is rejected at any score.
        if novel and (not columns or (limited and judgement.scores[name].above[row])):
            found += _novelty_reasons(judgement, name, row, model, prediction)
        if parts is None:
            reasons[row] = found
            continue
        reasons[row] = [f"novel: {reason}" for reason in found]
        if parts.ambiguous[row]:
            reasons[row].append(f"ambiguous: {_above(parts.ambiguity, parts.ambiguity_limit)}")
    return reasons


def _unseen_columns(model: Model, prediction: Prediction) -> dict[int, tuple[int, ...]]:
    """Returns the indices of the columns with an unseen category, by row; rows without one are left out."""
    if prediction.unseen is None:
        return {}
    indices, cells = np.array(rejecting_columns(model.preprocessing.columns)), np.asarray(prediction.unseen)
    return {row: tuple(indices[cells[row]].tolist()) for row in np.flatnonzero(cells.any(axis=1)).tolist()}


def name_unseen(rows: list[dict[str, Any]], model: Model, texts: UnseenTexts) -> None:
    """Names the unseen categories in the reasons of a request's rows, which were made without their texts."""
    for (row, index), text in texts.items():
        name = model.preprocessing.columns[index].name
        unnamed, named = unseen_reason(name), unseen_reason(name, text)
        if "reasons" in rows[row]:
            # The end, because the reasons of a decision of two parts begin with `novel: `.
            rows[row]["reasons"] = [
                reason.removesuffix(unnamed) + named if reason.endswith(unnamed) else reason
                for reason in rows[row]["reasons"]
            ]


def _novelty_reasons(judgement: Judgement, name: str, row: int, model: Model, prediction: Prediction) -> list[str]:
    """Returns the reasons of a rejection by one score, or by a combination of scores."""
    parts = judgement.parts
    if not judgement.contributions:
        return [
            _reason(name, judgement, row, model, prediction) if parts is None else _above(name, parts.novelty_limit)
        ]
    ordered = sorted(judgement.contributions, key=lambda score: -judgement.contributions[score][row])
    above = [score for score in ordered if judgement.scores[score].above[row]]
    if above:
        return [_reason(score, judgement, row, model, prediction) for score in above]
    loudest = f"loudest {ordered[0]}: {judgement.scores[ordered[0]].percentile[row]:.2f} of 100"
    if parts is not None:
        return [f"{_above(name, parts.novelty_limit)}, {loudest}"]
    return [f"{name} above its {ordinal(judgement.percentile)} percentile, {loudest}"]


def _above(name: str, limit: float) -> str:
    """Returns the reason of one part of a decision, whose limit is not the threshold of its score alone."""
    # The name alone would say that a large probability rejects.
    score = f"{name} ({ONE_MINUS_MAX})" if name == "max_probability" else name
    if math.isnan(limit):
        return f"{score} at any value, because no limit of the error could be certified"
    return f"{score} above its limit of {limit:.4g}"


def _reason(name: str, judgement: Judgement, row: int, model: Model, prediction: Prediction) -> str:
    reason = f"{name} above its {ordinal(judgement.percentile)} percentile"
    if name != "range" or prediction.farthest is None:
        return reason
    index = int(prediction.farthest[row])
    return f"{reason}: {model.feature_names[index] if model.feature_names else f'feature {index}'}"


def _classification(model: Model, summary: ClassificationSummary, judgement: Judgement) -> dict[str, list[Any]]:
    index = np.asarray(summary.mean).argmax(axis=1)
    names = model.class_names
    assert judgement.members is not None
    return {
        "label": [names[i] for i in index],
        "index": index.tolist(),
        "probabilities": np.asarray(summary.mean).tolist(),
        "std": np.asarray(summary.std).tolist(),
        "entropy": np.asarray(summary.entropy).tolist(),
        "aleatoric_entropy": np.asarray(summary.aleatoric_entropy).tolist(),
        "mutual_information": np.asarray(summary.mutual_information).tolist(),
        "prediction_set": prediction_sets(names, np.asarray(summary.mean), judgement.members),
    }


def prediction_sets(
    names: tuple[str, ...], mean: Float[np.ndarray, "rows classes"], members: Bool[np.ndarray, "rows classes"]
) -> list[list[str]]:
    """Returns the names of the classes in each row's prediction set, the most probable first."""
    order = np.argsort(-mean, axis=1, kind="stable").tolist()
    return [
        [names[index] for index in indices if is_member[index]]
        for indices, is_member in zip(order, members.tolist(), strict=True)
    ]


def _regression(summary: RegressionSummary, judgement: Judgement) -> dict[str, list[Any]]:
    deviations = standard_deviations(summary)
    assert judgement.interval is not None
    names = [str(level) for level in QUANTILES]
    return {
        "mean": np.asarray(summary.mean).tolist(),
        "std": deviations.total.tolist(),
        "aleatoric_std": deviations.aleatoric.tolist(),
        "epistemic_std": deviations.epistemic.tolist(),
        "entropy": np.asarray(summary.entropy).tolist(),
        "quantiles": [dict(zip(names, row, strict=True)) for row in np.asarray(summary.quantiles).tolist()],
        "interval": judgement.interval.tolist(),
    }


class StandardDeviations(NamedTuple):
    """The standard deviations of each row's predictive distribution, and of its two parts."""

    total: Float[np.ndarray, " rows"]
    aleatoric: Float[np.ndarray, " rows"]
    epistemic: Float[np.ndarray, " rows"]


def standard_deviations(summary: RegressionSummary) -> StandardDeviations:
    """Returns the square roots of a regression's variances."""
    aleatoric, epistemic = np.asarray(summary.aleatoric_variance), np.asarray(summary.epistemic_variance)
    return StandardDeviations(np.sqrt(aleatoric + epistemic), np.sqrt(aleatoric), np.sqrt(epistemic))


def _scores(judgement: Judgement) -> list[dict[str, dict[str, float | bool]]]:
    per_score = {name: _entries(judgement, name) for name in judgement.scores}
    return [dict(zip(per_score, entries, strict=True)) for entries in zip(*per_score.values(), strict=True)]


def _entries(judgement: Judgement, name: str) -> list[dict[str, float | bool]]:
    """Makes the entries of one score, one per row; a score of the combination also has its evidence, −ln p in nats."""
    score = judgement.scores[name]
    columns = (score.value, score.percentile, score.threshold, score.p_value, score.extrapolated)
    lists = [column.tolist() for column in columns]
    # Written out: these entries are the largest part of a response, and `dict(zip(…))` takes twice as long.
    if name not in judgement.evidence:
        return [
            {"value": value, "percentile": percentile, "threshold": limit, "p_value": p, "extrapolated": beyond}
            for value, percentile, limit, p, beyond in zip(*lists, strict=True)
        ]
    return [
        {
            "value": value,
            "percentile": percentile,
            "threshold": limit,
            "p_value": p,
            "extrapolated": beyond,
            "evidence": nats,
        }
        for value, percentile, limit, p, beyond, nats in zip(*lists, judgement.evidence[name].tolist(), strict=True)
    ]
