"""OOD sets: inputs that a model should reject, unchanged and at the brightness of the test rows.

OOD images that are brighter or darker than the test rows can be detected by brightness alone, which does not show that a
score is good. So each set of images is evaluated twice.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Num

from abstain.models.files.reading import PLAIN, Reading
from abstain.models.prediction.posterior import Model
from abstain.training.data.sources import read_inputs

SAME_INTENSITY = "_same_intensity"
_ROUNDS = 20


def read_ood_sets(
    paths: dict[str, str], familiar: Num[np.ndarray, "rows ..."], model: Model, reading: Reading = PLAIN
) -> dict[str, Num[np.ndarray, "..."]]:
    """Reads every OOD set, by name; for images also a copy at the test rows' intensity, as `…_same_intensity`."""
    sets = {name: read_inputs(path, model, reading) for name, path in paths.items()}
    if not model.is_image:
        return sets
    return {
        name: x
        for base_name, images in sets.items()
        # A user's set with the name of a copy replaces the copy.
        for name, x in ((base_name, images), (base_name + SAME_INTENSITY, match_intensity(images, familiar)))
        if name == base_name or name not in sets
    }


def readable_name(name: str) -> str:
    """Returns the name of a set or score without underscores."""
    base = name.removesuffix(SAME_INTENSITY)
    return base.replace("_", " ") + (", same intensity" if base != name else "")


def match_intensity(
    strange: Num[np.ndarray, "ood ..."], familiar: Num[np.ndarray, "rows ..."]
) -> Float[np.ndarray, "ood ..."]:
    """Scales each OOD image by one factor, so that their mean intensities have the distribution of the familiar images.

    The k-th darkest OOD image gets the mean intensity of the familiar image with that rank. Intensities are measured from
    the familiar rows' smallest value (black) and cut off at their largest (white). This makes images darker, so the factor
    is raised until the mean is right, or until all pixels are black or white. A black image stays black.
    """
    black, white = float(familiar.min()), float(familiar.max())
    images = np.maximum(strange.reshape(len(strange), -1).astype(np.float32) - black, 0)
    means = np.sort(familiar.reshape(len(familiar), -1).mean(axis=1, dtype=np.float64) - black)
    ranks = np.argsort(np.argsort(images.mean(axis=1), kind="stable"), kind="stable")
    targets = means[((ranks + 0.5) / len(images) * len(means)).astype(np.int64)]
    scaled = images
    for _ in range(_ROUNDS):
        intensities = scaled.mean(axis=1, dtype=np.float64)
        factors = np.divide(targets, intensities, out=np.ones_like(intensities), where=intensities > 0)
        # An infinite factor would turn black pixels into NaN; pixels are white long before that.
        images = np.minimum(images * np.minimum(factors, 1e6)[:, None].astype(np.float32), np.float32(1e30))
        scaled = np.minimum(images, np.float32(white - black))
        if np.allclose(factors, 1, atol=1e-4):
            break
    return (scaled + np.float32(black)).reshape(strange.shape)
