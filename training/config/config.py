"""The config of a fit: one commented TOML file (see `configs/`), unknown keys refused.

`[method]` is a table whose `kind` names the inference method; each method's settings are a class here, its code a file
in `methods/`.
"""

from __future__ import annotations

import copy
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    field_serializer,
    model_validator,
)

from abstain.models.bundles.references import NAME_PATTERN
from abstain.models.decisions.conformal import IntervalKind, SetKind
from abstain.models.decisions.decision import Rule
from abstain.models.errors import ConfigError, clip_repr
from abstain.models.files.regular import not_a_file
from abstain.models.networks.architectures import LeNetSpec, MLPSpec, NetworkSpec
from abstain.models.networks.user_module import ModuleSpec
from abstain.models.prediction.likelihoods import LikelihoodName

CONFIG_BYTES = 512 * 1024
DEPTH = 32
"""Tables and lists in each other, of a config file."""
LARGEST = 2**63
"""Whole numbers of a config are below it: more fit neither into a random key nor into a manifest's readers."""
_PART = r"""(?:(?<![\w-])[\w-]++|"[^"\n]*+"|'[^'\n]*+')"""
_DEEP_KEY = re.compile(rf"(?:{_PART}\s*+\.\s*+){{{DEPTH}}}")
Counted = Annotated[int, Field(gt=0, lt=2**31)]
"""What a compiled program counts, in 32 bits."""
Size = Annotated[int, Field(ge=1)] | Annotated[float, Field(gt=0, lt=1)]
"""A number of rows, or a share of them."""


Names = Annotated[tuple[str, ...], Field(strict=False)]
"""A TOML list; strictness is about what is in it."""


class Section(BaseModel):
    """A table of the config: frozen, no key but its own, and nothing converted in silence."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class AugmentConfig(Section):
    """How images are changed at random (`augment.py`), each way by an amount drawn within its limits; off where 0."""

    shift: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Whole pixels, in both directions."""
    rotate: Annotated[float, Field(ge=0, le=180)] = 0.0
    """Degrees, either way."""
    thickness: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Pixels by which bright strokes are thickened or thinned at each edge."""

    @property
    def asked(self) -> bool:
        """Whether anything is to be changed."""
        return bool(self.shift or self.rotate or self.thickness)


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
    group: str | None = None
    """A column, or an array: rows of one group are never in two parts. It is not a feature."""
    time: str | None = None
    """A column, or an array: the latest rows are the test part, those before them the calibration part. Not a feature."""
    stratify: bool = False
    """Whether every part has each class's share of rows."""
    inputs: Literal["standardize", "range", "none"] = "standardize"
    """Per feature to mean 0 and std 1; all features together to [0, 1] (pixels); or as they are."""
    augment: AugmentConfig = AugmentConfig()
    """Of images: what every gradient sees of a training row. Not for Markov chains and Laplace's approximation."""

    @property
    def split_by(self) -> str | None:
        """The column or array that rows are split by."""
        return self.group if self.group is not None else self.time

    @property
    def split_kind(self) -> Literal["group", "time"]:
        """What `split_by` holds."""
        return "time" if self.time is not None else "group"


class LayerPrior(Section):
    """The prior of some of the network's parameters, independent over them."""

    kind: Literal["normal", "cauchy", "laplace", "student_t", "scale_mixture"] = "normal"
    scale: PositiveFloat = 1.0
    """Standard deviation of the normal, scale of the others …"""
    fan_in: bool = False
    """… of kernels, divided by the square root of their inputs."""
    hierarchical: bool = False
    """Whether the scale is inferred as well, one for each parameter array: half-normal, with `scale` as its scale."""
    degrees: PositiveFloat = 3.0
    """Of freedom, of `student_t`."""
    narrow_scale: PositiveFloat = 0.05
    """The narrower of the two normals of `scale_mixture` (Blundell et al., 2015), in units of `scale` …"""
    narrow_weight: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """… and its weight."""


