"""`make bench-quality`, the tables: three sets of measurements, each with rows that its model never knew.

    letters    26 capital letters, six of them (every fourth: D H L P T X) held out
    wine-red   the quality of red wines; white ones are strange
    gas-drift  six gases, learned from batches 1 and 2; the sensors drift from batch to batch

Cuts the public arrays into the files that `abstain fit` takes, fits each set's config for every seed by the command a
user has, and prints what the config's own decision, the default, comes to. A seed cuts another test part. No choice
was made on what is printed here: which scores decide, and how feature scores are fitted, was chosen with other letters, gases
and wines held out (`docs/results.md`), and networks and methods by rows held out of the training parts.

    python benchmarks/tabular.py --data FOLDER [--seeds 3] [--only letters] [--prepare FOLDER]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import orjson
from scipy.stats import betabinom

from abstain.models.bundles.bundle import load
from abstain.models.decisions.judging import judge
from abstain.models.decisions.ranks import percentile_rank

PROJECT = Path(__file__).resolve().parents[1]
RESULTS = PROJECT / "benchmarks" / "results"
ABSTAIN = Path(sys.executable).with_name("abstain")
HELD_OUT_LETTERS = range(3, 26, 4)
FIRST_BATCHES = (1, 2)
TEST_SHARE = 0.2
PERCENTILES = (99.0, 95.0)
"""The configs' own, and one that a request may ask for instead."""

Arrays = dict[str, np.ndarray]


class Cut(NamedTuple):
    """One set's rows: what `abstain fit` takes, and strange rows by name, with targets where they mean something."""

    known: Arrays
    strange: dict[str, Arrays]


def cut_letters(arrays: Arrays, seed: int) -> Cut:
    """All but every fourth letter; these are strange, and no answer to them is right."""
    held_out = np.isin(arrays["y"], HELD_OUT_LETTERS)
    kept, codes = np.unique(arrays["y"][~held_out], return_inverse=True)
    known = parts(arrays["x"][~held_out], codes, seed)
    known |= {"class_names": arrays["class_names"][kept], "feature_names": arrays["feature_names"]}
    return Cut(known, {"held_out": {"x": arrays["x"][held_out]}})


def cut_wine(arrays: Arrays, seed: int) -> Cut:
    """Red wines; white ones, whose quality was judged on the same scale, are strange."""
    known = parts(arrays["x_red"], arrays["y_red"], seed) | {"feature_names": arrays["feature_names"]}
    return Cut(known, {"white": {"x": arrays["x_white"], "y": arrays["y_white"]}})


def cut_gas(arrays: Arrays, seed: int) -> Cut:
    """The first two batches; each later one is strange, the more so the later."""
    batch = arrays["batch"]
    first = np.isin(batch, FIRST_BATCHES)
    known = parts(arrays["x"][first], arrays["y"][first], seed) | {"class_names": arrays["class_names"]}
    later = [number for number in np.unique(batch).tolist() if number not in FIRST_BATCHES]
    return Cut(known, {f"batch_{b}": {"x": arrays["x"][batch == b], "y": arrays["y"][batch == b]} for b in later})


def parts(x: np.ndarray, y: np.ndarray, seed: int) -> Arrays:
    """Training and test part, drawn by the seed."""
    order = np.random.default_rng(seed).permutation(len(x))
    test, train = np.split(order, [round(TEST_SHARE * len(x))])
    return {"x_train": x[train], "y_train": y[train], "x_test": x[test], "y_test": y[test]}


class Task(NamedTuple):
    """A config's name, the file of the public arrays, and how they are cut."""

    file: str
    cut: Callable[[Arrays, int], Cut]


TASKS = {
    "letters": Task("letter_recognition.npz", cut_letters),
    "wine-red": Task("wine_red_white.npz", cut_wine),
    "gas-drift": Task("gas_sensor_drift.npz", cut_gas),
}


