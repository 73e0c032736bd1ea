"""`fit`: from a config and data to a published version, as the command `abstain fit` does it."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from abstain.models.bundles.shortfalls import texts
from abstain.models.errors import ConfigError

if TYPE_CHECKING:
    from abstain.training.config.config import Config

StrPath = str | os.PathLike[str]


class Progress(Protocol):
    """What is called to say how far a fit is."""

    def __call__(self, done: int, total: int, passage: str = "", **facts: float) -> None:
        """`done` of `total` steps of a passage are done, and these are its latest figures."""


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class FitResult:
    """A version that `fit` has published.

    Attributes:
        name: the model's name.
        version: its version, 1 for the first.
        path: the version's folder, with `report.html`.
        metrics: the quality on the test part; the keys are those of `abstain evaluate --json`.
        shortfalls: what the fit lacks to be relied on, in plain words; empty for a sound version.
        notes: what else is worth knowing.

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
        """What was published, and where."""
        worth = "falls short: see shortfalls" if self.shortfalls else "sound"
        return f"FitResult({self.reference}, {worth}, in {self.path})"


def fit(
    config: StrPath | Mapping[str, Any] | Config,
    *,
    overrides: Iterable[str] = (),
    data: StrPath | None = None,
    store: StrPath = "artifacts",
    progress: Progress | bool = True,
    resume: bool = False,
    netcdf: StrPath | None = None,
    tensorboard: StrPath | None = None,
) -> FitResult:
    """Fits a posterior, calibrates and evaluates it, and publishes it as a new version of the model that the config names.

    Needs the extra `training`.

    Args:
        config: a TOML file; a dict of the tables that such a file would have; or a `Config`, as
            `abstain.training.config.config.read_config` gives it.
        overrides: `KEY=VALUE` texts, as after `--set`: `"method.steps=500"`, or `"steps=500"` where only one table has
            the key.
        data: a path, or the name of an embedded set; the config's own source if None.
        store: the folder of models.
        progress: True for a bar on stderr, False for none, or what is to be called after every block of steps.
        resume: whether to go on with a fit of these settings that was cut off, or to lengthen one that was finished.
        netcdf: a file to write all samples to, as ArviZ InferenceData.
        tensorboard: a folder to write traces to, for TensorBoard.

    Raises:
        ConfigError: the config or an override is wrong; or the packages of the extra `training` are not installed.
        DataError: the data is wrong.
        CalibrationError: there are too few calibration rows for the config's percentile or coverage.
        FitError: inference came to no posterior.
        StoreError: the store cannot be written, or a fit of the same settings is under way.

    Examples:
        >>> abstain.fit("training/configs/digits-vi.toml", overrides=["steps=500"], store="/srv/models")
        FitResult(digits:1, sound, in /srv/models/digits/1)
        >>> abstain.fit({"name": "iris", "data": {"source": "iris.csv", "target": "species"}}, progress=False)
        FitResult(iris:1, sound, in artifacts/iris/1)
    """
    _check_training()
    from abstain.training.config.config import Config  # noqa: PLC0415 - of the extra
    from abstain.training.config.reading import config_of, read_config  # noqa: PLC0415 - of the extra
    from abstain.training.fit import fit as fit_and_publish  # noqa: PLC0415 - as above
    from abstain.training.report.export import Exports  # noqa: PLC0415 - as above

    changes = (overrides,) if isinstance(overrides, str) else tuple(overrides)
    if isinstance(config, str | os.PathLike):
        settings = read_config(Path(config), changes)
    elif isinstance(config, Config):
        settings = config_of(config.model_dump(), changes) if changes else config
    else:
        settings = config_of(config, changes)
    root = Path(store)
    exports = Exports(netcdf=_path(netcdf), tensorboard=_path(tensorboard))
    source = None if data is None else os.fspath(data)
    with _network_allowed(settings), _reporting(progress, settings) as report:
        published = fit_and_publish(settings, source, root, report, resume=resume, exports=exports)
    return FitResult(
        name=settings.name,
        version=published.version,
        path=root / settings.name / str(published.version),
        metrics=published.metrics.to_json(),
        shortfalls=tuple(texts(published.shortfalls)),
        notes=published.notes,
    )


def _check_training() -> None:
    """Refuses to go on where the training stage, or a package that it needs, is not there.

    Raises:
        ConfigError: saying what to install.
    """
    try:
        from abstain.training.extra import check_extra  # noqa: PLC0415 - absent in a Bento
    except ModuleNotFoundError as error:
        raise ConfigError(
            "abstain.fit needs the training stage", found=f"no {error.name}", fix="pip install 'abstain[training]'"
        ) from error
    check_extra("abstain.fit")


def _network_allowed(settings: Config) -> AbstractContextManager[None]:
    """Who wrote the config has named the code to run; a bundle that anybody may have written allows nothing."""
    from abstain.models.networks.allowed import allowed_module  # noqa: PLC0415 - so that a refusal comes at once

    return allowed_module(settings.network.module) if settings.network.kind == "module" else nullcontext()


@contextmanager
def _reporting(progress: Progress | bool, settings: Config) -> Generator[Progress]:
    from abstain.training.runs.progress import progress_bar  # noqa: PLC0415 - of the extra

    if progress is True:
        with progress_bar(f"{settings.name} by {settings.method.kind}") as bar:
            yield bar
    else:
        yield _silent if progress is False else progress


def _silent(done: int, total: int, passage: str = "", **facts: float) -> None:
    """No progress shown."""


def _path(given: StrPath | None) -> Path | None:
    return None if given is None else Path(given)
