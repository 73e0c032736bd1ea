"""A bundle: a version of a model on disk that can be verified as a whole.

    manifest.json   a description of the version, with the sha256 of every other file
    draws/          the posterior's draws (`models/bundles/checkpoint.py`, numpy leaves, the draws as axis 0)
    calibration/    the scores of the calibration split (the same format)
    densities/      the arrays of the feature scores (the same format)
    rows/           keyed hashes of the training rows, for `abstain calibrate` (`models/bundles/trained_rows.py`)
    report.html     the report for people
    model.sig       the signature, if there is one (`models/bundles/signatures.py`); the only file not in the manifest

The digest of a bundle is the sha256 of its manifest's canonical bytes. It covers every byte of the version, because the
manifest holds the other hashes. Nothing is unpickled, and no file is used before its hash, shape, dtype and finiteness have
been checked.

Hashes show that a bundle was not altered, but not who wrote it; a signature by a trusted key shows that. `load` checks in
this order: the manifest's numbers are plausible; a trusted key has signed it, if required; the folder contains exactly the
listed files, and no more bytes than the numbers imply; the hashes are right; the arrays have the stated shapes. Only then
memory is allocated for the arrays.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, cast

import jax
import orjson
from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError

from abstain.models.bundles.checkpoint import Stored, open_checkpoint, read_arrays, write_checkpoint
from abstain.models.bundles.plausible import (
    Claim,
    batch_memory_claim,
    member_memory_claim,
    model_claims,
    refuse_implausible,
    shape_claim,
    within,
)
from abstain.models.bundles.references import NAME_PATTERN
from abstain.models.bundles.shortfalls import ShortfallSentence
from abstain.models.bundles.signatures import SIGNATURE, SIGNATURE_BYTES, TrustedKeys, check_signature, make_signature
from abstain.models.bundles.store import put_signature, version_folder
from abstain.models.decisions.calibration import check_calibration
from abstain.models.decisions.conformal import IntervalKind, SetKind
from abstain.models.decisions.decision import Decision
from abstain.models.decisions.records import Calibration
from abstain.models.errors import BundleError, CalibrationError, StoreError, clip_repr
from abstain.models.files.regular import RESTORE, check_contents, open_regular, read_bounded
from abstain.models.prediction.feature_score_records import FeatureScores
from abstain.models.prediction.feature_scores import as_tree, check_shapes, from_tree
from abstain.models.prediction.posterior import Model, Posterior, check_draw_shapes, check_finite_draws, expected_shapes
from abstain.models.prediction.predictive import BUCKETS, Predictor
from abstain.models.prediction.temperature import Recalibration
from abstain.models.validation import refuse

SCHEMA_VERSION = 2
READ_SCHEMA_VERSIONS = (1, 2)
"""Supported schema versions; `docs/compatibility.md` describes them."""
MANIFEST = "manifest.json"
MANIFEST_BYTES = 16 * 2**20
"""Largest size of the manifest; that of digits has 20,000 bytes."""
BUNDLE_BYTES = 64 * 2**30
"""Largest size of all files together: a sparse file takes no disk space but very long to hash."""
SPARE_BYTES = 64 * 2**20
"""Bytes that a folder of arrays may have in addition to four times its numbers: Orbax writes small arrays several times."""
MOST_FILES = 10_000
MOST_DRAWS = 10**7
MOST_ROWS = 10**9
_MAX_DEPTH = 8
"""Most parts of a file's path in the bundle."""
_MAX_PATH_LENGTH = 512
"""Most characters of a file's path in the bundle."""
_ROW_BYTES = 8 * 100
"""Most bytes of a calibration row: several times all scores."""


