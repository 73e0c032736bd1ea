"""Handwritten digits by mean-field variational inference: two fits, and the decisions on the letter B.

    python examples/mnist_vi/run.py --data FOLDER            # about two minutes on two cores
    python examples/mnist_vi/run.py --data FOLDER --quick    # the same with too little work for reliable results
    python examples/mnist_vi/run.py --data FOLDER --seeds 5  # also five fits of the second try, with different seeds

FOLDER holds `mnist.npz` (x_train, y_train, x_test, y_test) and `emnist_letters_test.npz` (x_test, y_test; 1 is the B).

A 784-64-64-10 network, fitted like the article's first try (beta 1, variance 0.37) and like its second (beta 0.001,
variance 0.001). The KL divergence is given as the article reduces it, and in full. It writes pictures to `figures/`
and numbers to `numbers.json`.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from abstain.models.decisions.calibration import calibrate
from abstain.models.decisions.judging import judge
from abstain.models.decisions.ranks import threshold
from abstain.models.networks.architectures import MLPSpec
from abstain.models.prediction.posterior import Model, Posterior
from abstain.models.prediction.predictive import Prediction, Predictor
from abstain.training import fit
from abstain.training.config.config import Config
from abstain.training.config.data import DataConfig
from abstain.training.config.methods import VIConfig
from abstain.training.data.dataset import Dataset
from abstain.training.fit import build_model, load_dataset
from abstain.training.inference.bnn import BNN, Observations, observe
from abstain.training.inference.optimization import DescentRows, Objective, descend
from abstain.training.inference.problem import Problem
from abstain.training.inference.target import Target
from abstain.training.inference.tracking import TrackedRows, progress_report
from abstain.training.runs.journal import Journal
from abstain.training.runs.progress import progress_bar

HERE = Path(__file__).resolve().parent
DATA = HERE.parents[2] / "shared" / "data"
CONFIG = Config(name="mnist", data=DataConfig(calibration_size=5000, inputs="range"), network=MLPSpec(hidden=(64, 64)))
"""5,000 of the 60,000 training images set the threshold. The prior is N(0, 1), like the article's."""
FIRST_TRY = {"beta": 1.0, "log_variance": -1.0}
SECOND_TRY = {"beta": 0.001, "log_variance": -7.0}
ARTICLE = {
    "start": {
        "test": {"accuracy": 0.122, "elbo": -94.269, "log_likelihood": -67.865, "kl": 26.404, "evidence": 0.0},
        "train": {"accuracy": 0.095, "elbo": -176.826, "log_likelihood": -150.422, "kl": 26.404, "evidence": 0.0},
    },
    "first try": {
        "test": {"accuracy": 0.104, "elbo": -5.796, "log_likelihood": -3.280, "kl": 2.516, "evidence": 0.560},
        "train": {"accuracy": 0.093, "elbo": -5.610, "log_likelihood": -3.095, "kl": 2.516, "evidence": 0.571},
    },
    "second try": {
        "test": {"accuracy": 0.979, "elbo": -0.421, "log_likelihood": -0.103, "kl": 318.357, "evidence": 0.959},
        "train": {"accuracy": 0.995, "elbo": -0.341, "log_likelihood": -0.022, "kl": 318.357, "evidence": 0.966},
    },
}
"""The three tables of the article."""
DRAWS = 100

Guide = dict[str, Array]
"""`loc` and `log_variance` of every parameter: a mean-field normal with the article's parameters."""


# The objective


def guide_at(loc: Float[Array, " dim"], log_variance: float) -> Guide:
    """Makes a guide about the initial parameters, with the same variance for all."""
    return {"loc": loc, "log_variance": jnp.full_like(loc, log_variance)}


def sample(guide: Guide, key: PRNGKeyArray, draws: int) -> Float[Array, "draws dim"]:
    """Draws all parameters, with separate noise for each number."""
    noise = jax.random.normal(key, (draws, guide["loc"].size))
    return guide["loc"] + jnp.exp(guide["log_variance"] / 2) * noise


