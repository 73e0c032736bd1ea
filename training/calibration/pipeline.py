"""Calibrates a posterior: recalibration and thresholds; the last step of `abstain fit`, repeated by `abstain calibrate`.

The order matters. Feature scores are fitted to training rows. Then, on the calibration rows alone, first the
recalibration is chosen, which changes predictions but no score, and then the thresholds and the radius.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Num

from abstain.models.bundles.manifest import CalibrationRecord
from abstain.models.decisions.calibration import ErrorLimit, calibrate
from abstain.models.decisions.decision import Decision
from abstain.models.decisions.judging import judge
from abstain.models.decisions.ranks import coverage_rank, exact, percentile_rank, rows_needed
from abstain.models.decisions.records import Calibration
from abstain.models.decisions.risk import rows_needed as least_accepted_rows
from abstain.models.errors import CalibrationError, ConfigError, suggest
from abstain.models.prediction.feature_score_records import FeatureScores
from abstain.models.prediction.feature_scores import FEATURE_SCORES_BY_TASK
from abstain.models.prediction.posterior import Model, Posterior
from abstain.models.prediction.predictive import Prediction, Predictor
from abstain.models.prediction.scores import SCORES
from abstain.models.prediction.temperature import Recalibration, RecalibrationChoice
from abstain.training.calibration.coverage_settings import check_coverage_settings
from abstain.training.calibration.recalibration import BUCKETS, choose_recalibration
from abstain.training.calibration.record import calibration_record
from abstain.training.config.calibration import CalibrationConfig
from abstain.training.data.augmentation import check_images, transform_rows
from abstain.training.data.rows import Rows

DEFAULT_DECISIONS: dict[Literal["images", "tables", "regression"], Decision] = {
    "images": Decision(
        scores=("vim", "local_subspace", "feature_subspace", "subspace", "energy", "range"), rule="harmonic"
    ),
    "tables": Decision(
        scores=("relative_mahalanobis", "knn", "local_subspace", "feature_subspace", "energy", "range"),
        rule="weighted",
        weights=(1.0, 1.0, 1.0, 1.0, 1.0, 0.3),
    ),
    "regression": Decision(scores=("std", "local_subspace", "feature_subspace", "range"), rule="harmonic"),
}
"""The default decisions: combinations of scores that detect different kinds of strange rows.

`docs/results.md` names the data on which they were chosen, by `benchmarks/regret.py` and before by `benchmarks/selection.py` and
`benchmarks/table_selection.py`. For images `range` only detects arrays on another scale than the pixels.
"""

DEFAULT_AMBIGUITY: dict[Literal["classification", "regression"], tuple[str, float]] = {
    "classification": ("max_probability", 0.9),
    "regression": ("total_std", 0.8),
}
"""The score of the ambiguity part of a decision, and novelty's share of the budget, chosen by `benchmarks/shares.py`."""
DEFAULT_CONFIDENCE = 0.95

ScoreValues = dict[str, Float[np.ndarray, " rows"]]
"""Each score's values, by its name."""


class RejectRates(NamedTuple):
    """Shares (0 … 1) of the calibration rows that the decision rejects: augmented, and without augmentation."""

    augmented: float
    plain: float


class Calibrated(NamedTuple):
    """A calibrated predictor: thresholds, feature scores and recalibration, and how it was chosen.

    With reject rates if rows were augmented.
    """

    predictor: Predictor
    calibration: Calibration
    feature_scores: FeatureScores
    recalibration: Recalibration
    reject_rates: RejectRates | None = None
    choice: RecalibrationChoice | None = None


def choose_decision(settings: CalibrationConfig, model: Model) -> Decision:
    """Returns the decision of a config, or the default one.

    Raises:
        ConfigError: an unknown score, a score named twice, or a weight for another score.
    """
    task = model.likelihood_functions.task
    score_names = (*SCORES[task], *FEATURE_SCORES_BY_TASK[task])
    if settings.decision is None:
        classes = "images" if model.is_pixel_like else "tables"
        decision = DEFAULT_DECISIONS[classes if task == "classification" else "regression"]
        return Decision(scores=decision.scores, **_combination(settings, decision))
    names = (settings.decision,) if isinstance(settings.decision, str) else settings.decision
    for name in names:
        if name not in score_names:
            expected = f"some of {', '.join(score_names)}"
            raise ConfigError("calibration.decision", expected=expected, found=name, fix=suggest(name, score_names))
    if not names or len(set(names)) < len(names):
        raise ConfigError("calibration.decision", expected="at least one score, each once", found=list(names))
    return Decision(scores=names, **_combination(settings, Decision(scores=names, rule="min")))


