"""What evaluation has seen: the records that its figures and its plots are made from."""

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
    """The summary of a regression's prediction, where the caller knows that it is one."""
    assert isinstance(prediction.summary, RegressionSummary)  # noqa: S101 - the caller knows the model's task
    return prediction.summary


@dataclass(frozen=True)
class Seen:
    """Inputs, what was predicted for them, and what was decided."""

    x: Num[np.ndarray, "rows ..."]
    prediction: Prediction
    judgement: Judgement

    @property
    def decision(self) -> ScoreJudgement:
        """The score that decides."""
        return self.judgement.scores[self.judgement.decision]

    @property
    def decision_name(self) -> str:
        """What it is called."""
        return self.judgement.decision

    @property
    def regression(self) -> RegressionSummary:
        """The prediction's summary, of a regression."""
        return regression_of(self.prediction)

    @property
    def interval(self) -> Float[np.ndarray, "rows 2"]:
        """The conformal intervals, of a regression."""
        assert self.judgement.interval is not None  # noqa: S101 - every regression has one
        return self.judgement.interval


@dataclass(frozen=True)
class Twin:
    """What stands beside a version, one network of its posterior or another version, and what it predicts."""

    name: str
    posterior: Posterior
    familiar: Prediction
    strange: dict[str, Prediction]


@dataclass(frozen=True)
class View:
    """A version, the test rows with their targets, the OOD sets, and the twin if there is one."""

    name: str
    posterior: Posterior
    rows: Rows
    familiar: Seen
    strange: dict[str, Seen]
    twin: Twin | None


@dataclass(frozen=True)
class Curve:
    """What a regression of one input says along it, at ascending inputs, and the rows that it has learned from."""

    along: Seen
    train: Rows


@dataclass(frozen=True)
class Shown:
    """What a report shows beside a manifest and a calibration.

    Attributes:
        view: the test part and OOD sets; never a twin.
        curve: of a regression of one input.
        agreement: of the chains, where the method made any.
        absent: where something is not there, why: by `test`, `ood`, `curve` or `chains`, a sentence.
    """

    view: View | None = None
    curve: Curve | None = None
    agreement: Agreement | None = None
    absent: dict[str, str] = field(default_factory=dict)