def kl_terms(guide: Guide) -> Float[Array, " dim"]:
    """Returns KL(N(m, v) ‖ N(0, 1)) of every parameter, in nats; the sum is the KL divergence of the guide."""
    variance = jnp.exp(guide["log_variance"])
    return 0.5 * (guide["loc"] ** 2 + variance - 1 - guide["log_variance"])


def leaf_weights(target: Target) -> Float[np.ndarray, " dim"]:
    """Returns the article's reduction as a weight of each parameter: 1 / length of the first axis of its array.

    The article's KL divergence is a mean over the first axis of each array, summed over the rest: a mean over the inputs of a
    kernel, and over the units of a bias.
    """
    return np.concatenate([np.full(site.last - site.first, 1 / site.shape[0], np.float32) for site in target.sites])


def build_problem(config: Config, model: Model, dataset: Dataset) -> Problem:
    """Builds the problem of a fit, with curves on the test rows, as in the article."""
    return replace(fit.build_problem(config, model, dataset), diagnostic_rows=observe(model, dataset.test))


def fit_guide(problem: Problem, beta: float, log_variance: float, steps: int, seed: int) -> tuple[Guide, Any]:
    """Runs Adam on −(mean log-likelihood of a batch − beta · reduced KL); returns the guide and its reports."""
    target, weights = problem.target, jnp.asarray(leaf_weights(problem.target))
    settings = VIConfig(steps=steps, batch_size=128, learning_rate=1e-3, schedule="constant", reports=20)

    def loss(guide: Guide, key: PRNGKeyArray, batch: Observations) -> Array:
        parameters = target.constrain(sample(guide, key, 1)[0])
        return -target.log_likelihood(parameters, batch).mean() + beta * weights @ kl_terms(guide)

    def report(guide: Guide, key: PRNGKeyArray, tracked_rows: TrackedRows) -> dict[str, Array]:
        return metrics(problem.bnn, guide, key, tracked_rows, draws=3)

    key_start, key_fit = jax.random.split(jax.random.key(seed))
    start = guide_at(problem.bnn.start(key_start), log_variance)
    with progress_bar(f"beta {beta:g}, seed {seed}") as progress:
        guides, traces = descend(
            "vi",
            key_fit,
            jax.tree.map(lambda leaf: leaf[None], start),
            Objective(loss, report),
            DescentRows(problem.train, TrackedRows(problem.train.head(2000), problem.diagnostic_rows.head(2000))),
            settings,
            Journal(progress=progress),
        )
    return jax.tree.map(lambda leaf: leaf[0], guides), traces


# The figures of the article's tables


def metrics(bnn: BNN, guide: Guide, key: PRNGKeyArray, tracked_rows: TrackedRows, draws: int) -> dict[str, Array]:
    """Computes the accuracy of the mean probabilities, the mean log-likelihood of a row, and both KL divergences."""
    terms = kl_terms(guide)
    divergences = {"kl": jnp.asarray(leaf_weights(bnn.target)) @ terms, "full_kl": terms.sum()}
    return progress_report(bnn, sample(guide, key, draws), tracked_rows) | divergences


def table_figures(problem: Problem, guide: Guide, beta: float) -> dict[str, dict[str, float]]:
    """Returns the article's five figures and the full KL, on the test set and on as many training rows."""
    tracked_rows = TrackedRows(problem.train.head(10_000), problem.diagnostic_rows)
    compute_metrics = jax.jit(
        lambda guide, tracked_rows: metrics(problem.bnn, guide, jax.random.key(99), tracked_rows, draws=10)
    )
    facts = {name: float(value) for name, value in compute_metrics(guide, tracked_rows).items()}
    names = ("accuracy", "log_likelihood")
    return {
        part: with_elbo(
            {name: facts[f"{prefix}_{name}"] for name in names} | {"kl": facts["kl"], "full_kl": facts["full_kl"]},
            beta,
        )
        for part, prefix in (("test", "held_out"), ("train", "train"))
    }


