"""The story of `abstain calibrate`: a version's draws, a new calibration, a new version beside the old one.

Draws stay as they are, bit for bit, and so do densities and reference rows, unless the version has none or the terms ask
for ones of rows changed in another way.
The rows must be ones that the model has not learned from: the calibration part of the very data it was fitted with,
known by its fingerprint, or labelled rows that are new.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Num
from pydantic import ValidationError

from abstain.models.bundles.bundle import SCHEMA_VERSION, Bundle, Manifest, load_published
from abstain.models.bundles.shortfalls import Shortfall, ShortfallCode, texts
from abstain.models.bundles.store import check_writable, resolve
from abstain.models.bundles.trained_rows import TrainedRows, find_trained, most_by_chance, read_trained
from abstain.models.errors import ConfigError, DataError
from abstain.models.prediction.feature_score_records import FeatureScores
from abstain.models.prediction.feature_scores import shapes_of
from abstain.models.validation import refuse
from abstain.training.calibration.far_rows import ACCEPTS_FAR_ROWS, try_far_rows
from abstain.training.calibration.feature_scores import fit_feature_scores
from abstain.training.calibration.pipeline import Calibrated, ScoreValues, calibrate_posterior, check_terms, record_of
from abstain.training.calibration.reference import set_aside
from abstain.training.config.calibration import CalibrationConfig
from abstain.training.config.data import DataConfig
from abstain.training.config.reading import apply_override
from abstain.training.data.dataset import split_again
from abstain.training.data.ood_sets import strange_sets
from abstain.training.data.rows import Rows, Source
from abstain.training.data.sources import read_source
from abstain.training.data.splitting import SPLIT_BY, part_notes
from abstain.training.evaluation.checks import decision_shortfalls, metric_shortfalls
from abstain.training.evaluation.records import Shown, View
from abstain.training.evaluation.report_data import look, look_along, metrics_of, metrics_without_view
from abstain.training.evaluation.results import JsonObject
from abstain.training.publish import git_commit, installed_packages, now, publish_version

NEW = (
    "the rows are taken to be new, for this version keeps no hashes of its training rows to tell: on rows that it was "
    "trained on it would learn to reject more than is asked for",
)

MOVED = {"reject_rate", "ood", "ood_rows"}
"""The metrics that every new calibration changes, or that it may know other sets of."""
CHECKED_AGAIN: set[ShortfallCode | None] = {"constant_decision", "accepts_far_rows", "not_finite"}
"""The checks that every new calibration repeats; other shortfalls are those of the fit, and stay."""
UNMOVED = {"accuracy", "rmse"}
"""The metrics that no recalibration changes."""


DRAWS_OF = "draws of "
"""How the note begins that says what a calibration anew was made of."""


class Recalibrated(NamedTuple):
    """The model's name, the new version's number, its shortfalls, notes on the rows, and which rows were used."""

    name: str
    version: int
    shortfalls: tuple[Shortfall, ...]
    notes: tuple[str, ...]
    basis: str

    def to_json(self) -> JsonObject:
        """What `abstain calibrate --json` prints."""
        return {
            "name": self.name,
            "version": self.version,
            "shortfalls": [*texts(self.shortfalls)],
            "notes": list(self.notes),
            "basis": self.basis,
        }


class Material(NamedTuple):
    """The rows to calibrate on; those to report on and to fit missing densities to, if the source has them."""

    calibration: Rows
    test: Rows | None
    train: Rows | None
    note: str
    beware: tuple[str, ...] = ()


class Basis(NamedTuple):
    """What a new calibration is made with: densities, reference rows or their scores, and the rows to rank among."""

    feature_scores: FeatureScores
    reference: Rows | ScoreValues
    calibration: Rows


def calibrate_version(
    store: Path, model: str, where: str, overrides: tuple[str, ...] = (), ood: dict[str, str] | None = None
) -> Recalibrated:
    """Publishes a new version of a model, with its draws and a new calibration.

    Args:
        where: a path or the name of an embedded set.
        overrides: `KEY=VALUE`, keys of the config's `[calibration]`; the rest stays as the version has it.
        ood: sets of strange inputs to report on: paths, or embedded sets, by name.

    Raises:
        ConfigError, DataError, CalibrationError: the terms, the rows, or their number do not do.
    """
    name, version = resolve(store, model)
    check_writable(store, name)
    bundle = load_published(store, name, version)
    manifest = bundle.manifest
    terms = new_terms(manifest, overrides)
    trained = read_trained(store / name / str(version), manifest.files)
    material = read_material(manifest, where, trained)
    basis = basis_of(bundle, terms, material, where)
    check_terms(terms, manifest.model, basis.calibration.y)
    strange = strange_sets(ood or {}, (material.test or material.calibration).x, manifest.model)
    calibrated = calibrate_posterior(
        terms, bundle.posterior, basis.feature_scores, basis.calibration, basis.reference, manifest.seed
    )
    shown = show(bundle, calibrated, material, strange, f"{name}:{version}")
    made = described(bundle, calibrated, terms, material, f"{name}:{version}", shown.view)
    version = publish_version(store, made, bundle.posterior, calibrated, shown, trained).number
    return Recalibrated(name, version, made.shortfalls, material.beware, material.note)


def new_terms(manifest: Manifest, overrides: tuple[str, ...]) -> CalibrationConfig:
    """The version's own terms, with `KEY=VALUE` written over them.

    Raises:
        ConfigError: an unknown key, or a value that it cannot take.
    """
    record = manifest.calibration
    old: dict[str, Any] = dict(record.settings) or {
        "decision": record.decision,
        "percentile": record.percentile,
        "coverage": record.coverage,
    }
    content = copy.deepcopy(old)
    for override in overrides:
        apply_override(override.removeprefix("calibration."), content, CalibrationConfig())
    try:
        return CalibrationConfig.model_validate(content)
    except ValidationError as error:
        raise refuse(error, ConfigError, CalibrationConfig, where="--set", whole="calibration") from error


def read_material(manifest: Manifest, where: str, trained: TrainedRows | None = None) -> Material:
    """The rows that a source gives to calibrate on.

    Args:
        trained: hashes of the rows that the model was trained on; None if its bundle has none.

    Raises:
        DataError: the source is not the data that the model was fitted with, and does not say which rows are new; or
            its rows are not the model's; or the model was trained on them.
    """
    config = DataConfig.model_validate(manifest.data.settings)
    model = manifest.model
    source = read_source(where, config, model, classify=model.likelihood_functions.task == "classification")
    material = _material(source, manifest, config, where)
    shape = material.calibration.x.shape[1:]
    if shape != model.feature_shape:
        raise DataError("feature shape", where=where, expected=model.feature_shape, found=shape)
    if material.beware != NEW:
        return material
    overlap = NEW if trained is None else check_new(trained, manifest, material.calibration, where)
    return material._replace(beware=(*overlap, *split_notes(source, config, material.calibration)))


def split_notes(source: Source, config: DataConfig, rows: Rows) -> tuple[str, ...]:
    """Notes on new rows where the fit split by groups or by time: how many groups they are of, if they say so."""
    if config.split_by is None:
        return ()
    if config.group is not None and source.key is not None and rows is source.train:
        return part_notes(source, config, np.arange(len(rows)))
    return (
        f"{SPLIT_BY}data.{config.split_kind} = {config.split_by!r} in the fit, which the rows given do not name: the stated "
        f"reject rate is that of rows like these, and may be exceeded on a new {config.split_kind}",
    )


def check_new(trained: TrainedRows, manifest: Manifest, rows: Rows, where: str) -> tuple[str, ...]:
    """Notes about rows said to be new: how many equal a training row, if no more than chance explains.

    Raises:
        DataError: more than that do.
    """
    known = find_trained(trained, manifest.model.preprocessing, rows.x)
    count, expected = int(known.sum()), trained.repeats
    if not count:
        return ()
    said = f"{count:,} of {len(rows):,} rows equal rows that the model was trained on"
    if count > most_by_chance(trained, len(rows)):
        raise DataError(
            "rows to calibrate on",
            where=where,
            expected=f"rows that the model was not trained on, or about {expected:.1%} that equal such rows by chance",
            found=f"{said}, the first of them row {int(np.argmax(known))}",
            fix="leave them out: the thresholds learned from them would reject far more than is asked for; or give the "
            "file that the model was fitted with, unchanged",
        )
    return (f"{said}; about {expected * len(rows):,.0f} were to be expected",)


def _material(source: Source, manifest: Manifest, config: DataConfig, where: str) -> Material:
    said = f"calibrated anew on {{rows:,}} rows of {Path(where).name}"
    dataset = split_again(source, config, manifest.seed, manifest.data.fingerprint)
    if dataset is not None:
        note = said.format(rows=len(dataset.calibration))
        return Material(dataset.calibration, dataset.test, dataset.train, f"{note}, the part kept for it by the fit")
    if source.calibration is not None:
        return Material(source.calibration, source.test, None, said.format(rows=len(source.calibration)), NEW)
    if source.train is not None and source.test is None:
        return Material(source.train, None, None, f"{said.format(rows=len(source.train))}, all taken to be new", NEW)
    raise DataError(
        "rows to calibrate on",
        where=where,
        expected="the data that the model was fitted with, or new rows as x and y, or as x_calibration and y_calibration",
        found="other training rows" if source.train is not None else "no training rows",
    )


def basis_of(bundle: Bundle, terms: CalibrationConfig, material: Material, where: str) -> Basis:
    """The version's own densities and reference rows, or new ones where it has none or the terms ask for others.

    A version of schema 1 has no reference rows. They are set aside from the training rows if the source has these, and
    then the densities are fitted anew on the rest; else from the rows to calibrate on.

    Raises:
        DataError: densities must be fitted anew, and the source has no training rows.
    """
    manifest = bundle.manifest
    earlier, feature_scores = bundle.calibration.reference, bundle.feature_scores
    stale = terms.densities != new_terms(manifest, ()).densities
    if material.train is not None and (stale or feature_scores is None or earlier is None):
        reference, rest = set_aside(material.train, manifest.seed)
        fitted = fit_feature_scores(bundle.posterior, rest, manifest.seed, terms.densities)
        return Basis(fitted, reference, material.calibration)
    if stale or feature_scores is None:
        raise DataError(
            f"training rows for the densities of {manifest.name}:{manifest.version}",
            where=where,
            expected="the data that it was fitted with",
            found="new rows",
        )
    if earlier is not None:
        return Basis(feature_scores, earlier, material.calibration)
    reference, rest = set_aside(material.calibration, manifest.seed)
    return Basis(feature_scores, reference, rest)


def show(
    bundle: Bundle, calibrated: Calibrated, material: Material, strange: dict[str, Num[np.ndarray, "..."]], origin: str
) -> Shown:
    """What the report is drawn from: as much of a fit's as there are rows for; of the rest it says where it is."""
    manifest = bundle.manifest
    view, curve = None, None
    absent = {} if strange else {"ood": "No OOD set was given: abstain calibrate takes --ood NAME=PATH."}
    if material.test is None:
        absent["test"] = f"The given rows have no test part: its figures and pictures are in the report of {origin}."
        if strange:
            absent["ood"] = "OOD sets are compared with a test part, and the given rows have none."
    else:
        view, why = look(manifest.name, bundle.posterior, calibrated, material.test, strange)
        absent |= why
    if material.train is None:
        absent["curve"] = f"Not drawn: the training rows were not given. The report of {origin} may have it."
    else:
        curve, why = look_along(manifest.model, calibrated, material.train)
        absent |= why
    if "trace" in manifest.diagnostics:
        absent["chains"] = (
            f"Ranks, and R-hat and ESS by prediction, are of all samples, of which a version keeps {manifest.draws} "
            f"draws: they are in the report of {origin}, if that is a fit's."
        )
    return Shown(view, curve, None, absent)


