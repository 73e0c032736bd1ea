"""A bundle: one version of a model on disk, whole and verifiable.

    manifest.json   all that one needs to know without loading a draw; holds the sha256 of every other file
    draws/          the posterior's draws (Orbax, numpy leaves, sample axis 0)
    calibration/    the calibration split's scores (Orbax)
    densities/      what scores are computed from that were fitted to the training rows (Orbax)
    rows/           keyed hashes of the training rows, for `abstain calibrate` (`models/trainedrows.py`)
    report.html     for people

The digest of a bundle is the sha256 of its manifest's canonical bytes, so it stands for every byte of the version.
Nothing is unpickled, and nothing is trusted before its hash, shape, dtype and finiteness have been checked.
"""

from __future__ import annotations

import hashlib
import importlib
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, cast

import jax
import numpy as np
import orjson
from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError

from models.calibration import Calibration, check_calibration
from models.conformal import IntervalKind, SetKind
from models.decision import Decision
from models.densities import Densities, as_tree, from_tree
from models.errors import AbstainError, BundleError, CalibrationError, StoreError, clip_repr
from models.posterior import Model, Posterior, check_draws
from models.predictive import BUCKETS, Predictor
from models.ranks import beta_bounds, reject_rate_bounds, threshold, threshold_bounds
from models.recalibration import Recalibration

SCHEMA_VERSION = 2
READ_SCHEMA_VERSIONS = (1, 2)
"""`docs/compatibility.md` says what a bundle of each means."""
MANIFEST = "manifest.json"
_REFIT = "fit the model again, or restore the bundle from a copy"


class MethodRecord(BaseModel):
    """Which inference method made the draws, with all its settings; for people, never for code to branch on."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    kind: str
    settings: dict[str, JsonValue]


class CalibrationRecord(BaseModel):
    """The calibration's terms, and the thresholds they come to.

    Bounds are at 95 %, for a split of this size: of the reject rate and of the coverage that this very split came to on
    rows like its own (Beta; Vovk, 2012), and of each score's true percentile (by order statistics). They are exact where
    the decision score does not tie; ties only lower the reject rate.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    rows: int
    decision: str
    """The decision score's name."""
    percentile: float
    coverage: float
    thresholds: dict[str, float]
    combination: Decision | None = None
    """How the decision score is made of others, if it is."""
    reference_rows: int = 0
    """Training rows that fix the evidence of each score (`models/decision.py`); 0 in a bundle of schema 1."""
    per_class: bool = False
    sets: SetKind = "lac"
    intervals: IntervalKind = "normalised"
    recalibration: Recalibration = Recalibration()
    class_thresholds: dict[str, float] = {}
    """The decision's, by class, where thresholds are per class."""
    threshold_bounds: dict[str, tuple[float | None, float | None]] = {}
    """By score; none where thresholds are per class. None at an end: beyond the calibration rows."""
    reject_rate_bounds: tuple[float, float] | None = None
    """Shares; None where thresholds are per class."""
    class_threshold_bounds: dict[str, tuple[float | None, float | None]] = {}
    """The decision's, by class, where thresholds are per class."""
    class_reject_rate_bounds: dict[str, tuple[float, float]] = {}
    """Of the rows predicted to be of each class, where thresholds are per class."""
    coverage_bounds: tuple[float, float] | None = None
    augmented_reject_rate: float | None = None
    """Share of the augmented calibration rows that the decision rejects; None where nothing was augmented."""
    plain_reject_rate: float | None = None
    """Share of the same rows before augmentation: what ordinary traffic is rejected at."""
    settings: dict[str, JsonValue] = {}
    """The config's `[calibration]`; for people, and for `abstain calibrate` to start from."""


