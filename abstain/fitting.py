"""`fit`: fits a model from a config and data and publishes it, as the command `abstain fit` does."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from abstain.models.bundles.remote.url import local_store
from abstain.models.bundles.shortfalls import texts
from abstain.models.errors import ConfigError
from abstain.progress import ProgressCallback, no_progress

if TYPE_CHECKING:
    from abstain.training.config.config import Config

StrPath = str | os.PathLike[str]


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class FitResult:
    """A version that `fit`, `from_numpyro` or `import_posterior` has published.

    Attributes:
        name: the model's name.
        version: its version, 1 for the first.
        path: the version's folder.
        metrics: the quality on the test part; the keys are those of `abstain evaluate --json`.
        shortfalls: why the fit cannot be relied on, in sentences; empty for a sound version.
        notes: other remarks about the fit.

    Examples:
        >>> result = abstain.fit("training/configs/digits-vi.toml")
        >>> model = abstain.load(result.reference)
        >>> result.metrics["accuracy"]
        0.9694444444444444
    """

    name: str
    version: int
    path: Path
    metrics: Mapping[str, Any]
    shortfalls: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def reference(self) -> str:
        """`name:version`, for `load`."""
        return f"{self.name}:{self.version}"

    def __repr__(self) -> str:
        """Names the version, its state and its folder."""
        state = "falls short: see shortfalls" if self.shortfalls else "sound"
        return f"FitResult({self.reference}, {state}, in {self.path})"


def fit(
    config: StrPath | Mapping[str, Any] | Config,
    *,
    overrides: Iterable[str] = (),
    data: StrPath | None = None,
    store: StrPath = "artifacts",
    progress: ProgressCallback | bool = True,
    resume: bool = False,
    report: bool = True,
    netcdf: StrPath | None = None,
    tensorboard: StrPath | None = None,
) -> FitResult:
    """Fits a posterior, calibrates and evaluates it, and publishes it as a new version of the model that the config names.

    Requires the extra `training`.

    Args:
        config: the path of a TOML file; a dict with the tables of such a file; or a `Config`, as
            `abstain.training.config.config.read_config` returns it.
        overrides: `KEY=VALUE` texts, as after `--set`: `"method.steps=500"`, or `"steps=500"` if only one table has the
            key.
        data: a path, or the name of an embedded data set; if None, the config's own source.
        store: the folder of models.
        progress: True for a progress bar on stderr, False for none, or a function to call after every block of steps.
        resume: whether to continue an interrupted fit with the same settings, or to extend a finished one.
        report: whether to draw and write `report.html`, which takes seconds; the console has no report to show without it.
        netcdf: a file to write all samples to, as ArviZ InferenceData.
        tensorboard: a folder to write traces to, for TensorBoard.

    Raises:
        ConfigError: the config or an override is wrong; or the packages of the extra `training` are not installed.
        DataError: the data is wrong.
        CalibrationError: there are too few calibration rows for the config's percentile or coverage.
        FitError: inference found no posterior.
        StoreError: the store cannot be written, or another fit with the same settings is running.

    Examples:
        >>> abstain.fit("training/configs/digits-vi.toml", overrides=["steps=500"], store="/srv/models")
        FitResult(digits:1, sound, in /srv/models/digits/1)
        >>> abstain.fit({"name": "iris", "data": {"source": "iris.csv", "target": "species"}}, progress=False)
        FitResult(iris:1, sound, in artifacts/iris/1)
    """
    check_training("abstain.fit")
    from abstain.training.config.config import Config  # noqa: PLC0415 - needs the extra
    from abstain.training.config.reading import config_from_dict, read_config  # noqa: PLC0415 - needs the extra

    changes = (overrides,) if isinstance(overrides, str) else tuple(overrides)
    if isinstance(config, str | os.PathLike):
        settings = read_config(Path(config), changes)
    elif isinstance(config, Config):
        settings = config_from_dict(config.model_dump(), changes) if changes else config
    else:
        settings = config_from_dict(config, changes)
    # JAX takes seconds to load, so a wrong config is refused before.
    from abstain.training.fit import fit as fit_and_publish  # noqa: PLC0415
    from abstain.training.report.export import Exports  # noqa: PLC0415

    root = local_store(os.fspath(store))
    exports = Exports(netcdf=_path(netcdf), tensorboard=_path(tensorboard))
    source = None if data is None else os.fspath(data)
    with report_progress(progress, f"{settings.name} by {settings.method.kind}") as report_step:
        published = fit_and_publish(settings, source, root, report_step, resume=resume, report=report, exports=exports)
    return FitResult(
        name=settings.name,
        version=published.version,
        path=root / settings.name / str(published.version),
        metrics=published.metrics.to_json(),
        shortfalls=tuple(texts(published.shortfalls)),
        notes=published.notes,
    )


def check_training(what: str) -> None:
    """Checks that the training stage and the packages that it needs are installed.

    Args:
        what: the subject of the error's sentence.

    Raises:
        ConfigError: something is missing; the text says what to install.
    """
    try:
        from abstain.training.extra import check_extra  # noqa: PLC0415 - absent in a Bento
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{what} needs the training stage", found=f"no {error.name}", fix="pip install 'abstain[training]'"
        ) from error
    check_extra(what)


@contextmanager
def report_progress(progress: ProgressCallback | bool, title: str) -> Generator[ProgressCallback]:
    """Makes the callback that reports progress: a bar with this title for True, none for False, or the given one."""
    from abstain.training.runs.progress import progress_bar  # noqa: PLC0415 - needs the extra

    if progress is True:
        with progress_bar(title) as bar:
            yield bar
    else:
        yield no_progress if progress is False else progress


def _path(path: StrPath | None) -> Path | None:
    return None if path is None else Path(path)