class PriorConfig(LayerPrior):
    """The prior of the network's parameters, of some of them by name, and of the noise of `normal`."""

    noise: Literal["half_cauchy", "half_normal", "log_normal"] = "half_cauchy"
    noise_scale: PositiveFloat = 1.0
    """Of the noise's prior, in standard deviations of the target; of its logarithm, for `log_normal`."""
    layers: dict[str, LayerPrior] = {}
    """By parameter, `"Dense_0.bias"`, or pattern, `"*.bias"`: what differs from the rest. The first that fits holds."""

    @field_serializer("layers")
    def _said(self, layers: dict[str, LayerPrior]) -> dict[str, Any]:
        # A default written down would no longer be inherited, and the record of a fit would tell of another prior.
        return {name: layer.model_dump(exclude_unset=True) for name, layer in layers.items()}


ChainMethod = Literal["vectorized", "sequential", "parallel"]
"""Chains in lockstep in one compiled call, one after the other, or one thread (or device) each."""
Adaptation = Literal["dual_averaging", "simple", "none"]
"""Of the step size; with "none" the mass matrix stays the unit one too."""
MassMatrix = Literal["diagonal", "dense", "unit"]
Acceptance = Annotated[float, Field(gt=0, lt=1)]


class Optimisation(Section):
    """Stochastic gradients: what every optimised method has."""

    steps: PositiveInt = 5_000
    batch_size: PositiveInt = 128
    """Rows per step; all of them, where there are fewer."""
    learning_rate: PositiveFloat = 1e-3
    schedule: Literal["constant", "cosine"] = "cosine"
    clip: PositiveFloat | None = None
    """The largest norm of a gradient; none, if left out."""
    reports: PositiveInt = 20
    """How often, in the whole fit, metrics are taken and the fit is checkpointed."""


class MAPSettings(Optimisation):
    """A search for the posterior mode."""

    held_out: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the training rows kept from the search, to choose its best iterate by; 0 takes the last."""


class MAPConfig(MAPSettings):
    """The posterior mode: one draw (`methods/map.py`)."""

    kind: Literal["map"] = "map"


class EnsembleConfig(MAPSettings):
    """Posterior modes from several starts, one draw each (`methods/ensemble.py`; Lakshminarayanan et al., 2017)."""

    kind: Literal["ensemble"] = "ensemble"
    members: Annotated[int, Field(ge=2)] = 5
    chain_method: ChainMethod = "sequential"


class LaplaceConfig(MAPSettings):
    """A normal about the posterior mode (`methods/laplace.py`)."""

    kind: Literal["laplace"] = "laplace"
    subset: Literal["last_layer", "diagonal"] = "last_layer"
    """The last layer with its full covariance, or, for regression only, all parameters with a diagonal one."""
    prior_precision: Literal["evidence", "fixed"] = "evidence"
    """Of the Gaussian: chosen by the marginal likelihood, or the prior's own."""


class VIConfig(Optimisation):
    """Variational inference by stochastic gradients (`methods/vi.py`)."""

    kind: Literal["vi"] = "vi"
    steps: PositiveInt = 10_000
    family: Literal["mean_field", "low_rank", "full_rank"] = "mean_field"
    rank: PositiveInt = 10
    """Of the covariance that `low_rank` adds to a diagonal."""
    kl_weight: PositiveFloat = 1.0
    """Weight of the KL term of the ELBO; 1 is Bayes, less is a colder posterior."""
    init_scale: PositiveFloat = 0.03
    """Standard deviation of the guide at the start, about the place where it starts."""
    particles: PositiveInt = 1
    """Draws per gradient."""
    starts: PositiveInt = 1
    """Guides fitted from different starts; their draws are pooled."""
    start: Literal["network", "prior", "map", "run"] = "network"
    """See `training/inference/starts.py`."""
    start_from: str | None = None
    """The earlier run, `NAME:VERSION` in the same store."""
    map: MAPSettings = MAPSettings()
    """Where `start` is "map"."""
    chain_method: ChainMethod = "sequential"


