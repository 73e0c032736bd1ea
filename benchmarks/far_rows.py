"""Whether rows far outside the training ranges are rejected on small tables, by the decision alone and by whole fits.

    python benchmarks/far_rows.py [--seeds 1000] [--fits 60]

By the decision alone: tables of 1 to 16 normal columns with 99 to 2,000 calibration rows. `range` and the distance to the
nearest training row are computed as a fit computes them, on inputs instead of features, and combined by the default rule
of tables. A row with one column far outside must be rejected at the largest percentile that the calibration rows can give.

By whole fits: `fit` of tables of the same sizes, with the default decision. It counts the fits that fail the publication
check because far rows are accepted, and the accepted rows at percentile 99 with one column 50 range widths outside.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from pathlib import Path

import numpy as np
from jaxtyping import Float
from scipy.spatial import cKDTree
from servers import print_progress, save_results

from abstain.models.bundles.bundle import load
from abstain.models.decisions.decision import Decision
from abstain.models.decisions.judging import judge
from abstain.models.decisions.records import Calibration
from abstain.models.prediction.predictive import Prediction
from abstain.models.prediction.summaries import ClassificationSummary
from abstain.training.calibration.reference import set_aside
from abstain.training.config.config import Config
from abstain.training.data.rows import Rows
from abstain.training.fit import fit

COLUMNS = (1, 2, 4, 8, 16)
CALIBRATION_ROWS = (99, 150, 198, 500, 2_000)
FAR = np.array([5.0, 50.0, 1e6])
"""Distances outside the training range, in widths of the range."""
DECISION = Decision(scores=("range", "input_knn"), rule="harmonic")


def main() -> int:
    """Counts, prints, and writes `benchmarks/results/far_rows.json`; 1 if any far row was accepted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1_000)
    parser.add_argument("--fits", type=int, default=60)
    options = parser.parse_args()
    sizes = [(columns, rows) for columns in COLUMNS for rows in CALIBRATION_ROWS]
    alone = {}
    for columns, rows in sizes:
        accepting = sum(accepts_far(columns, rows, seed) for seed in range(options.seeds))
        alone[f"{columns} columns, {rows} rows"] = accepting
        print(
            f"{columns:>2} columns, {rows:>5} calibration rows: {accepting} of {options.seeds} seeds accept a far row",
            flush=True,
        )
    whole = {"fits": options.fits, "gate": 0, "accepted": 0, "rows": 0}
    for number in range(options.fits):
        columns, rows = sizes[number % len(sizes)]
        gate, accepted, far_rows = fit_and_count(columns, rows, seed=number)
        whole = whole | {
            "gate": whole["gate"] + gate,
            "accepted": whole["accepted"] + accepted,
            "rows": whole["rows"] + far_rows,
        }
        print_progress(f"fit {number + 1} of {options.fits}: {columns} columns, {rows} calibration rows")
    print(
        f"{whole['fits']} fits: {whole['gate']} fail the check of far rows; {whole['accepted']} of {whole['rows']} rows with one "
        "column 50 widths outside are accepted"
    )
    save_results("far_rows", {"alone": alone, "whole": whole})
    return int(bool(sum(alone.values()) or whole["gate"] or whole["accepted"]))


def accepts_far(columns: int, rows: int, seed: int) -> bool:
    """Whether the decision alone accepts a far row."""
    rng = np.random.default_rng([seed, columns, rows])
    # The default shares of a table: a fifth for testing, a fifth of the rest for calibration.
    reference, rest = set_aside(Rows(rng.normal(size=(4 * rows, columns)), np.zeros(4 * rows)), seed)
    low, high, bank = rest.x.min(axis=0), rest.x.max(axis=0), cKDTree(rest.x)

    def scores(x: Float[np.ndarray, "rows columns"]) -> dict[str, Float[np.ndarray, " rows"]]:
        outside = (np.maximum(low - x, x - high) / (high - low)).max(axis=1)
        values = {"range": np.where(outside > 1e-4, outside, 0.0), "input_knn": bank.query(x)[0]}
        return {name: score.astype(np.float32) for name, score in values.items()}

    calibration = Calibration(
        scores=scores(rng.normal(size=(rows, columns))),
        nonconformity=np.zeros(rows),
        decision=DECISION,
        reference=scores(reference.x),
    )
    far = np.zeros((len(FAR), columns))
    far[:, 0] = high[0] + FAR * (high - low)[0]
    return not judge(calibration, make_prediction(scores(far)), math.floor(1e8 * rows / (rows + 1)) / 1e6).reject.all()


def make_prediction(scores: dict[str, Float[np.ndarray, " rows"]]) -> Prediction:
    """Makes a prediction of a single class, with these scores."""
    rows = len(scores["range"])
    ones, zeros = np.ones((rows, 1), np.float32), np.zeros(rows, np.float32)
    return Prediction(ClassificationSummary(ones, ones, zeros, zeros, zeros), scores)


def fit_and_count(columns: int, calibration_rows: int, seed: int) -> tuple[bool, int, int]:
    """Fits a table; returns whether the check of far rows fails, and the accepted and all rows with one far column."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(round(6.25 * calibration_rows), columns))
    y = (x[:, 0] + rng.normal(size=len(x)) > 0).astype(int)
    config = Config.model_validate(
        {
            "name": "far",
            "draws": 5,
            "seed": seed,
            "network": {"kind": "mlp", "hidden": [8]},
            "data": {"calibration_size": calibration_rows},
            "method": {"kind": "vi", "steps": 200, "learning_rate": 1e-2, "reports": 1},
        }
    )
    with tempfile.TemporaryDirectory() as folder:
        data, store = Path(folder) / "table.npz", Path(folder) / "store"
        np.savez(data, x=x, y=y)
        published = fit(config, str(data), store, lambda *_, **__: None)
        bundle = load(store / "far" / "1")
    far = np.tile(np.median(x, axis=0), (columns, 1))
    np.fill_diagonal(far, x.max(axis=0) + 50 * np.ptp(x, axis=0))
    reject = judge(bundle.calibration, bundle.predictor((32,))(far)).reject
    gate = any(shortfall.code == "accepts_far_rows" for shortfall in published.shortfalls)
    return gate, int((~reject).sum()), columns


if __name__ == "__main__":
    sys.exit(main())
