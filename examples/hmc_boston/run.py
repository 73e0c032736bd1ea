"""Hamiltonian Monte Carlo: a target with two modes, and Boston's house prices.

    python examples/hmc_boston/run.py --data FOLDER            # about two minutes on two cores
    python examples/hmc_boston/run.py --data FOLDER --quick    # the same with too little work for reliable results
    python examples/hmc_boston/run.py --tensorboard TRACES     # also writes traces for TensorBoard

FOLDER holds `boston.npz` (x, y, train_idx, test_idx). It runs NUTS on a mixture of two normals; then, for a small
network with a mean and a log-variance: the posterior mode, HMC from there, NUTS with two ways of adapting the step size,
chains from overdispersed draws of the prior, and a longer version of a finished run. It writes pictures to `figures/` and
numbers to `numbers.json`.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, Float

from abstain.models.networks.architectures import MLPSpec
from abstain.models.prediction.posterior import Posterior
from abstain.models.prediction.predictive import Predictor
from abstain.training.config.config import Config
from abstain.training.config.data import DataConfig
from abstain.training.config.methods import ChEESConfig, EnsembleConfig, HMCConfig, NUTSConfig
from abstain.training.config.priors import PriorConfig
from abstain.training.data.dataset import Dataset
from abstain.training.data.sources import read_source
from abstain.training.fit import build_model, infer
from abstain.training.inference.bnn import BNN, observe
from abstain.training.inference.chains import Chains, sample_chains
from abstain.training.inference.methods.nuts import kernel
from abstain.training.inference.problem import Fitted, Problem
from abstain.training.inference.target import Target
from abstain.training.report.export import write_tensorboard
from abstain.training.runs.journal import Journal
from abstain.training.runs.progress import progress_bar

HERE = Path(__file__).resolve().parent
DATA = HERE.parents[2] / "shared" / "data" / "uci"


# Two modes


def mixture() -> Target:
    """Makes the target ½ N((2, −2), I) + ½ N((−2, 2), I) as a prior; it has no data."""
    components = dist.MultivariateNormal(jnp.array([[2.0, -2.0], [-2.0, 2.0]]), jnp.eye(2))
    law = dist.MixtureSameFamily(dist.Categorical(jnp.full(2, 0.5)), components)
    return Target({"x": law}, lambda _parameters, data: jnp.zeros(len(data)), {"x": (2,)})


def sample_mixture(warmup: int = 100, samples: int = 200, seed: int = 0) -> Chains:
    """Runs a hundred chains of NUTS with dual averaging, from the article's start (0.1, 0) and step size 0.001."""
    target = mixture()
    settings = NUTSConfig(
        chains=100, warmup=warmup, samples=samples, step_size=1e-3, mass_matrix="unit", max_tree_depth=6, reports=1
    )
    starts, no_data = jnp.tile(jnp.array([0.1, 0.0]), (settings.chains, 1)), jnp.zeros(1)
    with progress_bar("mixture, NUTS") as report:
        journal = Journal(progress=report)
        return sample_chains(jax.random.key(seed), kernel(target, settings), target, no_data, starts, settings, journal)


def first_visits(draws: Float[np.ndarray, "steps 2"]) -> list[int]:
    """Returns the number of draws until the first visit of each mode: of (2, −2), and of (−2, 2)."""
    is_nearer_first = draws[:, 0] > draws[:, 1]
    return [int(np.argmax(side)) + 1 if side.any() else len(draws) + 1 for side in (is_nearer_first, ~is_nearer_first)]


def mixture_facts(draws: Float[np.ndarray, "chains steps 2"], visits: list[int]) -> dict[str, Any]:
    """Returns when the chains had visited both modes, and the share of draws near the first mode."""
    return {
        "chains": len(draws),
        "draws_until_both_visited_median": float(np.median(visits)),
        "both_visited_within_100": float(np.mean(np.array(visits) <= 100)),
        "both_visited_within_200": float(np.mean(np.array(visits) <= 200)),
        "share_of_first_mode": float((draws[..., 0] > draws[..., 1]).mean()),
    }


# Boston's house prices


