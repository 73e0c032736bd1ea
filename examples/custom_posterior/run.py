"""A posterior from three ingredients: a tree of priors, a log-likelihood, and a tree of shapes.

    python examples/custom_posterior/run.py            # three minutes on two cores
    python examples/custom_posterior/run.py --quick    # the same with too little work for reliable results

There is no model language: `Target` has these three arguments. The example fits a linear regression, with results to
compare in the article; a small network with a normal prior on all its weights; and the same network with Cauchy biases,
written as a tree and as `[prior.layers]` of a config, which give the same density. It
writes pictures to `figures/` and numbers to `numbers.json`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from numpyro.diagnostics import hpdi

from abstain.models.bundles.shortfalls import texts
from abstain.models.networks.architectures import MLP, parameter_shapes
from abstain.models.prediction.posterior import Model
from abstain.training.config.methods import NUTSConfig
from abstain.training.config.reading import read_config
from abstain.training.inference.bnn import BNN, Observations
from abstain.training.inference.chains import Chains, parameters, sample_chains
from abstain.training.inference.diagnostics import chain_diagnostics, chain_shortfalls, parameter_names, table
from abstain.training.inference.methods.nuts import kernel
from abstain.training.inference.target import Parameters, Target
from abstain.training.runs.journal import Journal
from abstain.training.runs.progress import progress_bar

HERE = Path(__file__).resolve().parent
ARTICLE = {
    "alpha": {"mean": 0.29, "std": 0.03, "5%": 0.24, "95%": 0.35, "ess_bulk": 3518.60},
    "beta": {"mean": 1.24, "std": 0.06, "5%": 1.14, "95%": 1.34, "ess_bulk": 4396.45},
    "sigma": {"mean": 0.34, "std": 0.02, "5%": 0.30, "95%": 0.38, "ess_bulk": 3694.10},
}
"""The article's results of the linear regression; R-hat is 1.00 for all, and no transition diverged."""
X = np.linspace(-1.3, 1.3, 100, dtype=np.float32)[:, None]
"""The inputs of the predictions; the data are in [−1, 1]."""


def points() -> Observations:
    """Draws the article's hundred points, with the random generator of its older JAX."""
    x = jnp.linspace(-1, 1, 100)
    with jax.threefry_partitionable(False):
        noise = jax.random.normal(jax.random.PRNGKey(1), x.shape)
    return Observations(x[:, None], 0.3 + jnp.sin(2 * jnp.pi * x / 2.5) + 0.2 * noise)


# The three ingredients of a straight line


def linear_target() -> Target:
    """Makes the target of the line alpha + beta x, with noise of standard deviation sigma."""

    def log_likelihood(parameters: Parameters, data: Observations) -> jax.Array:
        mean = parameters["alpha"] + parameters["beta"] * data.x[:, 0]
        return dist.Normal(mean, parameters["sigma"]).log_prob(data.y)

    return Target(
        priors={"alpha": dist.Normal(), "beta": dist.Normal(), "sigma": dist.LogNormal()},
        log_likelihood=log_likelihood,
        shapes={"alpha": (), "beta": (), "sigma": ()},
    )


# The three ingredients of a network: only the trees are nested.

NETWORK = MLP(hidden=(5, 10), outputs=1, activation="softplus")


def network_target(bias: dist.Distribution) -> Target:
    """Makes the target of the network: the prior `bias` for all biases, N(0, 1) for the kernels."""
    shapes = parameter_shapes(NETWORK, (1,))
    priors = {layer: {"bias": bias, "kernel": dist.Normal()} for layer in shapes}

    def log_likelihood(parameters: Parameters, data: Observations) -> jax.Array:
        return dist.Normal(outputs(parameters, data.x), parameters["noise"]).log_prob(data.y)

    return Target({"network": priors, "noise": dist.LogNormal()}, log_likelihood, {"network": shapes, "noise": ()})


def outputs(parameters: Parameters, x: jax.Array) -> jax.Array:
    """Predicts every row with these parameters."""
    return jax.vmap(lambda row: NETWORK.apply({"params": parameters["network"]}, row)[0])(x)


def configured_bnn() -> BNN:
    """Makes the network with Cauchy biases from `cauchy.toml`."""
    config = read_config(HERE / "cauchy.toml")
    return BNN(Model(network=config.network, likelihood=config.likelihood, feature_shape=(1,)), config.prior)


