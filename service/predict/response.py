"""Answers: what is said of each row, over HTTP and by `abstain predict` alike."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from abstain.models.decisions.decision import COMBINED
from abstain.models.decisions.ranks import ordinal
from abstain.models.decisions.records import Judgement
from abstain.models.errors import InputError, clip_repr
from abstain.models.prediction.posterior import Model
from abstain.models.prediction.predictive import Prediction
from abstain.models.prediction.summaries import QUANTILES, ClassificationSummary, RegressionSummary

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


def check_fields(model: Model, fields: tuple[str, ...] | None) -> tuple[str, ...]:
    """The fields asked for, or all there are.

    Raises:
        InputError: naming the field that the model's answers do not have; or one is asked for twice.
    """
    known = FIELDS[model.law.task]
    for field in fields or ():
        if field not in known:
            raise InputError(where="fields", expected=f"some of {', '.join(known)}", found=clip_repr(field))
    if fields and len(set(fields)) < len(fields):
        raise InputError(
            where="fields", expected="each field once", found=f"{len(fields)}, of which {len(set(fields))} differ"
        )
    return fields or known


def columns(model: Model, prediction: Prediction, judgement: Judgement) -> dict[str, list[Any]]:
    """Every field of the answer, one entry a row."""
    summary = prediction.summary
    if isinstance(summary, ClassificationSummary):
        told = _classification(model, summary, judgement)
    else:
        told = _regression(summary, judgement)
    told |= {
        "reject": judgement.reject.tolist(),
        "reasons": reasons(model, prediction, judgement),
        "scores": _scores(judgement),
    }
    return {field: told[field] for field in FIELDS[model.law.task]}


def rows(told: dict[str, list[Any]], fields: tuple[str, ...]) -> list[dict[str, Any]]:
    """The answer row by row, with the fields asked for."""
    return [dict(zip(fields, values, strict=True)) for values in zip(*(told[field] for field in fields), strict=True)]


def reasons(model: Model, prediction: Prediction, judgement: Judgement) -> list[list[str]]:
    """Which scores spoke against each rejected row: of a combination, those above their own percentile, loudest first.

    Loudest is what adds most to the decision, weights and all. Several scores may each be below it and yet together be too much; then the loudest is named, with its own place.
    """
    told: list[list[str]] = [[] for _ in judgement.reject]
    for row in np.flatnonzero(judgement.reject).tolist():
        if judgement.decision != COMBINED:
            told[row] = [_reason(judgement.decision, judgement, row, model, prediction)]
            continue
        loud = sorted(judgement.contributions, key=lambda name: -judgement.contributions[name][row])
        above = [name for name in loud if judgement.scores[name].above[row]]
        told[row] = [_reason(name, judgement, row, model, prediction) for name in above] or [
            f"{COMBINED} above its {ordinal(judgement.percentile)} percentile, loudest {judgement.loudest[row]}: "
            f"{judgement.scores[judgement.loudest[row]].percentile[row]:.2f} of 100"
        ]
    return told


def _reason(name: str, judgement: Judgement, row: int, model: Model, prediction: Prediction) -> str:
    said = f"{name} above its {ordinal(judgement.percentile)} percentile"
    if name != "range" or prediction.farthest is None:
        return said
    place = int(prediction.farthest[row])
    return f"{said}: {model.feature_names[place] if model.feature_names else f'feature {place}'}"


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
    """The names of the classes in each row's prediction set, the most probable first."""
    order = np.argsort(-mean, axis=1, kind="stable").tolist()
    return [
        [names[place] for place in places if among[place]]
        for places, among in zip(order, members.tolist(), strict=True)
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
    """Of each row's predictive distribution, and of its two parts."""

    total: Float[np.ndarray, " rows"]
    aleatoric: Float[np.ndarray, " rows"]
    epistemic: Float[np.ndarray, " rows"]


def standard_deviations(summary: RegressionSummary) -> StandardDeviations:
    """The square roots of a regression's variances."""
    aleatoric, epistemic = np.asarray(summary.aleatoric_variance), np.asarray(summary.epistemic_variance)
    return StandardDeviations(np.sqrt(aleatoric + epistemic), np.sqrt(aleatoric), np.sqrt(epistemic))


def _scores(judgement: Judgement) -> list[dict[str, dict[str, float | bool]]]:
    per_score = {name: _entries(judgement, name) for name in judgement.scores}
    return [dict(zip(per_score, entries, strict=True)) for entries in zip(*per_score.values(), strict=True)]


def _entries(judgement: Judgement, name: str) -> list[dict[str, float | bool]]:
    """One score of every row; for a part of the combination also its evidence, −ln p in nats."""
    score = judgement.scores[name]
    columns = (score.value, score.percentile, score.threshold, score.p_value, score.extrapolated)
    lists = [column.tolist() for column in columns]
    # Written out: of all that an answer is made of this is most, and `dict(zip(…))` takes twice as long.
    if name not in judgement.evidence:
        return [
            {"value": value, "percentile": place, "threshold": limit, "p_value": p, "extrapolated": beyond}
            for value, place, limit, p, beyond in zip(*lists, strict=True)
        ]
    return [
        {
            "value": value,
            "percentile": place,
            "threshold": limit,
            "p_value": p,
            "extrapolated": beyond,
            "evidence": nats,
        }
        for value, place, limit, p, beyond, nats in zip(*lists, judgement.evidence[name].tolist(), strict=True)
    ]
