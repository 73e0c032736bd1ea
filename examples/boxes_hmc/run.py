"""Eighty points in four boxes: a Monte Carlo run that looks well, what the diagnostics say of it, and one that passes.

    python examples/boxes_hmc/run.py            # about two minutes on two cores
    python examples/boxes_hmc/run.py --quick    # the same story, too short to believe

A 2-3-2-1 network of 20 parameters with N(0, 1/0.09) priors: by HMC with the article's fixed step size and number of
leapfrog steps, by ChEES-HMC, which adapts both and still does not pass the project's gate, and by parallel tempering
(`tempering.py`, a sampler of this example's own), which does. Pictures go to `figures/`, figures to `numbers.json`.
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
import tempering

from abstain.models.bundles.shortfalls import texts
from abstain.models.networks.architectures import MLPSpec
from abstain.models.prediction.posterior import Draws
from abstain.models.prediction.predictive import predict_draw
from abstain.training.config.config import Config
from abstain.training.config.data import DataConfig
from abstain.training.config.methods import ChainSettings, ChEESConfig, HMCConfig
from abstain.training.config.priors import PriorConfig
from abstain.training.fit import build_model, build_problem, load_dataset
from abstain.training.inference.chains import Kernel
from abstain.training.inference.diagnostics import parameter_names, table
from abstain.training.inference.methods import chees, hmc
from abstain.training.inference.problem import Fitted, Problem
from abstain.training.inference.sampling import fit_by_chains
from abstain.training.runs.journal import Journal
from abstain.training.runs.progress import progress_bar

HERE = Path(__file__).resolve().parent
ARTICLE = {"seconds": 24.23, "ess_bulk": [14.3, 76.1], "rhat": [1.0004, 1.3708]}
"""What the article prints of its 5,000 draws: over the parameters, the least and the largest."""
CONFIG = Config(
    name="boxes",
    likelihood="bernoulli",
    data=DataConfig(source="boxes", calibration_size=50, test_size=50, inputs="none"),
    network=MLPSpec(hidden=(3, 2), activation="tanh"),
    prior=PriorConfig(scale=(1 / 0.09) ** 0.5),
)
FIXED = {"start": "prior", "step_size": 0.05, "leapfrogs": 4, "adaptation": "none", "mass_matrix": "unit", "warmup": 1}
"""The article's sampler: nothing is adapted, so there is nothing to warm up."""
SQUARE = np.stack(np.meshgrid(*[np.linspace(-6, 6, 61)] * 2), axis=-1).reshape(-1, 2).astype(np.float32)
"""The places of the maps, row by row."""


def pose_boxes() -> Problem:
    """Data, network and prior; the diagnostics look at predictions for fifty other points of the same four boxes."""
    dataset = load_dataset(CONFIG, None)
    return build_problem(CONFIG, build_model(CONFIG, dataset), dataset, HERE)


def fixed_hmc(problem: Problem, samples: int = 5000, seed: int = 0) -> Fitted:
    """The article's sampler, four chains of it: one alone cannot say that it disagrees with another."""
    settings = HMCConfig(**FIXED, chains=4, samples=samples, reports=1)
    return sample("HMC as in the article", hmc.kernel(problem.target, settings), problem, settings, seed)


def adapted(problem: Problem, samples: int = 4000, warmup: int = 1000, seed: int = 0) -> Fitted:
    """Eight chains in lockstep that adapt their step size, their metric and their trajectories' length."""
    settings = ChEESConfig(chains=8, warmup=warmup, samples=samples, start="prior", target_acceptance=0.5, reports=5)
    return sample("ChEES-HMC", chees.kernel(problem.target, settings), problem, settings, seed)


def tempered(problem: Problem, samples: int = 10_000, warmup: int = 500, seed: int = 0) -> Fitted:
    """Four chains, each the coldest of a ladder of ten."""
    settings = ChainSettings(chains=4, warmup=warmup, samples=samples, start="prior", reports=5)
    return sample("parallel tempering", tempering.kernel(problem.target), problem, settings, seed)


def sample(title: str, kernel: Kernel, problem: Problem, settings: ChainSettings, seed: int) -> Fitted:
    """Runs a sampler with progress lines; returns also its diagnostics and shortfalls."""
    with progress_bar(title) as report:
        journal = Journal(progress=report)
        return fit_by_chains(jax.random.key(seed), kernel, problem, settings, min(1000, settings.samples), journal)