def boston(folder: Path, split: int = 0) -> tuple[Problem, Dataset]:
    """Builds the problem: the fit uses all rows outside the test part, which also scale inputs and prices.

    The taper (1, .5, .2, .1) times 13 features gives the widths 13, 6, 2, 1. The first is the input, and the last becomes two
    outputs, a mean and a log-variance.
    """
    path = folder / "boston.npz"
    if not path.is_file():
        sys.exit(f"{path} is missing; pass --data FOLDER with boston.npz")
    config = CONFIG.model_copy(update={"data": DataConfig(split_index=split)})
    source = read_source(str(path), config.data, classify=False)
    no_rows = source.test.take(np.arange(0))
    dataset = Dataset(source, source.train, no_rows, source.test)
    model = build_model(config, dataset)
    bnn = BNN(model, config.prior)
    return Problem(bnn, observe(model, dataset.train), observe(model, dataset.test)), dataset


CONFIG = Config(
    name="boston",
    likelihood="heteroscedastic_normal",
    draws=1000,
    network=MLPSpec(hidden=(6, 2)),
    prior=PriorConfig(scale=0.2),
)
SEARCH = EnsembleConfig(members=4, steps=1500, batch_size=512, learning_rate=1e-2, reports=50)
"""Adam from four starts; each keeps the iterate with the best predictions for a tenth of the training rows, which it does
not fit."""


