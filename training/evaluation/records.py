"""Records of predictions and decisions, from which metrics, plots and reports are made."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, Num

from abstain.models.decisions.records import Judgement, ScoreJudgement
from abstain.models.prediction.posterior import Posterior
from abstain.models.prediction.predictive import Prediction
from abstain.models.prediction.summaries import RegressionSummary
from abstain.training.data.rows import Rows
from abstain.training.inference.diagnostics import Agreement


def regression_of(prediction: Prediction) -> RegressionSummary:
    """Returns the summary of a regression's prediction; only for a model of this task."""
    assert isinstance(prediction.summary, RegressionSummary)  # noqa: S101 - the caller has checked the task
    return prediction.summary


@dataclass(frozen=True)
class JudgedRows:
    """Inputs with their predictions and decisions."""

    x: Num[np.ndarray, "rows ..."]
    prediction: Prediction
    judgement: Judgement

    @property
    def decision(self) -> ScoreJudgement:
        """The judgement by the deciding score."""
        return self.judgement.scores[self.judgement.decision]

    @property
    def decision_name(self) -> str:
        """The name of the deciding score."""
        return self.judgement.decision

    @property
    def regression(self) -> RegressionSummary:
        """The summary; only for a regression."""
        return regression_of(self.prediction)

    @property
    def interval(self) -> Float[np.ndarray, "rows 2"]:
        """The conformal intervals; only for a regression."""
        assert self.judgement.interval is not None  # noqa: S101 - every regression has one
        return self.judgement.interval


@dataclass(frozen=True)
class Twin:
    """The twin of a version (one network of its posterior, or another version) and its predictions."""

    name: str
    posterior: Posterior
    familiar: Prediction
    strange: dict[str, Prediction]


@dataclass(frozen=True)
class ReportView:
    """A version with test rows, their targets, OOD sets, and the twin if there is one."""

    name: str
    posterior: Posterior
    rows: Rows
    familiar: JudgedRows
    strange: dict[str, JudgedRows]
    twin: Twin | None


@dataclass(frozen=True)
class Curve:
    """Predictions of a regression with one input, at ascending inputs, and the training rows."""

    along: JudgedRows
    train: Rows


@dataclass(frozen=True)
class ReportData:
    """The data of a report in addition to manifest and calibration.

    Attributes:
        view: the test part and OOD sets, without a twin.
        curve: the predictions along the input, only for a regression with one input.
        agreement: the agreement of the chains, if the method has chains.
        absent: a sentence for each missing part, by `test`, `ood`, `curve` or `chains`.
    """

    view: ReportView | None = None
    curve: Curve | None = None
    agreement: Agreement | None = None
    absent: dict[str, str] = field(default_factory=dict)
