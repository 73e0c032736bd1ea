"""The steps of `abstain import`: draws from elsewhere + labelled rows → model → draws → feature scores → calibration → evaluation → bundle.

No row is trained on. The labelled rows are a calibration part and a test part. Feature scores need other rows, the training rows
or rows like them; without these, one score of the predictions decides.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import jax
import numpy as np
from pydantic import JsonValue

from abstain.models.bundles.import_record import ImportRecord
from abstain.models.bundles.manifest import DataRecord, Manifest, MethodRecord
from abstain.models.bundles.store import check_writable
from abstain.models.bundles.trained_rows import hash_training_rows
from abstain.models.errors import ConfigError
from abstain.models.prediction.feature_scores import shapes_of
from abstain.models.prediction.posterior import Draws, Model, Posterior
from abstain.progress import ProgressCallback
from abstain.training.calibration.feature_scores import fit_feature_scores
from abstain.training.calibration.pipeline import (
    Calibrated,
    build_record,
    calibrate_posterior,
    check_calibration_settings,
    decides_by_predictions,
)
from abstain.training.calibration.reference import set_aside
from abstain.training.config.calibration import CalibrationConfig
from abstain.training.config.config import recorded_settings
from abstain.training.config.imports import ImportConfig, as_fit_config, check_import
from abstain.training.data.ood_sets import read_ood_sets
from abstain.training.evaluation.records import ReportData
from abstain.training.evaluation.report_data import (
    predict_curve,
    predict_test_part,
    served_quality,
    served_quality_without_view,
)
from abstain.training.evaluation.served_quality import ServedQuality
from abstain.training.fit import NO_SETS, FitResult
from abstain.training.importing.checks import Checked, check_chains, check_predictions, known_baseline
from abstain.training.importing.found import Found
from abstain.training.importing.held_out import HeldOut, read_held_out, read_training_rows
from abstain.training.importing.matching import Matched, digest_of, evenly_spaced, match
from abstain.training.importing.model import build_model, check_servable
from abstain.training.publish import git_commit, installed_packages, now, publish_version
from abstain.training.runs.progress import stage

IMPORTED = "import"
"""The method that a manifest names for imported draws."""
DECISION = {"classification": "energy", "regression": "std"}
"""The decision without training rows: the score of the default decisions that needs none."""


def import_posterior(
    config: ImportConfig, found: Found, data: str | None, train: str | None, store: Path, progress: ProgressCallback
) -> FitResult:
    """Publishes imported draws as a new version of `config.name`.

    Args:
        found: the arrays of the source.
        data: labelled rows that the network was not trained on: a path or an embedded set; the config's source if None.
        train: training rows of the network, or rows like them that are not in `data`; None for none.
        progress: called as each stage begins and ends.

    Raises:
        ConfigError, DataError, CalibrationError: the config, the source or the rows cannot be used; nothing is published.
    """
    check_import(config)
    dataset = read_held_out(config, data)
    model = build_model(config, dataset)
    rows = HeldOut(dataset, None if train is None else read_training_rows(config, model, dataset, train))
    settings = calibration_settings(config.calibration, model, has_train=rows.train is not None)
    check_calibration_settings(settings, model, dataset.calibration.y)
    matched = match(found, model, config.posterior)
    posterior = Posterior(model, keep_draws(matched.draws, config.draws))
    check_servable(model, posterior.size)
    check_writable(store, config.name)
    strange = read_ood_sets(config.evaluation.ood, dataset.test.x, model)
    with stage(progress, "checks of the draws"):
        checked = check_chains(found, matched, model, dataset.calibration)
    with stage(progress, "feature scores"):
        feature_scores, reference = None, None
        if rows.train is not None:
            reference, rest = set_aside(rows.train, config.seed)
            feature_scores = fit_feature_scores(posterior, rest, config.seed, settings.densities)
    with stage(progress, "calibration"):
        calibrated = calibrate_posterior(
            settings, posterior, feature_scores, dataset.calibration, reference, config.seed
        )
    with stage(progress, "evaluation"):
        report_data = make_report_data(config.name, posterior, calibrated, rows, strange)
        metrics = evaluate_rows(posterior, calibrated, rows, report_data)
        checked = check_predictions(checked, posterior, calibrated, rows, metrics, report_data)
    with stage(progress, "report and bundle"):
        record = import_record(found, matched, posterior.draws, config)
        manifest = build_manifest(config, rows, posterior, calibrated, settings, checked, metrics, record)
        trained = None
        if rows.train is not None:
            trained = hash_training_rows(model.preprocessing, rows.train.x, dataset.calibration.x)
        version = publish_version(store, manifest, posterior, calibrated, report_data, trained)
    return FitResult(version.number, metrics, checked.shortfalls, version.notes)


def calibration_settings(settings: CalibrationConfig, model: Model, *, has_train: bool) -> CalibrationConfig:
    """Returns the settings of the calibration: without training rows, the default decision is a score of the predictions.

    Raises:
        ConfigError: the decision needs training rows, and there are none.
    """
    if has_train:
        return settings
    if settings.decision is None:
        task = model.likelihood_functions.task
        for key in ("combine", "weights"):
            if getattr(settings, key):
                raise ConfigError(
                    f"calibration.{key}",
                    expected="nothing: without training rows one score decides",
                    found=getattr(settings, key),
                    fix="pass the training rows with --train, or leave it out",
                )
        settings = settings.model_copy(update={"decision": DECISION[task]})
    if not decides_by_predictions(settings, model):
        raise ConfigError(
            "calibration.decision",
            expected="one score of the predictions, because feature scores and combinations need training rows",
            found=settings.decision,
            fix="pass the training rows with --train, or name one score of the predictions",
        )
    if settings.densities.changes_rows:
        raise ConfigError(
            "calibration.densities", expected="training rows to change", found="none", fix="pass them with --train"
        )
    return settings


def keep_draws(draws: Draws, count: int | None) -> Draws:
    """Returns all draws, or `count` of them, evenly spaced.

    Raises:
        ConfigError: there are fewer.
    """
    total = len(jax.tree.leaves(draws)[0])
    if count is None or count == total:
        return draws
    if count > total:
        raise ConfigError("draws", expected=f"at most the {total:,} draws of the source", found=count, fix="lower it")
    chosen: Any = evenly_spaced(total, count)
    return jax.tree.map(lambda leaf: leaf[chosen], draws)


def make_report_data(
    name: str, posterior: Posterior, calibrated: Calibrated, rows: HeldOut, strange: dict[str, Any]
) -> ReportData:
    """Computes the data of the report."""
    view, absent = predict_test_part(name, posterior, calibrated, rows.dataset.test, strange)
    curve = None
    if rows.train is None:
        absent["curve"] = "Not drawn: the import has no training rows."
    else:
        curve, reasons = predict_curve(posterior.model, calibrated, rows.train)
        absent |= reasons
    if not strange:
        absent["ood"] = NO_SETS
    return ReportData(view, curve, None, absent)


def evaluate_rows(
    posterior: Posterior, calibrated: Calibrated, rows: HeldOut, report_data: ReportData
) -> ServedQuality:
    """Computes the metrics on the test part, and on OOD sets."""
    baseline = known_baseline(posterior, rows)
    if report_data.view:
        return served_quality(report_data.view, baseline)
    return served_quality_without_view(posterior, calibrated, rows.dataset.test, baseline)


def import_record(found: Found, matched: Matched, draws: Draws, config: ImportConfig) -> ImportRecord:
    """Builds the manifest's record of the source."""
    return ImportRecord(
        kind=found.kind,
        sources=found.files,
        digest=digest_of(draws),
        found=len(jax.tree.leaves(matched.draws)[0]),
        chains=matched.chains,
        settings=config.posterior.model_dump(mode="json", exclude_defaults=True),
    )


