"""A wave and three spirals: predictions of a small Bayesian network away from its data.

    python examples/wave_and_spirals/run.py            # three minutes on two cores
    python examples/wave_and_spirals/run.py --quick    # the same with too little work for reliable results

Forty noisy points of x·sin 5x, fitted by NUTS, by ChEES-HMC and by variational inference; five networks and priors with
different results; three spirals of points, fitted by a Bayesian and by a deterministic classifier. It writes pictures to
`figures/` and numbers to `numbers.json`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

from abstain.models.bundles.shortfalls import texts
from abstain.models.networks.architectures import MLPSpec
from abstain.models.prediction.posterior import Model, Posterior
from abstain.models.prediction.predictive import Predictor, predict_draw
from abstain.training.config.methods import ChEESConfig, MAPConfig, NUTSConfig, VIConfig
from abstain.training.config.priors import PriorConfig
from abstain.training.fit import METHODS
from abstain.training.inference.bnn import BNN, Observations
from abstain.training.inference.chains import parameters
from abstain.training.inference.diagnostics import table
from abstain.training.inference.problem import Fitted, Problem
from abstain.training.runs.journal import Journal
from abstain.training.runs.progress import progress_bar

HERE = Path(__file__).resolve().parent
ABLATIONS: dict[str, dict[str, Any]] = {
    "as above": {},
    "prior std 0.1": {"prior_std": 0.1},
    "prior std 10": {"prior_std": 10.0},
    "2 hidden units": {"hidden": (2,)},
    "100 hidden units": {"hidden": (100,)},
    "ReLU": {"activation": "relu"},
}
X = np.linspace(-1.5, 1.5, 200, dtype=np.float32)[:, None]
"""The inputs of the predictions of the wave; the data are in [−1, 1]."""
FAR = 0.1
"""Points of the map with a larger distance to the nearest training point are far from the data."""


# The wave


def wave() -> Observations:
    """Draws the article's forty points, with the random generator of its older JAX."""
    with jax.threefry_partitionable(False):
        x = dist.Uniform(-1.0, 1.0).sample(jax.random.PRNGKey(0), (40, 1))
        noise = dist.Normal(0.0, 0.1).sample(jax.random.split(jax.random.PRNGKey(0))[0], (40, 1))
    return Observations(x, (x * jnp.sin(5 * x) + noise)[:, 0])


def pose_wave(hidden: tuple[int, ...] = (10,), activation: str = "tanh", prior_std: float = 1.0) -> Problem:
    """Builds network, prior and data; the diagnostics use predictions on the whole of [−1.5, 1.5]."""
    model = Model(network=MLPSpec(hidden=hidden, activation=activation), likelihood="normal", feature_shape=(1,))
    grid = jnp.asarray(X[::4])
    prior = PriorConfig(scale=prior_std, noise="half_cauchy", noise_scale=0.5)
    return Problem(BNN(model, prior), wave(), Observations(grid, jnp.zeros(len(grid))))


def infer(title: str, problem: Problem, settings: Any, draws: int) -> Fitted:
    """Runs the method of the settings, with a progress bar."""
    with progress_bar(title) as report:
        return METHODS[settings.kind](jax.random.key(1234), problem, settings, draws, Journal(progress=report))


def band(posterior: Posterior, x: np.ndarray = X) -> np.ndarray:
    """Returns the 2.5, 50 and 97.5 % quantiles over draws of the network's output, without noise: `[3, rows]`."""
    predict = jax.vmap(partial(predict_draw, posterior.model), in_axes=(None, 0))
    means = jax.jit(jax.vmap(predict, in_axes=(0, None)))(posterior.draws, x)[..., 0]
    return np.quantile(means, [0.025, 0.5, 0.975], axis=0)


def chain_figures(problem: Problem, fitted: Fitted) -> dict[str, Any]:
    """Returns the numbers of the article's table, and the shortfalls of the fit."""
    facts, chains = fitted.diagnostics.to_json(), fitted.chains
    noise = parameters(problem.target, chains)["noise"]
    row = table(["noise"], noise[..., None], chains.seconds)[0]
    low, high = np.quantile(noise, [0.05, 0.95])
    return {
        "noise": {name: row[name] for name in ("mean", "std", "mcse", "ess_bulk", "rhat")} | {"5%": low, "95%": high},
        "worst_parameter": {name: facts["parameters"][name] for name in ("ess_bulk", "rhat")},
        "worst_prediction": {name: facts["function"][name] for name in ("ess_bulk", "ess_tail", "rhat")},
        "divergences": facts["divergences"],
        "samples": facts["samples"],
        "leapfrogs_per_sample": facts["leapfrogs_per_sample"],
        "at_the_deepest_tree": facts.get("max_tree_depth_hits"),
        "sampling_seconds": facts["sampling_seconds"],
        "shortfalls": texts(fitted.shortfalls),
    }


