"""The false discovery rate of `abstain predict --fdr` over random calibration parts and files. Half a minute.

    python benchmarks/fdr.py [--splits 2000]

Each split draws n calibration scores and a file of 100 rows, of which some are outliers, from one of three laws. All rows of
the file are compared with the same calibration scores, so their p-values depend on each other. The flags are computed as the
command computes them. For each setting the table has:

    FDR      mean share of familiar rows among the flagged rows, 0 if none is flagged
    s.e.     its standard error over splits
    most     the largest share in 95 % of the splits: the FDR is a mean, and one file may have a larger share
    found    mean share of the outliers that are flagged
    apart    the FDR if each row had n calibration scores of its own, so that p-values were independent

It says whether each FDR is at most Q + 3 s.e.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from scipy import stats
from servers import print_progress, save_results

from abstain.models.decisions.discoveries import flag_discoveries
from abstain.models.decisions.ranks import share_at_least

CALIBRATION_ROWS = (99, 199, 999)
RATES = (0.05, 0.1, 0.2)
OUTLIERS = (0, 10, 50)
FILE_ROWS = 100
DEVIATIONS = 3.0
LAWS = ("normal", "heavy tail", "ties")
Scores = Float[np.ndarray, " rows"]


def draw(law: str, rng: np.random.Generator, rows: int) -> Scores:
    """Draws scores of familiar rows: normal, Pareto without a mean, or Poisson of mean 4."""
    if law == "normal":
        return rng.normal(size=rows)
    return rng.pareto(1.0, rows) if law == "heavy tail" else rng.poisson(4, rows).astype(np.float64)


def make_strange(law: str, scores: Scores) -> Scores:
    """Makes scores of outliers from scores of familiar rows."""
    if law == "heavy tail":
        return 300 * (1 + scores)
    return scores + (3.5 if law == "normal" else 9)


def tail(law: str, scores: Scores) -> Scores:
    """Returns the probability that a familiar row has at least this score."""
    if law == "normal":
        return stats.norm.sf(scores)
    return 1 / (1 + scores) if law == "heavy tail" else stats.poisson.sf(scores - 1, 4)


def main() -> int:
    """Prints the table, writes `benchmarks/results/fdr.json`; 1 if an FDR is larger than chance explains."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--splits", type=int, default=2_000)
    splits = parser.parse_args().splits
    print(f"{splits} splits, {FILE_ROWS} rows in a file")
    print(f"{'law':>10} {'n':>5} {'outliers':>8} {'Q':>5} {'FDR':>7} {'s.e.':>7} {'most':>6} {'found':>6} {'apart':>7}")
    rows: list[dict[str, Any]] = []
    for law in LAWS:
        for n in CALIBRATION_ROWS:
            for outliers in OUTLIERS:
                settings = measure(law, n, outliers, splits)
                rows += settings
                for row in settings:
                    print(
                        f"{law:>10} {n:>5} {outliers:>8} {row['rate']:>5} {row['fdr']:>7.4f} {row['error']:>7.4f} "
                        f"{row['most']:>6.3f} {row['found']:>6.3f} {row['apart']:>7.4f}"
                        f"{'' if row['holds'] else '  above Q + 3 s.e.'}",
                        flush=True,
                    )
        print_progress(f"{law}: done")
    held = sum(row["holds"] for row in rows)
    print(f"FDR ≤ Q + {DEVIATIONS:g} s.e. in {held} of {len(rows)} settings")
    save_results("fdr", {"splits": splits, "rows": rows})
    return int(held < len(rows))


def measure(law: str, n: int, outliers: int, splits: int) -> list[dict[str, Any]]:
    """Measures the rates of one law, one for each Q, over the same splits."""
    rng = np.random.default_rng([LAWS.index(law), n, outliers])
    is_strange = np.arange(FILE_ROWS) >= FILE_ROWS - outliers
    shares: dict[float, list[tuple[float, float, float]]] = {rate: [] for rate in RATES}
    for _ in range(splits):
        known, new = np.sort(draw(law, rng, n)), draw(law, rng, FILE_ROWS)
        new[is_strange] = make_strange(law, new[is_strange])
        shared = share_at_least(known, new)
        apart = (1 + rng.binomial(n, tail(law, new))) / (n + 1)
        for rate in RATES:
            flags = flag_discoveries(shared, n, rate)
            found = float(flags[is_strange].mean()) if outliers else 0.0
            alone = flag_discoveries(apart, n, rate)
            shares[rate].append((false_share(flags, is_strange), found, false_share(alone, is_strange)))
    return [summarise(law, n, outliers, rate, np.array(shares[rate])) for rate in RATES]


def false_share(flags: Bool[np.ndarray, " rows"], is_strange: Bool[np.ndarray, " rows"]) -> float:
    """Returns the share of familiar rows among the flagged ones; 0 if none is flagged."""
    return float((flags & ~is_strange).sum() / max(flags.sum(), 1))


def summarise(law: str, n: int, outliers: int, rate: float, shares: Float[np.ndarray, "splits 3"]) -> dict[str, Any]:
    """Makes a row of the table."""
    fdr, found, apart = shares.mean(axis=0).tolist()
    error = float(shares[:, 0].std(ddof=1) / np.sqrt(len(shares)))
    return {
        "law": law,
        "calibration_rows": n,
        "outliers": outliers,
        "rate": rate,
        "fdr": fdr,
        "error": error,
        "most": float(np.quantile(shares[:, 0], 0.95)),
        "found": found,
        "apart": apart,
        "holds": fdr <= rate + DEVIATIONS * error,
    }


if __name__ == "__main__":
    sys.exit(main())
