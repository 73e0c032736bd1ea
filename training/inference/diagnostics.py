"""Diagnostics of Markov chains: of predictions, which decide about convergence, and of parameters.

A network's parameters are not identified (its units can be permuted), so chains that agree on every prediction may
disagree on every weight. So the checks compare predictions at calibration inputs: each class's probability, or the mean.
ArviZ computes R-hat and ESS (rank-normalised; Vehtari et al., 2021) and E-BFMI (Betancourt, 2016).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from arviz_stats.base.array import array_stats
from jaxtyping import Array, Float, Int
from pydantic import JsonValue
from scipy.stats import rankdata

from abstain.models.bundles.shortfalls import Shortfall, ShortfallCode
from abstain.training.config.methods import ChainSettings
from abstain.training.inference.bnn import BNN, network
from abstain.training.inference.chains import Chains
from abstain.training.inference.target import Target, Vector

arviz: Any = array_stats
"""ArviZ is only partly typed."""
FUNCTION_ROWS = 50
PARAMETERS = 1_000
"""The largest number of parameters that are checked; if there are more, evenly spaced ones are checked."""

TAIL = (0.05, 0.95)
RHAT_LIMIT, ESS_LIMIT = 1.01, 400.0
"""Vehtari et al. (2021), §4: no R-hat above 1.01, and no bulk or tail ESS below 100 for each of four chains."""
RANK_BINS = 20
DIVERGENT_SHARE, EBFMI_LIMIT, ACCEPTANCE_LIMIT, K_HAT_LIMIT = 0.001, 0.3, 0.05, 0.7

Values = Float[np.ndarray, "chains samples values"]


def function_values(bnn: BNN, z: Vector, x: Float[Array, "rows ..."]) -> Float[Array, " values"]:
    """Predicts with a vector's network at some inputs: each class's probability, or the mean (standardised)."""
    draw, model = bnn.draw(z), bnn.model
    module = network(model)
    outputs = jax.vmap(lambda row: module.apply({"params": draw["network"]}, row))(x)
    noise = draw.get("noise", jnp.float32(0))
    parts = jax.vmap(lambda out: model.likelihood_functions.predict(out, noise))(outputs)
    return jnp.exp(parts).ravel() if model.likelihood_functions.task == "classification" else parts[:, 0]


@dataclass(frozen=True)
class Convergence:
    """The worst convergence of the values that vary: None if no value varies, infinite if it cannot be computed.

    Attributes:
        rhat: the largest R-hat.
        ess_bulk: the smallest bulk ESS.
        ess_tail: the smallest tail ESS.
        mcse: the largest Monte Carlo standard error of a mean, in posterior standard deviations.
        ess_per_second: the smallest bulk ESS per second of sampling.
        values: the number of values that vary.
    """

    rhat: float | None
    ess_bulk: float | None
    ess_tail: float | None
    mcse: float | None
    ess_per_second: float | None
    values: int

    def to_json(self) -> dict[str, JsonValue]:
        """Returns the numbers by name."""
        return {
            "rhat": self.rhat,
            "ess_bulk": self.ess_bulk,
            "ess_tail": self.ess_tail,
            "mcse": self.mcse,
            "ess_per_second": self.ess_per_second,
            "values": self.values,
        }


@dataclass(frozen=True)
class TreeDepth:
    """The depth of the trees of NUTS.

    Attributes:
        mean: the mean depth over samples.
        hits: the number of samples that reached the largest depth.
    """

    mean: float
    hits: int


@dataclass(frozen=True)
class ChainDiagnostics:
    """The diagnostics of chains.

    Attributes:
        function: the convergence of predictions, which the checks use.
        parameters: the convergence of parameters, or of some of them.
        samples: the number of samples of all chains together.
        divergences: the number of divergent transitions after the warm-up, also between samples.
        acceptance: each chain's mean acceptance probability.
        ebfmi: each chain's E-BFMI; empty if it does not apply.
        trace: each chain's log posterior density (nats) at some steps.
        tree_depth: the depth of the trees; None for methods other than NUTS.
        thin: the number of transitions for each sample.
    """

    function: Convergence
    parameters: Convergence
    chains: int
    samples: int
    divergences: int
    acceptance: tuple[float, ...]
    ebfmi: tuple[float, ...]
    leapfrogs_per_sample: float
    warmup_seconds: float
    sampling_seconds: float
    compile_seconds: float
    trace: tuple[tuple[float, ...], ...]
    tree_depth: TreeDepth | None = None
    thin: int = 1

    @property
    def transitions(self) -> int:
        """The number of transitions of all chains after the warm-up."""
        return self.samples * self.thin

    def to_json(self) -> dict[str, JsonValue]:
        """Returns the JSON in a manifest."""
        content: dict[str, JsonValue] = {
            "function": self.function.to_json(),
            "parameters": self.parameters.to_json(),
            "chains": self.chains,
            "samples": self.samples,
            "divergences": self.divergences,
            "acceptance": list(self.acceptance),
            "ebfmi": list(self.ebfmi),
            "leapfrogs_per_sample": self.leapfrogs_per_sample,
            "warmup_seconds": self.warmup_seconds,
            "sampling_seconds": self.sampling_seconds,
            "compile_seconds": self.compile_seconds,
            "trace": [list(chain) for chain in self.trace],
        }
        if self.tree_depth is not None:
            content |= {"tree_depth": self.tree_depth.mean, "max_tree_depth_hits": self.tree_depth.hits}
        return content


def chain_diagnostics(target: Target, chains: Chains, settings: ChainSettings) -> ChainDiagnostics:
    """Computes the diagnostics of all samples."""
    seconds = chains.seconds
    acceptance, energy = chains.column("acceptance"), chains.energies(settings.thin).astype(np.float64)
    leapfrogs = chains.column("leapfrogs")
    depth = settings.largest_tree_depth
    return ChainDiagnostics(
        function=summary(chains.column("values"), seconds),
        parameters=summary(_some_parameters(chains, target.dim), seconds),
        chains=len(acceptance),
        samples=int(acceptance.size),
        divergences=int(chains.column("diverging").sum()),
        acceptance=tuple(acceptance.mean(axis=1).tolist()),
        ebfmi=tuple(ebfmi(energy)),
        leapfrogs_per_sample=float(leapfrogs.mean()),
        warmup_seconds=chains.warmup_seconds,
        sampling_seconds=seconds,
        compile_seconds=chains.compile_seconds,
        trace=_trace(chains),
        # With thinning only the sum of the leapfrogs of several transitions is known, so their mean is used.
        tree_depth=None if depth is None else _tree_depth(leapfrogs / settings.thin, depth),
        thin=settings.thin,
    )


def _tree_depth(leapfrogs: Float[np.ndarray, "chains samples"], largest: int) -> TreeDepth:
    depth = float(np.ceil(np.log2(leapfrogs + 1)).mean())
    return TreeDepth(mean=depth, hits=int((leapfrogs >= 2**largest - 1).sum()))


def ebfmi(energies: Float[np.ndarray, "chains transitions"]) -> list[float]:
    """Returns each chain's E-BFMI (Betancourt, 2016) over all its transitions; 0 if the energy never changes."""
    changing = np.ptp(energies, axis=1) > 0
    values = np.zeros(len(energies))
    if changing.any():
        values[changing] = arviz.bfmi(energies[changing], chain_axis=0, draw_axis=1)
    return values.tolist()


