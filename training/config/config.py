"""The config of a whole fit: one TOML file (see `configs/`); unknown keys are refused.

The other modules of this folder define its tables; `reading.py` reads the file.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, NonNegativeInt, PositiveInt

from abstain.models.bundles.references import NAME_PATTERN
from abstain.models.files.reading import READING_KEYS
from abstain.models.networks.specs import MLPSpec, NetworkSpec
from abstain.models.prediction.likelihood_names import LikelihoodName
from abstain.training.config.calibration import CalibrationConfig, EvaluationConfig
from abstain.training.config.data import DataConfig
from abstain.training.config.methods import MethodConfig, VIConfig
from abstain.training.config.priors import PriorConfig
from abstain.training.config.section import Section


class Config(Section):
    """The config of a fit."""

    name: Annotated[str, Field(pattern=f"^{NAME_PATTERN}$")]
    """The model's name in the store."""
    seed: NonNegativeInt = 0
    """The seed of all random numbers: the split, the fit and the draws."""
    draws: PositiveInt = 100
    """The number of networks that a version keeps; a method with chains thins its samples to it."""
    likelihood: LikelihoodName = "categorical"
    """What the target is: a class, one of two classes, a number, or a number whose noise depends on the row."""
    data: DataConfig = DataConfig()
    network: NetworkSpec = MLPSpec()
    prior: PriorConfig = PriorConfig()
    method: MethodConfig = VIConfig()
    calibration: CalibrationConfig = CalibrationConfig()
    evaluation: EvaluationConfig = EvaluationConfig()


LATER_DATA_KEYS = ("class_weights", "unseen", "numeric", "dates", "drop_missing_target", *READING_KEYS)


def recorded_settings(config: Config) -> dict[str, Any]:
    """Returns the settings for a manifest or a journal, as JSON.

    Keys of `[data]` that earlier versions do not have are left out if they have no effect: so journals of earlier fits stay
    resumable, and earlier versions can read the manifests.
    """
    settings = config.model_dump(mode="json")
    defaults = DataConfig().model_dump(mode="json")
    for key in LATER_DATA_KEYS:
        if settings["data"][key] == defaults[key]:
            del settings["data"][key]
    return settings
