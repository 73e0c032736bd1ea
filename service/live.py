"""A version that a worker answers with."""

from __future__ import annotations

from dataclasses import dataclass

from abstain.models.bundles.bundle import Bundle
from abstain.models.prediction.predictive import Predictor


@dataclass(frozen=True)
class Live:
    """A version that answers."""

    name: str
    version: int
    bundle: Bundle
    predictor: Predictor
