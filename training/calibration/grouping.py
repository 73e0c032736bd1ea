"""Grouping of near training rows, so that a bundle contains means of groups, not rows.

MDAV (maximum distance to average vector; Domingo-Ferrer & Mateo-Sanz, 2002) repeatedly makes a group of the row farthest
from the mean and its nearest rows. All groups except the last have the same size, so isolated rows are grouped too, which
k-means does not do.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

LEAST = 5
"""The smallest number of rows in a mean that a bundle may contain."""
BLOCK = 5_000
"""The largest number of rows that are grouped at a time: the time grows with its square."""

RowIndices = Int[np.ndarray, " _"]
"""Row indices of a group or block of any size."""


def group_means(rows: Float[np.ndarray, "rows width"], most: int) -> Float[np.ndarray, "groups width"]:
    """Returns the means of at most `most` groups of at least `LEAST` near rows; one mean if there are fewer rows."""
    size = max(LEAST, -(-len(rows) // most))
    blocks = [np.arange(len(rows))]
    while len(blocks[0]) > BLOCK:
        blocks = [half for block in blocks for half in _halves(rows, block)]
    groups = [group for block in blocks for group in _groups(rows, block, size)]
    return np.stack([rows[group].mean(axis=0, dtype=np.float64) for group in groups])


def _halves(rows: Float[np.ndarray, "rows width"], block: RowIndices) -> tuple[RowIndices, RowIndices]:
    """Cuts a block at the median of the coordinate with the greatest variance."""
    own = rows[block]
    order = np.argsort(own[:, own.var(axis=0).argmax()], kind="stable")
    return block[order[: len(block) // 2]], block[order[len(block) // 2 :]]


def _groups(rows: Float[np.ndarray, "rows width"], block: RowIndices, size: int) -> list[RowIndices]:
    groups: list[RowIndices] = []
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
    """Moves each row of a cluster with fewer than `least` rows to the nearest larger cluster; returns the labels.

    If all clusters are small, all rows form one cluster.
    """
    clusters, own, counts = np.unique(labels, return_inverse=True, return_counts=True)
    large = np.flatnonzero(counts >= least)
    if not large.size:
        return np.zeros_like(labels)
    centres = np.stack([rows[own == cluster].mean(axis=0) for cluster in large])
    small = np.flatnonzero(counts[own] < least)
    nearest = [((centres - rows[row]) ** 2).sum(axis=1).argmin() for row in small]
    own[small] = large[np.array(nearest, int)]
    return clusters[own]
