"""The steps of `abstain calibrate`: the draws of a version → a new calibration → a new version; the old one stays.

The draws do not change, bit for bit. Feature scores and reference rows do not change either, unless the version has none
or `calibration.densities` changes.
The model must not have learned from the rows: they are the calibration part of the data of the fit, recognised by its
fingerprint, or new labelled rows.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Num
from pydantic import ValidationError

from abstain.models.bundles.bundle import Bundle, load_published
from abstain.models.bundles.manifest import SCHEMA_VERSION, Manifest
from abstain.models.bundles.shortfalls import Shortfall, ShortfallCode, texts
from abstain.models.bundles.store import check_writable, resolve
from abstain.models.bundles.trained_rows import TrainedRows, find_trained, most_by_chance, read_trained
from abstain.models.decisions.judging import judge
from abstain.models.errors import ConfigError, DataError
from abstain.models.prediction.feature_score_records import FeatureScores
from abstain.models.prediction.feature_scores import shapes_of
from abstain.models.validation import refuse
from abstain.training.calibration.far_rows import try_far_rows
from abstain.training.calibration.feature_scores import fit_feature_scores
from abstain.training.calibration.pipeline import (
    Calibrated,
    ScoreValues,
    build_record,
    calibrate_posterior,
    check_calibration_settings,
    decides_by_predictions,
)
from abstain.training.calibration.record import unseen_notes
from abstain.training.calibration.reference import set_aside
from abstain.training.config.calibration import CalibrationConfig
from abstain.training.config.data import DataConfig
from abstain.training.config.reading import apply_override, refuse_key_of_a_fit
from abstain.training.data.dataset import split_again
from abstain.training.data.ood_sets import read_ood_sets
from abstain.training.data.rows import Rows, Source
from abstain.training.data.sources import read_source
from abstain.training.data.splitting import part_notes
from abstain.training.evaluation.baselines import recorded_baseline
from abstain.training.evaluation.checks import decision_notes, decision_shortfalls, metric_shortfalls
from abstain.training.evaluation.records import ReportData, ReportView
from abstain.training.evaluation.report_data import (
    predict_curve,
    predict_test_part,
    served_quality,
    served_quality_without_view,
)
from abstain.training.evaluation.results import JsonObject
from abstain.training.notes import NoteCode, note_code, write_note
from abstain.training.publish import git_commit, installed_packages, now, publish_version

NOT_CHECKED = (
    "the rows are taken to be new, because this version has no hashes of its training rows: calibrated on training rows "
    "it would reject more than requested",
)

CHANGED_METRICS = {"reject_rate", "ood", "ood_rows"}
"""The metrics that every new calibration changes, and those of OOD sets, which may be other sets."""
CHECKED_AGAIN: set[ShortfallCode | None] = {"constant_decision", "accepts_far_rows", "no_error_limit", "not_finite"}
"""The checks that every new calibration repeats; other shortfalls are about the fit, and stay."""
UNCHANGED_METRICS = {"accuracy", "rmse", "baseline", "classes"}
"""The metrics that no recalibration changes."""


class CalibrateResult(NamedTuple):
    """The result of a calibration: the new version, its shortfalls, notes on the rows, and the rows used (`basis`)."""

    name: str
    version: int
    shortfalls: tuple[Shortfall, ...]
    notes: tuple[str, ...]
    basis: str

    def to_json(self) -> JsonObject:
        """Returns the JSON that `abstain calibrate --json` prints."""
        return {**self._asdict(), "shortfalls": [*texts(self.shortfalls)], "notes": [*self.notes]}


class CalibrationMaterial(NamedTuple):
    """The rows to calibrate on, and the test and training rows, if the source has them.

    Attributes:
        note: which rows are used.
        taken_as_new: whether the rows are not those of the fit, so that training rows among them must be looked for.
    """

    calibration: Rows
    test: Rows | None
    train: Rows | None
    note: str
    taken_as_new: bool = False
    warnings: tuple[str, ...] = ()


class CalibrationInputs(NamedTuple):
    """The inputs of a new calibration: feature scores, reference rows or their scores, and calibration rows."""

    feature_scores: FeatureScores | None
    reference: Rows | ScoreValues | None
    calibration: Rows


def calibrate_version(
    store: Path,
    model: str,
    where: str,
    overrides: tuple[str, ...] = (),
    ood: dict[str, str] | None = None,
    *,
    report: bool = True,
) -> CalibrateResult:
    """Publishes a new version of a model, with its draws and a new calibration.

    Args:
        where: a path or the name of an embedded set.
        overrides: `KEY=VALUE` for keys of `[calibration]`; other keys keep the version's values.
        ood: OOD sets to measure: paths or embedded sets, by name.
        report: whether to draw and write `report.html`.

    Raises:
        ConfigError, DataError, CalibrationError: the settings or the rows cannot be used, or there are too few rows.
    """
    name, version = resolve(store, model)
    check_writable(store, name)
    bundle = load_published(store, name, version)
    manifest = bundle.manifest
    settings = new_settings(manifest, overrides)
    trained = read_trained(store / name / str(version), manifest.files)
    material = read_calibration_rows(manifest, where, trained)
    basis = choose_inputs(bundle, settings, material, where)
    check_calibration_settings(settings, manifest.model, basis.calibration.y)
    strange = read_ood_sets(ood or {}, (material.test or material.calibration).x, manifest.model)
    calibrated = calibrate_posterior(
        settings, bundle.posterior, basis.feature_scores, basis.calibration, basis.reference, manifest.seed
    )
    report_data = remake_report_data(bundle, calibrated, material, strange, f"{name}:{version}")
    new_manifest = update_manifest(bundle, calibrated, settings, material, f"{name}:{version}", report_data.view)
    shown = report_data if report else None
    version = publish_version(store, new_manifest, bundle.posterior, calibrated, shown, trained).number
    return CalibrateResult(name, version, new_manifest.shortfalls, material.warnings, material.note)


def new_settings(manifest: Manifest, overrides: tuple[str, ...]) -> CalibrationConfig:
    """Returns the version's calibration settings, with `KEY=VALUE` overrides applied.

    Raises:
        ConfigError: a key is unknown, or a value is not allowed.
    """
    record = manifest.calibration
    old: dict[str, Any] = dict(record.settings) or {
        "decision": record.decision,
        "percentile": record.percentile,
        "coverage": record.coverage,
    }
    # Of a version that was made before there were recalibrations, or with another default.
    content = {"recalibrate": "none", **copy.deepcopy(old)}
    changed = {override.removeprefix("calibration.").partition("=")[0].strip() for override in overrides}
    for key in _replaced_settings(changed):
        content[key] = None
    for override in overrides:
        refuse_key_of_a_fit(override, "calibration")
        apply_override(override.removeprefix("calibration."), content, CalibrationConfig())
    try:
        return CalibrationConfig.model_validate(content)
    except ValidationError as error:
        raise refuse(error, ConfigError, CalibrationConfig, where="--set", whole="calibration") from error


def _replaced_settings(changed: set[str]) -> set[str]:
    """Returns the earlier settings that new ones replace: a share of the budget and a limit of the error exclude each other."""
    replaced: set[str] = set()
    if "max_error" in changed:
        replaced |= {"novelty_share"}
    if "novelty_share" in changed:
        replaced |= {"ambiguity", "max_error", "confidence", "error_size"}
    return replaced - changed


def read_calibration_rows(manifest: Manifest, where: str, trained: TrainedRows | None = None) -> CalibrationMaterial:
    """Reads the rows to calibrate on.

    Args:
        trained: hashes of the training rows; None if the bundle has none.

    Raises:
        DataError: the source is not the data of the fit and does not show which rows are new; or its rows have another
            shape; or the model was trained on them.
    """
    config = DataConfig.model_validate(manifest.data.settings)
    model = manifest.model
    classify = model.likelihood_functions.task == "classification"
    source = read_source(where, config, model, classify=classify, dialect=manifest.data.dialect)
    material = _choose_rows(source, manifest, config, where)
    shape = material.calibration.x.shape[1:]
    if shape != model.feature_shape:
        raise DataError(
            "feature shape",
            where=where,
            expected=model.feature_shape,
            found=shape,
            fix="calibrate with rows of the model's features",
        )
    if not material.taken_as_new:
        return material
    overlap = NOT_CHECKED if trained is None else check_new(trained, manifest, material.calibration, where)
    return material._replace(warnings=(*overlap, *split_notes(source, config, material.calibration)))


def split_notes(source: Source, config: DataConfig, rows: Rows) -> tuple[str, ...]:
    """Returns notes on new rows if the fit split by group or by time; with the number of groups if the rows have groups."""
    if config.split_by is None:
        return ()
    if config.group is not None and source.key is not None and rows is source.train:
        return part_notes(source, config, np.arange(len(rows)))
    return (
        write_note(
            "split",
            f"data.{config.split_kind} = {config.split_by!r} in the fit, but these rows do not have it: the stated "
            f"reject rate holds for rows like these, and may be exceeded on a new {config.split_kind}",
        ),
    )


def check_new(trained: TrainedRows, manifest: Manifest, rows: Rows, where: str) -> tuple[str, ...]:
    """Returns a note on how many new rows equal a training row by chance.

    Raises:
        DataError: more rows equal training rows than chance explains.
    """
    equal_rows = find_trained(trained, manifest.model.preprocessing, rows.x)
    count, expected = int(equal_rows.sum()), trained.repeats
    if not count:
        return ()
    overlap = f"{count:,} of {len(rows):,} rows equal rows that the model was trained on"
    if count > most_by_chance(trained, len(rows)):
        raise DataError(
            "rows to calibrate on",
            where=where,
            expected=f"rows that the model was not trained on, or about {expected:.1%} that equal such rows by chance",
            found=f"{overlap}, the first is row {int(np.argmax(equal_rows))}",
            fix="remove them: thresholds from training rows would reject far more than requested; or pass the "
            "unchanged file that the model was fitted with",
        )
    return (f"{overlap}; about {expected * len(rows):,.0f} were expected by chance",)


def _choose_rows(source: Source, manifest: Manifest, config: DataConfig, where: str) -> CalibrationMaterial:
    basis = f"calibrated anew on {{rows:,}} rows of {Path(where).name}"
    dataset = split_again(source, config, manifest.seed, manifest.data.fingerprint)
    if dataset is not None:
        note, made = basis.format(rows=len(dataset.calibration)), "the import" if manifest.imported else "the fit"
        train = dataset.train if len(dataset.train) else None
        return CalibrationMaterial(dataset.calibration, dataset.test, train, f"{note}, the calibration part of {made}")
    if source.calibration is not None:
        return CalibrationMaterial(
            source.calibration, source.test, None, basis.format(rows=len(source.calibration)), taken_as_new=True
        )
    if source.train is not None and source.test is None:
        return CalibrationMaterial(
            source.train, None, None, f"{basis.format(rows=len(source.train))}, all taken to be new", taken_as_new=True
        )
    raise DataError(
        "rows to calibrate on",
        where=where,
        expected="the data that the model was fitted with, or new rows as x and y, or as x_calibration and y_calibration",
        found="other training rows" if source.train is not None else "no training rows",
        fix="pass the file of the fit unchanged, or an .npz of new rows as x and y",
    )


def choose_inputs(
    bundle: Bundle, settings: CalibrationConfig, material: CalibrationMaterial, where: str
) -> CalibrationInputs:
    """Returns the version's feature scores and reference rows, or new ones if it has none or the settings change them.

    A version of schema 1 has no reference rows. They are taken from the training rows if the source has them, and the
    feature scores are fitted again on the rest; otherwise they are taken from the calibration rows.

    Raises:
        DataError: feature scores must be fitted again, and the source has no training rows.
    """
    manifest = bundle.manifest
    earlier, feature_scores = bundle.calibration.reference, bundle.feature_scores
    stale = settings.densities != new_settings(manifest, ()).densities
    if material.train is not None and (stale or feature_scores is None or earlier is None):
        reference, rest = set_aside(material.train, manifest.seed)
        fitted = fit_feature_scores(bundle.posterior, rest, manifest.seed, settings.densities)
        return CalibrationInputs(fitted, reference, material.calibration)
    if feature_scores is None and manifest.imported and decides_by_predictions(settings, manifest.model):
        return CalibrationInputs(None, None, material.calibration)
    if stale or feature_scores is None:
        raise DataError(
            f"training rows for the feature scores of {manifest.name}:{manifest.version}",
            where=where,
            expected="the data that it was fitted with",
            found="new rows",
            fix="pass the file of the fit, or leave out the change to calibration.densities",
        )
    if earlier is not None:
        return CalibrationInputs(feature_scores, earlier, material.calibration)
    reference, rest = set_aside(material.calibration, manifest.seed)
    return CalibrationInputs(feature_scores, reference, rest)


def remake_report_data(
    bundle: Bundle,
    calibrated: Calibrated,
    material: CalibrationMaterial,
    strange: dict[str, Num[np.ndarray, "..."]],
    origin: str,
) -> ReportData:
    """Computes the data of the new report from these rows; for missing parts, names the report that has them."""
    manifest = bundle.manifest
    view, curve = None, None
    absent = {} if strange else {"ood": "No OOD set was given: abstain calibrate takes --ood NAME=PATH."}
    if material.test is None:
        absent["test"] = f"These rows have no test part: its metrics and plots are in the report of {origin}."
        if strange:
            absent["ood"] = "OOD sets are compared with a test part, and these rows have none."
    else:
        view, reasons = predict_test_part(manifest.name, bundle.posterior, calibrated, material.test, strange)
        absent |= reasons
    if material.train is None:
        absent["curve"] = f"Not drawn: there are no training rows. The report of {origin} may have it."
    else:
        curve, reasons = predict_curve(manifest.model, calibrated, material.train)
        absent |= reasons
    if "trace" in manifest.diagnostics:
        absent["chains"] = (
            f"Ranks, R-hat and ESS of predictions need all samples, and a version keeps only {manifest.draws} "
            f"draws: see the report of {origin}, if it was published by a fit."
        )
    return ReportData(view, curve, None, absent)


def update_manifest(
    bundle: Bundle,
    calibrated: Calibrated,
    settings: CalibrationConfig,
    material: CalibrationMaterial,
    origin: str,
    view: ReportView | None,
) -> Manifest:
    """Builds the new manifest: the old one, with the changes by the calibration.

    Without test rows, metrics that a different recalibration changes are left out.
    """
    old, test, far = bundle.manifest, material.test, try_far_rows(calibrated)
    # The fit's notes on its split do not hold for rows from another source.
    replaced: set[NoteCode] = {"accepts_far_rows", "draws_from", "ranks_wrongly", "unseen"}
    if material.train is None:
        replaced.add("split")
    same = calibrated.recalibration == old.calibration.recalibration
    kept = old.metrics.keys() - CHANGED_METRICS if same else UNCHANGED_METRICS
    metrics: JsonObject = {key: value for key, value in old.metrics.items() if key in kept}
    ranking: tuple[str, ...] = ()
    if test is not None:
        prediction = calibrated.predictor(test.x) if view is None else view.familiar.prediction
        judgement = judge(calibrated.calibration, prediction) if view is None else view.familiar.judgement
        ranking = decision_notes(judgement, prediction, test.y)
    if view is not None:
        metrics = served_quality(view, recorded_baseline(old)).to_json()
    elif test is not None:
        metrics = served_quality_without_view(bundle.posterior, calibrated, test, recorded_baseline(old)).to_json()
    return old.model_copy(
        update={
            "version": 0,
            "schema_version": SCHEMA_VERSION,
            "created": now(),
            "calibration": build_record(calibrated, settings, old.model),
            "densities": shapes_of(calibrated.feature_scores),
            "metrics": metrics,
            "shortfalls": (
                *(shortfall for shortfall in old.shortfalls if shortfall.code not in CHECKED_AGAIN),
                *metric_shortfalls(metrics),
                *decision_shortfalls(calibrated.calibration),
                *far.shortfalls,
            ),
            "notes": (
                *(note for note in old.notes if note_code(note) not in replaced),
                *far.notes,
                *unseen_notes(calibrated.calibration),
                *ranking,
                write_note("draws_from", f"{origin}, {material.note}"),
                *material.warnings,
            ),
            "data": old.data.model_copy(update={"calibration_rows": calibrated.calibration.rows}),
            "packages": installed_packages(),
            "git_commit": git_commit(),
            "files": {},
            "digest": "",
        }
    )
