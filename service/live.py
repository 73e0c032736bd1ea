"""A version that a worker serves."""

from __future__ import annotations

from dataclasses import dataclass

from abstain.models.bundles.bundle import Bundle
from abstain.models.bundles.in_use import InUse
from abstain.models.prediction.predictive import Predictor


@dataclass(frozen=True)
class Live:
    """A loaded and compiled version that responds to requests."""

    name: str
    version: int
    bundle: Bundle
    predictor: Predictor
    in_use: InUse | None = None
    """The mark by which `abstain prune` leaves the version; None if its file system has no locks."""

    @property
    def described(self) -> str:
        """The name, the version and the digest, for the log."""
        return f"{self.name}:{self.version} ({self.bundle.manifest.digest})"
