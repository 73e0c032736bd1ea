"""`make bench-selection`, tables: chooses the scores that decide about rows of numbers, on data without reported results.

    python benchmarks/table_selection.py [--data FOLDER] [--only letters,gases,digits,drift,numbers]

    kind      familiar                                         strange
    letters   twenty letters without five, in four folds       these five; not the six that `tabular.py` leaves out
    gases     batches 1 and 2 without one gas, in five folds   this gas
    drift     batch 1                                          batch 2; not the batches from 3 on
    digits    scikit-learn's digits, standardised as a table   two classes, in three folds
    numbers   boston, concrete, energy, wine, yacht            the farthest along the first principal component; one cluster
    shuffled  each of these                                    rows with every column shuffled separately: all values are in
                                                               range, but the columns are independent

The rule of choice among few combinations: the highest AUROC, averaged over the kinds, and within a kind over its folds; of
the combinations within .001 of it, the one with the highest detection. Detection is at a calibrated 1 %; for numbers, which
have small calibration parts, at 5 %.

It takes about ten minutes on one core. Writes `benchmarks/results/table_selection.json`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orjson
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits

from abstain.models.decisions.calibration import calibrate
from abstain.models.decisions.decision import Decision, Rule
from abstain.models.decisions.judging import judge
from abstain.models.prediction.posterior import Posterior
from abstain.models.prediction.predictive import Prediction, Predictor
from abstain.training.calibration.feature_scores import fit_feature_scores
from abstain.training.calibration.reference import set_aside
from abstain.training.config.config import Config
from abstain.training.config.reading import read_config
from abstain.training.data.dataset import Dataset
from abstain.training.evaluation.metrics import separation
from abstain.training.fit import METHODS, build_model, load_dataset
from abstain.training.inference.bnn import BNN, observe
from abstain.training.inference.problem import Problem
from abstain.training.runs.journal import Journal

PROJECT = Path(__file__).resolve().parents[1]
RESULTS = PROJECT / "benchmarks" / "results"
CONFIGS = PROJECT / "training" / "configs"
LETTERS = [letter for letter in range(26) if letter % 4 != 3]
"""The letters that `tabular.py` fits to."""
DIGITS = ((1, 7), (3, 8), (0, 9))
UCI = ("boston", "concrete", "energy", "wine", "yacht")
CLUSTERS = 6
FAR = 0.85
"""The share of rows along the first principal component that are familiar."""
CLASS_COMBINATIONS: dict[str, tuple[str, ...]] = {
    "A": ("vim", "relative_mahalanobis", "subspace", "gen"),
    "B": ("relative_mahalanobis", "subspace", "knn", "range"),
    "C": ("relative_mahalanobis", "knn", "local_subspace", "range"),
    "D": ("relative_mahalanobis", "knn", "local_subspace", "feature_subspace", "range"),
    "E": ("knn", "local_subspace", "feature_subspace", "range"),
    "F": ("vim", "local_subspace", "feature_subspace", "range"),
    "G": ("relative_mahalanobis", "knn", "local_subspace", "feature_subspace", "mutual_information", "range"),
}
NUMBER_COMBINATIONS: dict[str, tuple[str, ...]] = {
    "A": ("std", "mahalanobis", "input_knn", "range"),
    "B": ("std", "mahalanobis", "knn", "range"),
    "C": ("std", "mahalanobis", "local_subspace", "range"),
    "D": ("std", "mahalanobis", "input_knn", "feature_subspace", "range"),
    "E": ("std", "mahalanobis", "input_knn", "feature_subspace", "local_subspace", "range"),
    "F": ("std", "mahalanobis", "feature_subspace", "range"),
    "G": ("std", "mahalanobis", "feature_subspace", "local_subspace", "range"),
}
RULES: tuple[Rule, ...] = ("min", "weighted", "harmonic")
SMALLER = ("steps=4000", "starts=3", "draws=60")

Arrays = dict[str, np.ndarray]


class Task(NamedTuple):
    """Familiar rows, which the fit splits into three parts, and strange rows by kind."""

    kind: str
    config: Config
    known: Arrays
    strange: dict[str, np.ndarray]


def main() -> int:
    """Fits, measures, prints, and writes `benchmarks/results/table_selection.json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shared = PROJECT.parent / "shared" / "data"
    parser.add_argument("--data", type=Path, default=shared, help="folder of the .npz files")
    parser.add_argument("--only", help="some of the kinds, separated by commas")
    options = parser.parse_args()
    kinds = options.only.split(",") if options.only else ["letters", "gases", "drift", "digits", "numbers"]
    results: dict[str, list[dict[str, Any]]] = {"classes": [], "numbers": []}
    with tempfile.TemporaryDirectory() as folder:
        for task in (task for kind in kinds for task in TASKS[kind](options.data)):
            numeric = task.config.likelihood == "normal"
            results["numbers" if numeric else "classes"] += measure(task, Path(folder))
            print(".", end="", file=sys.stderr, flush=True)
    for target, combinations in (("classes", CLASS_COMBINATIONS), ("numbers", NUMBER_COMBINATIONS)):
        if results[target]:
            print_results(target, combinations, results[target])
    RESULTS.mkdir(exist_ok=True)
    content = {"combinations": {"classes": CLASS_COMBINATIONS, "numbers": NUMBER_COMBINATIONS}, "sets": results}
    (RESULTS / "table_selection.json").write_bytes(orjson.dumps(content, option=orjson.OPT_INDENT_2))
    return 0


# ---- tasks -----------------------------------------------------------------------------------------------------------


def letters(data: Path) -> Iterator[Task]:
    """Yields four folds of the letters that `tabular.py` fits to."""
    with np.load(data / "letter_recognition.npz") as file:
        x, y = file["x"], file["y"]
    config = read_config(CONFIGS / "letters.toml", SMALLER)
    known = np.isin(y, LETTERS)
    for fold in range(4):
        yield without("letters", config, x[known], y[known], LETTERS[fold::4])


def gases(data: Path) -> Iterator[Task]:
    """Yields batches 1 and 2 without one gas; toluene, which has few rows, is always included."""
    config = read_config(CONFIGS / "gas-drift.toml", (*SMALLER, "calibration_size=300"))
    x, y, batch = gas_arrays(data)
    for gas in range(5):
        yield without("gases", config, x[batch <= 2], y[batch <= 2], [gas])


def drift(data: Path) -> Iterator[Task]:
    """Yields batch 1, with batch 2 as drift."""
    config = read_config(CONFIGS / "gas-drift.toml", (*SMALLER, "calibration_size=120"))
    x, y, batch = gas_arrays(data)
    yield Task("drift", config, {"x": x[batch == 1], "y": y[batch == 1]}, {"drift": x[batch == 2]})


def gas_arrays(data: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Reads features, gases and batches."""
    with np.load(data / "gas_sensor_drift.npz") as file:
        return file["x"], file["y"], file["batch"]


def digits(data: Path) -> Iterator[Task]:
    """Yields digits of 64 pixels, as 64 separate measurements."""
    del data  # the digits are in scikit-learn
    images, labels = load_digits(return_X_y=True)
    config = read_config(CONFIGS / "gas-drift.toml", (*SMALLER, "calibration_size=400"))
    for classes in DIGITS:
        yield without("digits", config, images, labels, classes)


def without(kind: str, config: Config, x: np.ndarray, y: np.ndarray, classes: Any) -> Task:
    """Makes a task with some classes as strange rows."""
    held_out = np.isin(y, classes)
    known = {"x": x[~held_out], "y": np.unique(y[~held_out], return_inverse=True)[1]}
    return Task(kind, config, known, {kind: x[held_out]})


def numbers(data: Path) -> Iterator[Task]:
    """Yields regressions without the rows far along one direction, and without one cluster."""
    for name in UCI:
        with np.load(data / "uci" / f"{name}.npz") as file:
            x, y = file["x"], file["y"]
        z = (x - x.mean(axis=0)) / np.maximum(x.std(axis=0), 1e-9)
        component = z @ np.linalg.svd(z, full_matrices=False)[2][0]
        cluster = KMeans(CLUSTERS, n_init=10, random_state=0).fit_predict(z)
        strange = {"far": component > np.quantile(component, FAR)}
        # A cluster of medium size, because the smallest may have a single row.
        strange["cluster"] = cluster == np.argsort(np.bincount(cluster))[CLUSTERS // 2 - 1]
        known = ~(strange["far"] | strange["cluster"])
        config = read_config(CONFIGS / "wine-red.toml", (f"calibration_size={60 if name == 'yacht' else 99}",))
        yield Task("numbers", config, {"x": x[known], "y": y[known]}, {kind: x[rows] for kind, rows in strange.items()})


TASKS = {"letters": letters, "gases": gases, "drift": drift, "digits": digits, "numbers": numbers}


# ---- measuring -------------------------------------------------------------------------------------------------------


class FittedTask(NamedTuple):
    """The familiar rows of a task, a predictor fitted to them, and its predictions for three parts of them."""

    dataset: Dataset
    predictor: Predictor
    reference: Prediction
    calibration: Prediction
    test: Prediction


def fit_task(task: Task, folder: Path) -> FittedTask:
    """Fits the posterior and the feature scores of a task."""
    path = folder / "known.npz"
    np.savez(path, **task.known)
    dataset = load_dataset(task.config, str(path))
    posterior = fit_posterior(task.config, dataset)
    reference, rest = set_aside(dataset.train, task.config.seed)
    predictor = Predictor(posterior, (256,), feature_scores=fit_feature_scores(posterior, rest, task.config.seed))
    parts = (predictor(rows.x) for rows in (reference, dataset.calibration, dataset.test))
    return FittedTask(dataset, predictor, *parts)


def measure(task: Task, folder: Path) -> list[dict[str, Any]]:
    """Measures AUROC and detection of every combination on one task, by strange set."""
    dataset, predictor, reference, known, familiar = fit_task(task, folder)
    strange = task.strange | {"shuffled": shuffle_columns(dataset.train.x)}
    strange_predictions = {kind: predictor(x) for kind, x in strange.items()}
    return [
        {"kind": kind, "decisions": compare_decisions(task, dataset, reference, known, familiar, prediction)}
        for kind, prediction in strange_predictions.items()
    ]


def fit_posterior(config: Config, dataset: Dataset) -> Posterior:
    """Fits the posterior with the method of the config."""
    model = build_model(config, dataset)
    problem = Problem(BNN(model, config.prior), observe(model, dataset.train), observe(model, dataset.test))
    return METHODS[config.method.kind](
        jax.random.key(config.seed), problem, config.method, config.draws, Journal()
    ).posterior


def shuffle_columns(x: np.ndarray) -> np.ndarray:
    """Shuffles every column separately, so that all values are within range."""
    rng = np.random.default_rng(7)
    return np.stack([rng.permutation(column)[:1000] for column in x.T], axis=1)


def compare_decisions(
    task: Task,
    dataset: Dataset,
    reference: Prediction,
    known: Prediction,
    familiar: Prediction,
    strange: Prediction,
) -> dict[str, dict[str, float]]:
    """Returns AUROC, detection and the reject rate of the test part, by combination and rule, and by score."""
    numeric = task.config.likelihood == "normal"
    combinations = NUMBER_COMBINATIONS if numeric else CLASS_COMBINATIONS
    decisions = {
        f"{name} {rule}": Decision(scores=scores, rule=rule) for name, scores in combinations.items() for rule in RULES
    }
    decisions |= {name: Decision(scores=(name,)) for name in known.scores}
    results = {}
    for name, decision in decisions.items():
        calibration = calibrate(
            known,
            dataset.calibration.y,
            decision=decision,
            percentile=95.0 if numeric else 99.0,
            reference=reference.scores,
        )
        on_familiar, on_strange = (judge(calibration, prediction) for prediction in (familiar, strange))
        values = [judgement.scores[decision.name].value for judgement in (on_familiar, on_strange)]
        results[name] = {
            "auroc": separation(*values).auroc,
            "detection": float(on_strange.reject.mean()),
            "rejected": float(on_familiar.reject.mean()),
        }
    return results


def print_results(target: str, combinations: dict[str, tuple[str, ...]], sets: list[dict[str, Any]]) -> None:
    """Prints AUROC and detection by kind, and their averages over kinds; marks the chosen combination."""
    kinds = list(dict.fromkeys(entry["kind"] for entry in sets))
    averages = {name: [average(sets, kind, name) for kind in kinds] for name in sets[0]["decisions"]}
    auroc = {name: float(np.mean([a for a, _ in cells])) for name, cells in averages.items()}
    detected = {name: float(np.mean([d for _, d in cells])) for name, cells in averages.items()}
    combined = [name for name in averages if " " in name]
    best = max(combined, key=auroc.__getitem__)
    chosen = max((name for name in combined if auroc[name] > auroc[best] - 1e-3), key=detected.__getitem__)
    print(f"\n### {target}: AUROC · detection\n")
    print("\n".join(f"    {name}  {' + '.join(scores)}" for name, scores in combinations.items()))
    print(f"\n| | {' | '.join(kinds)} | average |\n|---|{'---|' * len(kinds)}---|")
    for name, cells in averages.items():
        columns = " | ".join(f"{a:.3f} · {d:.0%}" for a, d in cells)
        label = f"**{name}**" if name == chosen else name
        print(f"| {label} | {columns} | {auroc[name]:.4f} · {detected[name]:.1%} |")


def average(sets: list[dict[str, Any]], kind: str, name: str) -> tuple[float, float]:
    """Returns the mean AUROC and detection over the sets of a kind."""
    figures = [entry["decisions"][name] for entry in sets if entry["kind"] == kind]
    return float(np.mean([each["auroc"] for each in figures])), float(np.mean([each["detection"] for each in figures]))


if __name__ == "__main__":
    sys.exit(main())
