"""Publishing: writes a manifest, a posterior and a calibration as a version into the store; records packages and commit."""

from __future__ import annotations

import datetime
import importlib.metadata
import logging
import subprocess
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from abstain.models.bundles.bundle import write_arrays
from abstain.models.bundles.manifest import Manifest, write_manifest
from abstain.models.bundles.store import publish
from abstain.models.bundles.trained_rows import TrainedRows, write_trained
from abstain.models.files.locks import REMEDY
from abstain.models.prediction.posterior import Posterior
from abstain.training.calibration.pipeline import Calibrated
from abstain.training.evaluation.records import ReportData
from abstain.training.report.page import write_report

PACKAGES = ("abstain", "jax", "jaxlib", "flax", "numpyro", "blackjax", "optax", "numpy", "orbax-checkpoint")


class PublishedVersion(NamedTuple):
    """A published version: its number, and the notes of its manifest."""

    number: int
    notes: tuple[str, ...]


def publish_version(
    store: Path,
    manifest: Manifest,
    posterior: Posterior,
    calibrated: Calibrated,
    report_data: ReportData | None = ReportData(),  # noqa: B008 - a frozen record
    trained: TrainedRows | None = None,
    remedy: str = REMEDY,
) -> PublishedVersion:
    """Publishes a new version, completely or not at all.

    Args:
        report_data: the data of the report in addition to manifest and calibration; None for a version without report.
        trained: hashes of the training rows, for later calibrations.
        remedy: the error's advice if the disk is full, read-only or fails.

    Raises:
        StoreError: the store cannot be written.
    """
    calibration = calibrated.calibration
    notes = manifest.notes

    def write(folder: Path) -> None:
        with _without_log_of("absl"):
            write_arrays(folder, posterior, calibration, calibrated.feature_scores)
        if trained is not None:
            write_trained(folder, trained)

    def seal(folder: Path, version: int) -> None:
        nonlocal notes
        numbered = manifest.model_copy(update={"version": version})
        if report_data is not None:
            notes = (*notes, *write_report(folder / "report.html", numbered, calibration, report_data))
        write_manifest(folder, numbered.model_copy(update={"notes": notes}))

    return PublishedVersion(publish(store, manifest.name, write, seal, remedy), notes)


@contextmanager
def _without_log_of(name: str) -> Generator[None]:
    """Switches a logger off, because Orbax also logs the errors that it raises, with the tracebacks of all its threads."""
    logger = logging.getLogger(name)
    before = logger.disabled
    logger.disabled = True
    try:
        yield
    finally:
        logger.disabled = before


def now() -> str:
    """Returns the current time in UTC, as ISO 8601, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def installed_packages() -> dict[str, str]:
    """Returns the versions of the packages that a result may depend on."""
    versions = {}
    for name in PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def git_commit() -> str | None:
    """Returns the commit of this code, with `-dirty` if files have changed since; None if it is not a checkout."""
    module = Path(__file__)
    try:
        # An installed copy may lie in another project's checkout, and its commit is not the commit of this code.
        _git(module.parent, "ls-files", "--error-unmatch", module.name)
        return _git(module.parent, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*").strip() or None
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=10, check=True).stdout