def choose_ambiguity(settings: CalibrationConfig, model: Model) -> tuple[str | None, float]:
    """Returns the score of the ambiguity part of the decision, and novelty's share of the reject budget.

    The score is None if `decision` decides alone.

    Raises:
        ConfigError: an unknown score, one that is in `decision` too, or settings that do not go together.
    """
    task, share = model.likelihood_functions.task, settings.novelty_share
    score, default_share = DEFAULT_AMBIGUITY[task]
    if share is not None and settings.max_error is not None:
        raise _conflict("novelty_share", "no share with calibration.max_error", share, "leave out one of them")
    if share == 1 and settings.ambiguity is not None:
        fix = "leave out calibration.ambiguity, or lower the share"
        raise _conflict("novelty_share", "a number above 0 and below 1 with calibration.ambiguity", share, fix)
    if share == 1 or (share is None and settings.ambiguity is None and settings.max_error is None):
        return None, default_share
    name = settings.ambiguity or score
    if name not in SCORES[task]:
        expected = f"a score of the predictions: {', '.join(SCORES[task])}"
        raise ConfigError("calibration.ambiguity", expected=expected, found=name, fix=suggest(name, SCORES[task]))
    if name in choose_decision(settings, model).scores:
        raise ConfigError(
            "calibration.ambiguity",
            expected="a score that calibration.decision does not use",
            found=name,
            fix="name another score in one of the two",
        )
    if settings.per_class:
        expected = "false with calibration.ambiguity, novelty_share or max_error"
        raise _conflict("per_class", expected, True, "leave out one of them")
    return name, default_share if share is None else share


def choose_error_limit(settings: CalibrationConfig, model: Model) -> ErrorLimit | None:
    """Returns the largest error of accepted rows that the config sets; None if it sets none.

    Raises:
        ConfigError: a setting that has no effect, or that the likelihood needs, or does not have.
    """
    if settings.max_error is None:
        for name in ("confidence", "error_size"):
            if getattr(settings, name) is not None:
                expected = "calibration.max_error too, without which it has no effect"
                raise _conflict(
                    name, expected, getattr(settings, name), f"set calibration.max_error, or leave out {name}"
                )
        return None
    classes = model.likelihood_functions.task == "classification"
    if classes and settings.error_size is not None:
        expected = "no size for classes, whose labels are right or wrong"
        raise _conflict("error_size", expected, settings.error_size, "leave it out")
    if not classes and settings.error_size is None:
        raise ConfigError(
            "calibration.error_size",
            expected="the largest distance from the target of an answer that is not wrong, with calibration.max_error",
            found="none",
            fix="set calibration.error_size, in units of the target",
        )
    confidence = DEFAULT_CONFIDENCE if settings.confidence is None else settings.confidence
    return ErrorLimit(settings.max_error, confidence, settings.error_size)


def _conflict(key: str, expected: str, found: object, fix: str) -> ConfigError:
    return ConfigError(f"calibration.{key}", expected=expected, found=found, fix=fix)


def _combination(settings: CalibrationConfig, default: Decision) -> dict[str, Any]:
    """Returns the rule and the weights of the config; those of `default` where the config has none."""
    names = default.scores
    for name in settings.weights:
        if name not in names:
            expected = f"weights of {', '.join(names)}"
            raise ConfigError("calibration.weights", expected=expected, found=name, fix=suggest(name, names))
    weights = default.weights
    if settings.weights:
        own = dict(zip(names, default.weights or (1.0,) * len(names), strict=True)) | settings.weights
        weights = tuple(own[name] for name in names)
    return {"rule": settings.combine or default.rule, "weights": weights}


_LEVELS = (0.999, 0.995, 0.99, 0.98, 0.975, 0.95, 0.9, 0.8, 0.75, 0.5)
"""The levels that an error proposes, from high to low."""


def check_calibration_settings(settings: CalibrationConfig, model: Model, targets: Num[np.ndarray, " rows"]) -> None:
    """Checks the calibration settings before a fit.

    Thresholds per class use the rows predicted as each class. These are not known before the fit, so the rows of each true
    class are counted.

    Args:
        targets: targets of the calibration rows: class indices, or numbers.

    Raises:
        ConfigError, CalibrationError: a score is unknown, augmented rows are not images, or the calibration part is
            too small for the percentile or the coverage.
    """
    choose_decision(settings, model)
    choose_ambiguity(settings, model)
    limit = choose_error_limit(settings, model)
    for key, augment in (("augment", settings.augment), ("densities", settings.densities)):
        if augment.changes_rows:
            check_images(f"calibration.{key}", augment, model.feature_shape)
    for key, rank_at, level in (
        ("percentile", percentile_rank, settings.percentile),
        ("coverage", coverage_rank, settings.coverage),
    ):
        try:
            rank_at(level, len(targets))
        except CalibrationError as error:
            raise CalibrationError(
                error.what,
                where=f"calibration.{key}",
                expected=error.expected,
                found=error.found,
                fix=_sizes_that_fit(key, level, len(targets)),
            ) from error
    check_coverage_settings(settings, model, targets)
    if limit is not None:
        familiar = percentile_rank(settings.percentile, len(targets)) - 1
        needed = least_accepted_rows(limit.max_error, limit.confidence)
        if familiar < needed:
            raise CalibrationError(
                "calibration.max_error",
                expected=f"at least {needed} calibration rows that are not novel, more if any of them is wrong",
                found=f"{familiar} of {len(targets)} rows at percentile {settings.percentile!r}",
                fix="raise data.calibration_size or max_error, or lower confidence",
            )
    if not settings.per_class:
        return
    classes = len(model.class_names)
    if not classes:
        raise ConfigError("calibration.per_class", expected="a likelihood of classes", found=model.likelihood)
    needed = rows_needed(exact(settings.percentile) / 100)
    counts = np.bincount(targets.astype(int), minlength=classes)
    if counts.min() < needed:
        raise ConfigError(
            "calibration.per_class",
            expected=f"at least {needed} calibration rows of each class at percentile {settings.percentile:g}",
            found=f"{counts.min()} of class {model.class_names[int(counts.argmin())]}",
            fix="raise data.calibration_size, or lower the percentile",
        )