def largest_difference(one: Target, other: Target, data: Observations) -> float:
    """Returns the largest relative difference between two log densities at a hundred draws from the prior."""
    zs = jax.jit(jax.vmap(one.sample_prior))(jax.random.split(jax.random.key(5), 100))
    first, second = (
        jax.jit(jax.vmap(lambda z, target=target: target.log_density(z, data)))(zs) for target in (one, other)
    )
    return float(jnp.abs(first / second - 1).max())


# Sampling, diagnostics, prediction


def sample(title: str, target: Target, data: Observations, settings: NUTSConfig, *, network: bool = False) -> Chains:
    """Runs NUTS, each chain from its own draw of the prior; for a network also keeps its outputs."""
    key_starts, key_chains = jax.random.split(jax.random.key(0))
    starts = jax.jit(jax.vmap(target.sample_prior))(jax.random.split(key_starts, settings.chains))
    tracked = (lambda z: outputs(target.constrain(z), jnp.asarray(X[::2]))) if network else None
    with progress_bar(title) as report:
        return sample_chains(
            key_chains, kernel(target, settings), target, data, starts, settings, Journal(progress=report), tracked
        )


def by_name(target: Target, chains: Chains) -> list[dict[str, Any]]:
    """Returns a row for every number of the tree, at any depth, such as `network.Dense_0.bias[3]`."""
    leaves = jax.tree.leaves(parameters(target, chains))
    values = np.concatenate([leaf.reshape(*leaf.shape[:2], -1) for leaf in leaves], axis=2)
    tails = np.quantile(values, [0.05, 0.95], axis=(0, 1)).T
    # The shortest interval with 90 %, which NumPyro prints as 5.0 % and 95.0 %.
    shortest = hpdi(values.reshape(-1, values.shape[2]), 0.9).T
    rows = table(parameter_names(target), values, chains.seconds)
    return [
        row | {"5%": low, "95%": high, "hpdi": interval.tolist()}
        for row, (low, high), interval in zip(rows, tails, shortest, strict=True)
    ]


