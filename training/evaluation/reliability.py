"""Records of how reliable the probabilities of a classifier are, and their JSON."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import JsonValue


@dataclass(frozen=True)
class ReliabilityBins:
    """The bins of a reliability diagram in ascending order, one column for each number.

    Attributes:
        rows: the number of rows in the bin.
        low: the smallest confidence in the bin.
        high: the largest confidence.
        confidence: the mean confidence.
        accuracy: the accuracy of the bin; rows of equal confidence count by their mean.
    """

    rows: tuple[int, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    confidence: tuple[float, ...]
    accuracy: tuple[float, ...]

    @classmethod
    def from_json(cls, content: dict[str, list[Any]]) -> ReliabilityBins:
        """Reads the bins from a manifest's JSON."""
        return cls(**{column: tuple(values) for column, values in content.items()})

    def to_json(self) -> dict[str, JsonValue]:
        """Returns each column as a list."""
        return {
            "rows": list(self.rows),
            "low": list(self.low),
            "high": list(self.high),
            "confidence": list(self.confidence),
            "accuracy": list(self.accuracy),
        }


@dataclass(frozen=True)
class CalibrationErrors:
    """Calibration errors of class probabilities, other than the ECE.

    Attributes:
        ece_if_calibrated: the mean ECE that a perfectly calibrated model with these confidences shows on as many rows.
        ece_if_calibrated_95: the 95 % quantile of this ECE.
        ace: adaptive calibration error.
        classwise_ece: the mean over classes of the ECE of that class's probability.
    """

    ece_if_calibrated: float
    ece_if_calibrated_95: float
    ace: float
    classwise_ece: float

    def to_json(self) -> dict[str, JsonValue]:
        """Returns the errors by name; the two values of a calibrated model are in a separate object."""
        return {
            "ece_if_calibrated": {"mean": self.ece_if_calibrated, "quantile_95": self.ece_if_calibrated_95},
            "ace": self.ace,
            "classwise_ece": self.classwise_ece,
        }
