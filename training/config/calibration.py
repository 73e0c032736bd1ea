"""`[calibration]` and `[evaluation]`: how answers are calibrated, and which further rows a fit is evaluated on."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat

from abstain.models.decisions.conformal import IntervalKind, SetKind
from abstain.models.decisions.decision import Rule
from abstain.training.config.data import AugmentConfig
from abstain.training.config.section import Names, Section


class CalibrationConfig(Section):
    """What the bundle's reject flag, sets and intervals mean unless a request asks otherwise."""

    decision: str | Names | None = None
    """A score, or several that are combined; left out, what `training/calibration/pipeline.py` has for the task."""
    combine: Rule | None = None
    """Of several: by the least p-value, "min", the "weighted" sum of their logarithms, or the weighted "harmonic" mean.

    Left out, the default decision's own rule; "min" for scores that are named.
    """
    weights: dict[str, PositiveFloat] = Field(default_factory=dict)
    """By score; 1 where left out."""
    percentile: Annotated[float, Field(gt=0, lt=100)] = 99.0
    per_class: bool = False
    """Whether the percentile holds within each predicted class, not only over all."""
    coverage: Annotated[float, Field(gt=0, lt=1)] = 0.9
    sets: SetKind = "lac"
    """Prediction sets: the smallest on average, or those that grow with a row's difficulty (`models/decisions/conformal.py`)."""
    intervals: IntervalKind = "normalised"
    """Residuals over the total standard deviation, or distances from the posterior's own quantiles."""
    recalibrate: Literal["none", "auto"] = "none"
    """Whether a temperature (classes), or a factor on standard deviations (numbers), is fitted before the thresholds."""
    augment: AugmentConfig = AugmentConfig()
    """Of images: calibration rows changed, each in one way, so that rows changed like them are familiar too."""
    densities: AugmentConfig = AugmentConfig()
    """Of images: so are the training rows that densities are fitted to, to the same end. The rate is still the calibration rows'."""


class EvaluationConfig(Section):
    """Further rows, apart from the test part, that a fit is evaluated on. Nothing is chosen by them; the figures are reported only."""

    ood: dict[Annotated[str, Field(min_length=1)], str] = Field(default_factory=dict)
    """Sets of strange inputs: paths, or embedded sets, by the name to report them under."""
