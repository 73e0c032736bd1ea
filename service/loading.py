"""Loads versions from the store: reads, verifies and compiles them, and says why one cannot be served."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from abstain.models.bundles.bundle import Bundle, load_published, read_published, serving_bytes
from abstain.models.bundles.in_use import mark_in_use
from abstain.models.bundles.manifest import Manifest
from abstain.models.bundles.shortfalls import texts
from abstain.models.bundles.signatures import TrustedKeys
from abstain.models.decisions.expected_rates import expected_part_rates
from abstain.models.errors import AbstainError, SignatureError, printable
from abstain.models.networks.allowed import read_modules
from abstain.models.prediction.predictive import BUCKETS
from abstain.service.live import Live
from abstain.service.monitoring import metrics
from abstain.service.plans import Failure, stamp_of

log = logging.getLogger("abstain.serving")

_FOLDERS = re.compile(r"(?<![\w.:/])/(?:[^\s/,:;'\"()]+/)+")
"""Matches the folders of an absolute path, but no URL."""


class NoRoom(AbstainError):
    """The arrays of a version are larger than the memory that is left for them."""


class ReplacedVersion(AbstainError):
    """A version has other files than those that the server was to load."""


class UnsoundVersion(AbstainError):
    """A version failed publication checks, and the server serves only sound ones."""


@dataclass(frozen=True)
class Loader:
    """Loads versions of one store.

    Attributes:
        devices: the number of devices that share the draws of each version.
        require_sound: whether to refuse versions with shortfalls, including labelled ones.
        trusted: a version must be signed with one of these keys; None if it need not be signed.
        memory_bytes: the most bytes of arrays that a worker may hold for its versions; None for no limit.
    """

    root: Path
    devices: int = 1
    require_sound: bool = False
    trusted: TrustedKeys | None = None
    memory_bytes: int | None = None

    def check_room(self, name: str, version: int, others: Iterable[Manifest]) -> None:
        """Refuses a version that does not fit beside others, before its arrays are read.

        Raises:
            NoRoom: its arrays and those of the others are larger than `memory_bytes`.
            AbstainError: its manifest cannot be read.
        """
        if self.memory_bytes is None:
            return
        own = _bytes_of(read_published(self.root, name, version, self.trusted))
        taken = {f"{other.name}:{other.version}": _bytes_of(other) for other in others}
        if own + sum(taken.values()) > self.memory_bytes:
            held = ", ".join(f"{reference} {size:,}" for reference, size in taken.items())
            raise NoRoom(
                "does not fit into the memory for models",
                where="ABSTAIN_MEMORY_BYTES",
                expected=f"at most {self.memory_bytes:,} bytes of arrays in a worker"
                + (f", of which others have {sum(taken.values()):,} ({held})" if taken else ""),
                found=f"{own:,}",
                fix="raise ABSTAIN_MEMORY_BYTES, take labels from versions that are not needed, or publish fewer draws",
            )

    def read(self, name: str, version: int, stamp: str | None = None) -> Bundle:
        """Reads and verifies a version.

        Args:
            stamp: that of the files that are meant; None for any.

        Raises:
            UnsoundVersion: it has shortfalls, and `require_sound` is set.
            ReplacedVersion: its files are not those of the stamp.
            AbstainError: as `load_published` does.
        """
        bundle = self._read(name, version)
        if stamp is not None and stamp_of(self.root / name / str(version)) != stamp:
            raise ReplacedVersion(
                "its files were replaced by others", where=f"{name}:{version}", fix="publish them as a new version"
            )
        return bundle

    def _read(self, name: str, version: int) -> Bundle:
        if self.require_sound and (shortfalls := read_published(self.root, name, version, self.trusted).shortfalls):
            raise UnsoundVersion(f"failed publication checks: {in_one_line(texts(shortfalls))}")
        return load_published(self.root, name, version, self.trusted)

    def compile(self, name: str, version: int, bundle: Bundle, buckets: tuple[int, ...] = BUCKETS) -> Live:
        """Compiles a version that was read, and prepares what the first request would have to wait for."""
        bundle.calibration.prepare()
        _ = bundle.manifest.model.row_plan
        mark = mark_in_use(self.root / name / str(version))
        return Live(name, version, bundle, bundle.predictor(buckets, self.devices), mark)

    def failure(self, error: Exception) -> Failure:
        """Returns why a version is not served, in words for clients."""
        refused = isinstance(error, SignatureError | UnsoundVersion | NoRoom)
        return Failure(
            state="refused" if refused else "failed",
            why=self.hide_folders(text_of(error)),
            unsound=isinstance(error, UnsoundVersion),
        )

    def hide_folders(self, text: str) -> str:
        """Makes paths in a text relative to the store, and cuts other paths to the file name: clients need no folders."""
        return _FOLDERS.sub("", text.replace(f"{self.root}/", "").replace(str(self.root), "the store"))


def _bytes_of(manifest: Manifest) -> int:
    """Returns the bytes of a version's arrays; its network may be a user's, of an allowed module."""
    model = manifest.model.allow(read_modules(os.environ))
    return serving_bytes(manifest.model_copy(update={"model": model}))


def report_ready(live: Live) -> None:
    """Sets the metrics of a version that is about to be served, and warns of its shortfalls."""
    labels, manifest = (live.name, str(live.version)), live.bundle.manifest
    metrics.MODEL_LOADS.labels(*labels, "loaded").inc()
    metrics.MODEL_INFO.labels(*labels, manifest.digest, manifest.method.kind, str(manifest.draws)).set(1)
    metrics.MODEL_SOUND.labels(*labels).set(not manifest.shortfalls)
    metrics.EXPECTED_REJECTS.labels(*labels).set(live.bundle.calibration.expected_reject_rate)
    for part, rate in expected_part_rates(live.bundle.calibration).items():
        metrics.EXPECTED_REJECTS_BY_PART.labels(*labels, part).set(rate)
    if manifest.shortfalls:
        shortfalls = in_one_line(texts(manifest.shortfalls))
        log.warning("%s is served although it failed publication checks: %s", live.described, shortfalls)


def report_gone(live: Live) -> None:
    """Sets the metrics of a version that is not served any more; those that count stay, and alerts look at `MODEL_INFO`."""
    manifest = live.bundle.manifest
    labels = live.name, str(live.version)
    metrics.MODEL_INFO.labels(*labels, manifest.digest, manifest.method.kind, str(manifest.draws)).set(0)


def report_not_served(name: str, version: int, failure: Failure) -> None:
    """Sets the metrics of a version that is not served."""
    metrics.MODEL_LOADS.labels(name, str(version), failure.state).inc()
    if failure.unsound:
        metrics.MODEL_SOUND.labels(name, str(version)).set(0)


def text_of(error: Exception) -> str:
    """Returns the text of an error; its type if it has none."""
    return str(error) or type(error).__name__


def unexpected(error: Exception) -> Exception | None:
    """Returns the error if the log should show its traceback: not for the errors that abstain and the disk raise."""
    return None if isinstance(error, AbstainError | OSError) else error


def in_one_line(shortfalls: list[str] | tuple[str, ...]) -> str:
    """Joins shortfalls to one printable line, numbered if there are several; a manifest may hold any text."""
    if len(shortfalls) == 1:
        return printable(shortfalls[0])
    return printable("; ".join(f"({number}) {shortfall}" for number, shortfall in enumerate(shortfalls, start=1)))