def widths(quantiles: np.ndarray) -> dict[str, float]:
    """Returns the width of the band: the mean between the data, and at both ends of the picture."""
    width = quantiles[2] - quantiles[0]
    return {"inside": width[np.abs(X[:, 0]) <= 1].mean(), "at -1.5": width[0], "at 1.5": width[-1]}


# The spirals


def spirals(points: int = 100) -> Observations:
    """Draws three arms of radius 0 … 0.5 that turn by 4 radians, with 0.2 radians of noise."""
    rng = np.random.default_rng(0)
    turn = np.linspace(0, 1, points)
    angles = np.concatenate([4 * (arm + turn) + 0.2 * rng.normal(size=points) for arm in range(3)])
    x = 0.5 * np.tile(turn, 3)[:, None] * np.stack([np.sin(angles), np.cos(angles)], axis=1)
    return Observations(jnp.asarray(x, jnp.float32), jnp.repeat(jnp.arange(3), points))


def pose_spirals() -> Problem:
    """Builds the problem of the spirals: a hundred hidden units, a wide prior, three classes."""
    model = Model(
        network=MLPSpec(hidden=(100,), activation="relu"),
        likelihood="categorical",
        feature_shape=(2,),
        class_names=("first", "second", "third"),
    )
    return Problem(BNN(model, PriorConfig(scale=10.0)), spirals(), spirals())


def infer_spirals(problem: Problem, steps: int) -> tuple[Posterior, Posterior]:
    """Fits the Bayesian classifier, and the deterministic one: the mode of the same posterior."""
    rows = len(problem.train.y)
    adam: dict[str, Any] = {"steps": steps, "batch_size": rows, "learning_rate": 1e-2, "schedule": "constant"}
    # Losses are per row. The article clips the gradient of a sum over rows at 10, but for the mode that of a mean.
    guide = VIConfig(**adam, clip=10 / rows, init_scale=1e-2, particles=10)
    mode = MAPConfig(**adam, clip=10.0, held_out=0.0)
    bayesian = infer("spirals, variational inference", problem, guide, draws=100).posterior
    return bayesian, infer("spirals, deterministic twin", problem, mode, draws=1).posterior


