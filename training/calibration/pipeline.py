"""From a posterior to what decides: densities, recalibration, thresholds. `abstain fit` ends in it, `abstain calibrate` repeats it.

The order matters. Densities are fitted to training rows; then, on the calibration rows alone, first the recalibration,
which changes what is predicted, and with it the scores, and last the thresholds.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any, Literal, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

from abstain.models.bundles.bundle import CalibrationRecord
from abstain.models.decisions.calibration import calibrate, judge
from abstain.models.decisions.decision import Decision, Rule
from abstain.models.decisions.ranks import coverage_rank, exact, percentile_rank, rows_needed
from abstain.models.decisions.records import Calibration
from abstain.models.errors import CalibrationError, ConfigError
from abstain.models.prediction.feature_score_records import FeatureScores
from abstain.models.prediction.feature_scores import OF_TASK
from abstain.models.prediction.posterior import Model, Posterior
from abstain.models.prediction.predictive import NONE, Prediction, Predictor, predict_draw
from abstain.models.prediction.preprocessing import on_host
from abstain.models.prediction.scores import SCORES
from abstain.models.prediction.summaries import RegressionSummary
from abstain.models.prediction.temperature import Recalibration
from abstain.training.calibration.record import calibration_record
from abstain.training.calibration.temperature import choose_temperature, fit_variance
from abstain.training.config.calibration import CalibrationConfig
from abstain.training.data.augmentation import check_images, transform_rows
from abstain.training.data.rows import Rows

BUCKETS = (256,)
"""One bucket serves calibration and evaluation: their rows come by the thousand."""
DEFAULT: dict[Literal["images", "tables", "regression"], Decision] = {
    "images": Decision(scores=("vim", "local_subspace", "feature_subspace", "subspace", "range"), rule="weighted"),
    "tables": Decision(
        scores=("relative_mahalanobis", "knn", "local_subspace", "feature_subspace", "range"), rule="harmonic"
    ),
    "regression": Decision(scores=("std", "mahalanobis", "feature_subspace", "range"), rule="weighted"),
}
"""What decides where a config does not say: scores that find different strangeness.

`docs/scores.md` says on what data they were chosen: that of images by `benchmarks/selection.py`, that of tables by
`benchmarks/table_selection.py`. `range` is silent about pictures, and tells arrays on another scale than the pixels'.
"""

ScoreValues = dict[str, Float[np.ndarray, " rows"]]
"""Each score's values, by its name."""


class RejectRates(NamedTuple):
    """Shares of the calibration rows that the decision rejects, of 1: as augmented, and as they came."""

    augmented: float
    plain: float


class Calibrated(NamedTuple):
    """What thresholds were found for, and with what; both reject rates where the calibration rows were augmented."""

    predictor: Predictor
    calibration: Calibration
    feature_scores: FeatureScores
    recalibration: Recalibration
    reject_rates: RejectRates | None = None


def decision_of(terms: CalibrationConfig, model: Model) -> Decision:
    """The decision that a config means.

    Raises:
        ConfigError: it names no score of the likelihood's task, one twice, or a weight for none of its scores.
    """
    task = model.likelihood_functions.task
    known = (*SCORES[task], *OF_TASK[task])
    if terms.decision is None:
        classes = "images" if model.is_pixel_like else "tables"
        decision = DEFAULT[classes if task == "classification" else "regression"]
        return Decision(scores=decision.scores, **_combination(terms, decision.scores, decision.rule))
    names = (terms.decision,) if isinstance(terms.decision, str) else terms.decision
    for name in names:
        if name not in known:
            raise ConfigError("calibration.decision", expected=f"some of {', '.join(known)}", found=name)
    if not names or len(set(names)) < len(names):
        raise ConfigError("calibration.decision", expected="at least one score, each once", found=list(names))
    return Decision(scores=names, **_combination(terms, names, "min"))


def _combination(terms: CalibrationConfig, names: tuple[str, ...], default: Rule) -> dict[str, Any]:
    for name in terms.weights:
        if name not in names:
            raise ConfigError("calibration.weights", expected=f"weights of {', '.join(names)}", found=name)
    weights = tuple(terms.weights.get(name, 1.0) for name in names) if terms.weights else ()
    return {"rule": terms.combine or default, "weights": weights}


def check_terms(terms: CalibrationConfig, model: Model, targets: Num[np.ndarray, " rows"]) -> None:
    """Refuses what calibration could not give, before hours are spent on a fit.

    Per class, thresholds will be of the rows predicted to be of each class, which nobody knows yet: what is counted here
    is how many are of it.

    Args:
        targets: the calibration rows': class indices, or numbers.

    Raises:
        ConfigError, CalibrationError: an unknown score; rows to be changed that are no images; a split too small for
            the percentile or the coverage.
    """
    decision_of(terms, model)
    for key, settings in (("augment", terms.augment), ("densities", terms.densities)):
        if settings.changes_rows:
            check_images(f"calibration.{key}", settings, model.feature_shape)
    for key, rank_at, level in (
        ("percentile", percentile_rank, terms.percentile),
        ("coverage", coverage_rank, terms.coverage),
    ):
        try:
            rank_at(level, len(targets))
        except CalibrationError as error:
            raise CalibrationError(
                str(error),
                where=f"calibration.{key}",
                fix="data.calibration_size sets how many rows a fit calibrates on",
            ) from error
    if not terms.per_class:
        return
    classes = len(model.class_names)
    if not classes:
        raise ConfigError("calibration.per_class", expected="a likelihood of classes", found=model.likelihood)
    needed = rows_needed(exact(terms.percentile) / 100)
    counts = np.bincount(targets.astype(int), minlength=classes)
    if counts.min() < needed:
        raise ConfigError(
            "calibration.per_class",
            expected=f"at least {needed} calibration rows of each class at percentile {terms.percentile:g}",
            found=f"{counts.min()} of class {model.class_names[int(counts.argmin())]}",
            fix="raise data.calibration_size, or lower the percentile",
        )


