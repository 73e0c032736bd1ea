"""Eighty points in four boxes: a Monte Carlo run that seems good but fails the diagnostics, and one that passes them.

    python examples/boxes_hmc/run.py            # about two minutes on two cores
    python examples/boxes_hmc/run.py --quick    # the same with too little work for reliable results

A 2-3-2-1 network of 20 parameters with N(0, 1/0.09) priors, sampled by HMC with the article's fixed step size and number of
leapfrog steps; by ChEES-HMC, which adapts both but fails the publication checks; and by parallel tempering, which passes
them (`tempering.py`, a sampler of this example). It writes pictures to `figures/` and numbers to `numbers.json`.
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
"""The article's figures of its 5,000 draws: the smallest and the largest over the parameters."""
CONFIG = Config(
    name="boxes",
    likelihood="bernoulli",
    data=DataConfig(source="boxes", calibration_size=50, test_size=50, inputs="none"),
    network=MLPSpec(hidden=(3, 2), activation="tanh"),
    prior=PriorConfig(scale=(1 / 0.09) ** 0.5),
)
FIXED = {"start": "prior", "step_size": 0.05, "leapfrogs": 4, "adaptation": "none", "mass_matrix": "unit", "warmup": 1}
"""The article's sampler: without adaptation it needs no warm-up."""
SQUARE = np.stack(np.meshgrid(*[np.linspace(-6, 6, 61)] * 2), axis=-1).reshape(-1, 2).astype(np.float32)
"""The inputs of the maps, row by row."""


def pose_boxes() -> Problem:
    """Builds data, network and prior; the diagnostics use predictions for fifty other points of the same four boxes."""
    dataset = load_dataset(CONFIG, None)
    return build_problem(CONFIG, build_model(CONFIG, dataset), dataset)


def sample_fixed(problem: Problem, samples: int = 5000, seed: int = 0) -> Fitted:
    """Runs four chains of the article's sampler: a single chain cannot show a disagreement between chains."""
    settings = HMCConfig(**FIXED, chains=4, samples=samples, reports=1)
    return sample("HMC as in the article", hmc.kernel(problem.target, settings), problem, settings, seed)


def sample_adapted(problem: Problem, samples: int = 4000, warmup: int = 1000, seed: int = 0) -> Fitted:
    """Runs eight chains in lockstep that adapt their step size, metric and trajectory length."""
    settings = ChEESConfig(chains=8, warmup=warmup, samples=samples, start="prior", target_acceptance=0.5, reports=5)
    return sample("ChEES-HMC", chees.kernel(problem.target, settings), problem, settings, seed)


def sample_tempered(problem: Problem, samples: int = 10_000, warmup: int = 500, seed: int = 0) -> Fitted:
    """Runs four chains, each the coldest replica of a ladder of ten."""
    settings = ChainSettings(chains=4, warmup=warmup, samples=samples, start="prior", reports=5)
    return sample("parallel tempering", tempering.kernel(problem.target), problem, settings, seed)


def sample(title: str, kernel: Kernel, problem: Problem, settings: ChainSettings, seed: int) -> Fitted:
    """Runs a sampler with a progress bar; the result includes diagnostics and shortfalls."""
    with progress_bar(title) as report:
        journal = Journal(progress=report)
        return fit_by_chains(jax.random.key(seed), kernel, problem, settings, min(1000, settings.samples), journal)


