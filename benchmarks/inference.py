"""`make bench`, inference: the cost of a step and of an independent sample, compared with stock NumPyro.

All parts use one regression, 40 points of y = x sin 5x + 0.1 ε and a network of ten tanh units (32 parameters with the
noise), in one process, in turns, without compilation:

vi         steps per second of mean-field VI with ten particles, compared with a Python loop over NumPyro's `svi.update`
samplers   smallest ESS of f at 50 inputs on [−1.5, 1.5], per second of sampling, compared with NumPyro's NUTS: `MCMC` with its
           defaults, and the same kernel in a scan without `MCMC`, its chains in lockstep or one after the other;
           and the distance of mean and std of f from a long reference run, in Monte Carlo standard errors
gradient   the cost of a gradient within a sampler, compared with a plain one in a scan over as many chains
boxes      5,000 draws of HMC, 4 leapfrog steps, for a network of 20 parameters and 80 points
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import orjson
from arviz_stats.base.array import array_stats
from flax import linen as nn
from numpyro.contrib.module import random_flax_module
from numpyro.infer import MCMC, NUTS, SVI, TraceMeanField_ELBO
from numpyro.infer.autoguide import AutoNormal

from abstain.models.networks.architectures import MLP, MLPSpec
from abstain.models.prediction.posterior import Model
from abstain.training.config.methods import ChainSettings, ChEESConfig, HMCConfig, MILEConfig, NUTSConfig, VIConfig
from abstain.training.config.priors import PriorConfig
from abstain.training.data.embedded import EMBEDDED
from abstain.training.inference.bnn import BNN, Observations
from abstain.training.inference.chains import Chains, Kernel, sample_chains
from abstain.training.inference.guides import fit_guides
from abstain.training.inference.methods import chees, hmc, mile, nuts
from abstain.training.inference.problem import Problem
from abstain.training.runs.journal import Journal

RESULTS = Path(__file__).parent / "results"
GRID = np.linspace(-1.5, 1.5, 50, dtype=np.float32)[:, None]
NETWORK = MLP(hidden=(10,), outputs=1, activation="tanh")
SAMPLERS: dict[str, tuple[Any, ChainSettings]] = {
    "nuts": (nuts, NUTSConfig(chains=4, warmup=1000, samples=2000)),
    "hmc": (hmc, HMCConfig(chains=8, warmup=1000, samples=4000, leapfrogs=128, jitter=0.5, target_acceptance=0.9)),
    "chees": (chees, ChEESConfig(chains=16, warmup=1000, samples=4000)),
    "chees, 2 threads": (chees, ChEESConfig(chains=16, warmup=1000, samples=4000, chain_method="parallel", reports=4)),
    "mile": (mile, MILEConfig(chains=8, warmup=10_000, samples=2_000, thin=250, chain_method="vectorized")),
}


class Moments(NamedTuple):
    """Mean and standard deviation of f at the grid, and their Monte Carlo standard errors."""

    mean: np.ndarray
    std: np.ndarray
    mean_error: np.ndarray
    std_error: np.ndarray


def main() -> int:
    """Runs every part, prints the tables, and writes `benchmarks/results/inference.json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    results = {
        "vi": bench_vi(rounds),
        "gradient": bench_gradients(rounds),
        "samplers": bench_samplers(rounds),
        "boxes": bench_boxes(rounds),
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "inference.json").write_bytes(orjson.dumps(results, option=orjson.OPT_INDENT_2))
    return 0


def wave_problem() -> Problem:
    """Makes the regression for abstain."""
    arrays = EMBEDDED["wave"](50, 50)
    model = Model(network=MLPSpec(hidden=(10,), activation="tanh"), likelihood="normal", feature_shape=(1,))
    train = Observations(jnp.asarray(arrays["x_train"], jnp.float32), jnp.asarray(arrays["y_train"], jnp.float32))
    return Problem(BNN(model, PriorConfig(noise_scale=0.5)), train, Observations(jnp.asarray(GRID), jnp.zeros(50)))


def stock_model(x: jax.Array, y: jax.Array) -> None:
    """The same regression as a user of NumPyro writes it."""
    net = random_flax_module("net", NumpyroMLP(), prior=dist.Normal(0, 1), input_shape=x.shape)
    noise = numpyro.sample("s", dist.HalfCauchy(0.5))
    with numpyro.plate("data", len(y)):
        numpyro.sample("y", dist.Normal(net(x)[:, 0], noise), obs=y)


class NumpyroMLP(nn.Module):
    """The same network for a batch."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the outputs for a batch."""
        hidden = jnp.tanh(nn.Dense(10)(x))
        return nn.Dense(1)(hidden)


def bench_vi(rounds: int, steps: int = 4000) -> dict[str, Any]:
    """Measures the steps per second of VI: abstain, and a Python loop over stock SVI."""
    problem = wave_problem()
    settings = VIConfig(
        steps=steps, init_scale=1e-3, particles=10, learning_rate=1e-2, schedule="constant", clip=10.0, reports=4
    )
    start = jax.vmap(problem.bnn.start)(jax.random.split(jax.random.key(0), 1))
    guide = AutoNormal(stock_model, init_scale=1e-3)
    adam = optax.chain(optax.clip_by_global_norm(10.0), optax.scale_by_adam(), optax.scale(-1e-2))
    svi = SVI(stock_model, guide, adam, loss=TraceMeanField_ELBO(num_particles=10))
    state = svi.init(jax.random.key(0), *problem.train)
    update = jax.jit(svi.update)
    state, loss = update(state, *problem.train)
    ours, stock = [], []
    for _ in range(rounds):
        stamps: list[float] = []
        journal = Journal(progress=lambda *_, stamps=stamps, **__: stamps.append(time.perf_counter()))
        fit_guides(jax.random.key(1), problem, start, settings, journal)
        ours.append(steps / 4 * 3 / (stamps[-1] - stamps[0]))  # the first block compiles
        start_time = time.perf_counter()
        for _ in range(1000):
            state, loss = update(state, *problem.train)
            loss.item()
        stock.append(1000 / (time.perf_counter() - start_time))
    ratio = float(np.median(ours) / np.median(stock))
    print(f"VI, ten particles: {_spread(ours)} steps/s, Python loop on stock NumPyro {_spread(stock)}: {ratio:.2f} ×\n")
    return {"steps_per_second": ours, "stock": stock, "ratio": ratio}


def bench_gradients(rounds: int, steps: int = 2000, chains: int = 8) -> dict[str, Any]:
    """Measures the cost of a gradient within a sampler, and of a plain one in a scan over as many chains."""
    problem = wave_problem()
    target, data = problem.target, problem.train
    starts = jax.vmap(problem.bnn.start)(jax.random.split(jax.random.key(0), chains))
    gradient = jax.vmap(jax.grad(target.log_density), in_axes=(0, None))

    @jax.jit
    def bare(zs: jax.Array, data: Any) -> jax.Array:
        # Each step changes the position; otherwise XLA would move the gradient out of the loop.
        return jax.lax.scan(lambda zs, _: (zs + 1e-6 * gradient(zs, data), None), zs, None, length=steps)[0]

    settings: dict[str, tuple[Any, ChainSettings]] = {
        "hmc": (hmc, HMCConfig(chains=chains, warmup=50, samples=500, leapfrogs=10, step_size=1e-3)),
        "chees": (chees, ChEESConfig(chains=chains, warmup=200, samples=200)),
        "mile": (mile, MILEConfig(chains=chains, warmup=500, samples=2000, thin=1, chain_method="vectorized")),
    }
    bare(starts, data).block_until_ready()
    costs: dict[str, list[float]] = {"bare": [], **{name: [] for name in settings}}
    for _ in range(rounds):
        start_time = time.perf_counter()
        bare(starts, data).block_until_ready()
        costs["bare"].append((time.perf_counter() - start_time) / steps / chains)
        for name, (module, config) in settings.items():
            kernel = module.kernel(target, config)
            result = sample_chains(jax.random.key(0), kernel, target, data, starts, config, Journal())
            costs[name].append(result.seconds / float(result.column("leapfrogs").sum()))
    base = float(np.median(costs["bare"]))
    print(f"one gradient, {chains} chains in lockstep, µs per chain: plain {_spread(costs['bare'], 1e6)}")
    ratios = {name: float(np.median(costs[name])) / base for name in settings}
    for name, ratio in ratios.items():
        print(f"    within {name:<6} {_spread(costs[name], 1e6)}: {ratio:.2f} ×")
    print()
    return {"seconds": costs, "ratios": ratios}


def bench_samplers(rounds: int) -> dict[str, Any]:
    """Measures the smallest ESS of f per second of every sampler, compared with stock NUTS, and checks its moments."""
    problem = wave_problem()
    reference, check = reference_moments(problem)
    largest_offset = max(offsets(check, reference))
    print(
        f"reference: chees, 16 chains × 10,000; NUTS, 4 × 4,000, differs by at most {largest_offset:.2f} joint MCSE\n"
    )
    runs: dict[str, list[dict[str, float]]] = {"stock MCMC": [], "stock vectorized": [], "stock sequential": []}
    runs |= {name: [] for name in SAMPLERS}
    for number in range(rounds):
        runs["stock MCMC"].append(run_stock_mcmc(problem, number, reference))
        for chain_method in ("vectorized", "sequential"):
            runs[f"stock {chain_method}"].append(run_stock_nuts(problem, chain_method, number, reference))
        for name, (module, settings) in SAMPLERS.items():
            starts = jax.vmap(problem.bnn.start)(jax.random.split(jax.random.key(number), settings.chains))
            if name == "mile":
                starts = find_modes(problem, settings, number)
            start_time = time.perf_counter()
            result = _run(module.kernel(problem.target, settings), problem, settings, starts, number)
            whole = time.perf_counter() - start_time - result.compile_seconds
            runs[name].append(figures(result.column("values"), result.seconds, whole, reference))
    stock = _median(runs["stock MCMC"], "ess_per_second")
    best = max(_median(runs[name], "ess_per_second") for name in runs if name.startswith("stock"))
    print(
        f"{'sampler':<17} {'min ESS/s':>10} {'× stock':>8} {'× best stock':>13} {'with warm-up':>13} {'R-hat':>6} "
        f"{'off by (MCSE) mean, std':>24}"
    )
    for name, rows in runs.items():
        rate = _median(rows, "ess_per_second")
        print(
            f"{name:<17} {rate:>10.1f} {rate / stock:>8.1f} {rate / best:>13.1f} "
            f"{_median(rows, 'ess_per_second_in_all'):>13.1f} "
            f"{_median(rows, 'rhat'):>6.3f} {_median(rows, 'mean_off'):>14.2f} {_median(rows, 'std_off'):>9.2f}"
        )
    print()
    return {"runs": runs, "reference_check": largest_offset}


def find_modes(problem: Problem, settings: ChainSettings, seed: int) -> jax.Array:
    """Finds modes for MILE to start from; like compilation, this is not timed."""
    from abstain.training.inference.starts import find_starts  # noqa: PLC0415

    return find_starts(jax.random.key(seed), problem, settings, settings.chains, Journal())


def _run(kernel: Kernel, problem: Problem, settings: ChainSettings, starts: jax.Array, seed: int = 0) -> Chains:
    def f(z: jax.Array) -> jax.Array:
        return jax.vmap(lambda x: NETWORK.apply({"params": problem.target.constrain(z)["network"]}, x)[0])(GRID)

    key = jax.random.key(100 + seed)
    return sample_chains(key, kernel, problem.target, problem.train, starts, settings, Journal(), f)


def reference_moments(problem: Problem) -> tuple[Moments, Moments]:
    """Returns the moments of f from long runs of two samplers; the second one checks the first."""
    moments_of_runs = []
    for module, settings in (
        (chees, ChEESConfig(chains=16, warmup=1000, samples=10_000)),
        (nuts, NUTSConfig(chains=4, warmup=1000, samples=4_000)),
    ):
        starts = jax.vmap(problem.bnn.start)(jax.random.split(jax.random.key(9), settings.chains))
        result = _run(module.kernel(problem.target, settings), problem, settings, starts)
        moments_of_runs.append(moments(result.column("values")))
    return moments_of_runs[0], moments_of_runs[1]


def moments(values: np.ndarray) -> Moments:
    """Computes the moments over chains and samples; the error of the std is that of the second moment by the delta method."""
    exact = values.astype(np.float64)
    axes = {"chain_axis": 0, "draw_axis": 1}
    mean, std = exact.mean(axis=(0, 1)), exact.std(axis=(0, 1))
    squares = (exact - mean) ** 2
    return Moments(
        mean,
        std,
        array_stats.mcse(exact, method="mean", **axes),
        array_stats.mcse(squares, method="mean", **axes) / (2 * std),
    )


def offsets(measured: Moments, reference: Moments) -> tuple[float, float]:
    """Returns the largest distances of mean and std from those of the reference, in joint standard errors."""
    mean = np.abs(measured.mean - reference.mean) / np.hypot(measured.mean_error, reference.mean_error)
    std = np.abs(measured.std - reference.std) / np.hypot(measured.std_error, reference.std_error)
    return float(mean.max()), float(std.max())


def figures(values: np.ndarray, seconds: float, whole: float, reference: Moments) -> dict[str, float]:
    """Returns the figures of one run for the table."""
    axes = {"chain_axis": 0, "draw_axis": 1}
    exact = values.astype(np.float64)
    ess = float(np.min(array_stats.ess(exact, method="bulk", **axes)))
    mean_off, std_off = offsets(moments(values), reference)
    return {
        "ess": ess,
        "ess_per_second": ess / seconds,
        "ess_per_second_in_all": ess / whole,
        "seconds": seconds,
        "rhat": float(np.max(array_stats.rhat(exact, method="rank", **axes))),
        "mean_off": mean_off,
        "std_off": std_off,
    }


def run_stock_mcmc(problem: Problem, seed: int, reference: Moments) -> dict[str, float]:
    """Runs NumPyro's MCMC with its defaults, 2 chains × (500 + 1000), one after the other, with a progress bar."""
    mcmc = MCMC(NUTS(stock_model), num_warmup=500, num_samples=1000, num_chains=2)
    data = tuple(problem.train)
    start_time = time.perf_counter()
    mcmc.warmup(jax.random.PRNGKey(seed), *data)
    mcmc.post_warmup_state = mcmc.last_state
    warm_time = time.perf_counter()
    mcmc.run(mcmc.post_warmup_state.rng_key, *data)
    end_time = time.perf_counter()
    return figures(
        stock_values(mcmc.get_samples(group_by_chain=True)), end_time - warm_time, end_time - start_time, reference
    )


def stock_values(z: dict[str, jax.Array]) -> np.ndarray:
    """Computes the function at the grid, `[chains, samples, 50]`, from samples of NumPyro."""

    def f(z: dict[str, jax.Array]) -> jax.Array:
        hidden = jnp.tanh(GRID @ z["net/Dense_0.kernel"] + z["net/Dense_0.bias"])
        return (hidden @ z["net/Dense_1.kernel"] + z["net/Dense_1.bias"])[:, 0]

    return np.asarray(jax.jit(jax.vmap(jax.vmap(f)))(z))


def run_stock_nuts(problem: Problem, chain_method: str, seed: int, reference: Moments) -> dict[str, float]:
    """Runs the same kernel in a scan without `MCMC`, compiled beforehand."""
    kernel, chains, warmup, samples = NUTS(stock_model), 2, 500, 1000
    keys = jax.random.split(jax.random.key(seed), chains)
    data = tuple(problem.train)

    def start_chain(key: jax.Array) -> Any:
        return kernel.init(key, warmup, init_params=None, model_args=data)

    states = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[start_chain(key) for key in keys])

    def run_steps(state: Any, steps: int) -> tuple[Any, Any]:
        """Makes so many transitions; returns the last state and all positions."""

        def step(state: Any, _: None) -> tuple[Any, Any]:
            state = kernel.sample(state, data, {})
            return state, state.z

        return jax.lax.scan(step, state, None, length=steps)

    def compile_over_chains(function: Callable[[Any], Any]) -> Any:
        mapped = jax.vmap(function) if chain_method == "vectorized" else lambda states: jax.lax.map(function, states)
        return jax.jit(mapped).lower(states).compile()

    warm = compile_over_chains(lambda state: run_steps(state, warmup)[0])
    run = compile_over_chains(lambda state: run_steps(state, samples))
    start_time = time.perf_counter()
    states = jax.block_until_ready(warm(states))
    warm_time = time.perf_counter()
    _, z = jax.block_until_ready(run(states))
    end_time = time.perf_counter()
    return figures(stock_values(z), end_time - warm_time, end_time - start_time, reference)


def bench_boxes(rounds: int) -> dict[str, Any]:
    """Measures 5,000 draws of each of two chains of HMC(0.05, 4), for 20 parameters and 80 points."""
    arrays = EMBEDDED["boxes"](50, 50)
    model = Model(
        network=MLPSpec(hidden=(3, 2), activation="tanh"),
        likelihood="bernoulli",
        feature_shape=(2,),
        class_names=("0", "1"),
    )
    train = Observations(jnp.asarray(arrays["x_train"], jnp.float32), jnp.asarray(arrays["y_train"]))
    problem = Problem(BNN(model, PriorConfig(scale=1 / 0.09**0.5)), train, train)
    settings = HMCConfig(
        chains=2, warmup=1, samples=5000, step_size=0.05, leapfrogs=4, adaptation="none", mass_matrix="unit", reports=1
    )
    kernel = hmc.kernel(problem.target, settings)
    starts = jax.vmap(problem.bnn.start)(jax.random.split(jax.random.key(0), 2))
    seconds = []
    for _ in range(rounds):
        result = sample_chains(
            jax.random.key(0), kernel, problem.target, problem.train, starts, settings, Journal(), None
        )
        seconds.append(result.seconds)
    print(f"boxes: 5,000 draws of two chains in {_spread(seconds)} s")
    return {"seconds": seconds}


def _median(rows: list[dict[str, float]], name: str) -> float:
    return float(np.median([row[name] for row in rows]))


def _spread(values: list[float], unit: float = 1.0) -> str:
    low, middle, high = np.quantile(np.array(values) * unit, [0.25, 0.5, 0.75])
    return f"{middle:.3g} ({low:.3g} … {high:.3g})"


if __name__ == "__main__":
    sys.exit(main())