def first_chain(problem: Problem, fitted: Fitted) -> list[dict[str, Any]]:
    """The article's table: a row for each number of the flat vector, with its name in the tree.

    R-hat of one chain is that of its two halves.
    """
    assert fitted.chains is not None  # noqa: S101 - a sampler made it
    position = fitted.chains.column("position")[0]
    halves = np.stack(np.array_split(position[: len(position) // 2 * 2], 2))
    return table(parameter_names(problem.target), halves, fitted.chains.seconds)


def every_tenth(fitted: Fitted, of: int = 1500) -> np.ndarray:
    """The first chain's positions that the article averages over."""
    assert fitted.chains is not None  # noqa: S101
    return fitted.chains.column("position")[0, :of:10]


def likeliest(fitted: Fitted) -> np.ndarray:
    """The first chain's position of highest posterior density."""
    assert fitted.chains is not None  # noqa: S101
    return fitted.chains.column("position")[0, [fitted.chains.column("log_density")[0].argmax()]]


def maps(problem: Problem, draws: Draws) -> np.ndarray:
    """The probability of class 1 at every place of the square, by every draw: `[draws, places]`."""
    of_draw = jax.vmap(partial(predict_draw, problem.bnn.model), in_axes=(None, 0))
    log_probabilities = jax.jit(jax.vmap(of_draw, in_axes=(0, None)))(draws, jnp.asarray(SQUARE))
    return np.exp(log_probabilities[..., 1])


def facts_of(fitted: Fitted) -> dict[str, Any]:
    """The diagnostics and the shortfalls."""
    facts = fitted.diagnostics.to_json()
    kept = ("samples", "acceptance", "divergences", "leapfrogs_per_sample", "sampling_seconds", "warmup_seconds")
    return {
        "worst_prediction": {name: facts["function"][name] for name in ("rhat", "ess_bulk", "ess_tail")},
        "worst_parameter": {name: facts["parameters"][name] for name in ("rhat", "ess_bulk", "ess_tail")},
        "ebfmi": min(facts["ebfmi"]),
        **{name: facts[name] for name in kept},
        "shortfalls": texts(fitted.shortfalls),
    }


def main() -> None:
    """Samples twice, draws everything, and writes down what came out."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--quick", action="store_true", help="a tenth of the work; the pictures go to a new folder")
    options.add_argument("--out", type=Path, help="where figures/ and numbers.json go; else this folder")
    given = options.parse_args()
    folder = given.out or (Path(tempfile.mkdtemp(prefix="boxes-")) if given.quick else HERE)
    numbers = tell(folder, 10 if given.quick else 1)
    (folder / "numbers.json").write_text(json.dumps(numbers, indent=2, ensure_ascii=False) + "\n", "utf-8")
    print_table(numbers["table"])
    for name in ("fixed", "adapted", "tempered"):
        facts = numbers[name]
        print(f"\n{name}: {facts['samples']} samples in {facts['sampling_seconds']} s", facts["worst_prediction"])
        print("\n".join(f"  falls short: {message}" for message in facts["shortfalls"]) or "  no shortfalls")
    print(f"\n{numbers['seconds']:.0f} s; see {folder}")


def tell(folder: Path, less: int = 1) -> dict[str, Any]:
    """The whole story, with `less` times less work."""
    import pictures  # noqa: PLC0415 - in this folder, and a second to import

    began = time.perf_counter()
    figures = folder / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    problem = pose_boxes()
    fixed = fixed_hmc(problem, samples=5000 // less)
    longer = adapted(problem, samples=4000 // less, warmup=1000 // less)
    passing = tempered(problem, samples=10_000 // less, warmup=500 // less)
    assert fixed.chains is not None  # noqa: S101

    draws = problem.bnn.draws
    pictures.contours(
        figures / "contours.png",
        problem.train,
        SQUARE,
        {
            "highest posterior density": maps(problem, draws(likeliest(fixed))),
            "mean of every tenth of 1,500 draws": maps(problem, draws(every_tenth(fixed, 1500 // less))),
            "mean of the run that passes": maps(problem, passing.posterior.draws),
        },
    )
    pictures.chains(
        figures / "chains.png", {"HMC as in the article": fixed, "ChEES-HMC": longer, "parallel tempering": passing}
    )
    steps = np.arange(0, 5000 // less, 250 // less)
    frames = fixed.chains.column("position")[0, steps]
    pictures.animation(figures / "draws.gif", problem.train, SQUARE, maps(problem, draws(frames)), steps)

    numbers = {
        "article": ARTICLE,
        "table": first_chain(problem, fixed),
        "fixed": facts_of(fixed),
        "adapted": facts_of(longer),
        "tempered": facts_of(passing),
        "seconds": time.perf_counter() - began,
    }
    return rounded(numbers)


def print_table(rows: list[dict[str, Any]]) -> None:
    """The first chain's parameters, flat and by name."""
    columns = [name for name in rows[0] if name != "name"]
    print(f"{'':4}{'':28}" + "".join(f"{name.replace('_per_second', '/s'):>10}" for name in columns))
    for place, row in enumerate(rows, start=1):
        print(f"[{place:2}]{row['name']:>28}" + "".join(f"{row[name]:10.4g}" for name in columns))


def rounded(tree: Any) -> Any:
    """A tree of plain JSON, four significant digits."""
    if isinstance(tree, dict):
        return {name: rounded(value) for name, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [rounded(value) for value in tree]
    return tree if isinstance(tree, int | str) else float(f"{tree:.4g}")


if __name__ == "__main__":
    main()
