"""The reject rate on rows of new groups, with a random split and with one by group.

    python benchmarks/groups.py [--seeds 10] [--groups 60] [--rows 60]

The law: every group has a centre of its own, standard normal in six dimensions, and its rows lie about it with standard
deviation 0.3; a row's class is the sign of a fixed linear function. A table of so many groups of so many rows is fitted
twice: its three parts drawn at random, and by group. Both then predict as many new groups, which neither has
seen. Printed are the mean reject rates over seeds with their standard error, on the fit's own test part and on new
groups, and the bound for new groups: a group's rows count for about one, so with G calibration groups of one size the
rate is on average at most alpha + (1 - alpha)/(G + 1), from the p-values of Lee, Barber & Willett (2023) for hierarchical
data.
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
from abstain.models.prediction.preprocessing import encode_table
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
    """A table of `groups` groups of `rows` rows each: who, x0 …, label."""
    centres = np.repeat(rng.normal(size=(groups, WIDTH)), rows, axis=0)
    x = centres + 0.3 * rng.normal(size=centres.shape)
    columns = {f"x{place}": x[:, place] for place in range(WIDTH)}
    label = np.where(x @ np.linspace(1, -1, WIDTH) + 0.3 * rng.normal(size=len(x)) > 0, "yes", "no")
    csv.write_csv(pa.table({"who": np.repeat(np.arange(groups), rows), **columns, "label": label}), str(path))


def rates(folder: Path, seed: int, groups: int, rows: int, group: str | None) -> tuple[np.ndarray, np.ndarray, int]:
    """Reject rates by percentile on the test part and on new groups, and the number of calibration groups."""
    for place, name in enumerate(("known", "new")):
        write_groups(folder / f"{name}.csv", np.random.default_rng([seed, place]), groups, rows)
    data = DataConfig(source=str(folder / "known.csv"), target="label", drop=() if group else ("who",), group=group)
    config = Config(name="groups", seed=seed, draws=1, data=data, method=MAPConfig(steps=500, reports=1))
    dataset = load_dataset(config, None)
    model = build_model(config, dataset)
    # What `abstain fit` does, without a report and a bundle, which take most of the time.
    with open_journal(folder, config, dataset.fingerprint, {}, None, resume=False) as journal:
        posterior = infer(config, build_problem(config, model, dataset, folder), journal).posterior
    reference, rest = set_aside(dataset.train, seed)
    feature_scores = fit_feature_scores(posterior, rest, seed)
    calibrated = calibrate_posterior(
        config.calibration, posterior, feature_scores, dataset.calibration, reference, seed
    )
    new = encode_table(model.preprocessing.columns, read_table(folder / "new.csv"), "new.csv")
    predictions = [calibrated.predictor(x) for x in (dataset.test.x, new)]
    found = [
        np.array([judge(calibrated.calibration, prediction, percentile).reject.mean() for percentile in PERCENTILES])
        for prediction in predictions
    ]
    # Rows of a random split are of nearly all groups.
    return found[0], found[1], round(len(dataset.calibration) / rows) if group else 0


def main() -> None:
    """The table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--groups", type=int, default=60)
    parser.add_argument("--rows", type=int, default=60)
    terms = parser.parse_args()
    print(f"{terms.groups} groups of {terms.rows} rows, {terms.seeds} seeds; mean reject rate ± standard error")
    for group in ("who", None):
        with tempfile.TemporaryDirectory() as folder:
            folders = [Path(folder) / str(seed) for seed in range(terms.seeds)]
            for path in folders:
                path.mkdir()
            found = [rates(path, seed, terms.groups, terms.rows, group) for seed, path in enumerate(folders)]
        print(f"split by group: {found[0][2]} calibration groups" if group else "split at random")
        for place, percentile in enumerate(PERCENTILES):
            test, new = (np.array([part[which][place] for part in found]) for which in (0, 1))
            error = [values.std(ddof=1) / len(values) ** 0.5 for values in (test, new)]
            alpha = 1 - percentile / 100
            bound = f", bound {alpha + (1 - alpha) / (found[0][2] + 1):.1%}" if group else ""
            print(
                f"  stated {alpha:>4.0%}: test part {test.mean():6.2%} ± {error[0]:.2%}, "
                f"new groups {new.mean():6.2%} ± {error[1]:.2%}{bound}"
            )


if __name__ == "__main__":
    main()
