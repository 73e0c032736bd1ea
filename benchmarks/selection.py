"""`make bench-selection`: chooses the scores that decide about images, on data that no final test uses.

    python benchmarks/selection.py [--data FOLDER] [--store FOLDER] [--only selection|confirmation]

It uses only training images of MNIST and of Fashion-MNIST: the first 50,000 for fits and calibration, the last 10,000 as
familiar rows. It does not use MNIST's test images, Fashion-MNIST against MNIST, Omniglot, or EMNIST.

    task            familiar                          strange
    digits-no37     digits but 3 and 7                3s and 7s; composed pictures
    digits-no48     digits but 4 and 8                4s and 8s; composed pictures
    digits          all ten digits                    composed pictures
    fashion-no58    clothes but sandals and bags      sandals and bags; digits*; composed pictures
    fashion-no14    clothes but trousers and coats    trousers and coats; digits*; composed pictures    (confirmation)
    fashion         all ten clothes                   digits*; composed pictures                        (confirmation)

* also with the brightness of clothes. Every task also has photographs: grey parts of the two in scikit-learn, also with the
brightness of familiar pictures. Composed pictures: halves of two classes above or next to each other, a picture turned by
90°, its quarters in another order, and mirrored digits that are not digits. Each task is fitted by `abstain fit` with
`training/configs/mnist-strong.toml`, two starts and 4,000 steps; a `--store` keeps the draws, and feature scores and
calibration are computed again each time.

The few combinations and the rule of choice were fixed beforehand: the highest detection at 1 %, averaged over tasks, within
a task over its kinds (other classes, another data set, photographs, composed pictures), and within a kind over its sets; of
the combinations within half a percentage point of it, the one with the fewest scores. (The default also has `range`, which
adds the same to every picture: it detects arrays that are not pictures.)

This is the second choice. The first one, without photographs and without G and H, selected C; the final test
(`benchmarks/strong.py`), used once, showed that C accepts clothes. Local subspaces ignore everything outside 64 components,
and all strange sets of the digits were similar to digits. Then photographs were added, and G and H, which have a score of the
whole picture; the same rule selected G. `docs/results.md` has the figures of both.

The confirmation tasks are used after the choice and do not change it.

It takes half an hour on two cores, mostly for the six fits; five minutes with a store that has them. Writes
`benchmarks/results/selection.json`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import orjson
from sklearn.datasets import load_sample_images

from abstain.models.bundles.bundle import Bundle, load
from abstain.models.bundles.store import versions
from abstain.models.decisions.decision import Decision, Rule
from abstain.models.decisions.judging import judge
from abstain.models.decisions.records import Calibration, Judgement
from abstain.models.prediction.predictive import Prediction
from abstain.training.calibration.feature_scores import fit_feature_scores
from abstain.training.calibration.pipeline import calibrate_posterior
from abstain.training.calibration.reference import set_aside
from abstain.training.config.calibration import CalibrationConfig
from abstain.training.config.data import DataConfig
from abstain.training.data.dataset import Dataset, split
from abstain.training.data.ood_sets import match_intensity
from abstain.training.data.sources import read_source
from abstain.training.evaluation.metrics import separation

PROJECT = Path(__file__).resolve().parents[1]
RESULTS = PROJECT / "benchmarks" / "results"
ABSTAIN = Path(sys.executable).with_name("abstain")
CONFIG = PROJECT / "training" / "configs" / "mnist-strong.toml"
FEWER = ("method.starts=2", "draws=12", "method.map.steps=4000")
FITTED = 50_000
"""The number of training images for fits, of 60,000; the rest are the familiar rows."""
ROWS = 3_000
"""The largest number of rows of a strange set."""
PERCENTILE = 99.0
MIRRORED = ("2", "3", "4", "5", "6", "7", "9")
"""Digits that are not a digit when they are mirrored."""


class Task(NamedTuple):
    """A data set without some of its classes."""

    name: str
    source: str
    without: tuple[int, ...] = ()
    part: str = "selection"


TASKS = (
    Task("digits-no37", "mnist", (3, 7)),
    Task("digits-no48", "mnist", (4, 8)),
    Task("digits", "mnist"),
    Task("fashion-no58", "fashion_mnist", (5, 8)),
    Task("fashion-no14", "fashion_mnist", (1, 4), "confirmation"),
    Task("fashion", "fashion_mnist", (), "confirmation"),
)
LOCAL = ("vim", "relative_mahalanobis", "local_subspace", "feature_subspace")
COMBINATIONS: dict[str, tuple[str, ...]] = {
    "A": ("vim", "relative_mahalanobis", "subspace", "gen"),
    "B": LOCAL,
    "C": ("vim", "local_subspace", "feature_subspace"),
    "D": (*LOCAL, "gen"),
    "E": (*LOCAL, "knn"),
    "F": (*LOCAL, "mutual_information"),
    "G": ("vim", "local_subspace", "feature_subspace", "subspace"),
    "H": (*LOCAL, "subspace"),
}
RULES: tuple[Rule, ...] = ("min", "weighted", "harmonic")
KINDS = {
    "classes": "classes",
    "digits": "set",
    "digits as bright": "set",
    "photographs": "photographs",
    "photographs as bright": "photographs",
}
"""The kind of each strange set; all other sets are composed pictures."""

Images = np.ndarray
Figures = dict[str, dict[str, dict[str, float]]]
"""AUROC and detection by decision and strange set; under "familiar", the reject rate."""


def main() -> int:
    """Fits the missing models, measures, prints, and writes `benchmarks/results/selection.json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shared = PROJECT.parent / "shared" / "data"
    parser.add_argument("--data", type=Path, default=shared, help="folder of mnist.npz and fashion_mnist.npz")
    parser.add_argument("--store", type=Path, help="a folder that keeps the fits; existing fits are used again")
    parser.add_argument("--only", choices=("selection", "confirmation"))
    options = parser.parse_args()
    missing = [name for name in ("mnist", "fashion_mnist") if not (options.data / f"{name}.npz").is_file()]
    if missing:
        sys.exit(f"missing: {', '.join(f'{name}.npz' for name in missing)}; name their folder with --data")
    with tempfile.TemporaryDirectory() as folder:
        store = options.store or Path(folder) / "store"
        figures: dict[str, Figures] = {}
        for task in TASKS:
            if options.only in {None, task.part}:
                figures[task.name] = measure(task, options.data, store, Path(folder))
                print_task(task, figures[task.name])
    best = {part: print_part(part, figures) for part in dict.fromkeys(task.part for task in TASKS)}
    RESULTS.mkdir(exist_ok=True)
    content = {"combinations": COMBINATIONS, "chosen": best["selection"], "tasks": figures}
    (RESULTS / "selection.json").write_bytes(orjson.dumps(content, option=orjson.OPT_INDENT_2))
    return 0


# ---- tasks -----------------------------------------------------------------------------------------------------------


def write_task(task: Task, data: Path, folder: Path) -> Path:
    """Writes the familiar classes of a task as arrays for a fit; the familiar rows are its test part."""
    with np.load(data / f"{task.source}.npz") as file:
        x, y, names = file["x_train"], file["y_train"], file["class_names"]
    kept = [label for label in range(len(names)) if label not in task.without]
    code = np.full(len(names), -1)
    code[kept] = np.arange(len(kept))
    parts = {"train": slice(FITTED), "test": slice(FITTED, None)}
    arrays = {}
    for part, rows in parts.items():
        is_kept = np.isin(y[rows], kept)
        arrays |= {f"x_{part}": x[rows][is_kept], f"y_{part}": code[y[rows][is_kept]]}
    path = folder / f"{task.name}.npz"
    np.savez(path, **arrays, class_names=names[kept])
    return path


def strange_sets(task: Task, data: Path, familiar: Images, y: np.ndarray, names: np.ndarray) -> dict[str, Images]:
    """Makes the strange sets of a task."""
    rng = np.random.default_rng(0)
    sets: dict[str, Images] = {}
    if task.without:
        with np.load(data / f"{task.source}.npz") as file:
            others = file["x_train"][np.isin(file["y_train"], task.without)]
        sets["classes"] = others[rng.choice(len(others), ROWS, replace=False)]
    if task.source != "mnist":
        with np.load(data / "mnist.npz") as file:
            digits = file["x_train"][rng.choice(len(file["x_train"]), ROWS, replace=False)]
        sets |= {"digits": digits, "digits as bright": match_intensity(digits, familiar)}
    photographs = crops(rng)
    sets |= {"photographs": photographs, "photographs as bright": match_intensity(photographs, familiar)}
    return sets | compose(rng, familiar, y, names if task.source == "mnist" else None)


def crops(rng: np.random.Generator) -> Images:
    """Cuts grey parts from the two photographs in scikit-learn, at full, half and quarter size."""
    parts = []
    for image in load_sample_images().images:
        grey = image.astype(np.float32).mean(axis=2)
        for factor in (1, 2, 4):
            height, width = (size // factor for size in grey.shape)
            small = grey[: height * factor, : width * factor].reshape(height, factor, width, factor).mean(axis=(1, 3))
            for _ in range(ROWS // 6):
                top, left = rng.integers(height - 28), rng.integers(width - 28)
                parts.append(small[top : top + 28, left : left + 28])
    return np.stack(parts)


def compose(rng: np.random.Generator, x: Images, y: np.ndarray, digits: np.ndarray | None) -> dict[str, Images]:
    """Composes pictures from parts of familiar ones; only the whole is strange."""
    order, partners = rng.permutation(len(x)), rng.permutation(len(x))
    order, partners = (indices[y[order] != y[partners]][:ROWS] for indices in (order, partners))
    half = x.shape[1] // 2
    above, side_by_side = x[order].copy(), x[order].copy()
    above[:, half:] = x[partners, half:]
    side_by_side[:, :, half:] = x[partners][:, :, half:]
    selected = x[order]
    quarters = np.block(
        [
            [selected[:, half:, :half], selected[:, :half, :half]],
            [selected[:, half:, half:], selected[:, :half, half:]],
        ]
    )
    sets = {
        "halves above": above,
        "halves side by side": side_by_side,
        "turned": np.rot90(selected, axes=(1, 2)),
        "quarters": quarters,
    }
    if digits is not None:
        asymmetric = np.flatnonzero(np.isin(digits[y], MIRRORED))[:ROWS]
        sets["mirrored"] = x[asymmetric][:, :, ::-1]
    return sets


# ---- measurement -----------------------------------------------------------------------------------------------------


def measure(task: Task, data: Path, store: Path, folder: Path) -> Figures:
    """Measures every score and every combination on a task."""
    path = write_task(task, data, folder)
    bundle, dataset = load_fit(task.name, path, store)
    reference, rest = set_aside(dataset.train, bundle.manifest.seed)
    feature_scores = fit_feature_scores(bundle.posterior, rest, bundle.manifest.seed)
    settings = CalibrationConfig(decision="std", recalibrate="auto", percentile=PERCENTILE)
    calibrated = calibrate_posterior(
        settings, bundle.posterior, feature_scores, dataset.calibration, reference, bundle.manifest.seed
    )
    names = np.array(bundle.manifest.model.class_names)
    sets = strange_sets(task, data, dataset.test.x, dataset.test.y.astype(int), names)
    predictions = {"familiar": calibrated.predictor(dataset.test.x)}
    predictions |= {name: calibrated.predictor(np.ascontiguousarray(x)) for name, x in sets.items()}
    return {
        name: measure_decision(calibrated.calibration, decision, predictions)
        for name, decision in decisions(calibrated.calibration)
    }


def load_fit(name: str, data: Path, store: Path) -> tuple[Bundle, Dataset]:
    """Returns the fit of a task, from the store if it has one, and its split of the rows.

    Raises:
        SystemExit: the fit in the store used other rows.
    """
    if not (store / name).is_dir():
        overrides = [part for override in (f"name={name}", *FEWER) for part in ("--set", override)]
        command = [ABSTAIN, "fit", CONFIG, "--data", data, "--store", store, *overrides]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    bundle = load(store / name / str(max(versions(store, name))))
    config = DataConfig.model_validate(bundle.manifest.data.settings)
    dataset = split(read_source(str(data), config, classify=True), config, bundle.manifest.seed)
    if dataset.fingerprint != bundle.manifest.data.fingerprint:
        sys.exit(f"{store / name} was fitted to other rows: name another --store")
    return bundle, dataset


def decisions(calibration: Calibration) -> list[tuple[str, Decision]]:
    """Returns each score alone, and each combination by each rule."""
    alone = [(name, Decision(scores=(name,))) for name in calibration.scores]
    return alone + [
        (f"{letter} {rule}", Decision(scores=names, rule=rule))
        for letter, names in COMBINATIONS.items()
        for rule in RULES
    ]


def measure_decision(
    calibration: Calibration, decision: Decision, predictions: dict[str, Prediction]
) -> dict[str, Any]:
    """Measures one decision on the familiar rows and on each strange set."""
    calibration = replace(calibration, decision=decision)
    by_set = {name: judge(calibration, prediction) for name, prediction in predictions.items()}
    familiar = by_set.pop("familiar")
    return {"familiar": {"rejected": float(familiar.reject.mean())}} | {
        name: {
            "auroc": separation(value_of(familiar), value_of(strange)).auroc,
            "detection": float(strange.reject.mean()),
        }
        for name, strange in by_set.items()
    }


def value_of(judgement: Judgement) -> np.ndarray:
    """Returns the decision score of each row."""
    return judgement.scores[judgement.decision].value


# ---- tables ----------------------------------------------------------------------------------------------------------


def average(by_set: dict[str, dict[str, float]], key: str) -> float:
    """Averages a figure over kinds, and within a kind over sets."""
    kinds: dict[str, list[float]] = {}
    for name, figures in by_set.items():
        if name != "familiar":
            kinds.setdefault(KINDS.get(name, "composed"), []).append(figures[key])
    return float(np.mean([np.mean(values) for values in kinds.values()]))


def print_task(task: Task, by_decision: Figures) -> None:
    """Prints AUROC and detection of every decision on every set of a task."""
    sets = [name for name in next(iter(by_decision.values())) if name != "familiar"]
    print(f"\n{task.name} ({task.part}): AUROC, % detected at 1 %; % of familiar rows rejected")
    print(f"{'':<24}" + "".join(f"{name:>18}" for name in sets) + f"{'familiar':>10}")
    for name, figures in by_decision.items():
        cells = "".join(f"{figures[part]['auroc']:>12.4f}{figures[part]['detection']:>6.1%}" for part in sets)
        print(f"{name:<24}{cells}{figures['familiar']['rejected']:>10.2%}", flush=True)


def print_part(part: str, by_task: dict[str, Figures]) -> str | None:
    """Prints the averages over the tasks of a part, best detection first; returns the choice of the rule."""
    tasks = [by_task[task.name] for task in TASKS if task.part == part and task.name in by_task]
    if not tasks:
        return None
    means = {
        name: [float(np.mean([average(task[name], key) for task in tasks])) for key in ("detection", "auroc")]
        for name in tasks[0]
    }
    print(f"\n{part}, over {len(tasks)} tasks: % detected at 1 %, AUROC; the lowest of any set; % of familiar rejected")
    for name in sorted(means, key=lambda name: -means[name][0]):
        cells = [figures for task in tasks for part_name, figures in task[name].items() if part_name != "familiar"]
        lowest = [min(cell[key] for cell in cells) for key in ("detection", "auroc")]
        rejected = np.mean([task[name]["familiar"]["rejected"] for task in tasks])
        print(
            f"{name:<24}{means[name][0]:>8.1%}{means[name][1]:>8.4f}{lowest[0]:>8.1%}{lowest[1]:>8.4f}{rejected:>8.2%}"
        )
    if part != "selection":
        return None
    combined = {name: values[0] for name, values in means.items() if name.split()[0] in COMBINATIONS}
    near = [name for name, value in combined.items() if value >= max(combined.values()) - 0.005]
    chosen = min(near, key=lambda name: (len(COMBINATIONS[name.split()[0]]), -combined[name]))
    print(f"choice of the rule: {chosen}, {' + '.join(COMBINATIONS[chosen.split()[0]])}")
    return chosen


if __name__ == "__main__":
    sys.exit(main())
