"""The config of a fit: one commented TOML file (see `configs/`), unknown keys refused.

`[method]` is a table whose `kind` names the inference method; each method's settings are a class here, its code a file
in `methods/`.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveFloat, PositiveInt, ValidationError

from models.errors import ConfigError, clip_repr
from models.likelihoods import LikelihoodName
from models.networks import LeNetSpec, MLPSpec, NetworkSpec
from models.store import NAME_PATTERN

Size = Annotated[int, Field(ge=1)] | Annotated[float, Field(gt=0, lt=1)]
"""A number of rows, or a share of them."""


Names = Annotated[tuple[str, ...], Field(strict=False)]
"""A TOML list; strictness is about what is in it."""


class Section(BaseModel):
    """A table of the config: frozen, no key but its own, and nothing converted in silence."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class DataConfig(Section):
    """Where the rows are, and how they are split in three."""

    source: str | None = None
    """A path or the name of an embedded set; `--data` replaces it."""
    calibration_size: Size = 0.2
    """Taken from what the source gives for training."""
    test_size: Size = 0.2
    """Where the source has no test part of its own."""
    split_index: NonNegativeInt = 0
    """Which of a source's own splits (`train_idx`, `test_idx`)."""
    target: str | None = None
    """Tables only: the column to predict."""
    categorical: Names = ()
    """Tables only: the columns that hold categories; all others are numbers."""
    drop: Names = ()
    """Tables only: columns to leave out."""
    inputs: Literal["standardize", "range", "none"] = "standardize"
    """Per feature to mean 0 and std 1; all features together to [0, 1] (pixels); or as they are."""


class PriorConfig(Section):
    """Independent normals over the network's parameters; a half-Cauchy over the noise of `normal`."""

    scale: PositiveFloat = 1.0
    """Standard deviation of every weight and bias …"""
    fan_in: bool = False
    """… of kernels, divided by the square root of their inputs."""
    noise_scale: PositiveFloat = 1.0
    """Scale of the half-Cauchy over the standard deviation of `normal`, in standard deviations of the target."""


class VIConfig(Section):
    """Mean-field variational inference by stochastic gradients (`methods/vi.py`)."""

    kind: Literal["vi"] = "vi"
    steps: PositiveInt = 10_000
    batch_size: PositiveInt = 128
    learning_rate: PositiveFloat = 1e-3
    schedule: Literal["constant", "cosine"] = "cosine"
    kl_weight: PositiveFloat = 1.0
    """Weight of the KL term of the ELBO; 1 is Bayes, less is a colder posterior."""
    init_scale: PositiveFloat = 0.03
    """Standard deviation of the guide at the start; its mean is the network's own initialisation."""
    particles: PositiveInt = 1
    """Draws per gradient."""
    reports: PositiveInt = 20
    """How often, in the whole fit, train and held-out metrics are taken."""


class NUTSConfig(Section):
    """The No-U-Turn sampler on the whole training set (`methods/nuts.py`)."""

    kind: Literal["nuts"] = "nuts"
    chains: Annotated[int, Field(ge=2)] = 4
    warmup: PositiveInt = 500
    samples: PositiveInt = 500
    """Kept per chain before thinning to the config's `draws`."""
    target_acceptance: Annotated[float, Field(gt=0, lt=1)] = 0.8
    max_tree_depth: Annotated[int, Field(ge=1, le=15)] = 10
    reports: PositiveInt = 20
    """How often, in the whole fit, progress is shown."""


class CalibrationConfig(Section):
    """What the bundle's reject flag, sets and intervals mean unless a request asks otherwise."""

    decision: str = "std"
    percentile: Annotated[float, Field(gt=0, lt=100)] = 99.0
    coverage: Annotated[float, Field(gt=0, lt=1)] = 0.9


class Config(Section):
    """A whole fit."""

    name: Annotated[str, Field(pattern=f"^{NAME_PATTERN}$")]
    """The model's name in the store."""
    seed: NonNegativeInt = 0
    draws: PositiveInt = 100
    likelihood: LikelihoodName = "categorical"
    data: DataConfig = DataConfig()
    network: NetworkSpec = MLPSpec()
    prior: PriorConfig = PriorConfig()
    method: Annotated[VIConfig | NUTSConfig, Field(discriminator="kind")] = VIConfig()
    calibration: CalibrationConfig = CalibrationConfig()


def read_config(path: Path, overrides: tuple[str, ...] = ()) -> Config:
    """The config in a TOML file, with `KEY=VALUE` overrides applied.

    A key is dotted (`method.steps`); a bare one (`steps`) means the only place where the config has it. A value is
    read as TOML, and as text where it is none.

    Raises:
        ConfigError: naming the file and the key, what was expected and what was found.
    """
    try:
        content = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigError("cannot be read", where=str(path), found=error.strerror) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError("is not TOML", where=str(path), found=str(error)) from error
    before = _validated(content, str(path))
    for override in overrides:
        _apply(override, content, before)
    return _validated(content, f"{path} with {' '.join(overrides)}" if overrides else str(path))


def _validated(content: dict[str, Any], where: str) -> Config:
    try:
        return Config.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        location = first["loc"]
        # pydantic puts the tag of a union into the location of an error within it; the file has no such key.
        key = ".".join(str(part) for part in location if part not in _UNION_TAGS)
        if first["type"] == "extra_forbidden":
            raise ConfigError(
                f"unknown key {key!r}", where=where, expected=f"one of {_known_keys(location)}"
            ) from error
        raise ConfigError(
            key or "config", where=where, expected=first["msg"], found=clip_repr(first["input"])
        ) from error


_TABLES: dict[str, type[BaseModel]] = {
    "data": DataConfig,
    "prior": PriorConfig,
    "calibration": CalibrationConfig,
    "vi": VIConfig,
    "nuts": NUTSConfig,
    "mlp": MLPSpec,
    "lenet": LeNetSpec,
}
_UNION_TAGS = {"vi", "nuts", "mlp", "lenet", "int", "float", "constrained-int", "constrained-float"}


def _known_keys(location: tuple[int | str, ...]) -> str:
    """The keys of the table in which pydantic found an unknown one."""
    tables = [_TABLES[part] for part in location[:-1] if isinstance(part, str) and part in _TABLES]
    return ", ".join(sorted((tables[-1] if tables else Config).model_fields))


def _apply(override: str, content: dict[str, Any], config: Config) -> None:
    """Writes one `KEY=VALUE` into the content of the file."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError("--set", expected="KEY=VALUE", found=clip_repr(override))
    tree = config.model_dump()
    *tables, leaf = _full_key(key, tree)
    for table in tables:
        # A table that the file leaves out has the default's kind, if it has one; other keys keep their defaults.
        defaults = tree.get(table)
        kind = {"kind": defaults["kind"]} if isinstance(defaults, dict) and "kind" in defaults else {}
        content = content.setdefault(table, kind)
        tree = defaults if isinstance(defaults, dict) else {}
        if not isinstance(content, dict):
            raise ConfigError(f"--set {key}", expected=f"{table} to be a table", found=clip_repr(content))
    content[leaf] = _value(text)


def _full_key(key: str, tree: dict[str, Any]) -> list[str]:
    if "." in key or key in tree:
        return key.split(".")
    homes = [table for table, keys in tree.items() if isinstance(keys, dict) and key in keys]
    if len(homes) != 1:
        found = f"in {' and '.join(homes)}" if homes else "in none of its tables"
        raise ConfigError(f"--set {key}", expected="a key of the config, or TABLE.KEY", found=found)
    return [homes[0], key]


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
