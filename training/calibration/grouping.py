"""Grouping: training rows in groups of several near ones, so that a bundle can keep their means and no row.

MDAV (maximum distance to average vector; Domingo-Ferrer & Mateo-Sanz, 2002): the row farthest from the mean and its nearest
ones are a group, again and again. All groups are of one size but for the last, so that rows far from all others are
grouped as well, which k-means leaves alone.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

LEAST = 5
"""Rows, at least, whose mean a bundle may hold."""
BLOCK = 5_000
"""Rows grouped at a time, at most: the time grows with their square."""

Places = Int[np.ndarray, " _"]
"""Rows of a group or block, each of its own size."""


def group_means(rows: Float[np.ndarray, "rows width"], most: int) -> Float[np.ndarray, "groups width"]:
    """Means of groups of at least `LEAST` near rows, `most` of them at most; one mean of fewer rows than that."""
    size = max(LEAST, -(-len(rows) // most))
    blocks = [np.arange(len(rows))]
    while len(blocks[0]) > BLOCK:
        blocks = [half for block in blocks for half in _halves(rows, block)]
    groups = [group for block in blocks for group in _groups(rows, block, size)]
    return np.stack([rows[group].mean(axis=0, dtype=np.float64) for group in groups])


def _halves(rows: Float[np.ndarray, "rows width"], block: Places) -> tuple[Places, Places]:
    """A block cut at the median of the coordinate of greatest variance."""
    own = rows[block]
    order = np.argsort(own[:, own.var(axis=0).argmax()], kind="stable")
    return block[order[: len(block) // 2]], block[order[len(block) // 2 :]]


def _groups(rows: Float[np.ndarray, "rows width"], block: Places, size: int) -> list[Places]:
    groups: list[Places] = []
    while len(block) >= 2 * size:
        own = rows[block]
        farthest = ((own - own.mean(axis=0)) ** 2).sum(axis=1).argmax()
        nearest = np.argpartition(((own - own[farthest]) ** 2).sum(axis=1), size - 1)[:size]
        groups.append(block[nearest])
        block = np.delete(block, nearest)
    return [*groups, block]


def without_small(
    labels: Int[np.ndarray, " rows"], rows: Float[np.ndarray, "rows width"], least: int = LEAST
) -> Int[np.ndarray, " rows"]:
    """Cluster labels after each cluster of fewer rows is joined, row by row, to the nearest larger one.

    If none is larger, all rows are one cluster.
    """
    found, own, counts = np.unique(labels, return_inverse=True, return_counts=True)
    large = np.flatnonzero(counts >= least)
    if not large.size:
        return np.zeros_like(labels)
    centres = np.stack([rows[own == cluster].mean(axis=0) for cluster in large])
    small = np.flatnonzero(counts[own] < least)
    nearest = [((centres - rows[row]) ** 2).sum(axis=1).argmin() for row in small]
    own[small] = large[np.array(nearest, int)]
    return found[own]