def build_manifest(
    config: ImportConfig,
    rows: HeldOut,
    posterior: Posterior,
    calibrated: Calibrated,
    settings: CalibrationConfig,
    checked: Checked,
    metrics: ServedQuality,
    record: ImportRecord,
) -> Manifest:
    """Builds the manifest, without the version's number and the hashes."""
    data = cast("dict[str, JsonValue]", recorded_settings(as_fit_config(config, posterior.size))["data"])
    names, train = posterior.model.class_names, rows.train
    class_rows = np.bincount(train.y, minlength=len(names)).tolist() if names and train is not None else ()
    return Manifest(
        name=config.name,
        version=0,
        created=now(),
        model=posterior.model,
        draws=posterior.size,
        method=MethodRecord(kind=IMPORTED, settings=record.settings),
        calibration=build_record(calibrated, settings, posterior.model),
        densities=shapes_of(calibrated.feature_scores),
        diagnostics=checked.diagnostics,
        shortfalls=checked.shortfalls,
        notes=checked.notes,
        metrics=metrics.to_json(),
        data=DataRecord(
            source=Path(rows.dataset.source.where).name,
            settings=data,
            fingerprint=rows.dataset.fingerprint,
            train_rows=0 if train is None else len(train),
            calibration_rows=len(rows.dataset.calibration),
            test_rows=len(rows.dataset.test),
            class_rows=tuple(class_rows),
            dialect=rows.dataset.source.dialect,
        ),
        seed=config.seed,
        packages=installed_packages(),
        git_commit=git_commit(),
        imported=record,
    )