def chain_shortfalls(facts: ChainDiagnostics) -> tuple[Shortfall, ...]:
    """Returns the shortfalls of chains, by the convergence of predictions, not of parameters."""
    shortfalls = [
        *convergence_shortfalls(facts.function),
        *divergence_shortfalls(facts.divergences, facts.transitions),
    ]

    def add(code: ShortfallCode, text: str) -> None:
        shortfalls.append(Shortfall(code, text))

    low = [index for index, value in enumerate(facts.ebfmi) if value < EBFMI_LIMIT]
    if low:
        add("e_bfmi", f"chain {low[0]} moves slowly between energies: E-BFMI is below {EBFMI_LIMIT}")
    stuck = [index for index, value in enumerate(facts.acceptance) if not value >= ACCEPTANCE_LIMIT]
    if stuck:
        add(
            "acceptance",
            f"chain {stuck[0]} hardly moves: it accepts {facts.acceptance[stuck[0]]:.1%} of its proposals; "
            "lower step_size, or choose another start",
        )
    return tuple(shortfalls)


def convergence_shortfalls(function: Convergence) -> tuple[Shortfall, ...]:
    """Returns the shortfalls of the convergence of predictions."""
    shortfalls: list[Shortfall] = []

    def add(code: ShortfallCode, text: str) -> None:
        shortfalls.append(Shortfall(code, text))

    if function.rhat is not None and not function.rhat <= RHAT_LIMIT:
        add(
            "r_hat",
            f"the chains disagree about predictions: R-hat is {rhat_text(function.rhat)}, above {RHAT_LIMIT}; "
            "run them longer, or start them closer",
        )
    for kind, ess in (("bulk", function.ess_bulk), ("tail", function.ess_tail)):
        if ess is not None and not ess >= ESS_LIMIT:
            add(
                "ess",
                f"the samples of predictions have too small an effective size: {kind} ESS is {ess:.0f}, "
                f"below {ESS_LIMIT:.0f}; take more samples",
            )
    return tuple(shortfalls)


