"""A bundle: one version of a model on disk, whole and verifiable.

    manifest.json   all that one needs to know without loading a draw; holds the sha256 of every other file
    draws/          the posterior's draws (`models/bundles/checkpoint.py`, numpy leaves, sample axis 0)
    calibration/    the calibration split's scores (the same)
    densities/      what scores are computed from that were fitted to the training rows (the same)
    rows/           keyed hashes of the training rows, for `abstain calibrate` (`models/bundles/trained_rows.py`)
    report.html     for people
    model.sig       who made it, if it is signed (`models/bundles/signatures.py`); the one file that the manifest does not list

The digest of a bundle is the sha256 of its manifest's canonical bytes, so it stands for every byte of the version.
Nothing is unpickled, and nothing is trusted before its hash, shape, dtype and finiteness have been checked.

A hash only says that a bundle is what its writer made. Who wrote it is not known, unless keys are trusted and one of them
has signed it. So `load` asks in this order: are the manifest's numbers possible; has a trusted key signed it, where one
must; does the folder hold the listed files and nothing else, and no more bytes than the numbers ask for; are their hashes
right; do the arrays have the promised shapes. Only then is memory taken for them.
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
from abstain.models.bundles.plausible import Claim, of_batch, of_members, of_model, of_shape, refuse_implausible, within
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
from abstain.models.prediction.feature_score_records import Densities
from abstain.models.prediction.feature_scores import as_tree, check_shapes, from_tree
from abstain.models.prediction.posterior import Model, Posterior, check_draw_shapes, check_finite_draws, expected_shapes
from abstain.models.prediction.predictive import BUCKETS, Predictor
from abstain.models.prediction.temperature import Recalibration
from abstain.models.validation import refuse

SCHEMA_VERSION = 2
READ_SCHEMA_VERSIONS = (1, 2)
"""`docs/compatibility.md` says what a bundle of each means."""
MANIFEST = "manifest.json"
MANIFEST_BYTES = 16 * 2**20
"""The manifest may have; one of digits has 20,000."""
BUNDLE_BYTES = 64 * 2**30
"""All files together may have: a sparse file costs nothing and takes for ever to hash."""
SPARE_BYTES = 64 * 2**20
"""A folder of arrays may have beyond four times its numbers, for Orbax writes small arrays several times."""
MOST_FILES = 10_000
MOST_DRAWS = 10**7
MOST_ROWS = 10**9
_DEEPEST = 8
_LONGEST = 512
"""Characters of a file's path in the bundle."""
_ROW_BYTES = 8 * 100
"""A calibration row may take: all scores there are, several times."""


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
    """Training rows that fix the evidence of each score (`models/decisions/decision.py`); 0 in a bundle of schema 1."""
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
    shortfalls: tuple[ShortfallSentence, ...] = ()
    """What the fit lacks to be relied on, sentences in the JSON; the label `stable` is refused to such a version."""
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


def write_arrays(folder: Path, posterior: Posterior, calibration: Calibration, densities: Densities | None) -> None:
    """Writes `draws/`, `calibration/` and `densities/` into the folder of a bundle in the making."""
    write_checkpoint(folder / "draws", posterior.draws)
    rows: dict[str, Any] = {"scores": calibration.scores, "nonconformity": calibration.nonconformity}
    if calibration.labels is not None:
        rows["labels"] = calibration.labels
    if calibration.reference is not None:
        rows["reference"] = calibration.reference
    if calibration.plain_scores is not None:
        rows["plain"] = calibration.plain_scores
    write_checkpoint(folder / "calibration", rows)
    if densities is not None:
        write_checkpoint(folder / "densities", as_tree(densities))


