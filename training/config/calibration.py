"""`[calibration]` and `[evaluation]`: the settings of the calibration, and the OOD sets of the evaluation."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat

from abstain.models.decisions.conformal import IntervalKind, SetKind
from abstain.models.decisions.decision import Rule
from abstain.models.decisions.radii import Among
from abstain.training.config.data import AugmentConfig
from abstain.training.config.section import Names, Section


class CalibrationConfig(Section):
    """The defaults of the reject flag, prediction sets and intervals, which a request may change."""

    decision: str | Names | None = None
    """A score, or several that are combined. Default: see `training/calibration/pipeline.py`."""
    combine: Rule | None = None
    """The rule for several scores: the least p-value ("min"), the "weighted" sum of logarithms, or the weighted "harmonic" mean.

    Default: the rule of the default decision; "min" if scores are named.
    """
    weights: dict[str, PositiveFloat] = Field(default_factory=dict)
    """The weights by score. Default: 1, or that of the default decision."""
    ambiguity: Annotated[str, Field(min_length=1)] | None = None
    """A score of the predictions that rejects unsure rows too. Default: none, or that of the task if `novelty_share` is set."""
    novelty_share: Annotated[float, Field(gt=0, le=1)] | None = None
    """The share of the reject budget that `decision` has; `ambiguity` has the rest. 1: `decision` alone.

    Default: that of the task (`training/calibration/pipeline.py`).
    """
    max_error: Annotated[float, Field(gt=0, lt=1)] | None = None
    """The largest share of wrong answers among accepted rows; it sets the limit of `ambiguity`, in place of `novelty_share`."""
    confidence: Annotated[float, Field(gt=0, lt=1)] | None = None
    """The probability, over calibration parts, that `max_error` is kept. Default: 0.95."""
    error_size: PositiveFloat | None = None
    """For numbers: the largest distance from the target, in its units, of an answer that is not wrong."""
    percentile: Annotated[float, Field(gt=0, lt=100)] = 99.0
    """The percentile of the calibration scores above which a row is rejected."""
    per_class: bool = False
    """Whether the percentile holds within each predicted class, instead of over all rows."""
    coverage: Annotated[float, Field(gt=0, lt=1)] = 0.9
    """The probability with which prediction sets and intervals contain the truth."""
    coverage_per_class: bool = False
    """Whether the coverage of prediction sets holds within each true class, instead of over all of them."""
    coverage_among: Among = "all"
    """The rows over which the coverage holds: all, or the accepted ones (`models/decisions/radii.py`)."""
    sets: SetKind = "lac"
    """Prediction sets: the smallest on average, or those that grow with a row's difficulty (`models/decisions/conformal.py`)."""
    intervals: IntervalKind = "normalised"
    """Residuals over the total standard deviation, or distances from the posterior's own quantiles."""
    recalibrate: Literal["none", "auto"] = "none"
    """"auto": a temperature (classes), or a factor on standard deviations (numbers), if calibration rows of its own need it."""
    augment: AugmentConfig = AugmentConfig()
    """For images: changes each calibration row in one way, so that rows with these changes are accepted too."""
    densities: AugmentConfig = AugmentConfig()
    """For images: changes the training rows of the feature scores in the same way; the calibration rows stay the same."""


class EvaluationConfig(Section):
    """OOD sets on which a fit is evaluated in addition to the test part; no setting is chosen by the results."""

    ood: dict[Annotated[str, Field(min_length=1)], str] = Field(default_factory=dict)
    """OOD sets: paths or embedded sets, by name."""