class ChainSettings(Section):
    """What every Markov chain has."""

    chains: Annotated[int, Field(ge=2)] = 4
    warmup: PositiveInt = 500
    samples: PositiveInt = 500
    """Kept per chain, before thinning to the config's `draws`."""
    thin: PositiveInt = 1
    """Transitions for each sample kept."""
    start: Literal["network", "prior", "overdispersed", "map", "vi", "run"] = "network"
    """See `training/inference/starts.py`."""
    start_from: str | None = None
    """The earlier run, `NAME:VERSION` in the same store."""
    overdispersion: PositiveFloat = 2.0
    """What "overdispersed" multiplies prior draws by."""
    map: MAPSettings = MAPSettings()
    """Where `start` is "map"."""
    vi: VIConfig = VIConfig()
    """Where `start` is "vi"."""
    chain_method: ChainMethod = "vectorized"
    reports: PositiveInt = 20
    """How often, in the whole fit, progress is shown and the fit is checkpointed."""


class HMCConfig(ChainSettings):
    """Hamiltonian Monte Carlo with a fixed number of leapfrog steps (`methods/hmc.py`)."""

    kind: Literal["hmc"] = "hmc"
    step_size: PositiveFloat = 0.1
    """Where adaptation starts; the step size itself, if there is none."""
    leapfrogs: Counted = 10
    jitter: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """Each trajectory's step size is drawn from [1 − jitter, 1] of the adapted one: no resonance holds a chain for long."""
    adaptation: Adaptation = "dual_averaging"
    target_acceptance: Acceptance = 0.8
    mass_matrix: MassMatrix = "diagonal"


class NUTSConfig(ChainSettings):
    """The No-U-Turn sampler on the whole training set (`methods/nuts.py`)."""

    kind: Literal["nuts"] = "nuts"
    step_size: PositiveFloat = 0.1
    adaptation: Adaptation = "dual_averaging"
    target_acceptance: Acceptance = 0.8
    max_tree_depth: Annotated[int, Field(ge=1, le=15)] = 10
    mass_matrix: MassMatrix = "diagonal"


class ChEESConfig(ChainSettings):
    """Many chains in lockstep with one adapted trajectory length (`methods/chees.py`; Hoffman et al., 2021)."""

    kind: Literal["chees"] = "chees"
    chains: Annotated[int, Field(ge=4)] = 16
    step_size: PositiveFloat = 0.1
    target_acceptance: Acceptance = 0.8
    max_leapfrogs: Counted = 1_000
    """In one trajectory."""
    mass_matrix: Literal["diagonal", "unit"] = "diagonal"
    chain_method: Literal["vectorized", "parallel"] = "vectorized"
    """After the warm-up: all chains in lockstep, or groups of them, a thread (or device) each."""
    groups: PositiveInt = 2
    """Where they are parallel."""

    @model_validator(mode="after")
    def _groups_are_of_one_size(self) -> ChEESConfig:
        if self.chain_method == "parallel" and self.chains % self.groups:
            raise ValueError(f"groups must divide chains, {self.chains}, found {self.groups}")
        return self


class MILEConfig(ChainSettings):
    """Warm-started members, each followed by microcanonical Langevin (`methods/mile.py`; Sommer et al., 2025)."""

    kind: Literal["mile"] = "mile"
    chains: Annotated[int, Field(ge=2)] = 8
    warmup: PositiveInt = 10_000
    samples: PositiveInt = 1_000
    thin: PositiveInt = 10
    start: Literal["network", "prior", "overdispersed", "map", "vi", "run"] = "map"
    energy_variance: PositiveFloat = 5e-5
    """Per dimension, of one step: what the step size is tuned to. Less is less biased, and slower."""
    mass_matrix: Literal["diagonal", "unit"] = "diagonal"
    chain_method: ChainMethod = "parallel"


MethodConfig = Annotated[
    MAPConfig | EnsembleConfig | VIConfig | LaplaceConfig | HMCConfig | NUTSConfig | ChEESConfig | MILEConfig,
    Field(discriminator="kind"),
]


