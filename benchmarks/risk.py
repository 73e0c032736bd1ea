"""Checks the limit on the error of accepted rows (`models/decisions/risk.py`), and compares it with other procedures.

    python benchmarks/risk.py [--splits 2000] [--tables 200]

First, laws of known risk. For each number of calibration rows, limit and law it prints, by procedure: the violations, which are
the share of calibration parts whose threshold has a true risk above the limit, with the standard error; and the mean share of
rows accepted, also as a part of the oracle's, which knows the law. Violations may be 5 % at most.

    all at once    `certify`: every threshold has the same level, so low that all together have the confidence
    least start    a fixed sequence of tests from the fewest rows that can pass, row by row, until the first failure
    half start     the same from half the rows
    three starts   the same from three counts, each with a third of the level, which is carried on (fallback procedure)
    reference      a fixed sequence of tests at 20 quantiles, from the middle one on, of the ambiguity of as many reference
                   rows, which is a tenth lower than that of new rows
    naive          the largest threshold that passes one test; invalid, to show that violations would be seen

Sequences that start at a count of rows need ties broken at random, by which they pass through a tie row by row.

Then tables of scikit-learn, each split again and again into three equal parts: a classifier is fitted to the first, `certify`
has the second, and the errors of accepted rows are counted on the third. The true risk is not known, and the error of a few
accepted rows is noisy: at a true risk equal to the limit, about half of the test parts exceed it. So two numbers are printed:
the splits whose test error exceeds the limit, and those where it does so significantly (exact binomial test at 5 %), which
happens in at most 5 % + 5 % of independent splits. Splits of one table overlap, so their counts vary more than binomial ones.

With `--models FOLDER` (that of `python benchmarks/regret.py --store FOLDER`), the same for models of this repository: rows that the
fit has not seen are split again and again into two halves. Novelty is the default decision at the 99th percentile.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from regret import ScoredTask, scored_tasks
from scipy import stats
from selection import PROJECT
from sklearn.datasets import load_breast_cancer, load_digits, load_wine
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from abstain.models.decisions.calibration import ErrorLimit, limit_error
from abstain.models.decisions.records import Calibration
from abstain.models.decisions.risk import certify, is_ambiguous
from abstain.training.calibration.pipeline import DEFAULT_DECISIONS

CONFIDENCE = 0.95
SIZES = (300, 1000, 5000)
LIMITS = (0.01, 0.05, 0.1)
CELLS = 100_000
QUANTILES = 20
MODELS = {"tables": ("letters-0", "gases-1", "digits-0"), "images": ("vi-digits",)}
"""Tasks of `regret.py`, by target."""
Array = Float[np.ndarray, " rows"]
Sequence = dict[int, float]


class Law(NamedTuple):
    """A law of familiar rows, by their place: the share of rows that are less ambiguous, uniform on [0, 1].

    Attributes:
        wrong: the probability of a wrong answer, in units of the limit.
        ambiguity: a function of the place that never falls; ties where it is flat.
    """

    wrong: Callable[[Array], Array]
    ambiguity: Callable[[Array], Array] = lambda place: place


LAWS = {
    "edge": Law(lambda v: np.full_like(v, 1.0001)),
    "low": Law(lambda v: np.full_like(v, 0.3)),
    "rising": Law(lambda v: 20 * np.maximum(v - 0.4, 0)),
    "steep": Law(lambda v: np.where(v < 0.15, 0, 5.0)),
    "waves": Law(lambda v: np.where(v < 0.1, 1.5, np.where(v < 0.6, 0.2, 6 * (v - 0.5)))),
    "zeros": Law(lambda v: np.where(v < 0.5, 0.1, 6 * (v - 0.5)), lambda v: np.maximum(v - 0.5, 0)),
    "atoms": Law(
        lambda v: np.where(v < 0.2, 1.8, np.where(v < 0.5, 0.1, 5 * (v - 0.4))), lambda v: np.ceil(v * 10) / 10
    ),
}


class Truth(NamedTuple):
    """The true risk up to each place of a fine grid, the ambiguity there, and the largest share with a low enough risk."""

    ambiguity: Array
    risk: Array
    share: float


def truth_of(law: Law, limit: float) -> Truth:
    """Integrates a law on a grid; ties are accepted together."""
    places = (np.arange(CELLS) + 0.5) / CELLS
    ambiguity = law.ambiguity(places)
    risk = np.cumsum(np.minimum(limit * law.wrong(places), 1)) / np.arange(1, CELLS + 1)
    lasts = np.flatnonzero(np.append(ambiguity[1:] > ambiguity[:-1], True))
    good = lasts[risk[lasts] <= limit]
    return Truth(ambiguity, risk, (int(good[-1]) + 1) / CELLS if len(good) else 0.0)


def walk(errors: Int[np.ndarray, " counts"], starts: Sequence, limit: float) -> int:
    """Returns the last count that a sequence of tests from the starts (rank: level) certifies; 0 for none.

    The test at a start, of the rows below that rank, precedes it; a level that is left when a start is reached is added.
    """
    left, last = 0.0, 0
    ends = [*sorted(starts)[1:], len(errors) + 1]
    for start, end in zip(sorted(starts), ends, strict=True):
        left += starts[start]
        tested = np.arange(start - 1, min(end, len(errors)))
        failed = np.flatnonzero(errors[tested] > most_errors(len(errors), left, limit)[tested])
        passed = int(failed[0]) if len(failed) else len(tested)
        last = start - 2 + passed if passed > (start < len(errors)) else last
        left = left if passed == len(tested) else 0.0
    return last


_MOST: dict[tuple[int, float, float], Int[np.ndarray, " counts"]] = {}


def most_errors(counts: int, level: float, limit: float) -> Int[np.ndarray, " counts"]:
    """Returns the most errors among 0, 1 … rows with P(Bin(rows, limit) ≤ errors) ≤ level; −1 if there are none."""
    key = counts, round(level, 9), limit
    if key not in _MOST:
        rows = np.arange(counts)
        quantiles = stats.binom.ppf(level, rows, limit)
        _MOST[key] = np.where(stats.binom.cdf(quantiles, rows, limit) <= level, quantiles, quantiles - 1).astype(int)
    return _MOST[key]


def starts_of(rows: int, limit: float) -> dict[str, Sequence]:
    """Returns the starts of the three sequences that begin at a count of rows, as ranks."""
    chance = 1 - CONFIDENCE
    least = int(np.ceil(np.log(chance) / np.log1p(-limit)))
    third = int(np.ceil(np.log(chance / 3) / np.log1p(-limit)))
    ranks = [round(rank) for rank in np.geomspace(third, rows, 4)[:-1]] if third < rows else [rows]
    ranks = sorted(set(ranks))
    several = {rank + 1: chance / len(ranks) for rank in ranks}
    return {
        "least start": {least + 1: chance},
        "half start": {max(least, rows // 2) + 1: chance},
        "three starts": several,
    }


def thresholds_of(
    ambiguity: Array, wrong: Array, reference: Array, limit: float, rng: np.random.Generator
) -> dict[str, float]:
    """Returns the threshold of each procedure; −∞ where it certifies none."""
    rows, flags = len(ambiguity), np.zeros(len(ambiguity), bool)
    order = np.lexsort((rng.random(rows), ambiguity))
    ascending, errors = ambiguity[order], np.append(0, np.cumsum(wrong[order]))
    lasts = np.append(0, np.flatnonzero(np.append(ascending[1:] > ascending[:-1], True)) + 1)

    def at(count: int) -> float:
        whole = int(lasts[np.searchsorted(lasts, count, side="right") - 1])
        return float(ascending[whole - 1]) if whole else -np.inf

    exact = certify(ambiguity, flags, wrong, max_error=limit, confidence=CONFIDENCE).threshold
    found = {"all at once": -np.inf if exact is None else exact}
    for name, starts in starts_of(rows, limit).items():
        usable = {rank: level for rank, level in starts.items() if rank <= rows + 1}
        count = walk(errors, usable, limit) if usable else 0
        # A tie that the sequence ends in is left out, and so may be the one that it starts in.
        found[name] = (
            at(count) if usable and lasts[np.searchsorted(lasts, count, "right") - 1] >= min(usable) - 1 else -np.inf
        )
    most, chosen = most_errors(rows + 1, 1 - CONFIDENCE, limit), -np.inf
    for threshold in np.quantile(reference, np.linspace(0.5, 1, QUANTILES)):
        count = int(np.searchsorted(ascending, threshold, side="right"))
        if errors[count] > most[count]:
            break
        chosen = float(threshold)
    passing = lasts[errors[lasts] <= most[lasts]]
    return found | {"reference": chosen, "naive": at(int(passing[-1])) if len(passing) else -np.inf}


def measure(law: Law, rows: int, limit: float, splits: int) -> None:
    """Prints a line for each procedure."""
    truth, rng = truth_of(law, limit), np.random.default_rng(rows)
    shares: dict[str, list[float]] = {}
    violations: dict[str, list[bool]] = {}
    for _ in range(splits):
        places = rng.random(rows)
        wrong = rng.random(rows) < np.minimum(limit * law.wrong(places), 1)
        reference = 0.9 * law.ambiguity(rng.random(rows))
        for name, threshold in thresholds_of(law.ambiguity(places), wrong, reference, limit, rng).items():
            cells = int(np.searchsorted(truth.ambiguity, threshold, side="right"))
            shares.setdefault(name, []).append(cells / CELLS)
            violations.setdefault(name, []).append(bool(cells) and bool(truth.risk[cells - 1] > limit * (1 + 1e-4 / 2)))
    for name, kept in shares.items():
        rate = float(np.mean(violations[name]))
        error = (rate * (1 - rate) / splits) ** 0.5
        part = f"{np.mean(kept) / truth.share:6.1%}" if truth.share else "     –"
        print(
            f"  {name:<13} violations {rate:6.2%} ± {error:.2%}   accepted {np.mean(kept):6.1%}, of the oracle's {part}"
        )


def measure_table(name: str, table: Any, limit: float, splits: int) -> None:
    """Prints the errors of accepted test rows over splits of a table."""
    above = significant = certified = accepted_rows = errors = test_rows = 0
    for seed in range(splits):
        fitted, known, new = np.array_split(np.random.default_rng(seed).permutation(len(table.data)), 3)
        model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300)).fit(
            table.data[fitted], table.target[fitted]
        )
        sides = [judge_rows(model, table, part) for part in (known, new)]
        found = certify(*sides[0], max_error=limit, confidence=CONFIDENCE)
        accepted = ~sides[1][1] & ~is_ambiguous(found, sides[1][0])
        count, wrong = int(accepted.sum()), int(sides[1][2][accepted].sum())
        certified += found.threshold is not None
        above += wrong > limit * count
        significant += bool(stats.binom.sf(wrong - 1, count, limit) <= 1 - CONFIDENCE)
        accepted_rows, errors, test_rows = accepted_rows + count, errors + wrong, test_rows + len(new)
    print(
        f"  {name:<14} limit {limit:4.0%}: certified in {certified} of {splits} splits, accepts {accepted_rows / test_rows:6.1%}, "
        f"pooled error {errors / max(accepted_rows, 1):6.2%}, test error above the limit in {above}, significantly in {significant}"
    )


def measure_model(task: ScoredTask, limit: float, splits: int) -> None:
    """Prints the errors of accepted rows over splits of the rows that the fit of a model has not seen."""
    parts = ("calibration", "test")
    scores = {name: np.concatenate([task.known[part][name] for part in parts]) for name in task.known["test"]}
    wrong = np.concatenate([task.errors[part] for part in parts]) > 0
    decision = DEFAULT_DECISIONS["images" if task.target == "images" else "tables"]
    above = significant = certified = 0
    kept: list[float] = []
    for seed in range(splits):
        known, new = np.array_split(np.random.default_rng(seed).permutation(len(wrong)), 2)
        calibration = Calibration(
            scores={name: values[known] for name, values in scores.items()},
            nonconformity=np.zeros(len(known)),
            decision=decision,
            reference=task.known["reference"],
        )
        found = limit_error(calibration, "max_probability", wrong[known], ErrorLimit(limit, CONFIDENCE))[0]
        novelty = calibration.combined({name: values[new] for name, values in scores.items()})
        accepted = (novelty < calibration.least_novel) & ~is_ambiguous(found, scores["max_probability"][new])
        count, errors = int(accepted.sum()), int(wrong[new][accepted].sum())
        certified += found.threshold is not None
        above += errors > limit * count
        significant += bool(stats.binom.sf(errors - 1, count, limit) <= 1 - CONFIDENCE)
        kept.append(count / len(new))
    print(
        f"  {task.name:<16} limit {limit:4.0%}, error of all rows {wrong.mean():6.2%}: certified in {certified} of {splits} splits, "
        f"accepts {np.mean(kept):6.1%}, test error above the limit in {above}, significantly in {significant}",
        flush=True,
    )


def judge_rows(model: Any, table: Any, part: Int[np.ndarray, " part"]) -> tuple[Array, Array, Array]:
    """Returns the ambiguity, the novelty flag (a column 8 standard deviations out) and the error flag of rows."""
    probabilities = model.predict_proba(table.data[part])
    novel = (np.abs(model[0].transform(table.data[part])) > 8).any(axis=1)
    return 1 - probabilities.max(axis=1), novel, model.classes_[probabilities.argmax(axis=1)] != table.target[part]


def main() -> None:
    """Parses the command line and prints both parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--splits", type=int, default=2_000)
    parser.add_argument("--tables", type=int, default=200)
    parser.add_argument("--models", type=Path, help="folder of the scores that regret.py keeps")
    parser.add_argument("--only-models", action="store_true")
    options = parser.parse_args()
    if options.models is not None:
        for target, names in MODELS.items():
            for task in scored_tasks(target, PROJECT.parent / "shared" / "data", options.models, names):
                for limit in LIMITS:
                    measure_model(task, limit, options.tables)
    if options.only_models:
        return
    for rows in SIZES:
        for limit in LIMITS:
            for name, law in LAWS.items():
                print(
                    f"{rows} rows, limit {limit:.0%}, law {name}: oracle accepts {truth_of(law, limit).share:.1%}",
                    flush=True,
                )
                measure(law, rows, limit, options.splits)
    bound = int(stats.binom.ppf(0.99, options.tables, 1 - CONFIDENCE))
    print(f"tables ({bound} of {options.tables} is the 99 % quantile of a binomial count at 5 %)")
    for name, table in {"digits": load_digits(), "breast_cancer": load_breast_cancer(), "wine": load_wine()}.items():
        for limit in LIMITS:
            measure_table(name, table, limit, options.tables)


if __name__ == "__main__":
    main()