def _sizes_that_fit(key: str, level: float, rows: int) -> str:
    """Returns the values of the two keys that go with each other: more calibration rows, or a lower level."""
    unit = 100 if key == "percentile" else 1
    needed = rows_needed(exact(level) / unit)
    lower = [value for value in _LEVELS if value < level / unit and rows_needed(value) <= rows]
    text = f"set data.calibration_size = {needed}, if the source has so many rows, or calibrate with more rows"
    return f"{text}; or set calibration.{key} = {round(unit * lower[0], 3):g}" if lower else text


def calibrate_posterior(
    settings: CalibrationConfig,
    posterior: Posterior,
    feature_scores: FeatureScores,
    rows: Rows,
    reference: Rows | ScoreValues,
    seed: int,
) -> Calibrated:
    """Chooses the recalibration, and the thresholds and radius, by the calibration part, with the serving code.

    Args:
        reference: the reference rows (`training/calibration/reference.py`), or their scores from an earlier calibration.
    """
    plain_inputs = rows.x
    if settings.augment.changes_rows:
        rows = Rows(transform_rows(seed, rows.x, settings.augment), rows.y)
    recalibration, choice, radius_rows = choose_recalibration(settings, posterior, rows, seed)
    predictor = Predictor(posterior, BUCKETS, feature_scores=feature_scores, recalibration=recalibration)
    prediction = predictor(rows.x)
    ambiguity, novelty_share = choose_ambiguity(settings, posterior.model)
    calibration = calibrate(
        prediction,
        rows.y,
        decision=choose_decision(settings, posterior.model),
        ambiguity=ambiguity,
        novelty_share=novelty_share,
        error_limit=choose_error_limit(settings, posterior.model),
        percentile=settings.percentile,
        coverage=settings.coverage,
        coverage_per_class=settings.coverage_per_class,
        coverage_among=settings.coverage_among,
        per_class=settings.per_class,
        sets=settings.sets,
        intervals=settings.intervals,
        reference=reference_scores(predictor, reference, settings, seed) if isinstance(reference, Rows) else reference,
        target_scale=posterior.model.preprocessing.target_scale,
        radius_rows=radius_rows,
        probability_intervals=posterior.model.likelihood == "bernoulli",
    )
    calibrated = Calibrated(predictor, calibration, feature_scores, recalibration, choice=choice)
    if not settings.augment.changes_rows:
        return calibrated
    unchanged = predictor(plain_inputs)
    rates = RejectRates(*(float(judge(calibration, found).reject.mean()) for found in (prediction, unchanged)))
    return calibrated._replace(calibration=with_plain_scores(calibration, unchanged), reject_rates=rates)


def with_plain_scores(calibration: Calibration, plain: Prediction) -> Calibration:
    """Adds the calibration rows' scores before augmentation, against which drift is measured."""
    return replace(calibration, plain_scores={name: np.asarray(plain.scores[name]) for name in calibration.scores})


def reference_scores(predictor: Predictor, reference: Rows, settings: CalibrationConfig, seed: int) -> ScoreValues:
    """Computes each score's values on the reference rows, augmented like the calibration rows."""
    x = transform_rows(seed, reference.x, settings.augment) if settings.augment.changes_rows else reference.x
    return {name: np.asarray(values) for name, values in predictor(x).scores.items()}


def build_record(calibrated: Calibrated, settings: CalibrationConfig, model: Model) -> CalibrationRecord:
    """Builds the manifest's record of a calibration, with the settings that `abstain calibrate` starts from."""
    record = calibration_record(
        calibrated.calibration, calibrated.recalibration, model.class_names, settings.error_size
    )
    rates = calibrated.reject_rates
    update: dict[str, Any] = {
        "settings": settings.model_dump(mode="json"),
        "recalibration_choice": calibrated.choice,
    }
    if rates is not None:
        update |= {"augmented_reject_rate": rates.augmented, "plain_reject_rate": rates.plain}
    return record.model_copy(update=update)