def samplers(less: int = 1) -> dict[str, HMCConfig | NUTSConfig | ChEESConfig]:
    """Returns the samplers: each chain starts from another mode; those of the last sampler start far apart, as R-hat needs."""
    hmc: dict[str, Any] = {"step_size": 0.01, "leapfrogs": 10, "mass_matrix": "unit", "warmup": 1000 // less}
    nuts: dict[str, Any] = {"step_size": 0.01, "max_tree_depth": 6, "warmup": 300 // less, "samples": 300 // less}
    far: dict[str, Any] = {"warmup": 500 // less, "samples": 400 // less, "max_leapfrogs": 300}
    return {
        "HMC": HMCConfig(start="run", **hmc, samples=1000 // less, reports=4),
        "NUTS, simple": NUTSConfig(start="run", **nuts, adaptation="simple", reports=4),
        "NUTS, dual averaging": NUTSConfig(start="run", **nuts, reports=4),
        "ChEES, overdispersed": ChEESConfig(start="overdispersed", **far, reports=4),
    }


def fit(title: str, problem: Problem, settings: Any, folder: Path | None = None) -> Fitted:
    """Runs a method; with a folder, keeps a journal there and continues from it."""
    samples = getattr(settings, "chains", 1) * getattr(settings, "samples", 1)
    config = CONFIG.model_copy(update={"method": settings, "draws": min(CONFIG.draws, samples)})
    with progress_bar(title) as report:
        return infer(config, problem, Journal(folder, report))


def lengthen(problem: Problem, settings: HMCConfig, first: Fitted, folder: Path) -> dict[str, Any]:
    """Continues a finished run from its folder to twice the samples; checks that the first half is unchanged."""
    second = fit("HMC, lengthened", problem, settings.model_copy(update={"samples": 2 * settings.samples}), folder)
    assert first.chains is not None and second.chains is not None  # noqa: S101, PT018 - a sampler made them
    before, after = first.chains.column("position"), second.chains.column("position")[:, : settings.samples]
    return {
        "samples": [settings.samples, 2 * settings.samples],
        "first_half_is_the_finished_run": bool((after == before).all()),
        "rhat_of_predictions": [fitted.diagnostics.to_json()["function"]["rhat"] for fitted in (first, second)],
    }


def prices(posterior: Posterior, dataset: Dataset) -> dict[str, np.ndarray]:
    """Predicts the test part in the target's units, 1,000 dollars: mean, and both standard deviations."""
    summary = Predictor(posterior, buckets=(256,))(dataset.test.x).summary
    return {
        "truth": dataset.test.y,
        "mean": summary.mean,
        "aleatoric": np.sqrt(summary.aleatoric_variance),
        "aleatoric+epistemic": np.sqrt(summary.aleatoric_variance + summary.epistemic_variance),
    }


def log_likelihood(problem: Problem, posterior: Posterior) -> float:
    """Returns the log of the mean density over draws, averaged over test rows, in nats; prices in standard deviations."""

    @jax.jit
    def mean_log_density(draws: Any) -> Array:
        by_draw = jax.vmap(lambda draw: problem.target.log_likelihood(draw, problem.diagnostic_rows))(draws)
        return (jax.scipy.special.logsumexp(by_draw, axis=0) - jnp.log(len(by_draw))).mean()

    return float(mean_log_density(jax.tree.map(jnp.asarray, posterior.draws)))


def facts_of(problem: Problem, dataset: Dataset, fitted: Fitted) -> dict[str, Any]:
    """Returns the quality of the predictions, the coverage of their standard deviations, and the chain diagnostics."""
    predicted, facts = prices(fitted.posterior, dataset), fitted.diagnostics.to_json()
    error = predicted["mean"] - predicted["truth"]
    quality = {
        "log_likelihood": log_likelihood(problem, fitted.posterior),
        "rmse": np.sqrt(np.mean(error**2)),
        "within_one_bar": {
            kind: np.mean(np.abs(error) <= predicted[kind]) for kind in ("aleatoric", "aleatoric+epistemic")
        },
    }
    if fitted.chains is None:
        return quality
    names = ("rhat", "ess_bulk")
    return quality | {
        "worst_prediction": {name: facts["function"][name] for name in names},
        "worst_parameter": {name: facts["parameters"][name] for name in names},
        "acceptance": np.mean(facts["acceptance"]),
        "divergences": facts["divergences"],
        "leapfrogs_per_sample": facts["leapfrogs_per_sample"],
        "sampling_seconds": facts["sampling_seconds"],
        "passes_the_gate": not fitted.shortfalls,
    }


# All steps


def main() -> None:
    """Runs all fits, and writes figures/ and numbers.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA, help="the folder of boston.npz")
    parser.add_argument("--tensorboard", type=Path, help="a folder for the traces of HMC, for TensorBoard")
    parser.add_argument("--quick", action="store_true", help="a tenth of the work; the pictures go to a new folder")
    parser.add_argument("--out", type=Path, help="the folder for figures/ and numbers.json; default: this folder")
    options = parser.parse_args()
    folder = options.out or (Path(tempfile.mkdtemp(prefix="boston-")) if options.quick else HERE)
    numbers = run_all(folder, options.data, options.tensorboard, 10 if options.quick else 1)
    (folder / "numbers.json").write_text(json.dumps(numbers, indent=2) + "\n", "utf-8")
    print(json.dumps(numbers, indent=2))
    print(f"{numbers['seconds']:.0f} s; see {folder}")


def run_all(folder: Path, data: Path, tensorboard: Path | None, less: int) -> dict[str, Any]:
    """Runs all fits and writes the pictures; returns the numbers.

    Args:
        less: divides the numbers of samples and steps.
    """
    import pictures  # noqa: PLC0415 - in this folder; the import takes a second

    start_time = time.perf_counter()
    figures = folder / "figures"
    figures.mkdir(parents=True, exist_ok=True)

    draws = sample_mixture().column("position")
    visits = [max(first_visits(chain)) for chain in draws]
    median_chain = int(np.argsort(visits)[len(visits) // 2])
    pictures.mixture(figures / "mixture.png", mixture(), draws[median_chain], visits[median_chain])
    numbers: dict[str, Any] = {"mixture": mixture_facts(draws, visits)}

    problem, dataset = boston(data)
    modes = fit("modes", problem, SEARCH)
    problem = replace(problem, earlier=modes.posterior.draws)
    mode = modes._replace(posterior=Posterior(problem.bnn.model, jax.tree.map(lambda leaf: leaf[:1], problem.earlier)))
    numbers["MAP"], numbers["four MAPs"] = (facts_of(problem, dataset, fitted) for fitted in (mode, modes))
    with tempfile.TemporaryDirectory() as journal:
        fits = {
            name: fit(name, problem, settings, Path(journal) / settings.kind if name == "HMC" else None)
            for name, settings in samplers(less).items()
        }
        numbers |= {name: facts_of(problem, dataset, fitted) for name, fitted in fits.items()}
        pictures.traces(figures / "traces.png", fits)
        if tensorboard:
            write_tensorboard(tensorboard, problem, fits["HMC"])
        numbers["lengthened"] = lengthen(problem, samplers(less)["HMC"], fits["HMC"], Path(journal) / "hmc")

    predicted = {"MAP": prices(mode.posterior, dataset), "HMC": prices(fits["HMC"].posterior, dataset)}
    pictures.parity(figures / "parity.png", predicted, numbers)
    return round_tree(numbers | {"seconds": time.perf_counter() - start_time})


def round_tree(tree: Any) -> Any:
    """Rounds the numbers of a tree to four significant digits; returns plain JSON."""
    if isinstance(tree, dict):
        return {name: round_tree(value) for name, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [round_tree(value) for value in tree]
    return tree if isinstance(tree, int | str) else float(f"{tree:.4g}")


if __name__ == "__main__":
    main()
