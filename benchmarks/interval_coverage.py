"""Coverage of 95 % intervals of an accuracy and of an AUROC, by an older and the current method. About three minutes.

    python benchmarks/interval_coverage.py

Accuracy: rows are right with probability p; `bootstrap` is the older percentile bootstrap, `exact` is `share_interval` of
`training/evaluation/bootstrap.py`. AUROC: two sets of equally many rows from two normal or two exponential distributions
with a known area; `plain` is DeLong's older normal interval, `now` is `auroc_interval`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy import stats

from abstain.training.evaluation.bootstrap import (
    Interval,
    auroc_interval,
    central_interval,
    resample_rows,
    share_interval,
)

SIMULATIONS = 2_000
BOOTSTRAPS = 500
LAWS = ("normal", "exponential")


def main() -> None:
    """Prints both tables."""
    print(f"accuracy: coverage of 95 % intervals over {SIMULATIONS} sets ({BOOTSTRAPS} for the bootstrap)")
    print(f"{'p':>6} {'rows':>5} {'bootstrap':>10} {'exact':>8}")
    for p in (0.5, 0.9, 0.99, 0.999):
        for rows in (100, 1_000):
            hits = np.random.default_rng(0).binomial(rows, p, SIMULATIONS)
            before = coverage(p, [bootstrap_interval(int(count), rows) for count in hits[:BOOTSTRAPS]])
            now = coverage(p, [share_interval(int(count), rows) for count in hits])
            print(f"{p:>6} {rows:>5} {before:>10.3f} {now:>8.3f}", flush=True)
    print(f"\nAUROC: coverage and mean width of 95 % intervals over {SIMULATIONS} pairs of sets")
    print(f"{'law':>12} {'area':>6} {'rows':>5} {'plain':>8} {'width':>8} {'now':>8} {'width':>8}")
    for law in LAWS:
        for area in (0.9, 0.99, 0.999):
            for rows in (100, 500):
                print(auroc_line(law, area, rows), flush=True)


def auroc_line(law: str, area: float, rows: int) -> str:
    """Returns one line of the second table."""
    draw = make_sampler(law, area, rows)
    pairs = [draw() for _ in range(SIMULATIONS)]
    before, now = [plain_delong(*pair) for pair in pairs], [auroc_interval(*pair) for pair in pairs]
    widths = [np.mean(np.diff(intervals)) for intervals in (before, now)]
    figures = f"{coverage(area, before):>8.3f} {widths[0]:>8.4f} {coverage(area, now):>8.3f} {widths[1]:>8.4f}"
    return f"{law:>12} {area:>6} {rows:>5} {figures}"


def make_sampler(law: str, area: float, rows: int) -> Callable[[], tuple[np.ndarray, np.ndarray]]:
    """Makes a function that draws familiar and strange scores with a known area.

    The area is Φ(d / √2) for normals with distance d, and r / (1 + r) for exponentials with scales 1 and r.
    """
    rng = np.random.default_rng(1)
    distance, ratio = stats.norm.ppf(area) * np.sqrt(2), area / (1 - area)
    if law == "normal":
        return lambda: (rng.normal(size=rows), rng.normal(distance, 1, rows))
    return lambda: (rng.exponential(size=rows), ratio * rng.exponential(size=rows))


def coverage(truth: float, intervals: list[Interval]) -> float:
    """Returns the share of intervals that contain the true value."""
    return float(np.mean([low <= truth <= high for low, high in intervals]))


def bootstrap_interval(hits: int, rows: int) -> Interval:
    """Returns the interval of a proportion by the percentile bootstrap."""
    right = np.arange(rows) < hits
    return central_interval(np.concatenate([right[drawn].mean(axis=1) for drawn in resample_rows(rows, 1_000, hits)]))


def plain_delong(familiar: np.ndarray, strange: np.ndarray) -> Interval:
    """Returns the normal interval of the area with the variance of DeLong et al. (1988)."""
    wins = (strange[:, None] > familiar) + 0.5 * (strange[:, None] == familiar)
    above, below = wins.mean(axis=1), wins.mean(axis=0)
    half = 1.959964 * np.sqrt(above.var(ddof=1) / len(above) + below.var(ddof=1) / len(below))
    return [above.mean() - half, above.mean() + half]


if __name__ == "__main__":
    main()
