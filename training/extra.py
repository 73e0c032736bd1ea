"""The packages of the extra `training`, which fitting needs and serving does not."""

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
    """Checks that the packages of the extra `training` are installed.

    Args:
        what: the subject of the error's sentence, such as "this command".

    Raises:
        ConfigError: packages are missing; the text names them.
    """
    missing = [package for package in NEEDED if importlib.util.find_spec(package) is None]
    if missing:
        raise ConfigError(
            f"{what} needs packages that are not installed",
            found=", ".join(missing),
            fix="pip install 'abstain[training]'",
        )