class MethodRecord(BaseModel):
    """The inference method of the draws and its settings; for people only, code must not depend on it."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    kind: str
    settings: dict[str, JsonValue]


class CalibrationRecord(BaseModel):
    """The calibration's settings, and the resulting thresholds.

    Bounds hold with 95 % probability for a split of this size: for the reject rate and the coverage on new rows like those
    of the split (Beta; Vovk, 2012), and for each score's true percentile (by order statistics). They are exact if the
    decision score has no ties; ties only lower the reject rate.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    rows: int
    decision: str
    """The name of the decision score."""
    percentile: float
    coverage: float
    thresholds: dict[str, float]
    combination: Decision | None = None
    """The scores and the rule of a combined decision score; None if a single score decides."""
    reference_rows: int = 0
    """Number of training rows that define the evidence of each score (`models/decisions/decision.py`); 0 in schema 1."""
    per_class: bool = False
    sets: SetKind = "lac"
    intervals: IntervalKind = "normalised"
    recalibration: Recalibration = Recalibration()
    class_thresholds: dict[str, float] = {}
    """The decision's thresholds by predicted class, if thresholds are per class."""
    threshold_bounds: dict[str, tuple[float | None, float | None]] = {}
    """By score; empty if thresholds are per class. An end is None if it is beyond the calibration rows."""
    reject_rate_bounds: tuple[float, float] | None = None
    """Bounds of the share of rejected rows; None if thresholds are per class."""
    class_threshold_bounds: dict[str, tuple[float | None, float | None]] = {}
    """Bounds of the decision's thresholds by predicted class, if thresholds are per class."""
    class_reject_rate_bounds: dict[str, tuple[float, float]] = {}
    """Bounds of the share of rejected rows by predicted class, if thresholds are per class."""
    coverage_bounds: tuple[float, float] | None = None
    augmented_reject_rate: float | None = None
    """Share of the augmented calibration rows that the decision rejects; None without augmentation."""
    plain_reject_rate: float | None = None
    """Share of the same rows rejected before augmentation: the expected rate for ordinary rows."""
    settings: dict[str, JsonValue] = {}
    """The config's table `[calibration]`; for people, and the initial settings of `abstain calibrate`."""


class DataRecord(BaseModel):
    """The source of the rows, the config's settings for them, and the sha256 of the arrays."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    source: str
    settings: dict[str, JsonValue]
    fingerprint: str
    train_rows: int
    calibration_rows: int
    test_rows: int


class Manifest(BaseModel):
    """The description of a bundle; reading it does not load the draws."""

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
    """The shapes of the feature scores' arrays, by score and field."""
    diagnostics: dict[str, JsonValue]
    shortfalls: tuple[ShortfallSentence, ...] = ()
    """Why the fit cannot be relied on, sentences in the JSON; such a version cannot get the label `stable`."""
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
    """A loaded and verified version."""

    manifest: Manifest
    posterior: Posterior
    calibration: Calibration
    feature_scores: FeatureScores | None = None

    def predictor(self, buckets: tuple[int, ...] = BUCKETS, devices: int = 1) -> Predictor:
        """Compiles the version's ensemble with all its scores, its draws spread over the first `devices` devices."""
        return Predictor(
            self.posterior,
            buckets,
            feature_scores=self.feature_scores,
            recalibration=self.manifest.calibration.recalibration,
            devices=cast("list[Any]", jax.devices())[:devices],
        )


def write_arrays(
    folder: Path, posterior: Posterior, calibration: Calibration, feature_scores: FeatureScores | None
) -> None:
    """Writes `draws/`, `calibration/` and `densities/` into the folder of a new bundle."""
    write_checkpoint(folder / "draws", posterior.draws)
    rows: dict[str, Any] = {"scores": calibration.scores, "nonconformity": calibration.nonconformity}
    if calibration.labels is not None:
        rows["labels"] = calibration.labels
    if calibration.reference is not None:
        rows["reference"] = calibration.reference
    if calibration.plain_scores is not None:
        rows["plain"] = calibration.plain_scores
    write_checkpoint(folder / "calibration", rows)
    if feature_scores is not None:
        write_checkpoint(folder / "densities", as_tree(feature_scores))


