"""`make bench-quality`, tables: three sets of measurements, each with rows that are strange to its model.

    letters    26 capital letters; six of them (every fourth: D H L P T X) are strange
    wine-red   the quality of red wines; white wines are strange
    gas-drift  six gases in batches 1 and 2; later batches are strange, because the sensors drift

It splits the public arrays into files for `abstain fit`, fits the config of each set for every seed with this command, and
prints the results of the default decision. Every seed draws another test part. These results were not used for any choice:
the decision scores and the fit of feature scores were chosen with other strange letters, gases and wines
(`docs/results.md`), and networks and methods by rows of the training parts outside the fit.

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
STRANGE_LETTERS = range(3, 26, 4)
FIRST_BATCHES = (1, 2)
TEST_SHARE = 0.2
PERCENTILES = (99.0, 95.0)
"""The percentile of the configs, and one that a request may have instead."""

Arrays = dict[str, np.ndarray]


class Cut(NamedTuple):
    """The rows of a set: arrays for `abstain fit`, and strange rows by name, with targets if they are meaningful."""

    known: Arrays
    strange: dict[str, Arrays]


def cut_letters(arrays: Arrays, seed: int) -> Cut:
    """Splits off every fourth letter as strange; no predicted class of these is right."""
    held_out = np.isin(arrays["y"], STRANGE_LETTERS)
    kept, codes = np.unique(arrays["y"][~held_out], return_inverse=True)
    known = parts(arrays["x"][~held_out], codes, seed)
    known |= {"class_names": arrays["class_names"][kept], "feature_names": arrays["feature_names"]}
    return Cut(known, {"held_out": {"x": arrays["x"][held_out]}})


def cut_wine(arrays: Arrays, seed: int) -> Cut:
    """Splits wines: white ones are strange; their quality has the same scale as that of red ones."""
    known = parts(arrays["x_red"], arrays["y_red"], seed) | {"feature_names": arrays["feature_names"]}
    return Cut(known, {"white": {"x": arrays["x_white"], "y": arrays["y_white"]}})


def cut_gas(arrays: Arrays, seed: int) -> Cut:
    """Splits off the batches after the first two, which are the stranger, the later they are."""
    batch = arrays["batch"]
    first = np.isin(batch, FIRST_BATCHES)
    known = parts(arrays["x"][first], arrays["y"][first], seed) | {"class_names": arrays["class_names"]}
    later = [number for number in np.unique(batch).tolist() if number not in FIRST_BATCHES]
    return Cut(known, {f"batch_{b}": {"x": arrays["x"][batch == b], "y": arrays["y"][batch == b]} for b in later})


def parts(x: np.ndarray, y: np.ndarray, seed: int) -> Arrays:
    """Draws a training and a test part."""
    order = np.random.default_rng(seed).permutation(len(x))
    test, train = np.split(order, [round(TEST_SHARE * len(x))])
    return {"x_train": x[train], "y_train": y[train], "x_test": x[test], "y_test": y[test]}


class Task(NamedTuple):
    """The file of the public arrays of a set, and the function that splits them."""

    file: str
    cut: Callable[[Arrays, int], Cut]


TASKS = {
    "letters": Task("letter_recognition.npz", cut_letters),
    "wine-red": Task("wine_red_white.npz", cut_wine),
    "gas-drift": Task("gas_sensor_drift.npz", cut_gas),
}


def main() -> int:
    """Splits, fits, measures, prints, and writes `benchmarks/results/tabular.json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shared = PROJECT.parent / "shared" / "data"
    parser.add_argument("--data", type=Path, default=shared, help="folder of the .npz files")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", choices=tuple(TASKS), action="append", help="one of the sets; may be repeated")
    parser.add_argument("--prepare", type=Path, help="only write the files for `abstain fit` to this folder")
    options = parser.parse_args()
    tasks = {name: task for name, task in TASKS.items() if not options.only or name in options.only}
    missing = [task.file for task in tasks.values() if not (options.data / task.file).is_file()]
    if missing:
        sys.exit(f"missing in {options.data}: {', '.join(missing)}; name their folder with --data")
    if options.prepare:
        for name, task in tasks.items():
            known, strange = write(name, task, options.data, options.prepare, 0)
            print("\n".join(map(str, (known, *strange.values()))))
        return 0
    results: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, task in tasks.items():
            results[name] = [measure(name, task, options.data, Path(folder), seed) for seed in range(options.seeds)]
            print_results(name, results[name])
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "tabular.json").write_bytes(orjson.dumps(results, option=orjson.OPT_INDENT_2))
    return 0


def write(name: str, task: Task, data: Path, folder: Path, seed: int) -> tuple[Path, dict[str, Path]]:
    """Writes the files of a set for `abstain fit` and for `abstain evaluate --ood`; returns their paths."""
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
    """Fits one seed and returns its figures."""
    known, strange = write(name, task, data, folder / f"{name}-{seed}", seed)
    store = folder / f"{name}-{seed}" / "store"
    start_time = time.perf_counter()
    config = PROJECT / "training" / "configs" / f"{name}.toml"
    fitted = run("fit", config, "--data", known, "--store", store, "--set", f"seed={seed}")
    seconds = time.perf_counter() - start_time
    sets = [argument for part, path in strange.items() for argument in ("--ood", f"{part}={path}")]
    evaluated = run("evaluate", name, "--data", known, "--store", store, *sets)
    return {
        "seed": seed,
        "seconds": seconds,
        "shortfalls": fitted["shortfalls"],
        **evaluated,
        **measure_rejected(store / name / "1", known, strange),
    }


def run(*arguments: str | Path) -> dict[str, Any]:
    """Runs an `abstain` command of this checkout and returns its output."""
    paths = os.pathsep.join([str(PROJECT), *filter(None, [os.environ.get("PYTHONPATH")])])
    process = subprocess.run(
        [ABSTAIN, *map(str, arguments), "--json"],
        capture_output=True,
        env={**os.environ, "PYTHONPATH": paths},
        text=True,
        check=False,
    )
    if process.returncode:
        sys.exit(process.stderr)
    return json.loads(process.stdout)


def measure_rejected(version: Path, known: Path, strange: dict[str, Path]) -> dict[str, Any]:
    """Returns the rejected rows of every set at each percentile, and the quality on accepted and on rejected rows."""
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
        quality = None if y is None else row_quality(np.asarray(prediction.summary.mean), y)
        answers[part] = {
            f"{percentile:g}": summarize(judge(calibration, prediction, percentile).reject, quality)
            for percentile in PERCENTILES
        }
    rows, tests = calibration.rows, len(sets["test"][0])
    bands = {}
    for percentile in PERCENTILES:
        rank = percentile_rank(percentile, rows)
        # The number of test rows above the threshold has a beta-binomial distribution.
        bands[f"{percentile:g}"] = (betabinom.ppf([0.025, 0.975], tests, rows + 1 - rank, rank) / tests).tolist()
    return {"bands": bands, "calibration_rows": rows, "answers": answers}


def summarize(rejected: np.ndarray, quality: np.ndarray | None) -> dict[str, Any]:
    """Returns the number of rejected rows, and the mean quality of accepted and of rejected rows; None if unknown."""
    figures: dict[str, Any] = {"rows": len(rejected), "rejected": int(rejected.sum())}
    for name, rows in (("of_accepted", ~rejected), ("of_rejected", rejected)):
        figures[name] = float(quality[rows].mean()) if quality is not None and rows.any() else None
    return figures


def row_quality(mean: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Returns 1 or 0 for a right or wrong class, or the squared error of a number."""
    return (mean.argmax(axis=1) == y).astype(float) if mean.ndim == 2 else (mean - y) ** 2


def print_results(name: str, results: list[dict[str, Any]]) -> None:
    """Prints the tables of a set in Markdown: means and standard deviations over the seeds."""
    quality = "accuracy" if "accuracy" in results[0] else "rmse"
    first = results[0]
    print(f"\n### {name}\n")
    print(f"{len(results)} seeds; {first['calibration_rows']} calibration rows, {first['rows']} test rows; ", end="")
    print(f"{np.mean([each['seconds'] for each in results]):.0f} s per fit; {quality} {spread(results, quality)}.")
    for percentile in PERCENTILES:
        key = f"{percentile:g}"
        rates = [each["answers"]["test"][key]["rejected"] / each["rows"] for each in results]
        inside = sum(
            each["bands"][key][0] <= rate <= each["bands"][key][1] for each, rate in zip(results, rates, strict=True)
        )
        low, high = first["bands"][key]
        print(
            f"Rejected rows of the test part at {key}: {', '.join(f'{rate:.1%}' for rate in rates)}; "
            f"exact 95 % band {low:.1%} … {high:.1%}, {inside} of {len(rates)} within it."
        )
    heads = [f"rejected at {p:g} | {quality} of accepted | of rejected" for p in PERCENTILES]
    print(f"\n| rows of | AUROC | {' | '.join(heads)} |\n|---|---|{'---|' * 3 * len(PERCENTILES)}")
    for part in ("test", *first["ood"]):
        cells = ["" if part == "test" else spread_of([each["ood"][part]["reject"]["auroc"] for each in results])]
        for percentile in PERCENTILES:
            answers = [each["answers"][part][f"{percentile:g}"] for each in results]
            cells.append(spread_of([each["rejected"] / each["rows"] for each in answers]))
            cells += [pool_quality(answers, key, quality) for key in ("of_accepted", "of_rejected")]
        print(f"| {part.replace('_', ' ')} | {' | '.join(cells)} |")
    print(f"\n| score | rejected of test | {' | '.join(part.replace('_', ' ') for part in first['ood'])} |")
    print("|---|---|" + "---|" * len(first["ood"]))
    for score in first["reject_rate"]:
        rejected = np.mean([each["reject_rate"][score] for each in results])
        by_set = [[each["ood"][part][score] for each in results] for part in first["ood"]]
        cells = [
            f"{np.mean([seed['auroc'] for seed in seeds]):.3f} · {np.mean([seed['detection'] for seed in seeds]):.0%}"
            for seeds in by_set
        ]
        print(f"| {'**decision**' if score == 'reject' else score} | {rejected:.2%} | {' | '.join(cells)} |")


def spread(results: list[dict[str, Any]], key: str) -> str:
    """Formats the mean and standard deviation of a figure over the seeds."""
    return spread_of([each[key] for each in results])


def spread_of(values: list[float]) -> str:
    """Formats the mean and standard deviation."""
    return f"{np.mean(values):.3f} ± {np.std(values, ddof=1) if len(values) > 1 else 0:.3f}"


def pool_quality(answers: list[dict[str, Any]], key: str, quality: str) -> str:
    """Formats the accuracy or RMSE over the rows of all seeds."""
    counts = [each["rejected"] if key == "of_rejected" else each["rows"] - each["rejected"] for each in answers]
    known = [(each[key], count) for each, count in zip(answers, counts, strict=True) if each[key] is not None]
    if not known:
        return ""
    mean = float(np.average([value for value, _ in known], weights=[count for _, count in known]))
    return f"{mean if quality == 'accuracy' else mean**0.5:.3f}"


if __name__ == "__main__":
    sys.exit(main())
