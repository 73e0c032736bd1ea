"""The manifest of a bundle: its records, reading and writing it, and checks of the files that it lists.

The digest of a bundle is the sha256 of its manifest's canonical bytes. It covers every byte of the version, because the
manifest holds the sha256 of every other file. `models/bundles/bundle.py` describes the whole folder.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, cast

import orjson
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    NonNegativeInt,
    ValidationError,
    model_serializer,
)

from abstain.models.bundles.data_record import MOST_ROWS, DataRecord, data_claims
from abstain.models.bundles.guarantees import CoverageRecord, RiskRecord, coverage_claims, risk_claims
from abstain.models.bundles.import_record import ImportRecord, import_claims
from abstain.models.bundles.listing import (
    BUNDLE_BYTES,
    MANIFEST_BYTES,
    check_bytes,
    check_paths,
    digest_of,
    dumped,
    is_canonical,
)
from abstain.models.bundles.plausible import (
    Claim,
    batch_memory_claim,
    model_claims,
    refuse_implausible,
    shape_claim,
    within,
)
from abstain.models.bundles.references import NAME_PATTERN
from abstain.models.bundles.shortfalls import ShortfallSentence
from abstain.models.bundles.signatures import SIGNATURE, SIGNATURE_BYTES, TrustedKeys, check_signature
from abstain.models.bundles.store import MANIFEST
from abstain.models.decisions.conformal import IntervalKind, SetKind
from abstain.models.decisions.decision import Decision
from abstain.models.errors import BundleError, StoreError
from abstain.models.files.regular import RESTORE, check_contents, open_regular, read_bounded
from abstain.models.prediction.posterior import Model
from abstain.models.prediction.temperature import Recalibration, RecalibrationChoice
from abstain.models.tables.unseen import rejecting_columns
from abstain.models.validation import refuse

SCHEMA_VERSION = 2
READ_SCHEMA_VERSIONS = (1, 2)
"""Supported schema versions; `docs/compatibility.md` describes them."""
MOST_DRAWS = 10**7
MOST_LIMITS = 100
"""Most limits of the error besides the calibration's own."""


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
    ambiguity: str | None = None
    """The score of the ambiguity part of the decision; None if the decision has only the part above."""
    novelty_share: Annotated[float, Field(gt=0, lt=1)] | None = None
    """The share of the reject budget of the other part, novelty (`models/decisions/budget.py`); None if they share none."""
    risk: RiskRecord | None = None
    """The limit of the error of accepted rows; None if none is set."""
    other_limits: tuple[RiskRecord, ...] = ()
    """The limits for other errors, from which a request can choose; not written without `risk`."""
    reference_rows: int = 0
    """Number of training rows that define the evidence of each score (`models/decisions/decision.py`); 0 in schema 1."""
    per_class: bool = False
    sets: SetKind = "lac"
    intervals: IntervalKind = "normalised"
    recalibration: Recalibration = Recalibration()
    recalibration_choice: RecalibrationChoice | None = None
    """How it was chosen; None if no choice was requested, and in older bundles."""
    class_thresholds: dict[str, float] = {}
    """The decision's thresholds by predicted class, if thresholds are per class."""
    threshold_bounds: dict[str, tuple[float | None, float | None]] = {}
    """Bounds of the thresholds by score; empty if thresholds are per class. An end beyond the calibration rows is None."""
    reject_rate_bounds: tuple[float, float] | None = None
    """Bounds of the share of rejected rows; None if thresholds are per class."""
    class_threshold_bounds: dict[str, tuple[float | None, float | None]] = {}
    """Bounds of the decision's thresholds by predicted class, if thresholds are per class."""
    class_reject_rate_bounds: dict[str, tuple[float, float]] = {}
    """Bounds of the share of rejected rows by predicted class, if thresholds are per class."""
    coverage_bounds: tuple[float, float] | None = None
    """Bounds of the coverage, of accepted rows if it holds among them; None if it holds within each true class."""
    conditional_coverage: CoverageRecord | None = None
    """The rows over which the coverage holds; None, and not written, if these are all rows."""
    augmented_reject_rate: float | None = None
    """Share of the augmented calibration rows that the decision rejects; None without augmentation."""
    plain_reject_rate: float | None = None
    """Share of the same rows rejected before augmentation: the expected rate for ordinary rows."""
    unseen_rows: NonNegativeInt | None = None
    """The calibration rows with an unseen category; None, and not written, if the model has no column that rejects them."""
    expected_reject_rate: Annotated[float, Field(ge=0, le=1)] | None = None
    """The expected share of rejected rows, written with `unseen_rows`: above the rate of the percentile if more are unseen."""
    settings: dict[str, JsonValue] = {}
    """The config's table `[calibration]`; for people, and the initial settings of `abstain calibrate`."""

    @model_serializer(mode="wrap")
    def _leave_out_unused(self, write: Callable[[CalibrationRecord], dict[str, Any]]) -> dict[str, Any]:
        content = write(self)
        for key in ("conditional_coverage", "other_limits"):
            if not getattr(self, key):
                content.pop(key, None)
        for key in ("unseen_rows", "expected_reject_rate"):
            if content.get(key, 0) is None:
                del content[key]
        return content


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
    """The reasons why the fit cannot be relied on, sentences in the JSON; with any, the label `stable` is refused."""
    notes: tuple[str, ...] = ()
    metrics: dict[str, JsonValue]
    data: DataRecord
    seed: int
    packages: dict[str, str]
    git_commit: str | None
    imported: ImportRecord | None = Field(default=None, exclude_if=lambda record: record is None)
    """Where the draws came from, if they were imported; None, and not written, for a fit."""
    files: dict[str, str] = {}
    """sha256 of every other file of the bundle, by its path in the bundle."""
    digest: str = ""


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
    content["digest"] = digest_of(content)
    (folder / MANIFEST).write_bytes(dumped(content))
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
    manifest, covered = read_covered(folder)
    if trusted is not None:
        check_signature(folder, covered, trusted)
    return manifest