def divergence_shortfalls(
    divergences: int, transitions: int, fix: str = "raise target_acceptance or lower step_size"
) -> tuple[Shortfall, ...]:
    """Returns a shortfall if too many transitions diverged; `fix` names the settings of the sampler."""
    if divergences <= DIVERGENT_SHARE * transitions:
        return ()
    text = (
        f"{divergences} of {transitions} transitions diverged, more than {DIVERGENT_SHARE:.1%}: "
        f"parts of the posterior may be missing; {fix}"
    )
    return (Shortfall("divergences", text),)


def summary(values: Values, seconds: float) -> Convergence:
    """Returns the worst rank-normalised split R-hat, the least ESS and the largest MCSE over the values that vary.

    If a chain never moves, R-hat and MCSE are infinite.
    """
    varying = _varying(values)
    if not varying.size:
        return Convergence(None, None, None, None, None, values=0)
    rhat, ess_bulk, ess_tail = _rhat_and_ess(varying)
    bulk = float(np.min(ess_bulk))
    mcse = _finite(_without_warnings(arviz.mcse, varying, method="mean") / varying.std(axis=(0, 1)), np.inf)
    mcse = np.where(np.isfinite(rhat), mcse, np.inf)
    return Convergence(
        rhat=float(np.max(rhat)),
        ess_bulk=bulk,
        ess_tail=float(np.min(ess_tail)),
        mcse=float(np.max(mcse)),
        ess_per_second=bulk / seconds if seconds else None,
        values=int(varying.shape[-1]),
    )


class Agreement(NamedTuple):
    """How well chains agree about each prediction that varies, for the report's plots.

    `worst` and `best` are the rank histograms of the predictions with the largest and the smallest R-hat: the number of
    each chain's samples in each of `RANK_BINS` equal parts of the ranks over all chains' samples (Vehtari et al., 2021,
    §4.1).
    """

    rhat: Float[np.ndarray, " varying"]
    ess_bulk: Float[np.ndarray, " varying"]
    ess_tail: Float[np.ndarray, " varying"]
    worst: Int[np.ndarray, "chains bins"]
    best: Int[np.ndarray, "chains bins"]


def agreement(values: Values) -> Agreement | None:
    """Returns the agreement of chains about the recorded values; None if none varies."""
    varying = _varying(values)
    if not varying.size:
        return None
    rhat, ess_bulk, ess_tail = _rhat_and_ess(varying)
    order = np.argsort(rhat, kind="stable")
    worst, best = (rank_histogram(varying[..., index]) for index in (order[-1], order[0]))
    return Agreement(rhat, ess_bulk, ess_tail, worst, best)


def rank_histogram(
    values: Float[np.ndarray, "chains samples"], bins: int = RANK_BINS
) -> Int[np.ndarray, "chains bins"]:
    """Counts each chain's samples in equal parts of the ranks over all chains' samples; ties share their mean rank."""
    shares = (rankdata(values).reshape(values.shape) - 0.5) / values.size
    parts = (shares * bins).astype(int)
    return np.stack([np.bincount(chain, minlength=bins) for chain in parts])


