"""The form every method has: what it is given, and what it gives.

    fit(key, problem, settings, draws, journal) -> Fitted

A method draws nothing from anywhere but its key, and does its work in passages of the journal, so that it can be
stopped and resumed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from jaxtyping import PRNGKeyArray

from abstain.models.bundles.shortfalls import Shortfall
from abstain.models.prediction.posterior import Draws, Posterior
from abstain.training.data.augmentation import Augment
from abstain.training.inference.bnn import BNN, Observations
from abstain.training.inference.chains import Chains
from abstain.training.inference.diagnostics import ChainDiagnostics
from abstain.training.inference.target import Target
from abstain.training.runs.journal import Journal


@dataclass(frozen=True, eq=False)
class Problem:
    """What is to be inferred, and from what.

    Attributes:
        train: what is learned from.
        monitor: rows that are not learned from. Chains are compared by what they predict at these inputs; their
            targets are not used. A fit passes calibration rows, never test rows.
        earlier: draws of an earlier run to start from, where the config names one.
        augment: what every gradient changes its rows by, where the config asks for it.
    """

    bnn: BNN
    train: Observations
    monitor: Observations
    earlier: Draws | None = None
    augment: Augment | None = None

    @property
    def target(self) -> Target:
        """The posterior density."""
        return self.bnn.target


class Fitted(NamedTuple):
    """A posterior, and what there is to say about how it was made.

    Attributes:
        diagnostics: plain JSON, of chains that of `convergence` among it.
        shortfalls: what the fit lacks to be relied on; empty where nothing does.
        notes: what a reader should know of it besides.
        convergence: of Markov chains, where it could be computed.
        chains: all samples, where the method made Markov chains.
        mode: the parameters that the draws were made around, as draws: the mode of `laplace`, the guides' means of `vi`,
            the modes that chains started from; None where there are none.
    """

    posterior: Posterior
    diagnostics: dict[str, Any]
    shortfalls: tuple[Shortfall, ...] = ()
    notes: tuple[str, ...] = ()
    convergence: ChainDiagnostics | None = None
    chains: Chains | None = None
    mode: Draws | None = None


class Method(Protocol):
    """The signature of every method's `fit`."""

    def __call__(self, key: PRNGKeyArray, problem: Problem, settings: Any, draws: int, journal: Journal) -> Fitted:
        """A posterior from observations; the module's text names the arguments."""
        ...
