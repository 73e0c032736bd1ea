"""Baselines: predictions that ignore the row, made from the training part; a model must beat them.

classes   the class frequencies; their most probable class is the majority class, whose share is the accuracy
numbers   the normal with the mean and standard deviation of the targets; its RMSE is that of the mean
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Num
from scipy import stats

from abstain.models.bundles.manifest import Manifest
from abstain.training.evaluation.metrics import Terms, average_metrics
from abstain.training.evaluation.results import BaselineQuality


@dataclass(frozen=True)
class Baseline:
    """A prediction that is the same for every row.

    Attributes:
        shares: the probability of each class; None for numbers.
        names: the class names.
        mean, std: the normal, for numbers.
        part: the part of the rows that it was made from.
    """

    shares: Float[np.ndarray, " classes"] | None = None
    names: tuple[str, ...] = ()
    mean: float = 0.0
    std: float = 1.0
    part: str = "training"

    @property
    def guess(self) -> str | float:
        """The most probable class, or the mean."""
        return self.mean if self.shares is None else self.names[int(np.argmax(self.shares))]

    def terms(self, y: Num[np.ndarray, " rows"]) -> Terms:
        """Returns the terms of each row: `accuracy`, `nll` (nats) and `brier`; for numbers `squared_error` and `nll`."""
        if self.shares is None:
            exact = y.astype(np.float64)
            return {
                "squared_error": (exact - self.mean) ** 2,
                "nll": -stats.norm.logpdf(exact, self.mean, self.std),
            }
        y = y.astype(int)
        return {
            "accuracy": (y == np.argmax(self.shares)).astype(np.float64),
            "nll": -np.log(self.shares[y]),
            "brier": 1 - 2 * self.shares[y] + (self.shares**2).sum(),
        }

    def quality(self, y: Num[np.ndarray, " rows"]) -> BaselineQuality:
        """Returns its metrics on some targets."""
        return BaselineQuality(self.guess, average_metrics(self.terms(y)))


def class_baseline(counts: Num[np.ndarray, " classes"], names: tuple[str, ...]) -> Baseline:
    """Returns the baseline of classes with some numbers of training rows.

    A class without training rows counts as half a row, so that its NLL is finite.
    """
    floored = np.maximum(counts, 0.5)
    return Baseline(shares=floored / floored.sum(), names=names)


def training_baseline(y: Num[np.ndarray, " rows"], names: tuple[str, ...]) -> Baseline:
    """Returns the baseline of a training part's targets: class indices, or numbers if there are no class names."""
    if names:
        return class_baseline(np.bincount(y.astype(int), minlength=len(names)), names)
    exact = y.astype(np.float64)
    return Baseline(mean=float(exact.mean()), std=float(exact.std()) or 1.0)


def recorded_baseline(manifest: Manifest) -> Baseline | None:
    """Returns the baseline of a version's training part.

    None for classes in a bundle of an earlier version of abstain, and for imports of numbers, whose scaling is not that part's.
    """
    names, rows = manifest.model.class_names, manifest.data.class_rows
    if names:
        return class_baseline(np.array(rows, np.float64), names) if rows else None
    if manifest.imported:
        return None
    preprocessing = manifest.model.preprocessing
    return Baseline(mean=preprocessing.target_shift, std=preprocessing.target_scale)