class DataRecord(BaseModel):
    """Where the rows came from, the config's terms for them, and the sha256 of the arrays."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    source: str
    settings: dict[str, JsonValue]
    fingerprint: str
    train_rows: int
    calibration_rows: int
    test_rows: int


class Manifest(BaseModel):
    """All that one needs to know about a bundle without loading its draws."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    schema_version: int = SCHEMA_VERSION
    name: str
    version: int
    created: str
    """UTC, ISO 8601."""
    model: Model
    draws: int
    method: MethodRecord
    calibration: CalibrationRecord
    densities: dict[str, dict[str, tuple[int, ...]]] = {}
    """The shapes of the arrays under densities/, by score."""
    diagnostics: dict[str, JsonValue]
    shortfalls: tuple[str, ...] = ()
    """In plain words, what the fit lacks to be relied on; the label `stable` is refused to such a version."""
    notes: tuple[str, ...] = ()
    metrics: dict[str, JsonValue]
    data: DataRecord
    seed: int
    packages: dict[str, str]
    git_commit: str | None
    files: dict[str, str] = {}
    """sha256 of every other file of the bundle, by its path in the bundle."""
    digest: str = ""


@dataclass(frozen=True)
class Bundle:
    """A version, loaded and verified."""

    manifest: Manifest
    posterior: Posterior
    calibration: Calibration
    densities: Densities | None = None

    def predictor(self, buckets: tuple[int, ...] = BUCKETS, devices: int = 1) -> Predictor:
        """The version's ensemble with all its scores, compiled, its draws spread over the first so many devices."""
        return Predictor(
            self.posterior,
            buckets,
            densities=self.densities,
            recalibration=self.manifest.calibration.recalibration,
            devices=cast("list[Any]", jax.devices())[:devices],
        )


def calibration_record(
    calibration: Calibration, recalibration: Recalibration, class_names: tuple[str, ...]
) -> CalibrationRecord:
    """What the manifest says of a calibration."""
    decision, percentile, ascending = calibration.decision, calibration.percentile, calibration.ascending
    per_class = calibration.per_class
    by_class = calibration.by_class[decision.name] if per_class else {}
    named = {class_names[label]: values for label, values in by_class.items()}
    return CalibrationRecord(
        rows=calibration.rows,
        decision=decision.name,
        percentile=percentile,
        coverage=calibration.coverage,
        thresholds={name: threshold(values, percentile) for name, values in ascending.items()},
        combination=decision if len(decision.scores) > 1 else None,
        reference_rows=calibration.reference_rows,
        per_class=per_class,
        sets=calibration.sets,
        intervals=calibration.intervals,
        recalibration=recalibration,
        class_thresholds={name: threshold(values, percentile) for name, values in named.items()},
        threshold_bounds={}
        if per_class
        else {name: threshold_bounds(values, percentile) for name, values in ascending.items()},
        reject_rate_bounds=None if per_class else reject_rate_bounds(percentile, calibration.rows),
        class_threshold_bounds={name: threshold_bounds(values, percentile) for name, values in named.items()},
        class_reject_rate_bounds={name: reject_rate_bounds(percentile, len(values)) for name, values in named.items()},
        coverage_bounds=beta_bounds(calibration.coverage, calibration.rows),
    )


def write_arrays(folder: Path, posterior: Posterior, calibration: Calibration, densities: Densities | None) -> None:
    """Writes `draws/`, `calibration/` and `densities/` into the folder of a bundle in the making."""
    _write_tree(folder / "draws", posterior.draws)
    rows: dict[str, Any] = {"scores": calibration.scores, "nonconformity": calibration.nonconformity}
    if calibration.labels is not None:
        rows["labels"] = calibration.labels
    if calibration.reference is not None:
        rows["reference"] = calibration.reference
    if calibration.plain_scores is not None:
        rows["plain"] = calibration.plain_scores
    _write_tree(folder / "calibration", rows)
    if densities is not None:
        _write_tree(folder / "densities", as_tree(densities))