def write_manifest(folder: Path, manifest: Manifest) -> Manifest:
    """Writes the manifest, with the hashes of all files in the folder; returns it with its digest.

    Removes a signature in the folder, because it belongs to another manifest.
    """
    (folder / SIGNATURE).unlink(missing_ok=True)
    files = {
        path.relative_to(folder).as_posix(): _sha256(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }
    content = manifest.model_copy(update={"files": files}).model_dump(mode="json")
    content["digest"] = _digest_of(content)
    (folder / MANIFEST).write_bytes(_dumped(content))
    return Manifest.model_validate(content)


def read_manifest(folder: Path, trusted: TrustedKeys | None = None) -> Manifest:
    """Reads and checks the manifest of the bundle in a folder.

    Args:
        trusted: keys, one of which must have signed the bundle; None if no signature is needed.

    Raises:
        BundleError: the manifest is missing, not a regular file, of an unsupported schema version, altered, malformed, or
            has implausible numbers.
        SignatureError: none of the trusted keys has signed it.
    """
    manifest, covered = _read_covered(folder)
    if trusted is not None:
        check_signature(folder, covered, trusted)
    return manifest


def _read_covered(folder: Path) -> tuple[Manifest, dict[str, str]]:
    """Reads the manifest; returns it, and the hashes that a signature covers: those of all listed files and its own."""
    path = folder / MANIFEST
    try:
        written = read_bounded(path, MANIFEST_BYTES, BundleError)
    except OSError as error:
        raise BundleError("cannot be read", where=str(path), found=error.strerror, fix=RESTORE) from error
    try:
        content = orjson.loads(written)
    except orjson.JSONDecodeError as error:
        raise BundleError(
            "is damaged", where=str(path), expected="the JSON that fit wrote", found=str(error), fix=RESTORE
        ) from error
    _check_schema_version(content, path)
    try:
        manifest = Manifest.model_validate(content)
    except ValidationError as error:
        raise refuse(error, BundleError, Manifest, where=str(path), fix=RESTORE) from error
    # The digest is that of the raw JSON, not of the record, which may have more fields than when the bundle was written.
    if not _is_canonical(content, written) or manifest.digest != _digest_of(content):
        raise BundleError("digest", where=str(path), expected=manifest.digest, found="altered contents", fix=RESTORE)
    refuse_implausible(_claims(manifest), str(path))
    return manifest, {**manifest.files, MANIFEST: hashlib.sha256(written).hexdigest()}


def read_published(store: Path, name: str, version: int, trusted: TrustedKeys | None = None) -> Manifest:
    """Reads and checks the manifest of a version in a store.

    Args:
        trusted: as in `read_manifest`.

    Raises:
        StoreError: the folder of the version or the model is a symbolic link.
        BundleError: as `read_manifest`; or it is the manifest of another version or model.
        SignatureError: none of the trusted keys has signed it.
    """
    folder = version_folder(store, name, version)
    manifest = read_manifest(folder, trusted)
    _check_name(manifest, folder)
    return manifest


def load_published(store: Path, name: str, version: int, trusted: TrustedKeys | None = None) -> Bundle:
    """Loads a version of a store, with all checks.

    Args:
        trusted: as in `read_manifest`.

    Raises:
        StoreError: the folder of the version or the model is a symbolic link.
        BundleError: as `load`; or it is the bundle of another version or model.
        SignatureError: none of the trusted keys has signed it.
    """
    read_published(store, name, version)
    folder = version_folder(store, name, version)
    bundle = load(folder, trusted)
    # Checked again, because another signed version may have been put there meanwhile.
    _check_name(bundle.manifest, folder)
    return bundle


def sign_published(store: Path, name: str, version: int, key: Path, password: bytes | None = None) -> Path:
    """Verifies the files of a version in a store and signs it; returns the signature's path.

    Replaces an earlier signature. The hashes that were checked are signed, even if files have changed since.

    Raises:
        StoreError: the folder of the version or the model is a symbolic link, or the signature cannot be written.
        BundleError: as `read_published` and `verify_files`.
        ConfigError: as `make_signature`.
    """
    folder = version_folder(store, name, version)
    manifest, covered = _read_covered(folder)
    _check_name(manifest, folder)
    verify_files(folder, manifest)
    put_signature(store / name, folder / SIGNATURE, make_signature(folder, covered, key, password))
    return folder / SIGNATURE


def verify_published(store: Path, name: str, version: int, trusted: TrustedKeys) -> tuple[Manifest, Path]:
    """Verifies all files and the signature of a version in a store; returns its manifest and the key that signed it.

    Raises:
        StoreError: the folder of the version or the model is a symbolic link.
        BundleError: as `read_published` and `verify_files`.
        SignatureError: none of the trusted keys has signed it.
    """
    folder = version_folder(store, name, version)
    manifest, covered = _read_covered(folder)
    _check_name(manifest, folder)
    signer = check_signature(folder, covered, trusted)
    verify_files(folder, manifest)
    return manifest, signer


def _claims(manifest: Manifest) -> Iterator[Claim]:
    """Yields the plausibility checks of a manifest's values; Pydantic has checked their types."""
    name, calibration = manifest.name, manifest.calibration
    yield Claim("name", bool(re.fullmatch(NAME_PATTERN, name)), "letters, digits, dots, dashes, underscores", name)
    yield within("version", manifest.version, 1, 10**9 - 1)
    yield within("draws", manifest.draws, 1, MOST_DRAWS)
    for part in ("train", "calibration", "test"):
        yield within(f"data.{part}_rows", getattr(manifest.data, f"{part}_rows"), 0, MOST_ROWS)
    yield within("calibration.rows", calibration.rows, 1, MOST_ROWS)
    # Without reference rows each calibration row is ranked among the others, which only schema 1 does.
    combination = calibration.combination
    fewest = int(manifest.schema_version > 1 and combination is not None and len(combination.scores) > 1)
    yield within("calibration.reference_rows", calibration.reference_rows, fewest, MOST_ROWS)
    percentile, coverage = calibration.percentile, calibration.coverage
    yield Claim("calibration.percentile", 0 < percentile < 100, "between 0 and 100", percentile)
    yield Claim("calibration.coverage", 0 < coverage < 1, "between 0 and 1", coverage)
    yield from model_claims(manifest.model)
    for score, fields in manifest.densities.items():
        for field, shape in fields.items():
            yield shape_claim(f"densities.{score}.{field}", shape)
    yield batch_memory_claim(manifest.model, manifest.draws, manifest.densities)


def _check_name(manifest: Manifest, folder: Path) -> None:
    expected, found = f"{folder.parent.name}:{folder.name}", f"{manifest.name}:{manifest.version}"
    if found != expected:
        raise BundleError(
            "name and version",
            where=str(folder / MANIFEST),
            expected=f"those of its folder, {expected}",
            found=clip_repr(found),
            fix="move it back to the folder where it was published",
        )


def check_gate(manifest: Manifest) -> None:
    """Refuses a version with shortfalls.

    Raises:
        StoreError: lists the shortfalls.
    """
    if manifest.shortfalls:
        raise StoreError(
            "cannot be labelled stable, its fit fell short",
            where=f"{manifest.name}:{manifest.version}",
            found="; ".join(f"({number}) {item.text}" for number, item in enumerate(manifest.shortfalls, start=1)),
            fix="fit it again, or pass --force to label it anyway",
        )


def verify_files(folder: Path, manifest: Manifest) -> None:
    """Checks that the bundle contains exactly the manifest's files and perhaps a signature, and every file's sha256.

    Raises:
        BundleError: a file is missing, altered, not listed, or not a regular file; the text names it.
    """
    file_sizes(folder, manifest)
    for name, expected in manifest.files.items():
        path = folder / name
        found = _sha256(path)
        if found != expected:
            raise BundleError(
                "is damaged or was altered",
                where=str(path),
                expected=f"sha256 {expected}",
                found=f"sha256 {found}",
                fix=RESTORE,
            )


def file_sizes(folder: Path, manifest: Manifest) -> dict[str, int]:
    """Returns the size in bytes of every file of the bundle, by its path there; opens none.

    Raises:
        BundleError: a file is missing, not listed, or not a regular file; or the bundle is too large.
    """
    _check_paths(manifest.files, str(folder / MANIFEST))
    sizes = check_contents(folder, [*manifest.files, MANIFEST, SIGNATURE])
    _check_bytes({SIGNATURE: sizes.get(SIGNATURE, 0)}, SIGNATURE_BYTES, folder / SIGNATURE)
    for name, expected in manifest.files.items():
        if name not in sizes:
            where = str(folder / name)
            raise BundleError("is missing", where=where, expected=f"sha256 {expected}", found="no file", fix=RESTORE)
    _check_bytes(sizes, BUNDLE_BYTES, folder)
    return sizes


def load(folder: Path, trusted: TrustedKeys | None = None) -> Bundle:
    """Loads the bundle in a folder, with all checks.

    Args:
        trusted: as in `read_manifest`.

    Raises:
        BundleError: a file is missing, truncated, altered, not listed or not a regular file, or does not match the
            manifest.
        SignatureError: none of the trusted keys has signed it.
    """
    manifest = read_manifest(folder, trusted)
    found = file_sizes(folder, manifest)
    sizes = {part: _sizes_in(part, found) for part in ("draws", "calibration", "densities")}
    shapes = expected_shapes(manifest.model, str(folder / "draws"))
    for part, stated in _stated_bytes(manifest, shapes).items():
        _check_bytes(sizes[part], 4 * stated + SPARE_BYTES, folder / part)
    verify_files(folder, manifest)
    draws = _read_draws(folder, sizes["draws"], manifest, shapes)
    feature_scores = _read_feature_scores(folder / "densities", sizes["densities"], manifest)
    calibration = _read_calibration(folder / "calibration", sizes["calibration"], manifest)
    bundle = Bundle(manifest, Posterior(manifest.model, draws), calibration, feature_scores)
    return without_stale_vim(bundle, str(folder)) if manifest.schema_version == 1 else bundle


def without_stale_vim(bundle: Bundle, where: str) -> Bundle:
    """Returns a bundle of schema 1 without the score `vim` if it has two classes by one logit.

    The formula of its weight and calibration scores treated one class as stranger than the other.

    Raises:
        BundleError: `vim` is the only score that decides.
    """
    feature_scores, calibration = bundle.feature_scores, bundle.calibration
    if bundle.manifest.model.likelihood != "bernoulli" or feature_scores is None or "vim" not in feature_scores.records:
        return bundle
    decision = calibration.decision
    kept = [index for index, name in enumerate(decision.scores) if name != "vim"]
    if not kept:
        raise BundleError(
            "decision",
            where=where,
            expected="a score other than vim, because its formula for two classes by one logit has changed",
            found="vim",
            fix="fit the model again",
        )
    weights = tuple(decision.weights[index] for index in kept) if decision.weights else ()
    scores = {name: values for name, values in calibration.scores.items() if name != "vim"}
    records = {name: record for name, record in feature_scores.records.items() if name != "vim"}
    rest = Decision(scores=tuple(decision.scores[index] for index in kept), rule=decision.rule, weights=weights)
    return replace(
        bundle,
        calibration=replace(calibration, scores=scores, decision=rest),
        feature_scores=feature_scores._replace(records=records),
    )


def _check_paths(files: Collection[str], where: str) -> None:
    """Refuses a list of files that is empty, too long, or leads out of the bundle."""
    if not 1 <= len(files) <= MOST_FILES:
        raise BundleError("files", where=where, expected=f"1 to {MOST_FILES:,} files", found=len(files), fix=RESTORE)
    for name in files:
        path = PurePosixPath(name)
        inside = path.parts and ".." not in path.parts and not path.is_absolute() and "\0" not in name
        if (
            name in {MANIFEST, SIGNATURE}
            or not inside
            or path.as_posix() != name
            or len(path.parts) > _MAX_DEPTH
            or len(name) > _MAX_PATH_LENGTH
        ):
            raise BundleError("files", where=where, expected="paths inside the bundle", found=name[:_MAX_PATH_LENGTH])


def _sizes_in(part: str, sizes: dict[str, int]) -> dict[str, int]:
    return {name.removeprefix(f"{part}/"): size for name, size in sizes.items() if name.startswith(f"{part}/")}


def _stated_bytes(manifest: Manifest, shapes: Any) -> dict[str, int]:
    """Returns the bytes that the arrays of each folder take, or may take, according to the manifest."""
    records = [math.prod(shape) for fields in manifest.densities.values() for shape in fields.values()]
    return {
        "draws": 4 * manifest.draws * sum(leaf.size for leaf in jax.tree.leaves(shapes)),
        "calibration": _ROW_BYTES * (manifest.calibration.rows + manifest.calibration.reference_rows),
        "densities": 4 * sum(records) + 8 * manifest.draws,
    }


def _check_bytes(sizes: dict[str, int], most: int, folder: Path) -> None:
    found = sum(sizes.values())
    if found > most:
        raise BundleError(
            "files", where=str(folder), expected=f"at most {most:,} bytes", found=f"{found:,}", fix=RESTORE
        )


def _read_draws(folder: Path, sizes: dict[str, int], manifest: Manifest, shapes: Any) -> Any:
    own = folder / "draws"
    stored = open_checkpoint(own, sizes)
    check_draw_shapes(shapes, stored, str(own))
    found = cast("list[Stored]", jax.tree.leaves(stored))[0].shape[0]
    if found != manifest.draws:
        raise BundleError("draws", where=str(folder), expected=manifest.draws, found=found)
    draws = read_arrays(own, stored)
    check_finite_draws(draws, str(own))
    return draws


def _check_rows(stored: dict[str, Any], record: CalibrationRecord, where: str) -> None:
    """Compares the shapes of the calibration's arrays with the manifest's numbers of rows, before reading any array."""
    known = ["labels", "nonconformity", "plain", "reference", "scores"]
    if not {"scores", "nonconformity"} <= {*stored} <= {*known}:
        raise BundleError("calibration", where=where, expected=f"some of {known}", found=clip_repr(sorted(stored)))
    nonconformity = stored["nonconformity"]
    if isinstance(nonconformity, Stored) and len(nonconformity.shape) == 1 and nonconformity.shape != (record.rows,):
        raise BundleError("rows", where=where, expected=record.rows, found=nonconformity.shape[0])
    for part, content in stored.items():
        rows = record.reference_rows if part == "reference" else record.rows
        by_name = part in {"scores", "reference", "plain"}
        if by_name != isinstance(content, dict):
            kinds = ("a folder of arrays, one for each score", "one array")
            expected, found = kinds if by_name else kinds[::-1]
            raise BundleError(part, where=where, expected=expected, found=found, fix=RESTORE)
        arrays = cast("dict[str, Any]", content) if by_name else {"": content}
        for name, array in arrays.items():
            found = array.shape if isinstance(array, Stored) else "a folder of arrays"
            if found != (rows,):
                raise BundleError(f"{part}.{name}".rstrip("."), where=where, expected=f"{rows} rows", found=found)


def _read_calibration(folder: Path, sizes: dict[str, int], manifest: Manifest) -> Calibration:
    record = manifest.calibration
    stored = open_checkpoint(folder, sizes)
    _check_rows(stored, record, str(folder))
    tree = read_arrays(folder, stored)
    try:
        calibration = Calibration(
            scores=tree["scores"],
            nonconformity=tree["nonconformity"],
            labels=tree.get("labels"),
            decision=record.combination or Decision(scores=(record.decision,)),
            percentile=record.percentile,
            coverage=record.coverage,
            per_class=record.per_class,
            sets=record.sets,
            intervals=record.intervals,
            reference=tree.get("reference"),
            target_scale=manifest.model.preprocessing.target_scale,
            plain_scores=tree.get("plain"),
        )
        check_calibration(
            calibration,
            manifest.model.likelihood_functions.task,
            tuple(manifest.densities),
            where=str(folder),
            classes=len(manifest.model.class_names),
        )
        if record.reference_rows != calibration.reference_rows:
            expected, found = record.reference_rows, calibration.reference_rows
            raise CalibrationError("reference rows", where=str(folder), expected=expected, found=found)
    except CalibrationError as error:
        raise BundleError(str(error)) from error
    return calibration


def _read_feature_scores(folder: Path, sizes: dict[str, int], manifest: Manifest) -> FeatureScores | None:
    """Reads the feature scores that the manifest lists; older bundles have none."""
    if not manifest.densities:
        return None
    stored = open_checkpoint(folder, sizes)
    check_shapes(stored, manifest.densities, manifest.draws, where=str(folder))
    refuse_implausible([member_memory_claim(manifest.model, stored["members"].shape[0])], str(folder))
    found = from_tree(read_arrays(folder, stored), manifest.densities, manifest.draws, where=str(folder))
    for field, leaf in found.records["range"]._asdict().items():
        # Another shape might broadcast, and compare a feature with the range of another one.
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
            fix="fit the model again with this version of abstain, or serve it with the version that wrote it",
        )


def _dumped(content: dict[str, Any]) -> bytes:
    """Returns the canonical bytes of a manifest's content."""
    return orjson.dumps(content, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS | orjson.OPT_APPEND_NEWLINE)


def _is_canonical(content: dict[str, Any], written: bytes) -> bool:
    try:
        return _dumped(content) == written
    except orjson.JSONEncodeError:  # orjson reads deeper nesting than it writes
        return False


def _digest_of(content: dict[str, Any]) -> str:
    return f"sha256:{hashlib.sha256(_dumped({**content, 'digest': ''})).hexdigest()}"


def _sha256(path: Path) -> str:
    try:
        with open_regular(path, BundleError) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise BundleError("cannot be read", where=str(path), found=error.strerror, fix=RESTORE) from error
