"""The interface of all inference methods.

    fit(key, problem, settings, draws, journal) -> Fitted

A method uses no randomness except its key, and runs in passages of the journal, so that it can be interrupted and
resumed.
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
from abstain.training.inference.records import Diagnostics
from abstain.training.inference.target import Target
from abstain.training.runs.journal import Journal


@dataclass(frozen=True, eq=False)
class Problem:
    """An inference problem: model, prior and data.

    Attributes:
        train: rows to learn from.
        diagnostic_rows: the diagnostics compare the chains' predictions at their inputs, and do not use their targets. A
            fit passes calibration rows, never test rows.
        earlier: draws of the earlier run that the config names as the start, if any.
        augment: changes the rows of every gradient, if the config has augmentation.
    """

    bnn: BNN
    train: Observations
    diagnostic_rows: Observations
    earlier: Draws | None = None
    augment: Augment | None = None

    @property
    def target(self) -> Target:
        """The posterior density."""
        return self.bnn.target


class Fitted(NamedTuple):
    """A posterior with diagnostics.

    Attributes:
        shortfalls: reasons not to rely on the fit.
        notes: further remarks for the reader.
        chains: all samples, if the method has Markov chains.
        mode: the centre of the draws, in the form of draws: the mode of `laplace`, the guides' means of `vi`, or the modes
            from which chains started; None for other methods and starts.
    """

    posterior: Posterior
    diagnostics: Diagnostics
    shortfalls: tuple[Shortfall, ...] = ()
    notes: tuple[str, ...] = ()
    chains: Chains | None = None
    mode: Draws | None = None


class Method(Protocol):
    """The signature of every method's `fit`."""

    def __call__(self, key: PRNGKeyArray, problem: Problem, settings: Any, draws: int, journal: Journal) -> Fitted:
        """Fits a posterior; the module's docstring names the arguments."""
        ...