class CalibrationConfig(Section):
    """What the bundle's reject flag, sets and intervals mean unless a request asks otherwise."""

    decision: str | Names | None = None
    """A score, or several that are combined; left out, what `training/calibration/pipeline.py` has for the task."""
    combine: Rule | None = None
    """Of several: by the least p-value, "min", the "weighted" sum of their logarithms, or the weighted "harmonic" mean.

    Left out, the default decision's own rule; "min" for scores that are named.
    """
    weights: dict[str, PositiveFloat] = {}
    """By score; 1 where left out."""
    percentile: Annotated[float, Field(gt=0, lt=100)] = 99.0
    per_class: bool = False
    """Whether the percentile holds within each predicted class, not only over all."""
    coverage: Annotated[float, Field(gt=0, lt=1)] = 0.9
    sets: SetKind = "lac"
    """Prediction sets: the smallest on average, or those that grow with a row's difficulty (`models/decisions/conformal.py`)."""
    intervals: IntervalKind = "normalised"
    """Residuals over the total standard deviation, or distances from the posterior's own quantiles."""
    recalibrate: Literal["none", "auto"] = "none"
    """Whether a temperature (classes), or a factor on standard deviations (numbers), is fitted before the thresholds."""
    augment: AugmentConfig = AugmentConfig()
    """Of images: calibration rows changed, each in one way, so that rows changed like them are familiar too."""
    densities: AugmentConfig = AugmentConfig()
    """Of images: so are the training rows that densities are fitted to, to the same end. The rate is still the calibration rows'."""


class EvaluationConfig(Section):
    """What a fit is looked at with besides its test part. Nothing is chosen by it: it is reported, that is all."""

    ood: dict[Annotated[str, Field(min_length=1)], str] = {}
    """Sets of strange inputs: paths, or embedded sets, by the name to report them under."""


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
    method: MethodConfig = VIConfig()
    calibration: CalibrationConfig = CalibrationConfig()
    evaluation: EvaluationConfig = EvaluationConfig()


def read_config(path: Path, overrides: tuple[str, ...] = ()) -> Config:
    """The config in a TOML file, with `KEY=VALUE` overrides applied.

    A key is dotted (`method.steps`); a bare one (`steps`) means the only place where the config has it. A value is
    read as TOML, and as text where it is none.

    Raises:
        ConfigError: naming the file and the key, what was expected and what was found.
    """
    return _overridden(_parsed(_text_of(path), str(path)), overrides, str(path))


def config_of(content: Mapping[str, Any], overrides: tuple[str, ...] = ()) -> Config:
    """The config in a dict of the tables that a TOML file would have, with `KEY=VALUE` overrides applied.

    Raises:
        ConfigError: as `read_config`.
    """
    _check_values(dict(content), "config")
    return _overridden(copy.deepcopy(dict(content)), overrides, "config")


def _overridden(content: dict[str, Any], overrides: tuple[str, ...], place: str) -> Config:
    """The config in a file's tables, which the overrides change.

    Args:
        place: what an error calls the file.
    """
    before = _validated(content, place)
    for override in overrides:
        apply_override(override, content, before)
    where = f"{place} with {clip_repr(' '.join(overrides), 200)}" if overrides else place
    _check_values(content, where)
    return _validated(content, where)


def _text_of(path: Path) -> str:
    found = not_a_file(path)
    if found:
        raise ConfigError("cannot be read", where=str(path), expected="a file", found=found)
    try:
        with path.open("rb") as file:
            content = file.read(CONFIG_BYTES + 1)
        if len(content) > CONFIG_BYTES:
            raise ConfigError("is too long", where=str(path), expected=f"at most {CONFIG_BYTES:,} bytes", found="more")
        return content.decode("utf-8")
    except OSError as error:
        raise ConfigError("cannot be read", where=str(path), found=error.strerror) from error
    except ValueError as error:  # no UTF-8, or a path with a NUL byte
        raise ConfigError("is not TOML", where=str(path), found=str(error)) from error


def _parsed(text: str, where: str) -> dict[str, Any]:
    """The tables of a TOML text.

    Raises:
        ConfigError: it is no TOML, nested too deeply, or holds a number that is none of the config's.
    """
    try:
        # The parser takes time by the square of a key's parts.
        content = None if _DEEP_KEY.search(text) else tomllib.loads(text.replace("\r\n", "\n"))
    except RecursionError:
        content = None
    except ValueError as error:  # TOMLDecodeError, or a number of thousands of digits
        raise ConfigError("is not TOML", where=where, found=str(error)) from error
    if content is None:
        raise _too_deep(where)
    _check_values(content, where)
    return content


