"""What evaluation has seen: the records that its figures and its plots are made from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Num

from models.calibration import Judgement, ScoreJudgement
from models.posterior import Posterior
from models.predictive import Prediction
from training.rows import Rows


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
