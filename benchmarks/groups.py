"""The reject rate on rows of new groups, with a random split and with one by group.

    python benchmarks/groups.py [--seeds 10] [--groups 60] [--rows 60]

Every group has its own centre, standard normal in six dimensions, and its rows are distributed about it with standard
deviation 0.3; the class of a row is the sign of a fixed linear function plus noise. A table is fitted twice: with its three
parts drawn at random, and drawn by group. Both models then predict as many new groups.

It prints the mean reject rates over seeds with their standard errors, on the test part and on new groups, and the bound
for new groups: the rows of a group count for about one row, so with G calibration groups of one size the rate is on average
at most alpha + (1 - alpha)/(G + 1), from the p-values of Lee, Barber & Willett (2023) for hierarchical data.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import csv

from abstain.models.decisions.judging import judge
from abstain.models.files.row_files import read_table
from abstain.models.tables.encoding import encode_table
from abstain.training.calibration.feature_scores import fit_feature_scores
from abstain.training.calibration.pipeline import calibrate_posterior
from abstain.training.calibration.reference import set_aside
from abstain.training.config.config import Config
from abstain.training.config.data import DataConfig
from abstain.training.config.methods import MAPConfig
from abstain.training.fit import build_model, build_problem, infer, load_dataset
from abstain.training.runs.resume import open_journal

PERCENTILES = (90.0, 95.0, 99.0)
WIDTH = 6


def write_groups(path: Path, rng: np.random.Generator, groups: int, rows: int) -> None:
    """Writes a table of `groups` groups of `rows` rows each, with the columns who, x0 …, label."""
    centres = np.repeat(rng.normal(size=(groups, WIDTH)), rows, axis=0)
    x = centres + 0.3 * rng.normal(size=centres.shape)
    columns = {f"x{index}": x[:, index] for index in range(WIDTH)}
    label = np.where(x @ np.linspace(1, -1, WIDTH) + 0.3 * rng.normal(size=len(x)) > 0, "yes", "no")
    csv.write_csv(pa.table({"who": np.repeat(np.arange(groups), rows), **columns, "label": label}), str(path))


def rates(folder: Path, seed: int, groups: int, rows: int, group: str | None) -> tuple[np.ndarray, np.ndarray, int]:
    """Returns the reject rates by percentile on the test part and on new groups, and the number of calibration groups."""
    for table, name in enumerate(("known", "new")):
        write_groups(folder / f"{name}.csv", np.random.default_rng([seed, table]), groups, rows)
    data = DataConfig(source=str(folder / "known.csv"), target="label", drop=() if group else ("who",), group=group)
    config = Config(name="groups", seed=seed, draws=1, data=data, method=MAPConfig(steps=500, reports=1))
    dataset = load_dataset(config, None)
    model = build_model(config, dataset)
    # The steps of `abstain fit`, without the report and the bundle, which take most of the time.
    with open_journal(folder, config, dataset.fingerprint, {}, None, resume=False) as journal:
        posterior = infer(config, build_problem(config, model, dataset), journal).posterior
    reference, rest = set_aside(dataset.train, seed)
    feature_scores = fit_feature_scores(posterior, rest, seed)
    calibrated = calibrate_posterior(
        config.calibration, posterior, feature_scores, dataset.calibration, reference, seed
    )
    new = encode_table(model.preprocessing.columns, read_table(folder / "new.csv"), "new.csv")
    predictions = [calibrated.predictor(x) for x in (dataset.test.x, new)]
    test_and_new = [
        np.array([judge(calibrated.calibration, prediction, percentile).reject.mean() for percentile in PERCENTILES])
        for prediction in predictions
    ]
    # With a random split, each part has rows of nearly all groups, so that the number has no meaning.
    return test_and_new[0], test_and_new[1], round(len(dataset.calibration) / rows) if group else 0


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--groups", type=int, default=60)
    parser.add_argument("--rows", type=int, default=60)
    options = parser.parse_args()
    print(f"{options.groups} groups of {options.rows} rows, {options.seeds} seeds; mean reject rate ± standard error")
    for group in ("who", None):
        with tempfile.TemporaryDirectory() as folder:
            folders = [Path(folder) / str(seed) for seed in range(options.seeds)]
            for path in folders:
                path.mkdir()
            by_seed = [rates(path, seed, options.groups, options.rows, group) for seed, path in enumerate(folders)]
        calibration_groups = by_seed[0][2]
        print(f"split by group: {calibration_groups} calibration groups" if group else "split at random")
        for index, percentile in enumerate(PERCENTILES):
            test, new = (np.array([rates_of_seed[part][index] for rates_of_seed in by_seed]) for part in (0, 1))
            error = [values.std(ddof=1) / len(values) ** 0.5 for values in (test, new)]
            alpha = 1 - percentile / 100
            bound = f", bound {alpha + (1 - alpha) / (calibration_groups + 1):.1%}" if group else ""
            print(
                f"  stated {alpha:>4.0%}: test part {test.mean():6.2%} ± {error[0]:.2%}, "
                f"new groups {new.mean():6.2%} ± {error[1]:.2%}{bound}"
            )


if __name__ == "__main__":
    main()
