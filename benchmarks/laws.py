"""Six laws, which draw tables with difficult reject rates, each with a small model.

ties        few distinct rows: classes, sexes, ports, counts of relatives
atoms       four binary features; the networks are nearly random, not fitted
gaps        a third of the cells missing, at random
groups      every feature is shifted by the row's group, one of sixty
saturated   two classes with a large distance: every draw is certain, and scores are exactly 0 for most rows
small       two features, and only as many calibration rows as the percentile needs
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from pyarrow import csv

from abstain.models.prediction.feature_score_records import FeatureScores
from abstain.models.prediction.posterior import Posterior
from abstain.models.prediction.predictive import Predictor
from abstain.training.calibration.feature_scores import fit_feature_scores
from abstain.training.calibration.reference import set_aside
from abstain.training.config.config import Config
from abstain.training.data.rows import Rows
from abstain.training.data.sources import read_source
from abstain.training.fit import build_model, build_problem, infer, load_dataset
from abstain.training.runs.journal import Journal

TRAIN_ROWS = 500


@dataclass(frozen=True)
class Law:
    """A distribution of tables, and its changes of the config.

    Attributes:
        draw: draws the columns of a number of rows, including the target `y`.
        calibration_rows: the number of calibration rows by percentile; other percentiles have the default.
        categorical: the columns of categories.
        method: changed settings of the method, mean-field variational inference.
    """

    draw: Callable[[np.random.Generator, int], dict[str, Any]]
    calibration_rows: dict[float, int] = field(default_factory=dict)
    categorical: tuple[str, ...] = ()
    method: dict[str, Any] = field(default_factory=dict)


class FittedLaw(NamedTuple):
    """The model of a law, its reference rows, and a pool of new rows of the law."""

    posterior: Posterior
    feature_scores: FeatureScores
    reference: Rows
    pool: Rows


def ties(rng: np.random.Generator, rows: int) -> dict[str, Any]:
    """Draws rows like the passengers of a ship."""
    rank, sex = rng.choice(3, rows, p=[0.24, 0.21, 0.55]), rng.random(rows) < 0.35
    relatives = np.minimum(rng.geometric(0.6, rows) - 1, 5)
    port = rng.choice(["S", "C", "Q"], rows, p=[0.72, 0.19, 0.09])
    lived = rng.random(rows) < 1 / (1 + np.exp(0.8 * rank + 0.3 * relatives - 2.5 * sex))
    return {"rank": rank, "sex": np.where(sex, "f", "m"), "relatives": relatives, "port": port, "y": lived.astype(int)}


def atoms(rng: np.random.Generator, rows: int) -> dict[str, Any]:
    """Draws four flags; the first one is the class."""
    flags = rng.random((4, rows)) < np.array([0.5, 0.3, 0.2, 0.05])[:, None]
    return {f"flag{index}": flag.astype(int) for index, flag in enumerate(flags)} | {"y": flags[0].astype(int)}


def gaps(rng: np.random.Generator, rows: int) -> dict[str, Any]:
    """Draws four measurements; a third of them is missing."""
    x = rng.normal(size=(4, rows))
    y = (x[0] + x[1] + rng.normal(size=rows) > 0).astype(int)
    x[rng.random(x.shape) < 1 / 3] = np.nan
    return {f"x{index}": column for index, column in enumerate(x)} | {"y": y}


def groups(rng: np.random.Generator, rows: int) -> dict[str, Any]:
    """Draws three measurements about the mean of their group."""
    means = np.random.default_rng(0).normal(0, 3, (60, 3))
    group = rng.integers(0, 60, rows)
    x = means[group] + rng.normal(size=(rows, 3))
    return {f"x{index}": column for index, column in enumerate(x.T)} | {"y": (group % 3 == 0).astype(int)}


def saturated(rng: np.random.Generator, rows: int) -> dict[str, Any]:
    """Draws two clusters with a distance of fifty standard deviations in each feature."""
    y = rng.integers(0, 2, rows)
    x = rng.normal(size=(2, rows)) + 50.0 * y
    return {"x0": x[0], "x1": x[1], "y": y}


def small(rng: np.random.Generator, rows: int) -> dict[str, Any]:
    """Draws two measurements with heavy tails."""
    x = rng.standard_t(3, (2, rows))
    return {"x0": x[0], "x1": x[1], "y": (x[0] > 0.5 * rng.normal(size=rows)).astype(int)}


LAWS: dict[str, Law] = {
    "ties": Law(ties, categorical=("sex", "port")),
    "atoms": Law(atoms, method={"steps": 1, "init_scale": 1.0}),
    "gaps": Law(gaps),
    "groups": Law(groups),
    "saturated": Law(saturated),
    "small": Law(small, calibration_rows={90.0: 19, 95.0: 39, 99.0: 99}),
}


def config_from_dict(law: Law, **calibration: Any) -> Config:
    """Makes the config of a law's model."""
    method = {"kind": "vi", "steps": 400, "learning_rate": 1e-2, "kl_weight": 0.1, "reports": 1} | law.method
    return Config.model_validate(
        {
            "name": "law",
            "draws": 10,
            "network": {"kind": "mlp", "hidden": [16]},
            "prior": {"fan_in": True},
            "data": {"target": "y", "categorical": law.categorical, "calibration_size": 200, "test_size": 200},
            "method": method,
            "calibration": calibration,
        }
    )


def fit_law(law: Law, pool_rows: int, seed: int = 0) -> FittedLaw:
    """Fits the law's model to a table, and draws a pool."""
    rng = np.random.default_rng(seed)
    config = config_from_dict(law)
    with tempfile.TemporaryDirectory() as folder:
        table, pool = Path(folder) / "table.csv", Path(folder) / "pool.csv"
        write_table(law.draw(rng, TRAIN_ROWS + 400), table)
        write_table(law.draw(rng, pool_rows), pool)
        dataset = load_dataset(config, str(table))
        model = build_model(config, dataset)
        posterior = infer(config, build_problem(config, model, dataset), Journal(None, None)).posterior
        rows = read_source(str(pool), config.data, model, classify=True).train
    assert rows is not None  # noqa: S101 - all rows of a table without parts are training rows
    reference, rest = set_aside(dataset.train, config.seed)
    return FittedLaw(posterior, fit_feature_scores(posterior, rest, config.seed), reference, rows)


def write_table(columns: dict[str, Any], path: Path) -> None:
    """Writes a CSV file; NaN is an empty cell."""
    arrays = {name: pa.array(values, from_pandas=True) for name, values in columns.items()}
    csv.write_csv(pa.table(arrays), path)


def predictor_of(fitted: FittedLaw, bucket: int) -> Predictor:
    """Compiles the law's model for one batch size."""
    return Predictor(fitted.posterior, (bucket,), feature_scores=fitted.feature_scores)