def maps(posterior: Posterior, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the most probable class of every point, and the entropy of the mean prediction in nats."""
    summary = Predictor(posterior, buckets=(256,))(points).summary
    return summary.mean.argmax(axis=1), summary.entropy


def label_draws(posterior: Posterior, points: np.ndarray, draws: int = 3) -> np.ndarray:
    """Draws a label for every point from each of the first few draws: `[draws, points]`."""
    first_draws = jax.tree.map(lambda leaf: leaf[:draws], posterior.draws)
    predict = jax.vmap(partial(predict_draw, posterior.model), in_axes=(None, 0))
    logits = jax.jit(jax.vmap(predict, in_axes=(0, None)))(first_draws, points)
    return np.asarray(jax.random.categorical(jax.random.key(1), logits))


def square(step: float = 0.01) -> np.ndarray:
    """Returns the points of the map [−0.5, 0.5)², row by row."""
    ticks = np.arange(-0.5, 0.5, step)
    return np.stack(np.meshgrid(ticks, ticks), axis=-1).reshape(-1, 2).astype(np.float32)


def ring(radius: float) -> np.ndarray:
    """Returns 360 points at a distance from the centre; the spirals end at 0.5."""
    angles = np.linspace(0, 2 * np.pi, 360, endpoint=False)
    return (radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)).astype(np.float32)


def entropies(posterior: Posterior, data: Observations, points: np.ndarray) -> dict[str, float]:
    """Returns the mean entropy in nats (at most ln 3 ≈ 1.10) near the data, far from it, and far outside the picture."""
    distance = np.linalg.norm(points[:, None] - np.asarray(data.x)[None], axis=-1).min(axis=1)
    entropy = maps(posterior, points)[1]
    return {
        "accuracy": (maps(posterior, np.asarray(data.x))[0] == np.asarray(data.y)).mean(),
        "near": entropy[distance < FAR / 2].mean(),
        "far": entropy[distance > FAR].mean(),
        "radius 1": maps(posterior, ring(1.0))[1].mean(),
        "radius 2": maps(posterior, ring(2.0))[1].mean(),
    }


# All steps


def main() -> None:
    """Runs all fits, and writes figures/ and numbers.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the work; the pictures go to a new folder")
    parser.add_argument("--out", type=Path, help="the folder for figures/ and numbers.json; default: this folder")
    options = parser.parse_args()
    folder = options.out or (Path(tempfile.mkdtemp(prefix="wave-")) if options.quick else HERE)
    less = 10 if options.quick else 1
    numbers = run_all(folder, less)
    (folder / "numbers.json").write_text(json.dumps(numbers, indent=2) + "\n", "utf-8")
    print(json.dumps(numbers, indent=2))
    print(f"{numbers['seconds']:.0f} s; see {folder}")


def run_all(folder: Path, less: int = 1) -> dict[str, Any]:
    """Runs all fits and writes the pictures; returns the numbers.

    Args:
        less: divides the numbers of samples and steps.
    """
    import pictures  # noqa: PLC0415 - in this folder; the import takes a second

    start_time, numbers = time.perf_counter(), {}
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    problem = pose_wave()

    article = NUTSConfig(chains=2, warmup=200, samples=2000 // less, reports=5)
    longer = ChEESConfig(chains=16, warmup=1000 // less, samples=5000 // less, reports=5)
    by_nuts = infer("wave, NUTS", problem, article, draws=4000 // less)
    by_chees = infer("wave, ChEES-HMC", problem, longer, draws=4000 // less)
    for name, fitted in (("nuts", by_nuts), ("chees", by_chees)):
        numbers[name] = chain_figures(problem, fitted) | {"band_width": widths(band(fitted.posterior))}
    pictures.bands(
        folder / "figures" / "wave.png",
        problem.train,
        {"NUTS, 2 × 2,000 samples": band(by_nuts.posterior), "ChEES-HMC, 16 × 5,000": band(by_chees.posterior)},
    )

    short = ChEESConfig(chains=8, warmup=500 // less, samples=500 // less, reports=2)
    bands, numbers["ablations"] = {}, {}
    for name, choice in ABLATIONS.items():
        fitted = by_chees if not choice else infer(name, pose_wave(**choice), short, draws=2000 // less)
        function = fitted.diagnostics.to_json()["function"]
        title = f"{name} (R-hat {function['rhat']:.2f})"
        bands[title] = band(fitted.posterior)
        numbers["ablations"][name] = {"noise": fitted.posterior.draws["noise"].mean(), "rhat": function["rhat"]}
        numbers["ablations"][name] |= {"ess_bulk": function["ess_bulk"], "band_width": widths(bands[title])}
    pictures.bands(folder / "figures" / "ablations.png", problem.train, bands)

    wide = pose_wave(prior_std=10.0)
    guide = VIConfig(
        steps=10_000 // less,
        learning_rate=1e-2,
        schedule="constant",
        clip=10 / 40,  # of the mean over forty rows; 10 for their sum
        particles=10,
        init_scale=1e-3,
    )
    by_vi = infer("wave, variational inference", wide, guide, draws=1000)
    loss = 40 * np.array(by_vi.diagnostics.to_json()["loss"])
    numbers["vi"] = {
        "negative_elbo": {"first": loss[0], "last": loss[-1]},
        "noise": by_vi.posterior.draws["noise"].mean(),
    }
    numbers["vi"] |= {"band_width": widths(band(by_vi.posterior))}
    pictures.variational(
        folder / "figures" / "variational.png", problem.train, loss, guide.steps, band(by_vi.posterior)
    )

    classes, points = pose_spirals(), square()
    bayesian, twin = infer_spirals(classes, 10_000 // less)
    both = {"Bayesian": maps(bayesian, points), "deterministic twin": maps(twin, points)}
    pictures.labels(folder / "figures" / "spirals_draws.png", classes.train, label_draws(bayesian, points))
    pictures.maps(folder / "figures" / "spirals_maps.png", classes.train, both)
    numbers["spirals"] = {
        name: entropies(posterior, classes.train, points)
        for name, posterior in (("bayesian", bayesian), ("twin", twin))
    }
    return round_tree(numbers | {"seconds": time.perf_counter() - start_time})


def round_tree(tree: Any) -> Any:
    """Rounds the numbers of a tree to four significant digits; returns plain JSON."""
    return jax.tree.map(lambda leaf: leaf if isinstance(leaf, int | str) else float(f"{leaf:.4g}"), tree)


if __name__ == "__main__":
    main()