def _varying(values: Values) -> Float[np.ndarray, "chains samples varying"]:
    """Returns the values that vary over samples, in float64.

    A probability that float32 rounds to 0 or 1 in every draw has no variance and no R-hat.
    """
    return values.astype(np.float64)[..., np.ptp(values, axis=(0, 1)) > 0]


def _rhat_and_ess(
    varying: Float[np.ndarray, "chains samples varying"],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns each value's rank-normalised split R-hat, bulk ESS and tail ESS.

    R-hat is infinite if it cannot be computed, and for every value if a chain never moves. The ESS is 0 if it cannot
    be computed.
    """
    rhat = _finite(_without_warnings(arviz.rhat, varying, method="rank"), np.inf)
    constant = np.ptp(varying, axis=1) == 0
    rhat = np.where(constant.all(axis=0) | constant.all(axis=1).any(), np.inf, rhat)
    bulk = _finite(_without_warnings(arviz.ess, varying, method="bulk"), 0.0)
    tail = _finite(_without_warnings(arviz.ess, varying, method="tail", prob=TAIL), 0.0)
    return rhat, bulk, tail


def _without_warnings(statistic: Any, values: np.ndarray, **settings: Any) -> np.ndarray:
    """Computes a statistic of ArviZ without numpy's warnings about chains without variance."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(statistic(values, chain_axis=0, draw_axis=1, **settings), np.float64)


def _finite(values: np.ndarray, otherwise: float) -> np.ndarray:
    return np.where(np.isfinite(values), values, otherwise)


def rhat_text(rhat: float | None) -> str:
    """Formats an R-hat; an infinite one, which is null in a manifest, is "infinite"."""
    return "infinite" if rhat is None or np.isinf(rhat) else f"{rhat:.3f}"


def table(names: list[str], values: Values, seconds: float) -> list[dict[str, float | str]]:
    """Returns one row for each value: mean, std, MCSE, bulk and tail ESS, R-hat, ESS per second, and quantiles."""
    axes = {"chain_axis": 0, "draw_axis": 1}
    exact = values.astype(np.float64)
    columns = {
        "mean": exact.mean(axis=(0, 1)),
        "std": exact.std(axis=(0, 1), ddof=1),
        "mcse": arviz.mcse(exact, method="mean", **axes),
        "ess_bulk": arviz.ess(exact, method="bulk", **axes),
        "ess_tail": arviz.ess(exact, method="tail", prob=TAIL, **axes),
        "rhat": arviz.rhat(exact, method="rank", **axes),
    }
    columns["ess_per_second"] = columns["ess_bulk"] / seconds
    quantiles = np.quantile(exact, [0.025, 0.25, 0.5, 0.75, 0.975], axis=(0, 1))
    columns |= dict(zip(("2.5%", "25%", "50%", "75%", "97.5%"), quantiles, strict=True))
    return [
        {"name": name} | {column: float(numbers[index]) for column, numbers in columns.items()}
        for index, name in enumerate(names)
    ]


def parameter_names(target: Target) -> list[str]:
    """Returns the name of every number of the vector: `network.Dense_0.kernel[0,1]`."""
    return [
        f"{site.path}[{','.join(map(str, index))}]" if index else site.path
        for site in target.sites
        for index in np.ndindex(site.shape)
    ]


def _some_parameters(chains: Chains, dim: int) -> Values:
    """Returns unconstrained parameters `[chains, samples, …]`; by ranks, a bijection does not change R-hat and ESS."""
    chosen = np.unique(np.linspace(0, dim - 1, min(dim, PARAMETERS)).round().astype(int))
    return np.concatenate([trace["position"][..., chosen] for trace in chains.traces]).swapaxes(0, 1)


def _trace(chains: Chains) -> tuple[tuple[float, ...], ...]:
    """Returns each chain's log posterior density at up to 200 evenly spaced steps, for the report's plot."""
    densities = chains.column("log_density")
    indices = np.linspace(0, densities.shape[1] - 1, min(200, densities.shape[1])).round().astype(int)
    return tuple(tuple(chain) for chain in densities[:, indices].tolist())
