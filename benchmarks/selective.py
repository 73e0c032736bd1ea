"""`python benchmarks/selective.py`: on six tables, the error of the rows that a decision keeps, and the strange rows that it finds.

    python benchmarks/selective.py [--data FOLDER]

Tables and strange rows are those of `table_selection.py`: letters without six letters, gases without one gas, digits without two
classes, and the numbers of boston, concrete and wine without the rows far along one direction. Decisions:

    before      the default decision of earlier versions: novelty alone
    novelty     the default decision
    both        the default decision with `novelty_share = 0.7`

All familiar test rows are ranked by the decision score. For each decision:

    AURC        mean error of the rows kept, over all shares that may be kept; "random" is the error of all rows, which a ranking
                without any information has
    80 90 95    error of the 80, 90 and 95 % of rows with the lowest score. Errors are shares of wrong answers; for numbers the
                RMSE as a part of the RMSE of all rows
    AUROC       of the strange rows against the familiar test rows
    detected    share of strange rows rejected at percentiles 95 and 99 (numbers: 90 and 95)
    falls       whether the error falls from 100 % through 95, 90 and 80 % kept

It takes three minutes on two cores. Writes `benchmarks/results/selective.json`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from jaxtyping import Float
from shares import errors_of
from table_selection import PROJECT, RESULTS, TASKS, FittedTask, Task, fit_task

from abstain.models.decisions.calibration import calibrate
from abstain.models.decisions.decision import Decision
from abstain.models.decisions.judging import judge
from abstain.training.calibration.pipeline import DEFAULT_AMBIGUITY, choose_decision
from abstain.training.evaluation.metrics import separation

TABLES = {"letters": (0,), "gases": (1,), "digits": (0,), "numbers": (0, 1, 3)}
"""The number of each task within its kind."""
NAMES = {"numbers": ("boston", "concrete", "energy", "wine", "yacht")}
BEFORE = {
    "classification": Decision(
        scores=("relative_mahalanobis", "knn", "local_subspace", "feature_subspace", "range"), rule="harmonic"
    ),
    "regression": Decision(scores=("std", "mahalanobis", "feature_subspace", "range"), rule="weighted"),
}
SHARE = 0.7
KEPT = (0.8, 0.9, 0.95)


def main() -> int:
    """Fits, measures, prints, and writes `benchmarks/results/selective.json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, default=PROJECT.parent / "shared" / "data", help="folder of the .npz files"
    )
    options = parser.parse_args()
    results: dict[str, dict[str, dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for kind, numbers in TABLES.items():
            for number, task in enumerate(TASKS[kind](options.data)):
                if number in numbers:
                    name = NAMES.get(kind, ())[number] if kind in NAMES else kind
                    results[name] = measure(task, fit_task(task, Path(folder)))
                    print(".", end="", file=sys.stderr, flush=True)
    print(
        "\n| table | decision | AURC (random) | 80 % | 90 % | 95 % | AUROC | detected | falls |\n|---|---|---|---|---|---|---|---|---|"
    )
    for name, by_decision in results.items():
        for decision, found in by_decision.items():
            kept = " | ".join(f"{error:.4f}" for error in found["error"])
            print(
                f"| {name} | {decision} | {found['aurc']:.4f} ({found['random']:.4f}) | {kept} | {found['auroc']:.3f} "
                f"| {found['detected'][0]:.0%}, {found['detected'][1]:.0%} | {'yes' if found['falls'] else 'no'} |"
            )
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "selective.json").write_bytes(orjson.dumps(results, option=orjson.OPT_INDENT_2))
    return 0


def measure(task: Task, fitted: FittedTask) -> dict[str, dict[str, Any]]:
    """Measures every decision on one table."""
    target = fitted.predictor.model.likelihood_functions.task
    default = choose_decision(task.config.calibration, fitted.predictor.model)
    kinds = ("far",) if target == "regression" else tuple(task.strange)
    strange = fitted.predictor(np.concatenate([task.strange[kind] for kind in kinds]))
    errors = np.asarray(errors_of(target, fitted.test, fitted.dataset), np.float64)
    percentiles = (95.0, 99.0) if target == "classification" else (90.0, 95.0)
    found: dict[str, dict[str, Any]] = {}
    for name, decision, ambiguity in (
        ("before", BEFORE[target], None),
        ("novelty", default, None),
        ("both", default, DEFAULT_AMBIGUITY[target][0]),
    ):
        calibration = calibrate(
            fitted.calibration,
            fitted.dataset.calibration.y,
            decision=decision,
            ambiguity=ambiguity,
            novelty_share=SHARE,
            percentile=percentiles[0],
            reference=fitted.reference.scores,
            target_scale=fitted.predictor.model.preprocessing.target_scale,
        )
        own, other = judge(calibration, fitted.test), judge(calibration, strange)
        values = [judgement.scores[judgement.decision].value for judgement in (own, other)]
        kept = kept_errors(values[0], errors, numbers=target == "regression")
        at = {share: float(kept[int(np.ceil(share * len(kept))) - 1]) for share in (*KEPT, 1.0)}
        found[name] = {
            "aurc": float(kept.mean()),
            "random": at[1.0],
            "error": [at[share] for share in KEPT],
            "auroc": separation(*values).auroc,
            "detected": [float(judge(calibration, strange, percentile).reject.mean()) for percentile in percentiles],
            "falls": bool(np.all(np.diff(list(at.values())) >= 0)),
        }
    return found


def kept_errors(
    score: Float[np.ndarray, " rows"], errors: Float[np.ndarray, " rows"], *, numbers: bool
) -> Float[np.ndarray, " rows"]:
    """Returns the error of the 1, 2 … rows with the lowest scores; for numbers the RMSE as a part of that of all rows."""
    means = np.cumsum(errors[np.argsort(score, kind="stable")]) / np.arange(1, len(errors) + 1)
    return np.sqrt(means / means[-1]) if numbers else means


if __name__ == "__main__":
    sys.exit(main())
