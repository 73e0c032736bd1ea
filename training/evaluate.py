"""The steps of `abstain evaluate`: a version, rows and OOD sets → predictions → decisions → metrics and plots."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Num

from abstain.models.bundles.bundle import Bundle, load_published
from abstain.models.bundles.data_record import reading_of_fit
from abstain.models.bundles.manifest import Manifest
from abstain.models.bundles.store import resolve
from abstain.models.bundles.trained_rows import TrainedRows, find_trained, most_by_chance, read_trained
from abstain.models.decisions.judging import check_limited, judge
from abstain.models.decisions.ranks import percentile_rank
from abstain.models.errors import DataError
from abstain.models.prediction.posterior import Model, Posterior
from abstain.models.prediction.predictive import Prediction, Predictor
from abstain.models.tables.unseen import count_unseen
from abstain.progress import ProgressCallback, no_progress
from abstain.training.config.data import DataConfig
from abstain.training.data.dataset import split_again
from abstain.training.data.ood_sets import read_ood_sets
from abstain.training.data.rows import Rows
from abstain.training.data.sources import read_source
from abstain.training.evaluation.baselines import recorded_baseline
from abstain.training.evaluation.bootstrap import share_interval
from abstain.training.evaluation.coverage import coverage_by_decision, describe_rows
from abstain.training.evaluation.quality import (
    calibration_errors,
    check_finite_predictions,
    class_quality,
    conformal_quality,
    metric_terms,
    metrics_with_intervals,
    ood_detection,
    part_quality,
    prediction_quality,
    rates_of,
    reject_rates,
    selective_risk,
    twin_detection,
)
from abstain.training.evaluation.records import JudgedRows, ReportView, Twin
from abstain.training.evaluation.results import Evaluation, TwinQuality

__all__ = ["evaluate_version", "prediction_quality", "reject_rates"]
BUCKETS = (256,)
REPORT_EVERY = 32 * BUCKETS[0]


def evaluate_version(
    store: Path,
    model: str,
    where: str,
    percentile: float | None,
    ood: dict[str, str],
    *,
    twin_model: str | None = None,
    plots: Path | None = None,
    progress: ProgressCallback = no_progress,
) -> Evaluation:
    """Evaluates a version on a source's test part and on OOD sets.

    Args:
        where: a path or the name of an embedded set.
        ood: paths or embedded sets, by name.
        twin_model: another version to compare with; if None, the middle draw of the posterior.
        plots: a folder to write pictures into.
        progress: called with the number of predicted rows of each set.

    Raises:
        DataError: the rows, or an OOD set, cannot be read, do not fit the model, or have no finite prediction.
        CalibrationError: the calibration part is too small for the percentile.
    """
    name, bundle = load_version(store, model)
    manifest, calibration = bundle.manifest, bundle.calibration
    trained = read_trained(store / manifest.name / str(manifest.version), manifest.files)
    check_limited(calibration, percentile)
    percentile_rank(calibration.percentile if percentile is None else percentile, calibration.rows)
    rows, notes = rows_to_test(manifest, where, trained)
    sets = read_ood_sets(ood, rows.x, manifest.model, reading_of_fit(manifest.data, manifest.model))
    named_inputs = [(where, rows.x), *sets.items()]

    predictor = bundle.predictor(BUCKETS)
    predictions = [predict_rows(predictor, x, label, progress) for label, x in named_inputs]
    familiar, *others = (
        JudgedRows(x, prediction, judge(calibration, prediction, percentile))
        for (_, x), prediction in zip(named_inputs, predictions, strict=True)
    )
    strange = dict(zip(sets, others, strict=True))
    twin = find_twin(store, name, bundle, twin_model, named_inputs, progress)

    terms = metric_terms(bundle.posterior, familiar.prediction, rows)
    figures, intervals = metrics_with_intervals(familiar.prediction, terms)
    rejected = familiar.judgement.reject
    names, baseline = manifest.model.class_names, recorded_baseline(manifest)
    unseen = count_unseen(manifest.model.preprocessing.columns, rows.x)
    result = Evaluation(
        model=name,
        rows=len(rows),
        metrics=figures,
        intervals=intervals,
        baseline=baseline.quality(rows.y) if baseline else None,
        calibration_errors=calibration_errors(familiar.prediction, rows),
        risk_at_coverage=selective_risk(familiar.prediction, terms),
        percentile=familiar.judgement.percentile,
        decision=familiar.decision_name,
        limits_error=calibration.risk is not None,
        requested_of=describe_rows(manifest.calibration.conditional_coverage),
        reject_rates=rates_of(familiar.judgement),
        reject_interval=share_interval(int(rejected.sum()), len(rejected)),
        conformal=conformal_quality(familiar.judgement, rows.y),
        coverage=coverage_by_decision(familiar.judgement, rows.y, names, calibration.coverage_among),
        accepted=part_quality(terms, ~rejected),
        rejected=part_quality(terms, rejected),
        ood={label: ood_detection(familiar, found) for label, found in strange.items()},
        notes=(*notes, *unseen_notes(unseen, len(rows))),
        unseen=unseen,
        classes=class_quality(names, familiar.prediction, familiar.judgement, rows.y) if names else None,
        twin=twin_quality(twin, rows) if twin else None,
    )
    if plots is None:
        return result
    from abstain.training.report.plots import write_plots  # noqa: PLC0415 - a second to import, and fit draws none of these

    written = write_plots(plots, ReportView(name, bundle.posterior, rows, familiar, strange, twin))
    return replace(result, plots=tuple(written))


# ---- rows and predictions -----------------------------------------------------------------------------------------------


def load_version(store: Path, model: str) -> tuple[str, Bundle]:
    """Loads a version by `NAME`, `NAME:VERSION` or `NAME@LABEL`; returns `NAME:VERSION` and the bundle."""
    name, version = resolve(store, model)
    return f"{name}:{version}", load_published(store, name, version)


def rows_to_test(manifest: Manifest, where: str, trained: TrainedRows | None = None) -> tuple[Rows, list[str]]:
    """Reads the rows to evaluate on, and returns notes about them.

    The rows are the source's test part; or the test part of the fit, if the source is the data of the fit; or all rows.

    Args:
        trained: hashes of the training rows; None if the bundle has none.

    Raises:
        DataError: the source has no rows, or rows of another shape.
    """
    config = DataConfig.model_validate(manifest.data.settings)
    classify = manifest.model.likelihood_functions.task == "classification"
    source = read_source(where, config, manifest.model, classify=classify, dialect=manifest.data.dialect)
    rows = source.test
    if rows is None:
        fitted = split_again(source, config, manifest.seed, manifest.data.fingerprint)
        if fitted is not None:
            return fitted.test, []
        rows = source.train
    if rows is None:
        raise DataError(
            "rows", where=where, expected="x_test and y_test, or x and y", found="neither", fix="rename the arrays"
        )
    if rows.x.shape[1:] != manifest.model.feature_shape:
        raise DataError(
            "feature shape",
            where=where,
            expected=manifest.model.feature_shape,
            found=rows.x.shape[1:],
            fix="evaluate rows of the model's features",
        )
    notes = overlap_notes(manifest, rows, trained)
    if source.test is None:
        notes = [
            f"not the data that the model was fitted with: all {len(rows):,} rows are evaluated; calibration rows of this "
            "version are not recognised: remove them yourself, because on them the rates are right by construction",
            *notes,
        ]
    return rows, notes


def overlap_notes(manifest: Manifest, rows: Rows, trained: TrainedRows | None) -> list[str]:
    """Returns a note if more rows equal training rows than chance explains, or if that cannot be known."""
    if trained is None:
        return ["this version has no hashes of its training rows: whether it was trained on these rows is not known"]
    known = int(find_trained(trained, manifest.model.preprocessing, rows.x).sum())
    count = f"{known:,} of {len(rows):,} rows equal rows that the model was trained on"
    most = most_by_chance(trained, len(rows))
    if known and most >= len(rows):
        return [f"{count}; so do new rows of this table, so whether the model was trained on these is not known"]
    if known <= most:
        return []
    return [
        f"{count}, {trained.repeats * len(rows):,.0f} were expected by chance: the metrics are better than on new rows"
    ]


def unseen_notes(unseen: dict[str, int], rows: int) -> tuple[str, ...]:
    """Returns a note on the rows with a category that the training part lacks, by column."""
    if not unseen:
        return ()
    counts = ", ".join(f"{count:,} in {column}" for column, count in unseen.items())
    return (f"of {rows:,} rows, these are rejected for a category that the training part lacks: {counts}",)


def predict_rows(
    predictor: Predictor, x: Num[np.ndarray, "rows ..."], where: str, progress: ProgressCallback
) -> Prediction:
    """Predicts a set of inputs, in batches.

    Raises:
        DataError: a prediction is not finite.
    """
    parts = []
    for start in range(0, len(x), REPORT_EVERY):
        parts.append(predictor(x[start : start + REPORT_EVERY]))
        progress(min(start + REPORT_EVERY, len(x)), len(x), Path(where).name)
    prediction = jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
    check_finite_predictions(prediction, where)
    return prediction


# ---- the twin -------------------------------------------------------------------------------------------


def find_twin(
    store: Path,
    name: str,
    bundle: Bundle,
    twin_model: str | None,
    named_inputs: list[tuple[str, Num[np.ndarray, "..."]]],
    progress: ProgressCallback,
) -> Twin | None:
    """Predicts with the twin: another version, or one network of the posterior; None if neither exists.

    Raises:
        DataError: the other version has other inputs or classes.
    """
    if twin_model is None:
        if bundle.posterior.size == 1:
            return None
        middle = bundle.posterior.size // 2
        name, posterior = f"{name}, draw {middle + 1} of {bundle.posterior.size}", one_draw(bundle.posterior, middle)
    else:
        name, other = load_version(store, twin_model)
        posterior = other.posterior
        check_comparable(bundle.manifest.model, posterior.model, name)
    predictor = Predictor(posterior, BUCKETS)
    familiar, *strange = (
        predict_rows(predictor, x, f"{Path(label).name}, twin", progress) for label, x in named_inputs
    )
    return Twin(
        name, posterior, familiar, {label: found for (label, _), found in zip(named_inputs[1:], strange, strict=True)}
    )


def one_draw(posterior: Posterior, draw: int) -> Posterior:
    """Returns a posterior that has one draw of another."""
    return Posterior(posterior.model, jax.tree.map(lambda leaf: leaf[draw : draw + 1], posterior.draws))


def check_comparable(own: Model, other: Model, name: str) -> None:
    """Refuses a twin with other inputs or classes.

    Raises:
        DataError: they differ; the text names the difference.
    """
    for field in ("feature_shape", "class_names"):
        expected, found = getattr(own, field), getattr(other, field)
        if expected != found:
            raise DataError(
                f"{field} of the twin",
                where=name,
                expected=f"{expected}, as the model has it",
                found=found,
                fix="choose a version that was fitted to the same data",
            )


def twin_quality(twin: Twin, rows: Rows) -> TwinQuality:
    """Returns the twin's metrics, and how well its scores separate the OOD sets from the test part."""
    return TwinQuality(
        model=twin.name,
        draws=twin.posterior.size,
        metrics=prediction_quality(twin.posterior, twin.familiar, rows),
        ood={label: twin_detection(twin.familiar, found) for label, found in twin.strange.items()},
    )