def main() -> int:
    """Cuts, fits, measures, prints, and writes `benchmarks/results/tabular.json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shared = PROJECT.parent / "shared" / "data"
    parser.add_argument("--data", type=Path, default=shared, help="folder of the .npz files")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", choices=tuple(TASKS), action="append", help="one of the sets; may be repeated")
    parser.add_argument("--prepare", type=Path, help="only write the files that `abstain fit` takes into this folder")
    options = parser.parse_args()
    chosen = {name: task for name, task in TASKS.items() if not options.only or name in options.only}
    absent = [task.file for task in chosen.values() if not (options.data / task.file).is_file()]
    if absent:
        sys.exit(f"missing in {options.data}: {', '.join(absent)}; name their folder with --data")
    if options.prepare:
        for name, task in chosen.items():
            known, strange = write(name, task, options.data, options.prepare, 0)
            print("\n".join(map(str, (known, *strange.values()))))
        return 0
    results: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, task in chosen.items():
            results[name] = [measure(name, task, options.data, Path(folder), seed) for seed in range(options.seeds)]
            report(name, results[name])
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "tabular.json").write_bytes(orjson.dumps(results, option=orjson.OPT_INDENT_2))
    return 0


def write(name: str, task: Task, data: Path, folder: Path, seed: int) -> tuple[Path, dict[str, Path]]:
    """Writes what a set's `abstain fit` and `abstain evaluate --ood` take; returns where."""
    with np.load(data / task.file) as file:
        cut = task.cut(dict(file), seed)
    folder.mkdir(parents=True, exist_ok=True)
    known = folder / f"{name}.npz"
    np.savez(known, **cut.known)
    strange = {part: folder / f"{name}-{part.replace('_', '-')}.npz" for part in cut.strange}
    for part, path in strange.items():
        np.savez(path, **cut.strange[part])
    return known, strange


def measure(name: str, task: Task, data: Path, folder: Path, seed: int) -> dict[str, Any]:
    """One seed's fit and figures."""
    known, strange = write(name, task, data, folder / f"{name}-{seed}", seed)
    store = folder / f"{name}-{seed}" / "store"
    began = time.perf_counter()
    config = PROJECT / "training" / "configs" / f"{name}.toml"
    fitted = run("fit", config, "--data", known, "--store", store, "--set", f"seed={seed}")
    seconds = time.perf_counter() - began
    sets = [argument for part, path in strange.items() for argument in ("--ood", f"{part}={path}")]
    evaluated = run("evaluate", name, "--data", known, "--store", store, *sets)
    return {
        "seed": seed,
        "seconds": seconds,
        "shortfalls": fitted["shortfalls"],
        **evaluated,
        **accepted_and_rejected(store / name / "1", known, strange),
    }


