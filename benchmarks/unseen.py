"""Categories that the training part lacks: the reject rate of every rule, and what the network should see of them.

    python benchmarks/unseen.py [--seeds 6] [--splits 400]

Rates: 199 calibration rows and 200 new ones of one law, of which a share has an unseen category; percentile 95. It prints the
mean reject rate over the splits with its standard error, in percent, and E max(T, M) / (n + 1), which it should be (`models/decisions/unseen.py`).

Predictions: the log odds of 1,500 rows are 1.5 a + the effect of one of eight categories, standard normal numbers. A network is
fitted without the rows of two categories, and predicts these rows with all zeros in place of the category, and with the filling
value of a gap, the most frequent category. It prints the mean negative log-likelihood in nats, and that with the true log odds.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.csv
from jaxtyping import Bool, Float
from scipy import stats
from scipy.special import expit

from abstain.models.decisions.calibration import calibrate
from abstain.models.decisions.decision import Decision
from abstain.models.decisions.judging import judge
from abstain.models.networks.architectures import MLPSpec
from abstain.models.prediction.predictive import Prediction, Predictor
from abstain.models.prediction.summaries import ClassificationSummary
from abstain.training.config.config import Config
from abstain.training.config.data import DataConfig
from abstain.training.config.methods import EnsembleConfig, MethodConfig, VIConfig
from abstain.training.config.priors import PriorConfig
from abstain.training.fit import build_model, build_problem, infer, load_dataset
from abstain.training.runs.journal import Journal

SHARES = (0.0, 0.01, 0.03, 0.05, 0.2)
ROWS, NEW = 199, 200
SEVERAL = {rule: Decision(scores=("std", "energy"), rule=rule) for rule in ("min", "weighted", "harmonic")}
RULES: dict[str, dict[str, Any]] = {
    "one score": {"decision": Decision(scores=("std",))},
    **{rule: {"decision": decision} for rule, decision in SEVERAL.items()},
    "two parts": {"decision": SEVERAL["harmonic"], "ambiguity": "max_probability", "novelty_share": 0.7},
    "per class": {"decision": SEVERAL["weighted"], "per_class": True},
}
METHODS: dict[str, MethodConfig] = {
    "vi": VIConfig(steps=2_000, starts=2, reports=1),
    "ensemble": EnsembleConfig(steps=1_000, members=4, reports=10),
}


def predict(values: Float[np.ndarray, "3 rows"], unseen: Bool[np.ndarray, " rows"]) -> Prediction:
    """Makes predictions of two equally frequent classes with these scores."""
    zeros: Any = np.zeros(len(unseen), np.float32)
    mean: Any = np.full((len(unseen), 2), 0.4, np.float32)
    mean[np.arange(len(unseen)), np.arange(len(unseen)) % 2] = 0.6
    scores: dict[str, Any] = {}
    scores |= zip(("std", "energy", "max_probability"), values.astype(np.float32), strict=True)
    scores["unseen"] = unseen.astype(np.float32)
    return Prediction(ClassificationSummary(mean, np.zeros_like(mean), zeros, zeros, zeros), scores)


def rates(rule: str, share: float, splits: int) -> tuple[float, float]:
    """Returns the mean reject rate and its standard error, in percent."""
    rng, found = np.random.default_rng(0), list[float]()
    for _ in range(splits):
        values = rng.normal(size=(3, ROWS + NEW)) + rng.normal(size=ROWS + NEW)
        unseen = rng.random(ROWS + NEW) < share
        own = predict(values[:, :ROWS], unseen[:ROWS])
        reference = {name: np.random.default_rng(1).normal(size=200).astype(np.float32) for name in own.scores}
        calibration = calibrate(
            own, np.zeros(ROWS, int), percentile=95.0, reference=reference | {"unseen": np.zeros(200)}, **RULES[rule]
        )
        found.append(judge(calibration, predict(values[:, ROWS:], unseen[ROWS:])).reject.mean())
    return 100 * float(np.mean(found)), 100 * float(np.std(found) / np.sqrt(splits))


def expected_rate(share: float, rows: int = ROWS) -> float:
    """Returns E max(T, M) / (n + 1) in percent, M being the unseen of n + 1 rows, and T = ⌊(n + 1) · 5 %⌋."""
    counts = np.arange(rows + 2)
    return 100 * float(
        (stats.binom.pmf(counts, rows + 1, share) * np.maximum(counts, (rows + 1) // 20)).sum() / (rows + 1)
    )


def figures(folder: Path, method: MethodConfig, seed: int) -> tuple[float, float, float]:
    """Fits one network and returns the negative log-likelihoods of the module's docstring."""
    rng = np.random.default_rng(seed)
    a, category, effects = rng.normal(size=1_500), rng.choice(8, 1_500), rng.normal(size=8)
    odds = 1.5 * a + effects[category]
    y = (rng.random(1_500) < expit(odds)).astype(int)
    known = category < 6
    names = [f"c{number}" for number in category[known]]
    pyarrow.csv.write_csv(pyarrow.table({"a": a[known], "c": names, "y": y[known]}), str(folder / "rows.csv"))  # pyright: ignore
    config = Config(
        name="unseen",
        seed=seed,
        draws=40,
        likelihood="bernoulli",
        data=DataConfig(source=str(folder / "rows.csv"), target="y", categorical=("c",)),
        network=MLPSpec(hidden=(16,)),
        prior=PriorConfig(fan_in=True),
        method=method,
    )
    dataset = load_dataset(config, None)
    problem = build_problem(config, build_model(config, dataset), dataset)
    posterior = infer(config, problem, Journal()).posterior
    filling = posterior.model.preprocessing.columns[1].missing
    predictor = Predictor(posterior, (256,))
    losses: list[float] = []
    for code in (-1.0, filling):
        rows = np.stack([a[~known], np.full((~known).sum(), code)], axis=1).astype(np.float32)
        probabilities = np.asarray(predictor(rows).summary.mean)
        losses.append(-float(np.log(probabilities[np.arange(len(rows)), y[~known]]).mean()))
    true = float(np.logaddexp(0, np.where(y[~known] == 1, -1, 1) * odds[~known]).mean())
    return losses[0], losses[1], true