def calibrate_posterior(
    terms: CalibrationConfig,
    posterior: Posterior,
    feature_scores: FeatureScores,
    rows: Rows,
    reference: Rows | ScoreValues,
    seed: int,
) -> Calibrated:
    """Recalibration and thresholds, from the calibration part alone, by the code that serves.

    Args:
        reference: the reference rows (`training/calibration/reference.py`), or their scores from an earlier calibration.
    """
    natural = rows.x
    if terms.augment.changes_rows:
        rows = Rows(transform_rows(seed, rows.x, terms.augment), rows.y)
    recalibration = fit_recalibration(posterior, rows) if terms.recalibrate == "auto" else NONE
    predictor = Predictor(posterior, BUCKETS, feature_scores=feature_scores, recalibration=recalibration)
    prediction = predictor(rows.x)
    calibration = calibrate(
        prediction,
        rows.y,
        decision=decision_of(terms, posterior.model),
        percentile=terms.percentile,
        coverage=terms.coverage,
        per_class=terms.per_class,
        sets=terms.sets,
        intervals=terms.intervals,
        reference=reference_scores(predictor, reference, terms, seed) if isinstance(reference, Rows) else reference,
        target_scale=posterior.model.preprocessing.target_scale,
    )
    if not terms.augment.changes_rows:
        return Calibrated(predictor, calibration, feature_scores, recalibration)
    unchanged = predictor(natural)
    rates = RejectRates(*(float(judge(calibration, found).reject.mean()) for found in (prediction, unchanged)))
    return Calibrated(predictor, with_plain_scores(calibration, unchanged), feature_scores, recalibration, rates)


def with_plain_scores(calibration: Calibration, plain: Prediction) -> Calibration:
    """The calibration, with its rows' scores before augmentation: what drift is watched against."""
    return replace(calibration, plain_scores={name: np.asarray(plain.scores[name]) for name in calibration.scores})


def reference_scores(predictor: Predictor, reference: Rows, terms: CalibrationConfig, seed: int) -> ScoreValues:
    """Each score's values on the reference rows, changed as the calibration rows are."""
    x = transform_rows(seed, reference.x, terms.augment) if terms.augment.changes_rows else reference.x
    return {name: np.asarray(values) for name, values in predictor(x).scores.items()}


def fit_recalibration(posterior: Posterior, rows: Rows) -> Recalibration:
    """The temperature, on the pooled probabilities or on each draw's, that these rows are likeliest under; or a factor."""
    if posterior.model.likelihood_functions.task == "classification":
        return choose_temperature(draw_log_probabilities(posterior, rows.x), rows.y.astype(int))
    summary = cast("RegressionSummary", Predictor(posterior, BUCKETS)(rows.x).summary)
    variance = np.asarray(summary.aleatoric_variance) + np.asarray(summary.epistemic_variance)
    terms = posterior.model.preprocessing
    unit = terms.target_scale if terms.float64_target else 1.0
    return Recalibration(
        kind="variance", factor=fit_variance(np.asarray(summary.mean) / unit, variance / unit**2, rows.y / unit)
    )


def draw_log_probabilities(
    posterior: Posterior, x: Num[np.ndarray, "rows ..."]
) -> Float[np.ndarray, "draws rows classes"]:
    """What each draw predicts for each row, nats."""

    @jax.jit
    def of_draw(draw: Any, x: Array) -> Array:
        return jax.lax.map(partial(predict_draw, posterior.model, draw), x, batch_size=512)

    rows = jnp.asarray(on_host(posterior.model.preprocessing, x), jnp.float32)
    draws = range(posterior.size)
    return np.stack([of_draw(jax.tree.map(lambda leaf, s=s: leaf[s], posterior.draws), rows) for s in draws])


def record_of(calibrated: Calibrated, terms: CalibrationConfig, model: Model) -> CalibrationRecord:
    """What the manifest says of a calibration, the config's terms included, for `abstain calibrate` to start from."""
    record = calibration_record(calibrated.calibration, calibrated.recalibration, model.class_names)
    rates = calibrated.reject_rates
    update: dict[str, Any] = {"settings": terms.model_dump(mode="json")}
    if rates is not None:
        update |= {"augmented_reject_rate": rates.augmented, "plain_reject_rate": rates.plain}
    return record.model_copy(update=update)