def write_manifest(folder: Path, manifest: Manifest) -> Manifest:
    """Writes the manifest, with the hashes of all that lies in the folder; returns it, digest included."""
    files = {
        path.relative_to(folder).as_posix(): _sha256(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }
    content = manifest.model_copy(update={"files": files}).model_dump(mode="json")
    content["digest"] = _digest_of(content)
    (folder / MANIFEST).write_bytes(_dumped(content))
    return Manifest.model_validate(content)


def read_manifest(folder: Path) -> Manifest:
    """The manifest of the bundle in a folder.

    Raises:
        BundleError: it is missing, of another schema version, not what was written, or not a manifest at all.
    """
    path = folder / MANIFEST
    try:
        written = path.read_bytes()
    except OSError as error:
        raise BundleError("cannot be read", where=str(path), found=error.strerror, fix=_REFIT) from error
    try:
        content = orjson.loads(written)
    except orjson.JSONDecodeError as error:
        raise BundleError(
            "is damaged", where=str(path), expected="the JSON that fit wrote", found=str(error), fix=_REFIT
        ) from error
    _check_schema_version(content, path)
    try:
        manifest = Manifest.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        raise BundleError(
            ".".join(map(str, first["loc"])),
            where=str(path),
            expected=first["msg"],
            found=clip_repr(first["input"]),
            fix=_REFIT,
        ) from error
    # The raw JSON is held against its digest, not the record: that may have gained fields since the bundle was written.
    if _dumped(content) != written or manifest.digest != _digest_of(content):
        raise BundleError("digest", where=str(path), expected=manifest.digest, found="altered contents", fix=_REFIT)
    return manifest


def check_gate(manifest: Manifest) -> None:
    """Refuses a version whose fit fell short.

    Raises:
        StoreError: saying in what.
    """
    if manifest.shortfalls:
        raise StoreError(
            "cannot be labelled stable, its fit fell short",
            where=f"{manifest.name}:{manifest.version}",
            found="; ".join(f"({place}) {said}" for place, said in enumerate(manifest.shortfalls, start=1)),
            fix="fit it again, or pass --force to label it all the same",
        )


def verify_files(folder: Path, manifest: Manifest) -> None:
    """Checks every file of the bundle against the manifest.

    Raises:
        BundleError: naming the first file that is missing or altered.
    """
    for name, expected in manifest.files.items():
        parts = PurePosixPath(name).parts
        path = folder.joinpath(*parts)
        if not parts or ".." in parts or PurePosixPath(name).is_absolute() or path.is_symlink():
            raise BundleError("files", where=str(folder / MANIFEST), expected="paths inside the bundle", found=name)
        if not path.is_file():
            raise BundleError("is missing", where=str(path), expected=f"sha256 {expected}", found="no file", fix=_REFIT)
        found = _sha256(path)
        if found != expected:
            raise BundleError(
                "is damaged or was altered",
                where=str(path),
                expected=f"sha256 {expected}",
                found=f"sha256 {found}",
                fix=_REFIT,
            )


def load(folder: Path) -> Bundle:
    """The bundle in a folder, after every check.

    Raises:
        BundleError: a file is missing, truncated, altered, or does not hold what the manifest says.
    """
    manifest = read_manifest(folder)
    verify_files(folder, manifest)
    draws = _read_tree(folder / "draws")
    check_draws(manifest.model, draws, where=str(folder / "draws"))
    posterior = Posterior(manifest.model, draws)
    if posterior.size != manifest.draws:
        raise BundleError("draws", where=str(folder), expected=manifest.draws, found=posterior.size)
    densities = _read_densities(folder / "densities", manifest)
    bundle = Bundle(manifest, posterior, _read_calibration(folder / "calibration", manifest), densities)
    return without_stale_vim(bundle, str(folder)) if manifest.schema_version == 1 else bundle


def without_stale_vim(bundle: Bundle, where: str) -> Bundle:
    """The bundle without `vim`, if it is of schema 1 and of two classes by one logit.

    Its weight and calibration scores were made by a formula that took one of the classes for stranger than the other.

    Raises:
        BundleError: nothing else decides.
    """
    densities, calibration = bundle.densities, bundle.calibration
    if bundle.manifest.model.likelihood != "bernoulli" or densities is None or "vim" not in densities.records:
        return bundle
    decision = calibration.decision
    kept = [place for place, name in enumerate(decision.scores) if name != "vim"]
    if not kept:
        raise BundleError(
            "decision",
            where=where,
            expected="a score other than vim, whose formula for two classes by one logit has changed",
            found="vim",
            fix="fit the model again",
        )
    weights = tuple(decision.weights[place] for place in kept) if decision.weights else ()
    scores = {name: values for name, values in calibration.scores.items() if name != "vim"}
    records = {name: record for name, record in densities.records.items() if name != "vim"}
    rest = Decision(scores=tuple(decision.scores[place] for place in kept), rule=decision.rule, weights=weights)
    return replace(
        bundle,
        calibration=replace(calibration, scores=scores, decision=rest),
        densities=densities._replace(records=records),
    )


def _read_calibration(folder: Path, manifest: Manifest) -> Calibration:
    tree = _read_tree(folder)
    terms = manifest.calibration
    try:
        calibration = Calibration(
            scores=tree["scores"],
            nonconformity=tree["nonconformity"],
            labels=tree.get("labels"),
            decision=terms.combination or Decision(scores=(terms.decision,)),
            percentile=terms.percentile,
            coverage=terms.coverage,
            per_class=terms.per_class,
            sets=terms.sets,
            intervals=terms.intervals,
            reference=tree.get("reference"),
            target_scale=manifest.model.preprocessing.target_scale,
            plain_scores=tree.get("plain"),
        )
        check_calibration(
            calibration,
            manifest.model.law.task,
            tuple(manifest.densities),
            where=str(folder),
            classes=len(manifest.model.class_names),
        )
        for name, said, found in (
            ("rows", terms.rows, calibration.rows),
            ("reference rows", terms.reference_rows, calibration.reference_rows),
        ):
            if said != found:
                raise CalibrationError(name, where=str(folder), expected=said, found=found)
    except (KeyError, TypeError, AttributeError) as error:
        raise BundleError(
            "calibration", where=str(folder), expected="scores and nonconformity", found=str(error)
        ) from error
    except CalibrationError as error:
        raise BundleError(str(error)) from error
    return calibration


def _read_densities(folder: Path, manifest: Manifest) -> Densities | None:
    """Those that the manifest tells of; a bundle of before has none."""
    if not manifest.densities:
        return None
    found = from_tree(_read_tree(folder), manifest.densities, manifest.draws, where=str(folder))
    for field, leaf in found.records["range"]._asdict().items():
        # Any other shape that broadcasts would compare a feature with another's range.
        if leaf.shape != (manifest.model.features,):
            raise BundleError(
                f"range.{field}", where=str(folder), expected=f"{manifest.model.features} features", found=leaf.shape
            )
    return found


def _check_schema_version(content: Any, path: Path) -> None:
    fields = cast("dict[str, Any]", content) if isinstance(content, dict) else {}
    found = fields.get("schema_version")
    if type(found) is not int or found not in READ_SCHEMA_VERSIONS:
        raise BundleError(
            "schema_version",
            where=str(path),
            expected=" or ".join(map(str, READ_SCHEMA_VERSIONS)),
            found=found,
            fix="fit the model again with this version of abstain, or serve it with the one that wrote it",
        )


def _write_tree(folder: Path, tree: Any) -> None:
    ocp: Any = importlib.import_module("orbax.checkpoint")  # seconds; listing a store needs none of it
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder.absolute(), tree)


def _read_tree(folder: Path) -> Any:
    ocp: Any = importlib.import_module("orbax.checkpoint")
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            tree = checkpointer.restore(folder.absolute())
    except AbstainError:
        raise
    except Exception as error:  # Orbax and TensorStore raise many kinds, none documented, for a damaged checkpoint.
        raise BundleError(
            "cannot be restored",
            where=str(folder),
            found=f"{type(error).__name__}: {clip_repr(str(error), 200)}",
            fix=_REFIT,
        ) from error
    return _as_numpy(tree)


def _as_numpy(tree: Any) -> Any:
    if not isinstance(tree, dict):
        return np.asarray(tree)
    return {key: _as_numpy(value) for key, value in cast("dict[str, Any]", tree).items()}


def _dumped(content: dict[str, Any]) -> bytes:
    """The canonical bytes of a manifest's content."""
    return orjson.dumps(content, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS | orjson.OPT_APPEND_NEWLINE)


def _digest_of(content: dict[str, Any]) -> str:
    return f"sha256:{hashlib.sha256(_dumped({**content, 'digest': ''})).hexdigest()}"


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise BundleError("cannot be read", where=str(path), found=error.strerror, fix=_REFIT) from error