def main() -> None:
    """Prints both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--splits", type=int, default=400)
    options = parser.parse_args()
    print(f"reject rate in percent, stated 5; {ROWS} calibration rows, {options.splits} splits")
    print(f"{'unseen':<10}{'expected':>10}" + "".join(f"{name:>14}" for name in RULES), flush=True)
    for share in SHARES:
        found = [rates(rule, share, options.splits) for rule in RULES]
        shown = "".join(f"{mean:>8.2f} ± {error:<3.2f}" for mean, error in found)
        print(f"{share:<10.0%}{expected_rate(share):>10.2f}{shown}", flush=True)
    print(f"\nnegative log-likelihood of rows with an unseen category, {options.seeds} seeds; mean ± standard error")
    print(f"{'method':<10}{'all zeros':>18}{'filling value':>18}{'difference':>18}{'true odds':>18}")
    for name, method in METHODS.items():
        with tempfile.TemporaryDirectory() as folder:
            found = np.array([figures(Path(folder), method, seed) for seed in range(options.seeds)])
        columns = np.stack([found[:, 0], found[:, 1], found[:, 0] - found[:, 1], found[:, 2]], axis=1)
        means, errors = columns.mean(axis=0), columns.std(axis=0, ddof=1) / len(found) ** 0.5
        shown = "".join(f"{mean:>10.3f} ± {error:<5.3f}" for mean, error in zip(means, errors, strict=True))
        print(f"{name:<10}{shown}", flush=True)


if __name__ == "__main__":
    main()