def run(*arguments: str | Path) -> dict[str, Any]:
    """Runs an `abstain` command of this checkout and returns its output."""
    paths = os.pathsep.join([str(PROJECT), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [ABSTAIN, *map(str, arguments), "--json"],
        capture_output=True,
        env={**os.environ, "PYTHONPATH": paths},
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout)


def accepted_and_rejected(version: Path, known: Path, strange: dict[str, Path]) -> dict[str, Any]:
    """How many rows of every set are rejected at each percentile, and how good the answers are to both kinds."""
    bundle = load(version)
    predictor, calibration = bundle.predictor((256,)), bundle.calibration
    with np.load(known) as file:
        sets: dict[str, tuple[np.ndarray, np.ndarray | None]] = {"test": (file["x_test"], file["y_test"])}
    for part, path in strange.items():
        with np.load(path) as file:
            sets[part] = (file["x"], file.get("y"))
    answers: dict[str, Any] = {}
    for part, (x, y) in sets.items():
        prediction = predictor(x)
        fits = None if y is None else agreement(np.asarray(prediction.summary.mean), y)
        answers[part] = {
            f"{percentile:g}": divided(judge(calibration, prediction, percentile).reject, fits)
            for percentile in PERCENTILES
        }
    rows, tests = calibration.rows, len(sets["test"][0])
    bands = {}
    for percentile in PERCENTILES:
        rank = percentile_rank(percentile, rows)
        # Of the test rows as many are above the threshold as a beta-binomial has it: Beta(k, n + 1 - k) is their share.
        bands[f"{percentile:g}"] = (betabinom.ppf([0.025, 0.975], tests, rows + 1 - rank, rank) / tests).tolist()
    return {"bands": bands, "calibration_rows": rows, "answers": answers}


def divided(rejected: np.ndarray, fits: np.ndarray | None) -> dict[str, Any]:
    """The share that is rejected, and the mean fit of the accepted and of the rejected, if there is one."""
    found: dict[str, Any] = {"rows": len(rejected), "rejected": int(rejected.sum())}
    for of, rows in (("of_accepted", ~rejected), ("of_rejected", rejected)):
        found[of] = float(fits[rows].mean()) if fits is not None and rows.any() else None
    return found


def agreement(mean: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Whether each class is right, or each number's squared error."""
    return (mean.argmax(axis=1) == y).astype(float) if mean.ndim == 2 else (mean - y) ** 2


def report(name: str, results: list[dict[str, Any]]) -> None:
    """A set's tables, in Markdown: mean over the seeds, and how far these lie apart."""
    quality = "accuracy" if "accuracy" in results[0] else "rmse"
    first = results[0]
    print(f"\n### {name}\n")
    print(f"{len(results)} seeds; {first['calibration_rows']} calibration rows, {first['rows']} test rows; ", end="")
    print(f"{np.mean([each['seconds'] for each in results]):.0f} s a fit; {quality} {spread(results, quality)}.")
    for percentile in PERCENTILES:
        at = f"{percentile:g}"
        rates = [each["answers"]["test"][at]["rejected"] / each["rows"] for each in results]
        inside = sum(
            each["bands"][at][0] <= rate <= each["bands"][at][1] for each, rate in zip(results, rates, strict=True)
        )
        low, high = first["bands"][at]
        print(
            f"Rejected of the test part at {at}: {', '.join(f'{rate:.1%}' for rate in rates)}; "
            f"exact 95 % band {low:.1%} … {high:.1%}, {inside} of {len(rates)} in it."
        )
    heads = [f"rejected at {p:g} | {quality} of accepted | of rejected" for p in PERCENTILES]
    print(f"\n| rows of | AUROC | {' | '.join(heads)} |\n|---|---|{'---|' * 3 * len(PERCENTILES)}")
    for part in ("test", *first["ood"]):
        cells = ["" if part == "test" else spread_of([each["ood"][part]["reject"]["auroc"] for each in results])]
        for percentile in PERCENTILES:
            answers = [each["answers"][part][f"{percentile:g}"] for each in results]
            cells.append(spread_of([each["rejected"] / each["rows"] for each in answers]))
            cells += [pooled(answers, of, quality) for of in ("of_accepted", "of_rejected")]
        print(f"| {part.replace('_', ' ')} | {' | '.join(cells)} |")
    print(f"\n| score | rejected of test | {' | '.join(part.replace('_', ' ') for part in first['ood'])} |")
    print("|---|---|" + "---|" * len(first["ood"]))
    for score in first["reject_rate"]:
        rejected = np.mean([each["reject_rate"][score] for each in results])
        found = [[each["ood"][part][score] for each in results] for part in first["ood"]]
        cells = [
            f"{np.mean([f['auroc'] for f in each]):.3f} · {np.mean([f['detection'] for f in each]):.0%}"
            for each in found
        ]
        print(f"| {'**decision**' if score == 'reject' else score} | {rejected:.2%} | {' | '.join(cells)} |")


def spread(results: list[dict[str, Any]], key: str) -> str:
    """A figure's mean and standard deviation over the seeds."""
    return spread_of([each[key] for each in results])


def spread_of(values: list[float]) -> str:
    """Mean and standard deviation."""
    return f"{np.mean(values):.3f} ± {np.std(values, ddof=1) if len(values) > 1 else 0:.3f}"


def pooled(answers: list[dict[str, Any]], key: str, quality: str) -> str:
    """Accuracy or RMSE over the rows of all seeds."""
    counts = [each["rejected"] if key == "of_rejected" else each["rows"] - each["rejected"] for each in answers]
    known = [(each[key], count) for each, count in zip(answers, counts, strict=True) if each[key] is not None]
    if not known:
        return ""
    mean = float(np.average([fit for fit, _ in known], weights=[count for _, count in known]))
    return f"{mean if quality == 'accuracy' else mean**0.5:.3f}"


if __name__ == "__main__":
    sys.exit(main())
