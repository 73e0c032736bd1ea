"""The config of an import: that of a fit without prior and method, and with the table `[posterior]`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, field_serializer

from abstain.models.bundles.references import NAME_PATTERN
from abstain.models.errors import ConfigError
from abstain.models.networks.specs import MLPSpec, NetworkSpec
from abstain.models.prediction.likelihoods import LIKELIHOODS, LikelihoodName
from abstain.training.config.calibration import CalibrationConfig, EvaluationConfig
from abstain.training.config.config import Config
from abstain.training.config.data import DataConfig
from abstain.training.config.reading import section_from_dict
from abstain.training.config.section import Names, Section

Numbers = Annotated[tuple[float, ...], Field(strict=False, min_length=1)]


class PosteriorConfig(Section):
    """How a source's arrays become draws, and the scaling that the network was trained with."""

    prefix: str | None = None
    """The beginning of the parameters' names, such as `net`. Default: found, if only one fits."""
    names: dict[str, str] = Field(default_factory=dict)
    """The arrays of parameters that have other names in the source: `{"Dense_0.kernel" = "w1"}`."""
    layers: Names = ()
    """PyTorch: the linear layers from input to output, such as `["encoder", "head"]`. Default: by the numbers in their names."""
    ignore: Names = ()
    """Arrays that are no parameters, as names or patterns: `["mu", "precision_*"]`."""
    noise: str | PositiveFloat | None = None
    """`normal` only: the array of the noise's draws, or one number for all draws."""
    noise_is: Literal["std", "variance", "precision", "log_std"] = "std"
    """What the noise's numbers are."""
    class_names: Names = ()
    """The classes in the order of the network's outputs. Default: 0, 1, … of the targets."""
    input_shift: float | Numbers = 0.0
    """The network was trained on (inputs − `input_shift`) / `input_scale`: one number, or one for each feature …"""
    input_scale: float | Numbers = 1.0
    target_shift: float = 0.0
    """… and on (target − `target_shift`) / `target_scale`; its outputs and the noise are on that scale."""
    target_scale: PositiveFloat = 1.0

    @field_serializer("input_shift", "input_scale")
    def _set_list(self, numbers: float | tuple[float, ...]) -> Any:
        return list(numbers) if isinstance(numbers, tuple) else numbers


class ImportConfig(Section):
    """The config of an import."""

    name: Annotated[str, Field(pattern=f"^{NAME_PATTERN}$")]
    """The model's name in the store."""
    seed: NonNegativeInt = 0
    draws: PositiveInt | None = None
    """The number of draws to keep, evenly spaced. Default: all; for a guide 100."""
    likelihood: LikelihoodName = "categorical"
    data: DataConfig = DataConfig()
    network: NetworkSpec = MLPSpec()
    posterior: PosteriorConfig = PosteriorConfig()
    calibration: CalibrationConfig = CalibrationConfig()
    evaluation: EvaluationConfig = EvaluationConfig()


def read_import_dict(content: Mapping[str, Any], overrides: tuple[str, ...] = ()) -> ImportConfig:
    """Reads the config in a dict with the tables of a TOML file, with `KEY=VALUE` overrides applied.

    Raises:
        ConfigError: a key is wrong.
    """
    return section_from_dict(content, overrides, ImportConfig)


_NO_EFFECT = {
    "calibration_size": "all rows that are not the test part are the calibration part: set data.test_size",
    "class_weights": "the network is already trained",
    "augment": "the network is already trained",
    "categorical": "an imported network takes numbers: save the table with the encoded columns that it was trained on",
}


def check_import(config: ImportConfig) -> None:
    """Refuses settings that mean nothing for an import, or that contradict each other.

    Raises:
        ConfigError: names the key.
    """
    for key, fix in _NO_EFFECT.items():
        if key in config.data.model_fields_set and getattr(config.data, key):
            raise ConfigError(f"data.{key}", expected="none for an import", found=getattr(config.data, key), fix=fix)
    if "inputs" in config.data.model_fields_set and config.data.inputs != "none":
        raise ConfigError(
            "data.inputs",
            expected='"none": an imported network has its own scaling',
            found=config.data.inputs,
            fix="leave it out, and set posterior.input_shift and posterior.input_scale to the numbers of the training",
        )
    likelihood, posterior = LIKELIHOODS[config.likelihood], config.posterior
    classify = likelihood.task == "classification"
    if likelihood.has_noise and posterior.noise is None:
        raise ConfigError(
            "posterior.noise",
            expected=f"the standard deviation of the noise, which the likelihood {config.likelihood} has: "
            "the name of the array with its draws, or one number",
            found="no noise",
            fix='pass it by name or as a number (--noise sigma, --noise 0.3), or set noise = "sigma" in [posterior]',
        )
    unused = {
        "noise": (not likelihood.has_noise, posterior.noise is not None),
        "noise_is": (not likelihood.has_noise, "noise_is" in posterior.model_fields_set),
        "class_names": (not classify, bool(posterior.class_names)),
        "target_shift": (classify, "target_shift" in posterior.model_fields_set),
        "target_scale": (classify, "target_scale" in posterior.model_fields_set),
    }
    for key, (is_unused, is_set) in unused.items():
        if is_unused and is_set:
            raise ConfigError(
                f"posterior.{key}",
                expected=f"nothing: the likelihood {config.likelihood} does not use it",
                found=getattr(posterior, key),
                fix="leave it out, or choose another likelihood",
            )
    if len(set(posterior.class_names)) < len(posterior.class_names):
        raise ConfigError("posterior.class_names", expected="each name once", found=list(posterior.class_names))


def as_fit_config(config: ImportConfig, draws: int) -> Config:
    """Returns the config for the stages that an import shares with a fit; its prior and method are not used."""
    return Config(
        name=config.name,
        seed=config.seed,
        draws=draws,
        likelihood=config.likelihood,
        data=config.data.model_copy(update={"inputs": "none"}),
        network=config.network,
        calibration=config.calibration,
        evaluation=config.evaluation,
    )