def read_covered(folder: Path) -> tuple[Manifest, dict[str, str]]:
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
    if not is_canonical(content, written) or manifest.digest != digest_of(content):
        raise BundleError("digest", where=str(path), expected=manifest.digest, found="altered contents", fix=RESTORE)
    refuse_implausible(_claims(manifest), str(path))
    return manifest, {**manifest.files, MANIFEST: hashlib.sha256(written).hexdigest()}


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


def _claims(manifest: Manifest) -> Iterator[Claim]:
    """Yields the plausibility checks of a manifest's values; Pydantic has checked their types."""
    name, calibration = manifest.name, manifest.calibration
    yield Claim("name", bool(re.fullmatch(NAME_PATTERN, name)), "letters, digits, dots, dashes, underscores", name)
    yield within("version", manifest.version, 1, 10**9 - 1)
    yield within("draws", manifest.draws, 1, MOST_DRAWS)
    yield from data_claims(manifest.data, len(manifest.model.class_names))
    yield from import_claims(manifest.imported, manifest.draws)
    yield within("calibration.rows", calibration.rows, 1, MOST_ROWS)
    # Without reference rows each calibration row is ranked among the others, which only schema 1 does.
    combination = calibration.combination
    fewest = int(manifest.schema_version > 1 and combination is not None and len(combination.scores) > 1)
    yield within("calibration.reference_rows", calibration.reference_rows, fewest, MOST_ROWS)
    percentile, coverage = calibration.percentile, calibration.coverage
    yield Claim("calibration.percentile", 0 < percentile < 100, "between 0 and 100", percentile)
    yield Claim("calibration.coverage", 0 < coverage < 1, "between 0 and 1", coverage)
    most = calibration.rows if rejecting_columns(manifest.model.preprocessing.columns) else 0
    yield within("calibration.unseen_rows", calibration.unseen_rows or 0, 0, most)
    yield from _part_claims(calibration)
    yield from coverage_claims(calibration.conditional_coverage, calibration.rows, manifest.model.class_names)
    yield from model_claims(manifest.model)
    for score, fields in manifest.densities.items():
        for field, shape in fields.items():
            yield shape_claim(f"densities.{score}.{field}", shape)
    yield batch_memory_claim(manifest.model, manifest.draws, manifest.densities)


def _part_claims(calibration: CalibrationRecord) -> Iterator[Claim]:
    """Yields the checks of a decision of two parts: its ambiguity has a share of the budget, or a limit."""
    risk, others = calibration.risk, calibration.other_limits
    limits = others if risk is None else (risk, *others)
    few = len(others) <= (0 if risk is None else MOST_LIMITS)
    yield Claim("calibration.other_limits", few, f"at most {MOST_LIMITS}, and none without risk", len(others))
    alike = len({(limit.confidence, limit.error_size) for limit in limits}) <= 1
    yield Claim("calibration.other_limits", alike, "the confidence and the error_size of risk", "others")
    distinct = len({limit.max_error for limit in limits}) == len(limits)
    yield Claim("calibration.other_limits", distinct, "another max_error in each", "the same in two")
    parts = (calibration.ambiguity is None, calibration.novelty_share is None, risk is None)
    holds = parts in {(True, True, True), (False, False, True), (False, True, False)}
    expected = "ambiguity with either novelty_share or risk, or none of the three"
    yield Claim("calibration", holds, expected, f"none of each: {parts}")
    for limit in limits:
        yield from risk_claims(limit, calibration.rows)


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
    check_paths(manifest.files, str(folder / MANIFEST))
    sizes = check_contents(folder, [*manifest.files, MANIFEST, SIGNATURE])
    check_bytes({SIGNATURE: sizes.get(SIGNATURE, 0)}, SIGNATURE_BYTES, folder / SIGNATURE)
    for name, expected in manifest.files.items():
        if name not in sizes:
            where = str(folder / name)
            raise BundleError("is missing", where=where, expected=f"sha256 {expected}", found="no file", fix=RESTORE)
    check_bytes(sizes, BUNDLE_BYTES, folder)
    return sizes


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


def _sha256(path: Path) -> str:
    try:
        with open_regular(path, BundleError) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise BundleError("cannot be read", where=str(path), found=error.strerror, fix=RESTORE) from error
