"""The record of the report's section of the fit: the numbers and names, without prose or HTML."""

from __future__ import annotations

from dataclasses import dataclass

from abstain.training.report.contents import Facts, Picture


@dataclass(frozen=True)
class FinalMetric:
    """Accuracy or RMSE at the last step, on some rows."""

    rows: str
    value: float


@dataclass(frozen=True)
class Loss:
    """The loss of an optimisation."""

    picture: Picture
    steps: int
    first: float
    last: float
    metric: str
    finals: tuple[FinalMetric, ...]


@dataclass(frozen=True)
class Ranks:
    """Rank histograms of the predictions with the worst and the best R-hat, and R-hat and ESS of all predictions."""

    picture: Picture
    agreement: Picture
    predictions: int
    worst_rhat: str
    best_rhat: str
    worst_bar: float
    best_bar: float
    chains: int
    shown_chains: int


@dataclass(frozen=True)
class ChainsPart:
    """The chains of a sampler, and how well their predictions agree; `predictions` is 0 if none of them varies."""

    picture: Picture
    count: int
    samples: int
    ends: tuple[float, ...]
    predictions: int
    rhat: str
    ess_bulk: float | None
    ess_tail: float | None
    ranks: Ranks | None
    ranks_absent: str


@dataclass(frozen=True)
class Fit:
    """How the posterior was fitted."""

    loss: Loss | None
    chains: ChainsPart | None
    diagnostics: Facts
