"""`python benchmarks/shares.py`: what a share of the reject budget for ambiguity costs in detection, and gains in accuracy.

    python benchmarks/shares.py [--data FOLDER] [--only letters,gases,drift,digits,numbers]

The tasks are those of `table_selection.py`: familiar rows without some classes, groups or ranges, which are the strange rows.
The default decision is the novelty part. For each ambiguity score, share and percentile:

    detection   the share of the strange rows that are rejected, averaged over the kinds
    error       the share of wrong answers among the accepted familiar test rows; for numbers their RMSE as a share of the
                RMSE of all test rows
    rejected    the share of the familiar test rows that are rejected

The rule of choice: of the shares that lose at most .02 of the detection of novelty alone at every percentile, averaged over
the kinds, the one with the lowest accepted error at the 95th percentile.

Writes `benchmarks/results/shares.json`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from table_selection import PROJECT, RESULTS, TASKS, Task, fit_task

from abstain.models.decisions.calibration import calibrate
from abstain.models.decisions.judging import judge
from abstain.models.prediction.predictive import Prediction
from abstain.training.calibration.pipeline import choose_decision
from abstain.training.data.dataset import Dataset

SHARES = (1.0, 0.95, 0.9, 0.8, 0.7, 0.5, 0.3)
"""Novelty's shares of the budget; 1 is novelty alone."""
PERCENTILES = (90.0, 95.0, 99.0)
AMBIGUITY = {
    "classification": ("max_probability", "entropy", "expected_entropy", "gen", "mutual_information"),
    "regression": ("total_std",),
}
LOST = 0.02
"""The most of the detection that a share may lose."""


def main() -> int:
    """Fits, measures, prints, and writes `benchmarks/results/shares.json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, default=PROJECT.parent / "shared" / "data", help="folder of the .npz files"
    )
    parser.add_argument("--only", help="some of the kinds, separated by commas")
    options = parser.parse_args()
    kinds = options.only.split(",") if options.only else list(TASKS)
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for kind in kinds:
            for task in TASKS[kind](options.data):
                results += measure(task, Path(folder))
                print(".", end="", file=sys.stderr, flush=True)
    for target in ("classification", "regression"):
        own = [entry for entry in results if entry["target"] == target]
        if own:
            print_results(target, own)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "shares.json").write_bytes(orjson.dumps(results, option=orjson.OPT_INDENT_2))
    return 0


def measure(task: Task, folder: Path) -> list[dict[str, Any]]:
    """Measures every ambiguity score, share and percentile on one task."""
    dataset, predictor, reference, known, familiar = fit_task(task, folder)
    strange = {kind: predictor(x) for kind, x in task.strange.items()}
    target = predictor.model.likelihood_functions.task
    decision = choose_decision(task.config.calibration, predictor.model)
    wrong = errors_of(target, familiar, dataset)
    found: list[dict[str, Any]] = []
    for ambiguity in AMBIGUITY[target]:
        for share in SHARES:
            calibration = calibrate(
                known,
                dataset.calibration.y,
                decision=decision,
                ambiguity=None if share == 1 else ambiguity,
                novelty_share=0.5 if share == 1 else share,
                percentile=90.0,
                reference=reference.scores,
            )
            for percentile in PERCENTILES:
                if calibration.rows < percentile / (100 - percentile):
                    continue
                accepted = ~judge(calibration, familiar, percentile).reject
                detected = [float(judge(calibration, rows, percentile).reject.mean()) for rows in strange.values()]
                found.append(
                    {
                        "target": target,
                        "kind": task.kind,
                        "ambiguity": ambiguity,
                        "share": share,
                        "percentile": percentile,
                        "detection": float(np.mean(detected)),
                        "error": risk(target, wrong[accepted])
                        / (1 if target == "classification" else risk(target, wrong)),
                        "rejected": float(1 - accepted.mean()),
                    }
                )
    return found


def errors_of(target: str, prediction: Prediction, dataset: Dataset) -> np.ndarray:
    """Returns whether each test row's class is wrong, or its squared error."""
    mean = np.asarray(prediction.summary.mean)
    if target == "classification":
        return mean.argmax(axis=1) != dataset.test.y
    return (mean - dataset.test.y) ** 2


def risk(target: str, errors: np.ndarray) -> float:
    """Returns the error rate, or the RMSE."""
    return float(errors.mean()) if target == "classification" else float(np.sqrt(errors.mean()))


def print_results(target: str, results: list[dict[str, Any]]) -> None:
    """Prints detection and accepted error at each percentile, averaged over kinds, and marks the chosen share."""
    alone = {p: average(results, AMBIGUITY[target][0], 1.0, p) for p in PERCENTILES}
    choices: dict[tuple[str, float], float] = {}
    print(f"\n### {target}: detection · error of the accepted · rejected\n")
    print(
        f"| ambiguity | novelty share | {' | '.join(f'{p:g}' for p in PERCENTILES)} |\n|---|---|{'---|' * len(PERCENTILES)}"
    )
    for ambiguity in AMBIGUITY[target]:
        for share in SHARES:
            cells = {p: average(results, ambiguity, share, p) for p in PERCENTILES}
            if all(cells[p][0] >= alone[p][0] - LOST for p in PERCENTILES):
                choices[ambiguity, share] = cells[95.0][1]
            shown = " | ".join(f"{d:.3f} · {e:.4f} · {r:.3f}" for d, e, r in cells.values())
            print(f"| {ambiguity} | {share:g} | {shown} |")
    print(f"\nchosen: {min(choices, key=choices.__getitem__)}")


def average(
    results: list[dict[str, Any]], ambiguity: str, share: float, percentile: float
) -> tuple[float, float, float]:
    """Returns the mean detection, error and reject rate over kinds, within a kind over its tasks."""
    own = [
        entry
        for entry in results
        if (entry["ambiguity"], entry["share"], entry["percentile"]) == (ambiguity, share, percentile)
    ]
    kinds = sorted({entry["kind"] for entry in own})
    of_kinds = [
        [
            np.mean([entry[figure] for entry in own if entry["kind"] == kind])
            for figure in ("detection", "error", "rejected")
        ]
        for kind in kinds
    ]
    detection, error, rejected = np.mean(of_kinds, axis=0)
    return float(detection), float(error), float(rejected)


if __name__ == "__main__":
    sys.exit(main())
