"""Publishes versions of a golden bundle whose predictions differ, within a tenth of a second."""

import shutil
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from abstain.models.bundles import store
from abstain.models.bundles.bundle import load, write_arrays
from abstain.models.bundles.manifest import write_manifest
from abstain.models.prediction.posterior import Posterior
from tests.helpers.paths import PROJECT

GOLDEN = PROJECT / "tests" / "data" / "golden" / "1"


def publish_golden(
    root: Path,
    scale: float = 1.0,
    name: str = "golden",
    copies: int = 1,
    harm: Callable[[Path], None] = lambda _folder: None,
) -> int:
    """Publishes the golden bundle with all draws multiplied by `scale`; returns the version.

    Args:
        copies: how often the bundle has each draw.
        harm: changes the folder just before it gets its name.
    """
    bundle = load(GOLDEN)
    draws = jax.tree.map(lambda leaf: np.concatenate([leaf * leaf.dtype.type(scale)] * copies), bundle.posterior.draws)
    count = copies * bundle.manifest.draws

    def write(folder: Path) -> None:
        write_arrays(folder, Posterior(bundle.posterior.model, draws), bundle.calibration, bundle.feature_scores)

    def seal(folder: Path, version: int) -> None:
        own = {"name": name, "version": version, "draws": count}
        write_manifest(folder, bundle.manifest.model_copy(update=own))
        harm(folder)

    return store.publish(root, name, write, seal)


def damage_version(root: Path, version: int, name: str = "golden") -> None:
    """Flips a bit in the largest file of a version's draws."""
    flip_bit(root / name / str(version))


def flip_bit(folder: Path) -> None:
    """Flips a bit in the largest file of the draws in a bundle's folder."""
    files = [path for path in (folder / "draws").rglob("*") if path.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    draft = largest.with_name("draft")
    draft.write_bytes(content)
    shutil.move(draft, largest)
