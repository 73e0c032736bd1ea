"""The metrics on the test part that a manifest keeps."""

from __future__ import annotations

from dataclasses import dataclass

from abstain.training.evaluation.reliability import ReliabilityBins
from abstain.training.evaluation.results import BaselineQuality, ClassColumns, JsonObject, SetDetection


@dataclass(frozen=True)
class ServedQuality:
    """The metrics on the test part that a manifest keeps.

    Attributes:
        metrics: the metrics by name.
        reject_rates: the reject rate of each score, and of the decision under `reject`.
        reliability: the bins; None for a regression, or if a prediction is not finite.
        ood: the separation of each OOD set, by its name.
        baseline: what the baseline predicts, and its metrics; None if the version does not know its training part.
        classes: the quality of each class; None for a regression, for many classes, or if a prediction is not finite.
    """

    metrics: dict[str, float]
    reject_rates: dict[str, float]
    reliability: ReliabilityBins | None
    ood: dict[str, SetDetection]
    baseline: BaselineQuality | None = None
    classes: ClassColumns | None = None

    def to_json(self) -> JsonObject:
        """Returns the metrics, then the OOD sets, if there are any, in short form."""
        content: JsonObject = dict(self.metrics)
        if self.baseline is not None:
            content["baseline"] = self.baseline.to_json()
        content["reject_rate"] = dict(self.reject_rates)
        if self.reliability is not None:
            content["reliability"] = self.reliability.to_json()
        if self.classes is not None:
            content["classes"] = self.classes.to_json()
        if self.ood:
            content["ood"] = {label: detection.to_short_json() for label, detection in self.ood.items()}
            content["ood_rows"] = {label: detection.rows for label, detection in self.ood.items()}
        return content
