"""A bundle: a version of a model on disk that can be verified as a whole.

    manifest.json   a description of the version, with the sha256 of every other file
    draws/          the posterior's draws (`models/bundles/checkpoint.py`, numpy leaves, the draws as axis 0)
    calibration/    the scores of the calibration part (the same format)
    densities/      the arrays of the feature scores (the same format)
    rows/           keyed hashes of the training rows, for `abstain calibrate` (`models/bundles/trained_rows.py`)
    report.html     the report for people
    model.sig       the signature, if there is one (`models/bundles/signatures.py`); the only file not in the manifest

The digest of a bundle is the sha256 of its manifest's canonical bytes. It covers every byte of the version, because the
manifest holds the other hashes. Nothing is unpickled, and no file is used before its hash, shape, dtype and finiteness have
been checked.

Hashes show that a bundle was not altered; a signature by a trusted key shows its author. `load` checks in
this order: the manifest's numbers are plausible; a trusted key has signed it, if required; the folder contains exactly the
listed files, and no more bytes than the numbers imply; the hashes are right; the arrays have the stated shapes. Memory for
the arrays is allocated only after all checks.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import jax

from abstain.models.bundles.checkpoint import Stored, open_checkpoint, read_arrays, write_checkpoint
from abstain.models.bundles.manifest import (
    MANIFEST,
    CalibrationRecord,
    Manifest,
    RiskRecord,
    check_bytes,
    check_gate,
    file_sizes,
    read_covered,
    read_manifest,
    verify_files,
)
from abstain.models.bundles.plausible import member_memory_claim, refuse_implausible
from abstain.models.bundles.signatures import SIGNATURE, TrustedKeys, check_signature, make_signature
from abstain.models.bundles.store import put_signature, version_folder
from abstain.models.decisions.calibration import check_calibration
from abstain.models.decisions.decision import Decision
from abstain.models.decisions.records import Calibration
from abstain.models.decisions.risk import RiskLimit
from abstain.models.errors import BundleError, CalibrationError, clip_repr, convert
from abstain.models.files.regular import RESTORE
from abstain.models.networks.allowed import read_modules
from abstain.models.prediction.feature_score_records import FeatureScores
from abstain.models.prediction.feature_scores import as_tree, check_shapes, from_tree
from abstain.models.prediction.posterior import Posterior, check_draw_shapes, check_finite_draws, expected_shapes
from abstain.models.prediction.predictive import BUCKETS, Predictor
from abstain.models.tables.unseen import rejecting_columns

SPARE_BYTES = 64 * 2**20
"""Bytes that a folder of arrays may have in addition to four times its numbers: Orbax writes small arrays several times."""
_ROW_BYTES = 8 * 100
"""Most bytes of a calibration row: several times all scores."""


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
    if calibration.true_classes is not None:
        rows["true_classes"] = calibration.true_classes
    if calibration.reference is not None:
        rows["reference"] = calibration.reference
    if calibration.plain_scores is not None:
        rows["plain"] = calibration.plain_scores
    if calibration.radius_rows is not None:
        rows["radius_rows"] = calibration.radius_rows
    if calibration.targets is not None:
        rows["targets"] = calibration.targets
    write_checkpoint(folder / "calibration", rows)
    if feature_scores is not None:
        write_checkpoint(folder / "densities", as_tree(feature_scores))


def load(folder: Path, trusted: TrustedKeys | None = None, modules: tuple[str, ...] | None = None) -> Bundle:
    """Loads the bundle in a folder, with all checks.

    Args:
        trusted: as in `read_manifest`.
        modules: the user's modules that may be imported; None for those of `ABSTAIN_MODULES`.

    Raises:
        BundleError: a file is missing, truncated, altered, not listed or not a regular file, or does not match the
            manifest.
        SignatureError: none of the trusted keys has signed it.
        ConfigError: `ABSTAIN_MODULES` is not a list of modules.
    """
    manifest = read_manifest(folder, trusted)
    model = manifest.model.allow(read_modules(os.environ) if modules is None else modules)
    manifest = manifest.model_copy(update={"model": model})
    sizes_by_path = file_sizes(folder, manifest)
    sizes = {part: _sizes_in(part, sizes_by_path) for part in ("draws", "calibration", "densities")}
    shapes = expected_shapes(manifest.model, str(folder / "draws"))
    for part, stated in _stated_bytes(manifest, shapes).items():
        check_bytes(sizes[part], 4 * stated + SPARE_BYTES, folder / part)
    verify_files(folder, manifest)
    draws = _read_draws(folder, sizes["draws"], manifest, shapes)
    feature_scores = _read_feature_scores(folder / "densities", sizes["densities"], manifest)
    calibration = _read_calibration(folder / "calibration", sizes["calibration"], manifest)
    bundle = Bundle(manifest, Posterior(manifest.model, draws), calibration, feature_scores)
    return without_stale_vim(bundle, str(folder)) if manifest.schema_version == 1 else bundle


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


def check_stable(store: Path, name: str, version: int) -> None:
    """Checks that a version may get the label `stable`.

    Raises:
        StoreError: it failed publication checks, or its folder is a symbolic link.
        BundleError: it is damaged.
    """
    manifest = read_published(store, name, version)
    check_gate(manifest)
    verify_files(version_folder(store, name, version), manifest)


def load_published(
    store: Path, name: str, version: int, trusted: TrustedKeys | None = None, modules: tuple[str, ...] | None = None
) -> Bundle:
    """Loads a version of a store, with all checks.

    Args:
        trusted: as in `read_manifest`.
        modules: as in `load`.

    Raises:
        StoreError: the folder of the version or the model is a symbolic link.
        BundleError: as `load`; or it is the bundle of another version or model.
        SignatureError: none of the trusted keys has signed it.
    """
    read_published(store, name, version)
    folder = version_folder(store, name, version)
    bundle = load(folder, trusted, modules)
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
    manifest, covered = read_covered(folder)
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
    manifest, covered = read_covered(folder)
    _check_name(manifest, folder)
    signer = check_signature(folder, covered, trusted)
    verify_files(folder, manifest)
    return manifest, signer


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


def _sizes_in(part: str, sizes: dict[str, int]) -> dict[str, int]:
    return {name.removeprefix(f"{part}/"): size for name, size in sizes.items() if name.startswith(f"{part}/")}


def serving_bytes(manifest: Manifest) -> int:
    """Returns the bytes of the arrays that a server of this version holds, by the numbers of its manifest.

    Raises:
        BundleError: the manifest's network has no such shapes.
    """
    return sum(_stated_bytes(manifest, expected_shapes(manifest.model, "manifest")).values())


def _stated_bytes(manifest: Manifest, shapes: Any) -> dict[str, int]:
    """Returns the bytes that the arrays of each folder take, or may take, according to the manifest."""
    records = [math.prod(shape) for fields in manifest.densities.values() for shape in fields.values()]
    return {
        "draws": 4 * manifest.draws * sum(leaf.size for leaf in jax.tree.leaves(shapes)),
        "calibration": _ROW_BYTES * (manifest.calibration.rows + manifest.calibration.reference_rows),
        "densities": 4 * sum(records) + 8 * manifest.draws,
    }


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
    known = ["labels", "nonconformity", "plain", "radius_rows", "reference", "scores", "targets"]
    if record.conditional_coverage is not None and record.conditional_coverage.per_class:
        known.append("true_classes")
    needed = {"scores", "nonconformity", "true_classes"} & {*known}
    if not needed <= {*stored} <= {*known}:
        raise BundleError("calibration", where=where, expected=f"some of {known}", found=clip_repr(sorted(stored)))
    nonconformity = stored["nonconformity"]
    if isinstance(nonconformity, Stored) and len(nonconformity.shape) == 1 and nonconformity.shape != (record.rows,):
        raise BundleError("rows", where=where, expected=record.rows, found=nonconformity.shape[0])
    choice = record.recalibration_choice
    radius_rows = None if choice is None else choice.radius_rows
    if ("radius_rows" in stored) != (radius_rows is not None):
        expected, found = ("no array", "one") if radius_rows is None else (f"{radius_rows} rows", "none")
        raise BundleError("radius_rows", where=where, expected=expected, found=found)
    if choice is not None and choice.rows + (radius_rows or 0) > record.rows:
        expected = f"at most {record.rows} rows, the calibration part"
        raise BundleError(
            "recalibration_choice", where=where, expected=expected, found=choice.rows + (radius_rows or 0)
        )
    for part, content in stored.items():
        rows = {"reference": record.reference_rows, "radius_rows": radius_rows}.get(part, record.rows)
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
    record, coverage = manifest.calibration, manifest.calibration.conditional_coverage
    stored = open_checkpoint(folder, sizes)
    _check_rows(stored, record, str(folder))
    tree = read_arrays(folder, stored)
    try:
        calibration = Calibration(
            scores=tree["scores"],
            nonconformity=tree["nonconformity"],
            labels=tree.get("labels"),
            decision=record.combination or Decision(scores=(record.decision,)),
            ambiguity=record.ambiguity,
            novelty_share=0.5 if record.novelty_share is None else record.novelty_share,
            risk=None if record.risk is None else _risk_limit(record.risk, record.rows),
            other_limits=tuple(_risk_limit(limit, record.rows) for limit in record.other_limits),
            percentile=record.percentile,
            coverage=record.coverage,
            per_class=record.per_class,
            coverage_among=coverage.among if coverage else "all",
            true_classes=tree["true_classes"] if coverage and coverage.per_class else None,
            sets=record.sets,
            intervals=record.intervals,
            reference=tree.get("reference"),
            target_scale=manifest.model.preprocessing.target_scale,
            plain_scores=tree.get("plain"),
            radius_rows=tree.get("radius_rows"),
            targets=tree.get("targets"),
        )
        check_calibration(
            calibration,
            manifest.model.likelihood_functions.task,
            tuple(manifest.densities),
            where=str(folder),
            classes=len(manifest.model.class_names),
            rejects_unseen=bool(rejecting_columns(manifest.model.preprocessing.columns)),
        )
        if record.reference_rows != calibration.reference_rows:
            expected, found = record.reference_rows, calibration.reference_rows
            raise CalibrationError("reference rows", where=str(folder), expected=expected, found=found)
    except CalibrationError as error:
        raise convert(error, BundleError) from error
    return calibration


def _risk_limit(record: RiskRecord, rows: int) -> RiskLimit:
    return RiskLimit(**record.model_dump(exclude={"error_size"}), rows=rows)


def _read_feature_scores(folder: Path, sizes: dict[str, int], manifest: Manifest) -> FeatureScores | None:
    """Reads the feature scores that the manifest lists; older bundles have none."""
    if not manifest.densities:
        return None
    stored = open_checkpoint(folder, sizes)
    check_shapes(stored, manifest.densities, manifest.draws, where=str(folder))
    refuse_implausible([member_memory_claim(manifest.model, stored["members"].shape[0])], str(folder))
    feature_scores = from_tree(read_arrays(folder, stored), manifest.densities, manifest.draws, where=str(folder))
    for field, leaf in feature_scores.records["range"]._asdict().items():
        # Another shape might broadcast, and compare a feature with the range of another one.
        if leaf.shape != (manifest.model.features,):
            raise BundleError(
                f"range.{field}", where=str(folder), expected=f"{manifest.model.features} features", found=leaf.shape
            )
    return feature_scores
