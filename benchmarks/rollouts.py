"""Simulates rollouts: how often each verdict comes, and after how many callers.

    python benchmarks/rollouts.py [--streams 500] [--callers 10000]
    python benchmarks/rollouts.py --recounts

With `--recounts` it shows why a caller counts once: 400 callers of a canary, at the margin, are observed 1, 3, 10 and 30 times each.

Otherwise prints a table for docs/rollouts.md. A look after every caller; a verdict ends a stream. The reject rate of the baseline is 2 %. The
last column is the share of streams with a false verdict: `promote` at or beyond the margin, `abort` at or inside it.
"""

from __future__ import annotations

import argparse

import numpy as np

from abstain.models.decisions.comparison import (
    DISAGREEMENT,
    PAIRED,
    Bounds,
    average_stakes,
    canary_bounds,
    combine,
    log_factors,
)

ALPHA, BEFORE, BATCH = 0.05, 0.02, 10
CASES: tuple[tuple[str, float, float, float], ...] = (
    # mode, share, margin, true difference of the reject rates (and for a shadow, of labels)
    ("shadow", 1.0, 0.05, 0.0),
    ("shadow", 1.0, 0.05, 0.02),
    ("shadow", 1.0, 0.05, 0.05),
    ("shadow", 1.0, 0.05, 0.1),
    ("canary", 0.05, 0.05, 0.0),
    ("canary", 0.05, 0.05, 0.05),
    ("canary", 0.05, 0.05, 0.15),
    ("canary", 0.2, 0.05, 0.0),
    ("canary", 0.2, 0.05, 0.05),
    ("canary", 0.2, 0.05, 0.15),
    ("canary", 0.5, 0.02, 0.0),
    ("canary", 0.5, 0.02, 0.02),
    ("canary", 0.5, 0.02, 0.06),
)


def first_verdicts(
    differences: np.ndarray, margin: float, bounds: Bounds, labels: np.ndarray | None
) -> list[tuple[str | None, int]]:
    """Returns the first verdict of each stream and the callers until it."""
    rejects = average_stakes(np.cumsum(log_factors(differences, margin, bounds), axis=-1))
    others = None if labels is None else average_stakes(np.cumsum(log_factors(labels, margin, DISAGREEMENT), axis=-1))
    promote, abort = (values >= -np.log(ALPHA) for values in combine(rejects, others))
    found: list[tuple[str | None, int]] = []
    for promotes, aborts in zip(promote, abort, strict=True):
        looks = np.flatnonzero(promotes | aborts)
        verdict = None if not len(looks) else "promote" if promotes[looks[0]] else "abort"
        found.append((verdict, int(looks[0]) + 1 if len(looks) else len(promotes)))
    return found


def simulate(
    mode: str, share: float, margin: float, true: float, streams: int, callers: int
) -> list[tuple[str | None, int]]:
    """Simulates streams of callers."""
    random, found = np.random.default_rng(0), list[tuple[str | None, int]]()
    for _ in range(0, streams, BATCH):  # All at once would need gigabytes.
        size = (BATCH, callers)
        if mode == "shadow":
            uniform = random.random(size)
            differences = (uniform < BEFORE + true) * 1.0 - (uniform < BEFORE)
            found += first_verdicts(differences, margin, PAIRED, (random.random(size) < true) * 1.0)
        else:
            candidate = random.random(size) < share
            centered = (random.random(size) < np.where(candidate, BEFORE + true, BEFORE)) - BEFORE
            differences = np.where(candidate, centered / share, -centered / (1 - share))
            found += first_verdicts(differences, margin, canary_bounds(share, BEFORE), None)
    return found


def simulate_recounts(times: int, streams: int) -> float:
    """Returns the share of streams with a verdict, which is false at the margin, if each caller is counted so many times.

    A caller keeps its side, and most of its requests are like its first one.
    """
    random, share, margin, callers = np.random.default_rng(0), 0.5, 0.05, 400
    found: list[tuple[str | None, int]] = []
    for _ in range(0, streams, BATCH):
        candidate = random.random((BATCH, callers)) < share
        rejected = random.random((BATCH, callers)) < np.where(candidate, BEFORE + margin, BEFORE)
        differences = np.where(candidate, (rejected - BEFORE) / share, -(rejected - BEFORE) / (1 - share))
        found += first_verdicts(np.tile(differences, (1, times)), margin, canary_bounds(share, BEFORE), None)
    return sum(verdict is not None for verdict, _ in found) / len(found)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=500)
    parser.add_argument("--callers", type=int, default=10_000)
    parser.add_argument("--recounts", action="store_true")
    arguments = parser.parse_args()
    if arguments.recounts:
        for times in (1, 3, 10, 30):
            print(
                f"each caller counted {times} times: {simulate_recounts(times, arguments.streams):.1%} false verdicts",
                flush=True,
            )
        return
    print("| mode | margin | true difference | promote | abort | callers until a verdict, median | false |")
    print("|---|---|---|---|---|---|---|")
    for mode, share, margin, true in CASES:
        found = simulate(mode, share, margin, true, arguments.streams, arguments.callers)
        verdicts = [verdict for verdict, _ in found]
        counts = [count for verdict, count in found if verdict]
        false = verdicts.count("promote") * (true >= margin) + verdicts.count("abort") * (true <= margin)
        name = "shadow" if mode == "shadow" else f"canary, {share:.0%}"
        median = f"{np.median(counts):,.0f}" if len(counts) * 2 > len(found) else f"over {arguments.callers:,}"
        shares = [f"{verdicts.count(verdict) / len(found):.1%}" for verdict in ("promote", "abort")]
        print(
            f"| {name} | {margin:.0%} | {true:.0%} | {' | '.join(shares)} | {median} | {false / len(found):.1%} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