def write_manifest(folder: Path, manifest: Manifest) -> Manifest:
    """Writes the manifest, with the hashes of all that lies in the folder; returns it, digest included.

    A signature that lies there is removed: it was of another manifest.
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
    """The manifest of the bundle in a folder.

    Args:
        trusted: the keys of which one must have signed it; None if it need not be signed.

    Raises:
        BundleError: it is missing, no regular file, of another schema version, not what was written, not a manifest at
            all, or one whose numbers cannot be.
        SignatureError: none of the trusted keys has signed it.
    """
    manifest, covered = _read_covered(folder)
    if trusted is not None:
        check_signature(folder, covered, trusted)
    return manifest


def _read_covered(folder: Path) -> tuple[Manifest, dict[str, str]]:
    """The manifest, and what a signature is of: the sha256 of each file that it lists, and of the bytes just read."""
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
    # The raw JSON is held against its digest, not the record: that may have gained fields since the bundle was written.
    if not _is_canonical(content, written) or manifest.digest != _digest_of(content):
        raise BundleError("digest", where=str(path), expected=manifest.digest, found="altered contents", fix=RESTORE)
    refuse_implausible(_claims(manifest), str(path))
    return manifest, {**manifest.files, MANIFEST: hashlib.sha256(written).hexdigest()}


def read_published(store: Path, name: str, version: int, trusted: TrustedKeys | None = None) -> Manifest:
    """The manifest of a version of a store.

    Args:
        trusted: as in `read_manifest`.

    Raises:
        StoreError: it or its model is a symbolic link.
        BundleError: as `read_manifest`; or it is another version's, or another model's.
    """
    folder = version_folder(store, name, version)
    manifest = read_manifest(folder, trusted)
    _check_place(manifest, folder)
    return manifest


def load_published(store: Path, name: str, version: int, trusted: TrustedKeys | None = None) -> Bundle:
    """A version of a store, after every check.

    Args:
        trusted: as in `read_manifest`.

    Raises:
        StoreError: it or its model is a symbolic link.
        BundleError: as `load`; or it is another version's, or another model's.
    """
    read_published(store, name, version)
    folder = version_folder(store, name, version)
    bundle = load(folder, trusted)
    # Again, of what was loaded: another version, signed as well, may have been put there meanwhile.
    _check_place(bundle.manifest, folder)
    return bundle


def sign_published(store: Path, name: str, version: int, key: Path, password: bytes | None = None) -> Path:
    """Signs a version of a store, once its files are what its manifest lists; returns the signature's path.

    An earlier signature is replaced. What is signed are the hashes that were checked, whatever lies there by then.

    Raises:
        StoreError: it or its model is a symbolic link, or the signature cannot be written.
        BundleError: as `read_published` and `verify_files`.
        ConfigError: as `make_signature`.
    """
    folder = version_folder(store, name, version)
    manifest, covered = _read_covered(folder)
    _check_place(manifest, folder)
    verify_files(folder, manifest)
    put_signature(store / name, folder / SIGNATURE, make_signature(folder, covered, key, password))
    return folder / SIGNATURE


def verify_published(store: Path, name: str, version: int, trusted: TrustedKeys) -> tuple[Manifest, Path]:
    """The manifest of a version of a store, all its files verified, and the key that has signed it.

    Raises:
        StoreError: it or its model is a symbolic link.
        BundleError: as `read_published` and `verify_files`.
        SignatureError: none of the trusted keys has signed it.
    """
    folder = version_folder(store, name, version)
    manifest, covered = _read_covered(folder)
    _check_place(manifest, folder)
    signer = check_signature(folder, covered, trusted)
    verify_files(folder, manifest)
    return manifest, signer


def _claims(manifest: Manifest) -> Iterator[Claim]:
    """What must hold of a manifest's numbers, whoever wrote them; Pydantic has checked their types."""
    name, terms = manifest.name, manifest.calibration
    yield Claim("name", bool(re.fullmatch(NAME_PATTERN, name)), "letters, digits, dots, dashes, underscores", name)
    yield within("version", manifest.version, 1, 10**9 - 1)
    yield within("draws", manifest.draws, 1, MOST_DRAWS)
    for part in ("train", "calibration", "test"):
        yield within(f"data.{part}_rows", getattr(manifest.data, f"{part}_rows"), 0, MOST_ROWS)
    yield within("calibration.rows", terms.rows, 1, MOST_ROWS)
    # Without them each calibration row is ranked among the others, which only schema 1 means.
    fewest = int(manifest.schema_version > 1 and terms.combination is not None and len(terms.combination.scores) > 1)
    yield within("calibration.reference_rows", terms.reference_rows, fewest, MOST_ROWS)
    yield Claim("calibration.percentile", 0 < terms.percentile < 100, "between 0 and 100", terms.percentile)
    yield Claim("calibration.coverage", 0 < terms.coverage < 1, "between 0 and 1", terms.coverage)
    yield from of_model(manifest.model)
    for score, fields in manifest.densities.items():
        for field, shape in fields.items():
            yield of_shape(f"densities.{score}.{field}", shape)
    yield of_batch(manifest.model, manifest.draws, manifest.densities)


def _check_place(manifest: Manifest, folder: Path) -> None:
    expected, found = f"{folder.parent.name}:{folder.name}", f"{manifest.name}:{manifest.version}"
    if found != expected:
        raise BundleError(
            "name and version",
            where=str(folder / MANIFEST),
            expected=f"those of its folder, {expected}",
            found=clip_repr(found),
            fix="put it back where it was published",
        )


def check_gate(manifest: Manifest) -> None:
    """Refuses a version whose fit fell short.

    Raises:
        StoreError: saying in what.
    """
    if manifest.shortfalls:
        raise StoreError(
            "cannot be labelled stable, its fit fell short",
            where=f"{manifest.name}:{manifest.version}",
            found="; ".join(f"({place}) {lack.text}" for place, lack in enumerate(manifest.shortfalls, start=1)),
            fix="fit it again, or pass --force to label it all the same",
        )