def predict(target: Target, chains: Chains, draws: int = 1000) -> tuple[np.ndarray, np.ndarray]:
    """Returns the means `[draws, rows]` of evenly spaced draws at `X`, and one noisy observation of each."""

    @jax.jit
    def predict_draws(zs: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        parameters_of_draws = jax.vmap(target.constrain)(zs)
        means = jax.vmap(outputs, in_axes=(0, None))(parameters_of_draws, X)
        return means, dist.Normal(means, parameters_of_draws["noise"][:, None]).sample(key)

    return jax.device_get(predict_draws(chains.thinned_positions(draws), jax.random.key(2)))


def prior_functions(target: Target, draws: int = 40) -> np.ndarray:
    """Returns the outputs of the network at `X` for draws of the prior: `[draws, rows]`."""
    keys = jax.random.split(jax.random.key(3), draws)
    return np.asarray(jax.jit(jax.vmap(lambda key: outputs(target.constrain(target.sample_prior(key)), X)))(keys))


def network_figures(target: Target, chains: Chains, settings: NUTSConfig, noisy: np.ndarray) -> dict[str, Any]:
    """Returns the diagnostics of a network's chains: for predictions, which decide, and for parameters."""
    facts = chain_diagnostics(target, chains, settings)
    rows = by_name(target, chains)
    worst = max(rows, key=lambda row: row["rhat"])
    low, high = np.quantile(noisy, [0.05, 0.95], axis=0)
    return {
        "noise": next(row for row in rows if row["name"] == "noise"),
        "worst_prediction": {name: facts.function.to_json()[name] for name in ("rhat", "ess_bulk", "ess_tail")},
        "worst_parameter": {name: worst[name] for name in ("name", "rhat", "ess_bulk")},
        "divergences": facts.divergences,
        "samples": facts.samples,
        "leapfrogs_per_sample": facts.leapfrogs_per_sample,
        "band_width": {"at 0": (high - low)[50], "at -1.3": (high - low)[0], "at 1.3": (high - low)[-1]},
        "shortfalls": texts(chain_shortfalls(facts)),
    }


# Without a bijector for sigma


def unbounded_target() -> Target:
    """Makes the same line with the article's sigma, which can be negative."""
    line = linear_target()

    def log_likelihood(parameters: Parameters, data: Observations) -> jax.Array:
        # The prior of sigma is here, so that `Target` uses sigma as a number without bounds.
        prior = dist.LogNormal().log_prob(parameters["sigma"])
        return line.log_likelihood(parameters, data) + prior / len(data.y)

    priors = line.priors | {"sigma": dist.ImproperUniform(dist.constraints.real, (), ())}
    return Target(priors, log_likelihood, line.shapes)


def sigma_figures(data: Observations, settings: NUTSConfig) -> dict[str, Any]:
    """Compares sigma with a bijector and without, from the same starts."""
    key, line, unbounded = jax.random.key(4), linear_target(), unbounded_target()
    starts = jax.jit(jax.vmap(line.sample_prior))(jax.random.split(key, settings.chains))
    same_starts = jax.vmap(lambda z: unbounded.unconstrain(line.constrain(z)))(starts)
    results = {}
    for name, target, first in (("with", line, starts), ("without", unbounded, same_starts)):
        chains = sample_chains(key, kernel(target, settings), target, data, first, settings, Journal())
        row = by_name(target, chains)[-1]
        results[name] = {column: row[column] for column in ("mean", "5%", "ess_bulk", "rhat")}
        results[name]["divergences"] = int(chains.column("diverging").sum())
    return results


# All steps


def main() -> None:
    """Runs all fits, and writes figures/ and numbers.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the work; the pictures go to a new folder")
    parser.add_argument("--out", type=Path, help="the folder for figures/ and numbers.json; default: this folder")
    options = parser.parse_args()
    folder = options.out or (Path(tempfile.mkdtemp(prefix="posterior-")) if options.quick else HERE)
    numbers = run_all(folder, 10 if options.quick else 1)
    (folder / "numbers.json").write_text(json.dumps(numbers, indent=2) + "\n", "utf-8")
    print(json.dumps(numbers, indent=2))
    print(f"{numbers['seconds']:.0f} s; see {folder}")


def run_all(folder: Path, less: int = 1) -> dict[str, Any]:
    """Runs all fits and writes the pictures; returns the numbers.

    Args:
        less: divides the numbers of samples and steps.
    """
    import pictures  # noqa: PLC0415 - in this folder; the import takes a second

    start_time, data = time.perf_counter(), points()
    figures = folder / "figures"
    figures.mkdir(parents=True, exist_ok=True)

    line, settings = linear_target(), NUTSConfig(chains=4, warmup=1000 // less, samples=1000 // less, reports=2)
    chains = sample("linear regression", line, data, settings)
    numbers: dict[str, Any] = {"linear": {row["name"]: row for row in by_name(line, chains)}}
    numbers["linear"]["divergences"] = int(chains.column("diverging").sum())
    numbers["four_points"] = sigma_figures(Observations(data.x[::33], data.y[::33]), settings)
    pictures.traces(figures / "linear.png", parameters(line, chains), line.priors, ARTICLE)

    configured = configured_bnn().target
    targets = {"N(0, 1) on everything": network_target(dist.Normal()), "Cauchy biases": configured}
    numbers["tree_against_config"] = largest_difference(network_target(dist.Cauchy()), configured, data)
    method: Any = read_config(HERE / "cauchy.toml").method
    shorter = method.model_copy(update={"warmup": method.warmup // less, "samples": method.samples // less})
    predicted, before = {}, {}
    for name, target in targets.items():
        chains = sample(name, target, data, shorter, network=True)
        predicted[name], before[name] = predict(target, chains), prior_functions(target)
        numbers[name] = network_figures(target, chains, shorter, predicted[name][1])
    pictures.bands(figures / "networks.png", data, predicted)
    pictures.functions(figures / "prior_posterior.png", data, before, {name: two[0] for name, two in predicted.items()})
    return round_tree(numbers | {"seconds": time.perf_counter() - start_time})


def round_tree(tree: Any) -> Any:
    """Rounds the numbers of a tree to four significant digits; returns plain JSON."""
    return jax.tree.map(lambda leaf: leaf if isinstance(leaf, int | str) else float(f"{leaf:.4g}"), tree)


if __name__ == "__main__":
    main()
