"""The record of `report.html`: the numbers and names of each section, without prose or HTML.

`page.py` builds it, and the files in `templates/` add the words. All records are frozen, so a template cannot change them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from abstain.models.bundles.guarantees import CoverageRecord, RiskRecord

Facts = tuple[tuple[str, str], ...]
"""A table of two columns: a name and its value as text."""


@dataclass(frozen=True)
class Drawing:
    """An SVG figure: its width on a wide page in pixels, its `viewBox`, and the XML inside its `<svg>` element."""

    width: int
    view_box: str
    content: str


@dataclass(frozen=True)
class Picture:
    """A drawing, or a sentence with the reason why there is none."""

    drawing: Drawing | None
    failure: str = ""


Draw = Callable[[str, Callable[[], Any]], Picture]
"""Draws the figure that a function returns; the name is unique on the page."""


@dataclass(frozen=True)
class Share:
    """A share, or an AUROC, with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class OodSet:
    """How well the decision separates an OOD set from the test rows."""

    name: str
    rows: int
    detection: Share
    auroc: Share
    fpr95: float
    same_intensity: bool


# ---- the frame -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Heading:
    """The model, and how it was fitted."""

    name: str
    created: str
    method: str
    network: str
    likelihood: str
    draws: int
    feature_shape: tuple[int, ...]


@dataclass(frozen=True)
class RenderedSection:
    """A rendered section: its HTML, or a sentence with the reason why there is none."""

    key: str
    html: str
    failure: str = ""


@dataclass(frozen=True)
class Page:
    """The whole page."""

    heading: Heading
    sections: tuple[RenderedSection, ...]
    packages: Facts
    git_commit: str


# ---- verdict ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CoveredPart:
    """How often prediction sets or intervals contain the target in a part of the test rows."""

    name: str
    rows: int
    share: Share


@dataclass(frozen=True)
class Conformal:
    """How often prediction sets or intervals contain the target on the test rows, and on the parts that have rows."""

    requested: float
    coverage: float
    mean_size: float | None
    mean_width: float | None
    parts: tuple[CoveredPart, ...]


@dataclass(frozen=True)
class Guess:
    """What the baseline predicts for every row, and its accuracy or RMSE."""

    text: str
    value: float


@dataclass(frozen=True)
class Verdict:
    """The shortfalls and notes of the version, and its most important figures; None for a figure that it does not have."""

    shortfalls: tuple[str, ...]
    notes: tuple[str, ...]
    test_rows: int
    accuracy: float | None
    rmse: float | None
    baseline: Guess | None
    ece: float | None
    reject_rate: float | None
    percentile: float | None
    conformal: Conformal | None
    requested_of: str
    ood: tuple[OodSet, ...]


# ---- quality ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reliability:
    """The reliability diagram of the manifest's bins, and its widest gap."""

    picture: Picture
    rows: int
    bins: int
    ece: float
    gap: float
    confidence: float
    accuracy: float


@dataclass(frozen=True)
class RiskPart:
    """The accepted or the rejected rows: their number and the quality of their predictions, None without rows."""

    name: str
    rows: int
    accuracy: float | None
    rmse: float | None


@dataclass(frozen=True)
class Risk:
    """Risk against coverage."""

    picture: Picture
    rows: int
    decision: str
    parts: tuple[RiskPart, ...]


@dataclass(frozen=True)
class ClassRow:
    """The test rows of one true class."""

    name: str
    rows: int
    predicted: int
    accuracy: float
    precision: float | None
    reject_rate: float
    set_coverage: float


@dataclass(frozen=True)
class Classification:
    """The quality of a classifier on the test part; the table of classes is open if one is rarely predicted where it is true."""

    reliability: Reliability | None
    risk: Risk
    classes: tuple[ClassRow, ...]
    open: bool


@dataclass(frozen=True)
class Band:
    """The predictive distribution along the one input of a regression."""

    picture: Picture
    low: float
    high: float
    train_low: float
    train_high: float
    inside_std: float
    outside_std: float


@dataclass(frozen=True)
class PredictedPlot:
    """Predicted against true targets, if there is no band; `no_band` is the reason."""

    picture: Picture
    no_band: str


@dataclass(frozen=True)
class Regression:
    """The quality of a regression on the test part."""

    rows: int
    rmse: float
    coverage_95: float
    conformal: Conformal
    band: Band | None
    predicted: PredictedPlot | None
    pit: Picture
    risk: Risk


@dataclass(frozen=True)
class Quality:
    """The metrics as names and texts, and the quality on the test part; `absent` is the reason if it is missing.

    Attributes:
        baseline: the metrics of the baseline by name, as texts; empty if the manifest has none.
        guess: what the baseline predicts.
    """

    metrics: Facts
    baseline: dict[str, str]
    guess: str
    recalibration: str
    classification: Classification | None
    regression: Regression | None
    absent: str


# ---- the decision ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RejectRate:
    """The share of a set's rows that the decision rejects."""

    name: str
    rate: float
    rows: int


@dataclass(frozen=True)
class Threshold:
    """A score's threshold, and the share of test rows above it, if known."""

    score: str
    decides: bool
    limit: float
    rate: float | None


@dataclass(frozen=True)
class ScoreAurocs:
    """The AUROC of one score, or of the decision, on every OOD set."""

    score: str
    decides: bool
    aurocs: tuple[float, ...]


@dataclass(frozen=True)
class Ood:
    """How well the scores separate the OOD sets from the test rows."""

    picture: Picture
    sets: tuple[OodSet, ...]
    scores: tuple[ScoreAurocs, ...]


@dataclass(frozen=True)
class AugmentedRates:
    """Reject rates of the calibration rows, with and without augmentation."""

    augmented: float
    plain: float


@dataclass(frozen=True)
class DecisionPart:
    """The score that decides, all scores' thresholds, and the OOD sets; missing parts are None or empty."""

    decision: str
    combined: tuple[str, ...]
    rule: str
    ambiguity: str
    novelty: str
    novelty_limit: str
    ambiguity_limit: str
    novelty_share: float
    risk: RiskRecord | None
    limit: float
    percentile: float
    ordinal: str
    calibration_rows: int
    per_class: bool
    augmented: AugmentedRates | None
    picture: Picture | None
    reject_rates: tuple[RejectRate, ...]
    ood: Ood | None
    ood_absent: str
    scores: Picture
    thresholds: tuple[Threshold, ...]
    class_thresholds: Facts
    coverage: CoverageRecord | None
    coverage_bounds: tuple[float, float] | None
    coverage_level: float


# ---- settings --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Settings:
    """The data, and the settings of method, network and calibration."""

    data: Facts
    method: str
    method_settings: Facts
    network: Facts
    calibration: Facts