def with_elbo(facts: dict[str, float], beta: float) -> dict[str, float]:
    """Adds the ELBO of a row, and exp(ELBO / 10), which the article calls the mean approximate evidence."""
    elbo = facts["log_likelihood"] - beta * facts["kl"]
    return facts | {"elbo": elbo, "evidence": math.exp(elbo / 10)}


# Rejection


def posterior_of(problem: Problem, guide: Guide) -> Posterior:
    """Draws a posterior, as in a bundle."""
    zs = sample(guide, jax.random.key(7), DRAWS)
    return Posterior(problem.bnn.model, problem.bnn.draws(np.asarray(zs)))


def rejection_of(posterior: Posterior, dataset: Dataset, letters: np.ndarray) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the figures of the rejection, and the content of the pictures; the threshold is from the calibration part."""
    predictor = Predictor(posterior, buckets=(256,))
    calibration = calibrate(predictor(dataset.calibration.x), dataset.calibration.y)
    limit = threshold(calibration.ascending["std"], 99.0)
    test, strange = predictor(dataset.test.x), predictor(letters)
    rejected, rejected_b = judge(calibration, test).reject, judge(calibration, strange).reject
    wrong = test.summary.mean.argmax(axis=1) != dataset.test.y
    eights = strange.summary.mean.argmax(axis=1) == 8
    examples = {
        "a digit 3": (test, typical(test, dataset.test.y == 3), rejected, dataset.test.x),
        "a letter B that is rejected": (strange, typical(strange, eights & rejected_b), rejected_b, letters),
        "a letter B that passes": (strange, typical(strange, eights & ~rejected_b), rejected_b, letters),
    }
    facts = {
        "threshold": limit,
        "99th_percentile_of_test_std": np.quantile(test.scores["std"], 0.99),
        "test_rejected": rejected.mean(),
        "letters_B_rejected": rejected_b.mean(),
        "accuracy": 1 - wrong.mean(),
        "accuracy_of_accepted": 1 - wrong[~rejected].mean(),
        "shown": {
            name: describe_prediction(prediction, row, rejected_rows)
            for name, (prediction, row, rejected_rows, _) in examples.items()
        },
    }
    return facts, {
        "limit": limit,
        "scores": {"test digits": test.scores["std"], "letters B": strange.scores["std"]},
        "images": {name: images[row] for name, (_, row, _, images) in examples.items()},
        "summaries": [
            (prediction.summary.mean[row], prediction.summary.std[row]) for prediction, row, _, _ in examples.values()
        ],
    }


def typical(prediction: Prediction, rows: np.ndarray) -> int:
    """Returns the row with the median standard deviation."""
    indices = np.flatnonzero(rows)
    order = indices[np.argsort(prediction.scores["std"][indices])]
    return int(order[len(order) // 2])


def describe_prediction(prediction: Prediction, row: int, rejected: np.ndarray) -> dict[str, Any]:
    """Returns the prediction of one image as plain values."""
    mean = prediction.summary.mean[row]
    return {
        "label": int(mean.argmax()),
        "probability": mean.max(),
        "std": prediction.scores["std"][row],
        "rejected": bool(rejected[row]),
    }


# All steps


def load(folder: Path) -> tuple[Dataset, np.ndarray]:
    """Loads the digits in three parts, and the letters B."""
    for name in ("mnist.npz", "emnist_letters_test.npz"):
        if not (folder / name).is_file():
            sys.exit(f"{folder / name} is missing; pass --data FOLDER with mnist.npz and emnist_letters_test.npz")
    with np.load(folder / "emnist_letters_test.npz", allow_pickle=False) as file:
        letters = file["x_test"][file["y_test"] == 1]
    return load_dataset(CONFIG, str(folder / "mnist.npz")), letters


def main() -> None:
    """Runs all fits, and writes figures/ and numbers.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA, help="the folder of mnist.npz and emnist_letters_test.npz")
    parser.add_argument("--seeds", type=int, default=0, help="the number of seeds for more fits of the second try")
    parser.add_argument("--quick", action="store_true", help="a tenth of the work; the pictures go to a new folder")
    parser.add_argument("--out", type=Path, help="the folder for figures/ and numbers.json; default: this folder")
    options = parser.parse_args()
    folder = options.out or (Path(tempfile.mkdtemp(prefix="mnist-")) if options.quick else HERE)
    numbers = run_all(folder, options.data, 10_000 // (10 if options.quick else 1), options.seeds)
    path = folder / "numbers.json"
    earlier = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    if "seeds" in earlier and not options.seeds:
        # Keeps the seeds of an earlier run.
        numbers["seeds"] = earlier["seeds"]
    path.write_text(json.dumps(numbers, indent=2) + "\n", "utf-8")
    print_tables(numbers)
    print(f"{numbers['seconds']:.0f} s; see {folder}")


def run_all(folder: Path, data: Path, steps: int, seeds: int) -> dict[str, Any]:
    """Runs all fits and writes the pictures; returns the numbers."""
    import pictures  # noqa: PLC0415 - in this folder; the import takes a second

    start_time = time.perf_counter()
    figures = folder / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    dataset, letters = load(data)
    problem = build_problem(CONFIG, build_model(CONFIG, dataset), dataset)

    loc = problem.bnn.start(jax.random.split(jax.random.key(0))[0])
    numbers: dict[str, Any] = {"article": ARTICLE}
    numbers["start"] = table_figures(problem, guide_at(loc, FIRST_TRY["log_variance"]), FIRST_TRY["beta"])
    curves = {}
    for name, choice in (("first try", FIRST_TRY), ("second try", SECOND_TRY)):
        guide, curves[name] = fit_guide(problem, **choice, steps=steps, seed=0)
        numbers[name] = table_figures(problem, guide, choice["beta"])
    numbers["rejection"], content = rejection_of(posterior_of(problem, guide), dataset, letters)
    pictures.metrics(figures / "metrics.png", curves, ARTICLE)
    pictures.spread(figures / "spread.png", content["scores"], content["limit"])
    pictures.verdicts(figures / "verdicts.png", content["images"], content["summaries"], content["limit"])
    numbers["seconds"] = time.perf_counter() - start_time
    if seeds:
        numbers["seeds"] = [fit_seed(problem, dataset, letters, steps, seed) for seed in range(seeds)]
    return round_tree(numbers)


def fit_seed(problem: Problem, dataset: Dataset, letters: np.ndarray, steps: int, seed: int) -> dict[str, float]:
    """Fits the second try with one seed and returns its figures."""
    guide, _ = fit_guide(problem, **SECOND_TRY, steps=steps, seed=seed)
    parts = table_figures(problem, guide, SECOND_TRY["beta"])
    rejection, _ = rejection_of(posterior_of(problem, guide), dataset, letters)
    figures = {f"{part}_{name}": parts[part][name] for part in parts for name in ("accuracy", "log_likelihood", "elbo")}
    return (
        {"seed": seed, "kl": parts["test"]["kl"], "evidence": parts["test"]["evidence"]}
        | figures
        | {name: value for name, value in rejection.items() if not isinstance(value, dict)}
    )


def print_tables(numbers: dict[str, Any]) -> None:
    """Prints the numbers of this run next to the article's."""
    names = ("accuracy", "elbo", "log_likelihood", "kl", "evidence")
    print(f"{'':24}" + "".join(f"{name:>24}" for name in names) + f"{'full KL':>12}")
    for table, parts in ARTICLE.items():
        for part, theirs in parts.items():
            ours = numbers[table][part]
            row = "".join(f"{ours[name]:12.4g} ({theirs[name]:9.4g})" for name in names)
            print(f"{table + ', ' + part:24}{row}{ours['full_kl']:12.4g}")
    print("ours (the article's)\n\nrejection:", json.dumps(numbers["rejection"], indent=2))


def round_tree(tree: Any) -> Any:
    """Rounds the numbers of a tree to four significant digits; returns plain JSON."""
    if isinstance(tree, dict):
        return {name: round_tree(value) for name, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [round_tree(value) for value in tree]
    return tree if isinstance(tree, int | str) else float(f"{tree:.4g}")


if __name__ == "__main__":
    main()