def described(
    bundle: Bundle,
    calibrated: Calibrated,
    terms: CalibrationConfig,
    material: Material,
    origin: str,
    view: View | None,
) -> Manifest:
    """The new version's manifest: the old one's, but for what the calibration changes.

    Without test rows, metrics that another recalibration would have changed are left out.
    """
    old, test, far = bundle.manifest, material.test, try_far_rows(calibrated)
    # What the fit said of its split does not hold for rows from elsewhere.
    replaced = (ACCEPTS_FAR_ROWS, DRAWS_OF) if material.train is not None else (ACCEPTS_FAR_ROWS, DRAWS_OF, SPLIT_BY)
    same = calibrated.recalibration == old.calibration.recalibration
    kept = old.metrics.keys() - MOVED if same else UNMOVED
    metrics: JsonObject = {key: value for key, value in old.metrics.items() if key in kept}
    if view is not None:
        metrics = metrics_of(view).to_json()
    elif test is not None:
        metrics = metrics_without_view(bundle.posterior, calibrated, test).to_json()
    return old.model_copy(
        update={
            "version": 0,
            "schema_version": SCHEMA_VERSION,
            "created": now(),
            "calibration": record_of(calibrated, terms, old.model),
            "densities": shapes_of(calibrated.feature_scores),
            "metrics": metrics,
            "shortfalls": (
                *(lack for lack in old.shortfalls if lack.code not in CHECKED_AGAIN),
                *metric_shortfalls(metrics),
                *decision_shortfalls(calibrated.calibration),
                *far.shortfalls,
            ),
            "notes": (
                *(said for said in old.notes if not said.startswith(replaced)),
                *far.notes,
                f"{DRAWS_OF}{origin}, {material.note}",
                *material.beware,
            ),
            "data": old.data.model_copy(update={"calibration_rows": calibrated.calibration.rows}),
            "packages": installed_packages(),
            "git_commit": git_commit(),
            "files": {},
            "digest": "",
        }
    )
