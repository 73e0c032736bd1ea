"""The diagnostics of each method as records; `to_json` gives the table `diagnostics` of a manifest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from pydantic import JsonValue

from abstain.training.inference.diagnostics import ChainDiagnostics


@runtime_checkable
class Diagnostics(Protocol):
    """The diagnostics of a fit."""

    def to_json(self) -> dict[str, JsonValue]:
        """Returns the JSON in a manifest."""
        ...


@dataclass(frozen=True)
class Report:
    """The figures of a descent at one step, averaged over members.

    Attributes:
        step: the number of steps so far.
        figures: for example `train_log_likelihood` (nats per row) and `train_accuracy`, by name.
    """

    step: int
    figures: dict[str, float]

    def to_json(self) -> dict[str, JsonValue]:
        """Returns the step and the figures by name."""
        return {"step": self.step, **self.figures}


@dataclass(frozen=True)
class DescentDiagnostics:
    """The loss curve and the reports of a descent, averaged over members.

    Attributes:
        loss: means over at most 200 equal parts of the descent.
        loss_unit: the meaning and unit of the loss.
    """

    loss: tuple[float, ...]
    reports: tuple[Report, ...]
    loss_unit: str = "per training row, nats"

    def to_json(self) -> dict[str, JsonValue]:
        """Returns the JSON in a manifest."""
        return {
            "loss_unit": self.loss_unit,
            "loss": list(self.loss),
            "reports": [report.to_json() for report in self.reports],
        }


@dataclass(frozen=True)
class EnsembleDiagnostics:
    """The diagnostics of a deep ensemble."""

    descent: DescentDiagnostics
    members: int

    def to_json(self) -> dict[str, JsonValue]:
        """Returns the JSON in a manifest."""
        return self.descent.to_json() | {"members": self.members}


@dataclass(frozen=True)
class VIDiagnostics:
    """The diagnostics of variational inference.

    Attributes:
        k_hat: the Pareto shape of the importance ratios, the worst over guides; None if it is infinite or not computed.
    """

    descent: DescentDiagnostics
    starts: int
    k_hat: float | None

    def to_json(self) -> dict[str, JsonValue]:
        """Returns the JSON in a manifest."""
        return self.descent.to_json() | {"starts": self.starts, "k_hat": self.k_hat}


@dataclass(frozen=True)
class LaplaceDiagnostics:
    """The diagnostics of a Laplace approximation.

    Attributes:
        subset_size: the number of parameters that have a distribution.
        log_evidence: the log marginal likelihood of all training rows, in nats.
        posterior_std: the smallest and the largest standard deviation of a parameter.
    """

    descent: DescentDiagnostics
    subset: str
    subset_size: int
    prior_precision_multiplier: float
    log_evidence: float
    posterior_std: tuple[float, float]

    def to_json(self) -> dict[str, JsonValue]:
        """Returns the JSON in a manifest."""
        smallest, largest = self.posterior_std
        return self.descent.to_json() | {
            "subset": self.subset,
            "subset_size": self.subset_size,
            "prior_precision_multiplier": self.prior_precision_multiplier,
            "log_evidence": self.log_evidence,
            "log_evidence_unit": "all training rows, nats",
            "posterior_std_min": smallest,
            "posterior_std_max": largest,
        }


@dataclass(frozen=True)
class SamplingDiagnostics:
    """The diagnostics of a sampler.

    Attributes:
        chains: the diagnostics of the chains; None if they could not be computed, which is a shortfall.
        tuning: the tuned settings of the kernel by name, for example `step_size`: a number, or a list by chain.
        energy_variance: each member's variance of the energy error per dimension; None for methods other than MILE.
    """

    chains: ChainDiagnostics | None
    tuning: dict[str, float | list[Any]]
    energy_variance: tuple[float, ...] | None = None

    def to_json(self) -> dict[str, JsonValue]:
        """Returns the JSON in a manifest."""
        content: dict[str, JsonValue] = self.chains.to_json() if self.chains else {}
        content.update(self.tuning)
        if self.energy_variance is not None:
            content |= {"ebfmi": [], "energy_variance": list(self.energy_variance)}
        return content