def _check_values(content: dict[str, Any], where: str) -> None:
    """Refuses what no key of the config can be, before anything is computed of it.

    Raises:
        ConfigError: tables or lists are nested too deeply, or a whole number does not fit into 64 bits.
    """
    left: list[tuple[str, int, Any]] = [("", 0, content)]
    while left:
        key, depth, value = left.pop()
        if depth > DEPTH:
            raise _too_deep(where)
        if isinstance(value, dict):
            left += [(f"{key}.{name}" if key else name, depth + 1, item) for name, item in value.items()]
        elif isinstance(value, list):
            left += [(key, depth + 1, item) for item in value]
        elif isinstance(value, int) and abs(value) >= LARGEST:
            raise ConfigError(
                clip_repr(key) if len(key) > 60 else key,
                where=where,
                expected=f"a whole number below {LARGEST:,}",
                found=clip_repr(value),
            )


def _too_deep(where: str) -> ConfigError:
    return ConfigError(
        "is nested too deeply", where=where, expected=f"at most {DEPTH} tables or lists in each other", found="more"
    )


def _validated(content: dict[str, Any], where: str) -> Config:
    try:
        return Config.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        location = first["loc"]
        # pydantic puts the tag of a union into the location of an error within it; the file has no such key.
        tag = 1 if location[0] in {"method", "network"} else None
        parts = [part for place, part in enumerate(location) if place != tag and part not in _SIZE_TAGS]
        key = ".".join(part if re.fullmatch(r"[\w-]+", part) else f'"{part}"' for part in map(str, parts))
        if first["type"] == "extra_forbidden":
            raise ConfigError(
                f"unknown key {key!r}", where=where, expected=f"one of {_known_keys(location)}"
            ) from error
        raise ConfigError(
            key or "config", where=where, expected=first["msg"], found=clip_repr(first["input"])
        ) from error


_TABLES: dict[str, type[BaseModel]] = {
    "data": DataConfig,
    "augment": AugmentConfig,
    "prior": PriorConfig,
    "layers": LayerPrior,
    "calibration": CalibrationConfig,
    "evaluation": EvaluationConfig,
    "map": MAPConfig,
    "ensemble": EnsembleConfig,
    "vi": VIConfig,
    "laplace": LaplaceConfig,
    "hmc": HMCConfig,
    "nuts": NUTSConfig,
    "chees": ChEESConfig,
    "mile": MILEConfig,
    "mlp": MLPSpec,
    "lenet": LeNetSpec,
    "module": ModuleSpec,
}
_SIZE_TAGS = {"int", "float", "constrained-int", "constrained-float"}


def _known_keys(location: tuple[int | str, ...]) -> str:
    """The keys of the table in which pydantic found an unknown one."""
    tables = [_TABLES[part] for part in location[:-1] if part in _TABLES]
    known = set((LayerPrior if "layers" in location else tables[-1] if tables else Config).model_fields)
    if location[-2:-1] == ("map",) and len(location) > 3:
        # A warm start's table is the method's, but for its kind.
        known -= {"kind"}
    return ", ".join(sorted(known))


def apply_override(override: str, content: dict[str, Any], config: Section) -> None:
    """Writes one `KEY=VALUE` into the content of a file, or of one of its tables, whose defaults `config` has.

    Raises:
        ConfigError: there is no such key.
    """
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
    if _DEEP_KEY.search(f"{key}."):
        raise _too_deep("--set")
    parts = [quoted or bare for quoted, bare in re.findall(r'"([^"]*)"|([^."]+)', key)]
    if len(parts) > 1 or key in tree:
        return parts
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
    except RecursionError as error:
        raise _too_deep("--set") from error
    except ValueError as error:  # a number of thousands of digits
        raise ConfigError("is not TOML", where="--set", found=str(error)) from error
