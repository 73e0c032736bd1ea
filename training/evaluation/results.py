"""Results of evaluation: frozen records of metrics with intervals, and their JSON.

    Evaluation        all results of `abstain evaluate` for a version on one source
    ConformalQuality, CoverageByDecision, PartCoverage, ClassCoverage, PartQuality, ClassQuality
    Separation, Detection, SetDetection, TwinQuality
    BaselineQuality

`to_json` returns the keys in the order of the printed JSON (`tests/training/test_json_keys.py`): a metric without rows
has no key.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from pydantic import JsonValue

from abstain.training.evaluation.reliability import CalibrationErrors

Interval = tuple[float, float]
"""The two ends of a 95 % interval."""
JsonObject = dict[str, JsonValue]


@dataclass(frozen=True)
class Proportion:
    """A share of rows with its exact interval (Clopper & Pearson, 1934)."""

    share: float
    interval: Interval


# ---- how good predictions are ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PartQuality:
    """The number of rows in a part of the test rows and, if there are any, their metrics.

    Attributes:
        metrics: the metrics by name.
        intervals: the intervals of the metrics that are proportions.
    """

    rows: int
    metrics: dict[str, float]
    intervals: dict[str, Interval]

    def to_json(self) -> JsonObject:
        """Returns the number of rows, then the metrics, then the intervals."""
        return {"rows": self.rows} | _numbers(self.metrics) | _interval_keys(self.intervals)


@dataclass(frozen=True)
class ClassQuality:
    """The rows of one class: their number, accuracy, reject rate and coverage of the prediction sets.

    Attributes:
        accuracy: the share with the class as the predicted one (recall).
        predicted: the number of rows of any class that are predicted as this one.
        precision: the share of these that are of the class; None if there are none.
    """

    rows: int
    accuracy: Proportion
    reject_rate: Proportion
    set_coverage: Proportion
    predicted: int
    precision: Proportion | None

    def to_json(self) -> JsonObject:
        """Returns the number of rows, then the shares, then the intervals."""
        shares = {"accuracy": self.accuracy, "reject_rate": self.reject_rate, "set_coverage": self.set_coverage}
        if self.precision is not None:
            shares["precision"] = self.precision
        return (
            {"rows": self.rows, "predicted": self.predicted}
            | _numbers({name: proportion.share for name, proportion in shares.items()})
            | _interval_keys({name: proportion.interval for name, proportion in shares.items()})
        )


@dataclass(frozen=True)
class ClassColumns:
    """The quality of every class in columns, one entry for each class of the model: what a manifest keeps.

    Attributes:
        rows: the number of rows of the class.
        predicted: the number of rows of any class that are predicted as this one.
        accuracy: the share of the class's rows that are predicted as it (recall); None without rows.
        precision: the share of the predicted rows that are of the class; None if there are none.
    """

    rows: tuple[int, ...]
    predicted: tuple[int, ...]
    accuracy: tuple[float | None, ...]
    precision: tuple[float | None, ...]

    def to_json(self) -> JsonObject:
        """Returns the columns by name."""
        return {
            "rows": [*self.rows],
            "predicted": [*self.predicted],
            "accuracy": [*self.accuracy],
            "precision": [*self.precision],
        }


@dataclass(frozen=True)
class BaselineQuality:
    """The class or the number that a baseline predicts for every row, and its metrics by name."""

    guess: str | float
    metrics: dict[str, float]

    def to_json(self) -> JsonObject:
        """Returns the class or the mean, then the metrics."""
        return {"class" if isinstance(self.guess, str) else "mean": self.guess, **self.metrics}


# ---- calibration's guarantees ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ConformalQuality:
    """How often prediction sets or intervals contain the target.

    Attributes:
        stated: the requested share.
        coverage: the measured share.
        mean_size: the mean size of the sets, in classes; None for a regression.
        mean_width: the mean width of the intervals, in the target's units; None for classes.
    """

    stated: float
    coverage: Proportion
    mean_size: float | None = None
    mean_width: float | None = None

    def to_json(self) -> JsonObject:
        """Returns the coverage, then the size of sets or the width of intervals."""
        content: JsonObject = {"asked": self.stated} | _with_interval("coverage", self.coverage)
        if self.mean_size is not None:
            content["mean_size"] = self.mean_size
        if self.mean_width is not None:
            content["mean_width"] = self.mean_width
        return content


@dataclass(frozen=True)
class PartCoverage:
    """How often prediction sets or intervals contain the target, for the accepted or for the rejected rows."""

    rows: int
    coverage: Proportion


@dataclass(frozen=True)
class ClassCoverage:
    """How often prediction sets contain a true class, for the rows of this class."""

    name: str
    rows: int
    coverage: Proportion


@dataclass(frozen=True)
class CoverageByDecision:
    """How often prediction sets or intervals contain the target, for accepted and rejected rows; None without rows.

    Attributes:
        worst_class: the true class with the lowest coverage, of its accepted rows if the coverage is requested among them,
            else of all; None for a regression.
    """

    accepted: PartCoverage | None
    rejected: PartCoverage | None
    worst_class: ClassCoverage | None

    def to_json(self) -> JsonObject:
        """Returns the coverage of each part that has rows."""
        content: JsonObject = {}
        for name, part in (("coverage_accepted", self.accepted), ("coverage_rejected", self.rejected)):
            if part is not None:
                content |= _with_interval(name, part.coverage)
        return content


# ---- separating OOD rows from test rows ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Separation:
    """How well a score separates an OOD set from the test part, without a threshold; OOD is positive.

    Attributes:
        auroc: area under the ROC curve.
        aupr: average precision.
        fpr95: the share of OOD rows that are accepted at the threshold that accepts at least 95 % of the test rows.
    """

    auroc: float
    aupr: float
    fpr95: float

    def to_json(self) -> JsonObject:
        """Returns the three numbers."""
        return {"auroc": self.auroc, "aupr": self.aupr, "fpr95": self.fpr95}


@dataclass(frozen=True)
class Detection:
    """How well a score separates an OOD set, and the share of the set above the calibrated threshold."""

    separation: Separation
    auroc_interval: Interval
    detected: Proportion

    def to_json(self) -> JsonObject:
        """Returns the numbers, then the intervals."""
        return {
            **self.separation.to_json(),
            "detection": self.detected.share,
            "auroc_interval": list(self.auroc_interval),
            "detection_interval": list(self.detected.interval),
        }

    def to_short_json(self) -> JsonObject:
        """Returns the AUROC and the detection rate."""
        return {"auroc": self.separation.auroc, "detection": self.detected.share}


@dataclass(frozen=True)
class SetDetection:
    """How well an OOD set is separated from the test part.

    Attributes:
        rows: the number of rows of the set.
        scores: the separation by each score, by its name.
        decision: the separation by the decision.
    """

    rows: int
    scores: dict[str, Detection]
    decision: Detection

    def to_json(self) -> JsonObject:
        """Returns the numbers by score; the decision has the key `reject`."""
        return {
            **{name: detection.to_json() for name, detection in self.scores.items()},
            "reject": self.decision.to_json(),
        }

    def to_short_json(self) -> JsonObject:
        """Returns all numbers of the decision and two of each other score, because a manifest is read at every start."""
        return {
            **{name: detection.to_short_json() for name, detection in self.scores.items()},
            "reject": self.decision.to_json(),
        }


@dataclass(frozen=True)
class TwinQuality:
    """The twin's metrics, and how well its scores separate the OOD sets, without a threshold.

    Attributes:
        model: the name of the twin.
        metrics: the metrics by name.
        ood: the separation by the set's name, then by the score's.
    """

    model: str
    draws: int
    metrics: dict[str, float]
    ood: dict[str, dict[str, Separation]]

    def to_json(self) -> JsonObject:
        """Returns the name, the number of draws and the metrics, then the OOD sets."""
        return {
            "model": self.model,
            "draws": self.draws,
            **self.metrics,
            "ood": {
                label: {name: separation.to_json() for name, separation in scores.items()}
                for label, scores in self.ood.items()
            },
        }


# ---- the whole -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Evaluation:
    """All results of `abstain evaluate` for a version, on a source's test part and on OOD sets.

    Attributes:
        model: `name:version`.
        metrics: the headline metrics, by name.
        intervals: the 95 % intervals of these.
        baseline: what the baseline predicts, and its metrics; None if the version does not know its training part.
        calibration_errors: the errors other than the ECE; None for a regression.
        risk_at_coverage: the error or RMSE of the most confident rows, by the share of rows that are kept.
        percentile: the percentile of the decision.
        decision: the deciding score's name.
        limits_error: whether a limit of the error rejects rows, too.
        requested_of: the rows over which the coverage is requested, in words; empty if these are all rows.
        reject_rates: the share of rows above each score's threshold, and under `reject` the share that is rejected.
        reject_interval: the exact interval of the rejected share.
        classes: the classes that have rows, by name; None for a regression.
        plots: names of the written files; None if no plots were requested.
        unseen: the rows with a category that the training part lacks, by column; columns without any are left out.
    """

    model: str
    rows: int
    metrics: dict[str, float]
    intervals: dict[str, Interval]
    calibration_errors: CalibrationErrors | None
    risk_at_coverage: dict[str, float]
    percentile: float
    decision: str
    reject_rates: dict[str, float]
    reject_interval: Interval
    conformal: ConformalQuality
    coverage: CoverageByDecision
    accepted: PartQuality
    rejected: PartQuality
    ood: dict[str, SetDetection]
    notes: tuple[str, ...]
    classes: dict[str, ClassQuality] | None
    twin: TwinQuality | None
    plots: tuple[str, ...] | None = None
    limits_error: bool = False
    requested_of: str = ""
    baseline: BaselineQuality | None = None
    unseen: dict[str, int] = field(default_factory=dict[str, int])

    def to_json(self) -> JsonObject:
        """Returns the JSON that `abstain evaluate --json` prints."""
        content: JsonObject = {"model": self.model, "rows": self.rows} | _numbers(self.metrics)
        if self.baseline is not None:
            content["baseline"] = self.baseline.to_json()
        if self.calibration_errors is not None:
            content |= self.calibration_errors.to_json()
        content |= {
            "risk_at_coverage": _numbers(self.risk_at_coverage),
            "percentile": self.percentile,
            "decision": self.decision,
            "reject_rate": _numbers(self.reject_rates),
            "intervals": {
                name: list(ends) for name, ends in (self.intervals | {"reject": self.reject_interval}).items()
            },
            "conformal": self.conformal.to_json(),
            **self.coverage.to_json(),
            "accepted": self.accepted.to_json(),
            "rejected": self.rejected.to_json(),
            "ood": {label: detection.to_json() for label, detection in self.ood.items()},
            "ood_rows": {label: detection.rows for label, detection in self.ood.items()},
            "notes": list(self.notes),
        }
        if self.unseen:
            content["unseen"] = dict(self.unseen)
        if self.classes is not None:
            content["per_class"] = {name: quality.to_json() for name, quality in self.classes.items()}
        if self.twin is not None:
            content["twin"] = self.twin.to_json()
        if self.plots is not None:
            content["plots"] = list(self.plots)
        return content


# ---- JSON ------------------------------------------------------------------------------------------------------------


def _numbers(figures: dict[str, float]) -> JsonObject:
    return dict(figures)


def _with_interval(name: str, proportion: Proportion) -> JsonObject:
    return {name: proportion.share, f"{name}_interval": list(proportion.interval)}


def _interval_keys(intervals: dict[str, Interval]) -> JsonObject:
    return {f"{name}_interval": list(ends) for name, ends in intervals.items()}
