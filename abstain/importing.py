"""`from_numpyro` and `import_posterior`: calibrate and publish draws that were made elsewhere, without fitting."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from abstain.fitting import FitResult, StrPath, check_training, report_progress
from abstain.models.bundles.remote.url import local_store
from abstain.models.bundles.shortfalls import texts
from abstain.models.errors import ConfigError
from abstain.progress import ProgressCallback

if TYPE_CHECKING:
    from abstain.training.config.imports import ImportConfig
    from abstain.training.importing.found import Found


def from_numpyro(
    result: Any,
    module: Any,
    config: Mapping[str, Any],
    *,
    data: StrPath,
    train: StrPath | None = None,
    guide: Any = None,
    guide_arguments: tuple[Any, ...] = (),
    store: StrPath = "artifacts",
    progress: ProgressCallback | bool = True,
) -> FitResult:
    """Publishes draws in memory as a new version of a model: calibrated, checked and ready to be served.

    Requires the extra `training`.

    Args:
        result: a NumPyro `MCMC` that has run; an SVI result, with its guide; ArviZ's `DataTree` or `InferenceData`; a dict of
            arrays by the names of the parameters, with the draws as first axis; or a list of such dicts without that axis,
            one for each network of an ensemble.
        module: the network: a Flax Linen module; a class of Linen or NNX that needs no arguments; `package.file:ClassName`;
            or a dict as the table `[network]` of a config.
        config: the other keys of the config of an import, such as `{"name": "wave", "likelihood": "normal", "posterior":
            {"noise": "sigma"}}`.
        data: labelled rows that the network was not trained on: a path, or the name of an embedded data set.
        train: rows that the network was trained on, or rows like them; needed for feature scores.
        guide: the guide of an SVI result, from which `draws` draws are made (default: 100).
        guide_arguments: what the guide is called with, if it is a function with arguments.
        store: the folder of models.
        progress: True for a progress bar on stderr, False for none, or a function to call at each stage.

    Raises:
        ConfigError: the config or an argument is wrong; or the packages of the extra `training` are not installed.
        DataError: the rows are wrong; or a parameter is missing, unknown, of another shape, or not finite.
        CalibrationError: there are too few labelled rows for the config's percentile or coverage.
        StoreError: the store cannot be written.

    Examples:
        >>> mcmc.run(jax.random.key(0), x, y)
        >>> abstain.from_numpyro(
        ...     mcmc, Net(width=16), {"name": "wave", "likelihood": "normal", "posterior": {"noise": "sigma"}}, data="held_out.npz"
        ... )
        FitResult(wave:1, sound, in artifacts/wave/1)
    """
    check_training("abstain.from_numpyro")
    from abstain.training.config.imports import read_import_dict  # noqa: PLC0415 - needs the extra
    from abstain.training.importing.module_spec import spec_of  # noqa: PLC0415 - needs the extra
    from abstain.training.importing.numpyro_results import DRAWS, GuideCall, read_result  # noqa: PLC0415

    if "network" in config:
        raise ConfigError("config", expected="no table network, because module is the network", found="one")
    if guide_arguments and guide is None:
        raise ConfigError("guide_arguments", expected="a guide that gets them", found="none", fix="pass guide=…")
    settings = read_import_dict({**config, "network": spec_of(module).model_dump(mode="json")})
    call = GuideCall(guide, guide_arguments, settings.draws or DRAWS, settings.seed)
    return _publish(settings, read_result(result, call), data, train, store, progress)


def import_posterior(
    sources: StrPath | Iterable[StrPath],
    config: StrPath | Mapping[str, Any],
    *,
    overrides: Iterable[str] = (),
    data: StrPath | None = None,
    train: StrPath | None = None,
    store: StrPath = "artifacts",
    progress: ProgressCallback | bool = True,
) -> FitResult:
    """Publishes the draws in files as a new version of a model, as the command `abstain import` does.

    Requires the extra `training`.

    Args:
        sources: one `.npz` or netCDF file of draws; or the `.safetensors` files, or the folders of Orbax checkpoints, of
            the networks of an ensemble.
        config: the path of a TOML file, or a dict with its tables.
        overrides: `KEY=VALUE` texts, as after `--set`.
        data: labelled rows that the network was not trained on; if None, the config's own source.
        train, store, progress: as for `from_numpyro`.

    Raises:
        ConfigError, DataError, CalibrationError, StoreError: as `from_numpyro`.

    Examples:
        >>> abstain.import_posterior(["net0.safetensors", "net1.safetensors"], "own.toml", data="held_out.csv")
        FitResult(own:1, sound, in artifacts/own/1)
    """
    check_training("abstain.import_posterior")
    from abstain.training.config.imports import ImportConfig, read_import_dict  # noqa: PLC0415 - needs the extra
    from abstain.training.config.reading import read_section  # noqa: PLC0415 - needs the extra
    from abstain.training.importing.sources import read_found  # noqa: PLC0415 - needs the extra

    changes = (overrides,) if isinstance(overrides, str) else tuple(overrides)
    if isinstance(config, str | os.PathLike):
        settings = read_section(Path(config), changes, ImportConfig)
    else:
        settings = read_import_dict(config, changes)
    named = (sources,) if isinstance(sources, str | os.PathLike) else tuple(sources)
    paths = [Path(source) for source in named]
    found = read_found(paths, settings.network, settings.posterior.layers)
    return _publish(settings, found, data, train, store, progress)


def _publish(
    settings: ImportConfig,
    found: Found,
    data: StrPath | None,
    train: StrPath | None,
    store: StrPath,
    progress: ProgressCallback | bool,
) -> FitResult:
    from abstain.training.import_posterior import import_posterior as publish  # noqa: PLC0415 - needs the extra

    root = local_store(os.fspath(store))
    rows = None if data is None else os.fspath(data)
    with report_progress(progress, f"{settings.name}, import") as report:
        published = publish(settings, found, rows, None if train is None else os.fspath(train), root, report)
    return FitResult(
        name=settings.name,
        version=published.version,
        path=root / settings.name / str(published.version),
        metrics=published.metrics.to_json(),
        shortfalls=tuple(texts(published.shortfalls)),
        notes=published.notes,
    )