def first_chain(problem: Problem, fitted: Fitted) -> list[dict[str, Any]]:
    """Returns the article's table: a row for each number of the flat vector, with its name in the tree.

    R-hat compares the two halves of the chain.
    """
    assert fitted.chains is not None  # noqa: S101 - a sampler made it
    position = fitted.chains.column("position")[0]
    halves = np.stack(np.array_split(position[: len(position) // 2 * 2], 2))
    return table(parameter_names(problem.target), halves, fitted.chains.seconds)


def every_tenth(fitted: Fitted, draws: int = 1500) -> np.ndarray:
    """Returns the positions of the first chain that the article averages."""
    assert fitted.chains is not None  # noqa: S101
    return fitted.chains.column("position")[0, :draws:10]


def most_probable(fitted: Fitted) -> np.ndarray:
    """Returns the position of the first chain with the highest posterior density."""
    assert fitted.chains is not None  # noqa: S101
    return fitted.chains.column("position")[0, [fitted.chains.column("log_density")[0].argmax()]]


def maps(problem: Problem, draws: Draws) -> np.ndarray:
    """Returns the probability of class 1 at every input of the square for every draw: `[draws, inputs]`."""
    predict = jax.vmap(partial(predict_draw, problem.bnn.model), in_axes=(None, 0))
    log_probabilities = jax.jit(jax.vmap(predict, in_axes=(0, None)))(draws, jnp.asarray(SQUARE))
    return np.exp(log_probabilities[..., 1])


def facts_of(fitted: Fitted) -> dict[str, Any]:
    """Returns the diagnostics and the shortfalls."""
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
    """Runs all fits, and writes figures/ and numbers.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the work; the pictures go to a new folder")
    parser.add_argument("--out", type=Path, help="the folder for figures/ and numbers.json; default: this folder")
    options = parser.parse_args()
    folder = options.out or (Path(tempfile.mkdtemp(prefix="boxes-")) if options.quick else HERE)
    numbers = run_all(folder, 10 if options.quick else 1)
    (folder / "numbers.json").write_text(json.dumps(numbers, indent=2, ensure_ascii=False) + "\n", "utf-8")
    print_table(numbers["table"])
    for name in ("fixed", "adapted", "tempered"):
        facts = numbers[name]
        print(f"\n{name}: {facts['samples']} samples in {facts['sampling_seconds']} s", facts["worst_prediction"])
        print("\n".join(f"  falls short: {message}" for message in facts["shortfalls"]) or "  no shortfalls")
    print(f"\n{numbers['seconds']:.0f} s; see {folder}")


def run_all(folder: Path, less: int = 1) -> dict[str, Any]:
    """Runs all fits and writes the pictures; returns the numbers.

    Args:
        less: divides the numbers of samples and steps.
    """
    import pictures  # noqa: PLC0415 - in this folder; the import takes a second

    start_time = time.perf_counter()
    figures = folder / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    problem = pose_boxes()
    fixed = sample_fixed(problem, samples=5000 // less)
    adapted = sample_adapted(problem, samples=4000 // less, warmup=1000 // less)
    tempered = sample_tempered(problem, samples=10_000 // less, warmup=500 // less)
    assert fixed.chains is not None  # noqa: S101

    draws = problem.bnn.draws
    pictures.contours(
        figures / "contours.png",
        problem.train,
        SQUARE,
        {
            "highest posterior density": maps(problem, draws(most_probable(fixed))),
            "mean of every tenth of 1,500 draws": maps(problem, draws(every_tenth(fixed, 1500 // less))),
            "mean of the run that passes": maps(problem, tempered.posterior.draws),
        },
    )
    pictures.chains(
        figures / "chains.png", {"HMC as in the article": fixed, "ChEES-HMC": adapted, "parallel tempering": tempered}
    )
    steps = np.arange(0, 5000 // less, 250 // less)
    frames = fixed.chains.column("position")[0, steps]
    pictures.animation(figures / "draws.gif", problem.train, SQUARE, maps(problem, draws(frames)), steps)

    numbers = {
        "article": ARTICLE,
        "table": first_chain(problem, fixed),
        "fixed": facts_of(fixed),
        "adapted": facts_of(adapted),
        "tempered": facts_of(tempered),
        "seconds": time.perf_counter() - start_time,
    }
    return round_tree(numbers)


def print_table(rows: list[dict[str, Any]]) -> None:
    """Prints the parameters of the first chain, with their index and name."""
    columns = [name for name in rows[0] if name != "name"]
    print(f"{'':4}{'':28}" + "".join(f"{name.replace('_per_second', '/s'):>10}" for name in columns))
    for index, row in enumerate(rows, start=1):
        print(f"[{index:2}]{row['name']:>28}" + "".join(f"{row[name]:10.4g}" for name in columns))


def round_tree(tree: Any) -> Any:
    """Rounds the numbers of a tree to four significant digits; returns plain JSON."""
    if isinstance(tree, dict):
        return {name: round_tree(value) for name, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [round_tree(value) for value in tree]
    return tree if isinstance(tree, int | str) else float(f"{tree:.4g}")


if __name__ == "__main__":
    main()
