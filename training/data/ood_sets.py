"""OOD sets: the inputs that a model should find strange, as they are and at the familiar rows' brightness.

A set of pictures that are brighter or darker than the familiar ones can be told by that alone, which is no sign that a
score has understood anything. So each set of images is looked at twice.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Num

from abstain.models.prediction.posterior import Model
from abstain.training.data.sources import read_inputs

SAME_INTENSITY = "_same_intensity"
_ROUNDS = 20


def strange_sets(
    paths: dict[str, str], familiar: Num[np.ndarray, "rows ..."], model: Model
) -> dict[str, Num[np.ndarray, "..."]]:
    """The inputs of every OOD set by name, and for a model of images each at the familiar intensity, under `…_same_intensity`."""
    sets = {name: read_inputs(path, model) for name, path in paths.items()}
    if not model.is_image:
        return sets
    return {
        name: x
        for given, own in sets.items()
        # A set that the user has named so is the user's.
        for name, x in ((given, own), (given + SAME_INTENSITY, match_intensity(own, familiar)))
        if name == given or name not in sets
    }


def readable(name: str) -> str:
    """The name of a set or score, as a person would write it."""
    base = name.removesuffix(SAME_INTENSITY)
    return base.replace("_", " ") + (", same intensity" if base != name else "")


def match_intensity(
    strange: Num[np.ndarray, "ood ..."], familiar: Num[np.ndarray, "rows ..."]
) -> Float[np.ndarray, "ood ..."]:
    """OOD images, each multiplied by one factor, so that their mean intensities are distributed as the familiar ones'.

    The k-th darkest of the OOD images gets the mean intensity of the familiar image of that rank, counted from the
    familiar rows' smallest value (black) and cut off at their largest. Since cutting darkens, the factor is raised
    until the mean is met, or all that is not black is white. A black image stays black.
    """
    black, white = float(familiar.min()), float(familiar.max())
    images = np.maximum(strange.reshape(len(strange), -1).astype(np.float32) - black, 0)
    means = np.sort(familiar.reshape(len(familiar), -1).mean(axis=1, dtype=np.float64) - black)
    ranks = np.argsort(np.argsort(images.mean(axis=1), kind="stable"), kind="stable")
    targets = means[((ranks + 0.5) / len(images) * len(means)).astype(np.int64)]
    scaled = images
    for _ in range(_ROUNDS):
        found = scaled.mean(axis=1, dtype=np.float64)
        factors = np.divide(targets, found, out=np.ones_like(found), where=found > 0)
        # A factor that overflows would make 0 · inf of the black pixels; white is reached long before.
        images = np.minimum(images * np.minimum(factors, 1e6)[:, None].astype(np.float32), np.float32(1e30))
        scaled = np.minimum(images, np.float32(white - black))
        if np.allclose(factors, 1, atol=1e-4):
            break
    return (scaled + np.float32(black)).reshape(strange.shape)
