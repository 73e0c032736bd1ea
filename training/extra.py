"""The packages that fitting needs, and serving does not: those of the extra `training`."""

from __future__ import annotations

import importlib.util

from abstain.models.errors import ConfigError

NEEDED = (
    "arviz_base",
    "arviz_stats",
    "blackjax",
    "h5netcdf",
    "h5py",
    "jinja2",
    "matplotlib",
    "numpyro",
    "optax",
    "sklearn",
    "tensorboardX",
)


def check_extra(what: str) -> None:
    """Says which extra to install where training's packages are missing.

    Args:
        what: needs them, as the sentence's subject.

    Raises:
        ConfigError: naming them.
    """
    missing = [package for package in NEEDED if importlib.util.find_spec(package) is None]
    if missing:
        raise ConfigError(
            f"{what} needs packages that are not installed",
            found=", ".join(missing),
            fix="pip install 'abstain[training]'",
        )
