"""`python benchmarks/regret.py`: how far the default decision is from the best single score of the same model.

    python benchmarks/regret.py [--data FOLDER] [--store FOLDER] [--only tables,numbers,images]

Nobody knows beforehand which score finds the strange rows that will come. For each set of strange rows, the *regret* of a decision
is the AUROC of the score that finds them best, minus that of the decision. The regret of the detection is the same for the share of
strange rows above the value that 1 % of the familiar rows exceed (numbers: 5 %). Familiar rows are the calibration and test rows:
neither the draws nor the combination depends on them. The best of many scores is partly the luckiest one, so a decision with the
same power has a small positive regret.

    family      strange rows
    classes     classes, gases, letters or digits that the fit does not have; `table_selection.py` and `selection.py` name them
    drift       a later batch of the gas sensors
    far         numbers: rows far along the first principal component
    cluster     numbers: one cluster of the inputs
    set         images: digits for a model of clothes, also at the clothes' brightness
    photographs images: grey parts of photographs
    composed    images: parts of familiar images put together, turned, or mirrored
    shuffled    tables: every column of the training rows shuffled separately
    noise       familiar rows plus normal noise of one standard deviation of each column (images: 60 of 255)
    between     means of two familiar rows of different classes (numbers: of different targets)
    perturbed   images: blurred by 5 × 5 pixels, or inverted

Familiar rows of these sets are test rows. None of the final sets of `strong.py` and `tabular.py` is used.

Candidates are few and written down below. For each family, the one with the least regret on average over the *other* families is
used (leave-one-family-out): its regret on the family left out is what to expect on sets of another kind. Averages are over
families, and within a family over sets.

Fits take a quarter of an hour for tables and numbers on two cores, and half an hour for images. `--store` keeps the scores of all
rows, so that the next run takes a minute. Writes `benchmarks/results/regret.json`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import orjson
import selection
import table_selection
from jaxtyping import Float
from numpy.lib.stride_tricks import sliding_window_view
from scipy import stats

from abstain.models.bundles.bundle import load
from abstain.models.bundles.store import versions
from abstain.models.decisions.decision import Decision
from abstain.models.decisions.records import Calibration
from abstain.models.prediction.predictive import Prediction, Predictor
from abstain.training.calibration.feature_scores import fit_feature_scores
from abstain.training.calibration.reference import set_aside
from abstain.training.config.data import DataConfig
from abstain.training.data.dataset import split
from abstain.training.data.sources import read_source

ROWS = 2_000
"""The largest number of rows of the sets that are made here."""
PIXEL_NOISE = 60.0
IMAGE_TASKS = (
    ("vi", "digits-no37"),
    ("vi", "digits"),
    ("vi", "fashion-no58"),
    ("strong", "digits-no37"),
    ("strong", "fashion-no58"),
)
"""The network (`training/configs/mnist-….toml`), and the task of `selection.py`."""
FEWER_STEPS = {
    "vi": ("method.steps=6000", "draws=50"),
    "strong": ("method.starts=2", "draws=12", "method.map.steps=3000"),
}
_TABLE = ("relative_mahalanobis", "knn", "local_subspace", "feature_subspace")
_IMAGE = ("vim", "local_subspace", "feature_subspace", "subspace")
LESS_RANGE = (1.0, 1.0, 1.0, 1.0, 1.0, 0.3)
CANDIDATES: dict[str, dict[str, Decision]] = {
    "tables": {
        "default until now": Decision(scores=(*_TABLE, "range"), rule="harmonic"),
        "weighted": Decision(scores=(*_TABLE, "range"), rule="weighted"),
        "harmonic, energy": Decision(scores=(*_TABLE, "energy", "range"), rule="harmonic"),
        "harmonic, energy, less range": Decision(
            scores=(*_TABLE, "energy", "range"), rule="harmonic", weights=LESS_RANGE
        ),
        "weighted, energy": Decision(scores=(*_TABLE, "energy", "range"), rule="weighted"),
        "weighted, energy, less range": Decision(
            scores=(*_TABLE, "energy", "range"), rule="weighted", weights=LESS_RANGE
        ),
        "weighted, expected entropy, less range": Decision(
            scores=(*_TABLE, "expected_entropy", "range"), rule="weighted", weights=LESS_RANGE
        ),
    },
    "numbers": {
        "default until now": Decision(scores=("std", "mahalanobis", "feature_subspace", "range"), rule="weighted"),
        "harmonic": Decision(scores=("std", "mahalanobis", "feature_subspace", "range"), rule="harmonic"),
        "harmonic, local subspace": Decision(
            scores=("std", "mahalanobis", "local_subspace", "feature_subspace", "range"), rule="harmonic"
        ),
        "harmonic, local subspace, no mahalanobis": Decision(
            scores=("std", "local_subspace", "feature_subspace", "range"), rule="harmonic"
        ),
        "weighted, local subspace, no mahalanobis": Decision(
            scores=("std", "local_subspace", "feature_subspace", "range"), rule="weighted"
        ),
    },
    "images": {
        "default until now": Decision(scores=(*_IMAGE, "range"), rule="weighted"),
        "harmonic": Decision(scores=(*_IMAGE, "range"), rule="harmonic"),
        "weighted, energy": Decision(scores=(*_IMAGE, "energy", "range"), rule="weighted"),
        "harmonic, energy": Decision(scores=(*_IMAGE, "energy", "range"), rule="harmonic"),
        "weighted, relative mahalanobis": Decision(scores=(*_IMAGE, "relative_mahalanobis", "range"), rule="weighted"),
    },
}

Scores = dict[str, Float[np.ndarray, " rows"]]


class ScoredTask(NamedTuple):
    """The scores of the rows of a task.

    Attributes:
        target: a key of `CANDIDATES`.
        known: the scores of reference, calibration and test rows.
        strange: the scores of each set of strange rows, by its name.
        errors: of calibration and test rows: whether the class is wrong, or the distance from the target.
    """

    name: str
    target: str
    known: dict[str, Scores]
    strange: dict[str, Scores]
    errors: Scores


class Regret(NamedTuple):
    """The regret of one decision on one set of strange rows."""

    task: str
    strange: str
    family: str
    auroc: float
    detection: float


def main() -> int:
    """Fits what the store lacks, measures, prints, and writes `benchmarks/results/regret.json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shared = selection.PROJECT.parent / "shared" / "data"
    parser.add_argument("--data", type=Path, default=shared, help="folder of the .npz files")
    parser.add_argument("--store", type=Path, help="a folder that keeps the scores of all rows")
    parser.add_argument("--only", default=",".join(CANDIDATES), help="some of the targets, separated by commas")
    options = parser.parse_args()
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        store = options.store or Path(folder) / "scores"
        store.mkdir(parents=True, exist_ok=True)
        for target in options.only.split(","):
            tasks = list(scored_tasks(target, options.data, store))
            results[target] = report(target, tasks)
    selection.RESULTS.mkdir(exist_ok=True)
    (selection.RESULTS / "regret.json").write_bytes(orjson.dumps(results, option=orjson.OPT_INDENT_2))
    return 0


def scored_tasks(target: str, data: Path, store: Path, names: tuple[str, ...] = ()) -> Iterator[ScoredTask]:
    """Yields the tasks of a target, all or those of these names, from the store if it has them."""
    for name, make in _makers(target, data, store):
        if names and name not in names:
            continue
        yield _kept(store / f"{name}.npz", make)


# ---- scores of each task ---------------------------------------------------------------------------------------------


def _makers(target: str, data: Path, store: Path) -> Iterator[tuple[str, Callable[[], ScoredTask]]]:
    """Yields the name of each task of a target, and a function that fits it and computes its scores."""
    if target == "images":
        for network, name in IMAGE_TASKS:
            yield f"{network}-{name}", lambda network=network, name=name: score_images(network, name, data, store)
        return
    kinds = ["numbers"] if target == "numbers" else [kind for kind in table_selection.TASKS if kind != "numbers"]
    for kind in kinds:
        for number, task in enumerate(table_selection.TASKS[kind](data)):
            name = f"{kind}-{number}"
            yield name, lambda task=task, name=name, target=target: score_table(name, target, task)


def _kept(path: Path, make: Callable[[], ScoredTask]) -> ScoredTask:
    """Reads the scores of a task from the store, or computes and keeps them."""
    if not path.is_file():
        task = make()
        parts = (
            task.known | {f"strange:{name}": scores for name, scores in task.strange.items()} | {"errors": task.errors}
        )
        arrays = {f"{part}|{name}": values for part, scores in parts.items() for name, values in scores.items()}
        arrays["target"] = np.array(task.target)
        np.savez(path, allow_pickle=False, **arrays)
        print(".", end="", file=sys.stderr, flush=True)
    with np.load(path) as file:
        found: dict[str, Scores] = {}
        for key in file.files:
            if "|" in key:
                part, name = key.split("|")
                found.setdefault(part, {})[name] = file[key]
        errors = found.pop("errors")
        known = {part: scores for part, scores in found.items() if not part.startswith("strange:")}
        strange = {part.removeprefix("strange:"): found[part] for part in found if part not in known}
        return ScoredTask(path.stem, str(file["target"]), known, strange, errors)


def score_table(name: str, target: str, task: table_selection.Task) -> ScoredTask:
    """Fits a task of `table_selection.py`, and scores its rows."""
    with tempfile.TemporaryDirectory() as folder:
        fitted = table_selection.fit_task(task, Path(folder))
    x, y, rng = np.asarray(fitted.dataset.test.x, np.float64), fitted.dataset.test.y, np.random.default_rng(11)
    sets: dict[str, np.ndarray] = task.strange | {
        "shuffled": table_selection.shuffle_columns(fitted.dataset.train.x),
        "noise": x[:ROWS] + rng.normal(size=x[:ROWS].shape) * x.std(axis=0),
        "between": between(rng, x, y),
    }
    known = {"reference": fitted.reference, "calibration": fitted.calibration, "test": fitted.test}
    predict = fitted.predictor
    targets = {"calibration": fitted.dataset.calibration.y, "test": y}
    errors = {part: errors_of(known[part], values) for part, values in targets.items()}
    strange = {kind: predict(rows) for kind, rows in sets.items()}
    return ScoredTask(name, target, _scores(known), _scores(strange), errors)


def score_images(network: str, name: str, data: Path, store: Path) -> ScoredTask:
    """Fits a task of `selection.py` by `abstain fit`, and scores its rows."""
    task = next(task for task in selection.TASKS if task.name == name)
    fits, fit_name = store / "fits", f"{network}-{name}"
    with tempfile.TemporaryDirectory() as folder:
        path = selection.write_task(task, data, Path(folder))
        if not (fits / fit_name).is_dir():
            settings = (f"name={fit_name}", *FEWER_STEPS[network])
            overrides = [part for setting in settings for part in ("--set", setting)]
            config = selection.PROJECT / "training" / "configs" / f"mnist-{network}.toml"
            command = [selection.ABSTAIN, "fit", config, "--data", path, "--store", fits, *overrides]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        bundle = load(fits / fit_name / str(max(versions(fits, fit_name))))
        config = DataConfig.model_validate(bundle.manifest.data.settings)
        dataset = split(read_source(str(path), config, classify=True), config, bundle.manifest.seed)
    reference, rest = set_aside(dataset.train, bundle.manifest.seed)
    scores = fit_feature_scores(bundle.posterior, rest, bundle.manifest.seed)
    predict = Predictor(bundle.posterior, (256,), feature_scores=scores)
    x, y, rng = dataset.test.x, dataset.test.y.astype(int), np.random.default_rng(12)
    few = x[rng.permutation(len(x))[:ROWS]].astype(np.float32)
    sets: dict[str, np.ndarray] = selection.strange_sets(
        task, data, x, y, np.array(bundle.manifest.model.class_names)
    ) | {
        "noise": np.clip(few + PIXEL_NOISE * rng.normal(size=few.shape), 0, 255),
        "inverted": 255 - few,
        "blurred": blur(few),
        "between": between(rng, x.astype(np.float32), y),
    }
    known = {"reference": predict(reference.x), "calibration": predict(dataset.calibration.x), "test": predict(x)}
    strange = {kind: predict(np.ascontiguousarray(rows)) for kind, rows in sets.items()}
    targets = {"calibration": dataset.calibration.y, "test": y}
    errors = {part: errors_of(known[part], values) for part, values in targets.items()}
    return ScoredTask(fit_name, "images", _scores(known), _scores(strange), errors)


def errors_of(prediction: Prediction, targets: np.ndarray) -> Float[np.ndarray, " rows"]:
    """Returns whether the class of each row is wrong, 0 or 1, or the distance from its target."""
    mean = np.asarray(prediction.summary.mean, np.float64)
    return (mean.argmax(axis=1) != targets).astype(float) if mean.ndim == 2 else np.abs(mean - targets)


def between(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Returns the means of random pairs of rows with different targets."""
    first, second = rng.permutation(len(x)), rng.permutation(len(x))
    differ = y[first] != y[second]
    return (x[first[differ][:ROWS]] + x[second[differ][:ROWS]]) / 2


def blur(images: np.ndarray) -> np.ndarray:
    """Returns images whose pixels are the means of 5 × 5 pixels; zero beyond the edge."""
    return sliding_window_view(np.pad(images, ((0, 0), (2, 2), (2, 2))), (5, 5), (1, 2)).mean(axis=(3, 4))


def _scores(predictions: dict[str, Prediction]) -> dict[str, Scores]:
    return {
        part: {name: np.asarray(values, np.float64) for name, values in prediction.scores.items()}
        for part, prediction in predictions.items()
    }


# ---- regret ----------------------------------------------------------------------------------------------------------


def report(target: str, tasks: list[ScoredTask]) -> dict[str, Any]:
    """Prints and returns the regret of every candidate, and of the choice without each family."""
    found = {name: [one for task in tasks for one in regrets(task, name)] for name in CANDIDATES[target]}
    print(f"\n### {target}: {len(next(iter(found.values())))} sets of strange rows\n")
    print(
        "| decision | AUROC: median | mean | largest | detection: median | mean | largest |\n|---|---|---|---|---|---|---|"
    )
    for name, each in found.items():
        print(f"| {name} | {_summary([one.auroc for one in each])} | {_summary([one.detection for one in each])} |")
    families = list(dict.fromkeys(one.family for one in next(iter(found.values()))))
    left_out: list[Regret] = []
    print(f"\n| family | chosen without it | {' | '.join(found)} |\n|---|---|{'---|' * len(found)}")
    for family in families:
        others = {
            name: float(np.mean([_mean(each, other) for other in families if other != family]))
            for name, each in found.items()
        }
        chosen = min(others, key=others.__getitem__)
        left_out += [one for one in found[chosen] if one.family == family]
        print(f"| {family} | {chosen} | {' | '.join(f'{_mean(each, family):.4f}' for each in found.values())} |")
    print(
        f"\nleave-one-family-out: AUROC {_summary([one.auroc for one in left_out])}"
        f" · detection {_summary([one.detection for one in left_out])} (median | mean | largest)"
    )
    return {name: [one._asdict() for one in each] for name, each in found.items()}


def regrets(task: ScoredTask, candidate: str) -> Iterator[Regret]:
    """Yields the regret of a candidate on each set of a task."""
    calibration, reference = task.known["calibration"], task.known["reference"]
    decision = CANDIDATES[task.target][candidate]
    target_scale = float(np.std(calibration["std"])) or 1.0
    combined = Calibration(
        scores=calibration,
        nonconformity=np.zeros(len(calibration["std"])),
        decision=decision,
        reference=reference,
        target_scale=target_scale if task.target == "numbers" else 1.0,
    ).combined
    share = 0.05 if task.target == "numbers" else 0.01
    familiar = {name: np.concatenate([calibration[name], values]) for name, values in task.known["test"].items()}
    own = combined(familiar)
    for kind, strange in task.strange.items():
        value = combined(strange)
        yield Regret(
            task.name,
            kind,
            family_of(task, kind),
            max(auroc(familiar[name], strange[name]) for name in familiar) - auroc(own, value),
            max(detection(familiar[name], strange[name], share) for name in familiar) - detection(own, value, share),
        )


def family_of(task: ScoredTask, kind: str) -> str:
    """Returns the family of a set of strange rows."""
    if kind in {"inverted", "blurred"}:
        return "perturbed"
    if task.target == "images" and kind not in {"noise", "between"}:
        return {"classes": "classes", "set": "set", "photographs": "photographs"}.get(
            selection.KINDS.get(kind, "composed"), "composed"
        )
    return "classes" if kind in {"letters", "gases", "digits"} else kind


def auroc(familiar: Float[np.ndarray, " rows"], strange: Float[np.ndarray, " others"]) -> float:
    """Returns the probability that a strange row has the larger value, half of it for a tie (Mann & Whitney, 1947)."""
    ranks: np.ndarray = stats.rankdata(np.concatenate([familiar, strange]))[len(familiar) :]
    return float((ranks.mean() - (len(strange) + 1) / 2) / len(familiar))


def detection(familiar: Float[np.ndarray, " rows"], strange: Float[np.ndarray, " others"], share: float) -> float:
    """Returns the share of strange rows above the value that a share of the familiar rows exceeds."""
    return float((strange > np.quantile(familiar, 1 - share, method="higher")).mean())


def _mean(regrets: list[Regret], family: str) -> float:
    return float(np.mean([one.auroc for one in regrets if one.family == family]))


def _summary(values: list[float]) -> str:
    return f"{np.median(values):.4f} | {np.mean(values):.4f} | {np.max(values):.3f}"


if __name__ == "__main__":
    sys.exit(main())