def verify_files(folder: Path, manifest: Manifest) -> None:
    """Checks that the bundle holds the manifest's files and nothing else but a signature, and every file's sha256.

    Raises:
        BundleError: naming a file that is missing, altered, not listed, or no regular file.
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
    """Bytes of every file of the bundle, by its path there; none is opened.

    Raises:
        BundleError: naming a file that is missing, not listed, or no regular file; or the bundle is too large.
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
    """The bundle in a folder, after every check.

    Args:
        trusted: as in `read_manifest`.

    Raises:
        BundleError: a file is missing, truncated, altered, not listed or no regular file, or does not hold what the
            manifest says.
    """
    manifest = read_manifest(folder, trusted)
    found = file_sizes(folder, manifest)
    sizes = {part: _sizes_in(part, found) for part in ("draws", "calibration", "densities")}
    shapes = expected_shapes(manifest.model, str(folder / "draws"))
    for part, promised in _promised_bytes(manifest, shapes).items():
        _check_bytes(sizes[part], 4 * promised + SPARE_BYTES, folder / part)
    verify_files(folder, manifest)
    draws = _read_draws(folder, sizes["draws"], manifest, shapes)
    densities = _read_densities(folder / "densities", sizes["densities"], manifest)
    calibration = _read_calibration(folder / "calibration", sizes["calibration"], manifest)
    bundle = Bundle(manifest, Posterior(manifest.model, draws), calibration, densities)
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
            or len(path.parts) > _DEEPEST
            or len(name) > _LONGEST
        ):
            raise BundleError("files", where=where, expected="paths inside the bundle", found=name[:_LONGEST])


def _sizes_in(part: str, sizes: dict[str, int]) -> dict[str, int]:
    return {name.removeprefix(f"{part}/"): size for name, size in sizes.items() if name.startswith(f"{part}/")}


def _promised_bytes(manifest: Manifest, shapes: Any) -> dict[str, int]:
    """What the arrays of each folder take, or may take, by the manifest alone."""
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


def _check_rows(stored: dict[str, Any], terms: CalibrationRecord, where: str) -> None:
    """Holds the calibration's arrays against the numbers of rows that the manifest gives, before any is read."""
    known = ["labels", "nonconformity", "plain", "reference", "scores"]
    if not {"scores", "nonconformity"} <= {*stored} <= {*known}:
        raise BundleError("calibration", where=where, expected=f"some of {known}", found=clip_repr(sorted(stored)))
    nonconformity = stored["nonconformity"]
    if isinstance(nonconformity, Stored) and len(nonconformity.shape) == 1 and nonconformity.shape != (terms.rows,):
        raise BundleError("rows", where=where, expected=terms.rows, found=nonconformity.shape[0])
    for part, content in stored.items():
        rows = terms.reference_rows if part == "reference" else terms.rows
        by_name = part in {"scores", "reference", "plain"}
        if by_name != isinstance(content, dict):
            raise BundleError(part, where=where, expected="arrays by score" if by_name else "one array")
        arrays = cast("dict[str, Any]", content) if by_name else {"": content}
        for name, array in arrays.items():
            found = array.shape if isinstance(array, Stored) else "a folder of arrays"
            if found != (rows,):
                raise BundleError(f"{part}.{name}".rstrip("."), where=where, expected=f"{rows} rows", found=found)


def _read_calibration(folder: Path, sizes: dict[str, int], manifest: Manifest) -> Calibration:
    terms = manifest.calibration
    stored = open_checkpoint(folder, sizes)
    _check_rows(stored, terms, str(folder))
    tree = read_arrays(folder, stored)
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
        if terms.reference_rows != calibration.reference_rows:
            expected, found = terms.reference_rows, calibration.reference_rows
            raise CalibrationError("reference rows", where=str(folder), expected=expected, found=found)
    except CalibrationError as error:
        raise BundleError(str(error)) from error
    return calibration


def _read_densities(folder: Path, sizes: dict[str, int], manifest: Manifest) -> Densities | None:
    """Those that the manifest tells of; a bundle of before has none."""
    if not manifest.densities:
        return None
    stored = open_checkpoint(folder, sizes)
    check_shapes(stored, manifest.densities, manifest.draws, where=str(folder))
    refuse_implausible([of_members(manifest.model, stored["members"].shape[0])], str(folder))
    found = from_tree(read_arrays(folder, stored), manifest.densities, manifest.draws, where=str(folder))
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


def _dumped(content: dict[str, Any]) -> bytes:
    """The canonical bytes of a manifest's content."""
    return orjson.dumps(content, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS | orjson.OPT_APPEND_NEWLINE)


def _is_canonical(content: dict[str, Any], written: bytes) -> bool:
    try:
        return _dumped(content) == written
    except orjson.JSONEncodeError:  # nested deeper than orjson writes, though not than it reads
        return False


def _digest_of(content: dict[str, Any]) -> str:
    return f"sha256:{hashlib.sha256(_dumped({**content, 'digest': ''})).hexdigest()}"


def _sha256(path: Path) -> str:
    try:
        with open_regular(path, BundleError) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise BundleError("cannot be read", where=str(path), found=error.strerror, fix=RESTORE) from error
