"""The model of an import: network, likelihood, and the scaling that the network was trained with."""

from __future__ import annotations

import numpy as np

from abstain.models.bundles.plausible import batch_memory_claim, model_claims
from abstain.models.errors import ConfigError, DataError
from abstain.models.networks.running_statistics import STATISTICS
from abstain.models.networks.specs import ModuleSpec
from abstain.models.prediction.posterior import Model
from abstain.models.prediction.preprocessing import Column, Preprocessing
from abstain.training.config.imports import ImportConfig, PosteriorConfig
from abstain.training.data.dataset import Dataset
from abstain.training.data.precision import target_needs_float64


def build_model(config: ImportConfig, dataset: Dataset) -> Model:
    """Builds the model, with the scaling that the network was trained with.

    Raises:
        ConfigError: the likelihood does not fit the classes, or the scaling or the network does not fit the rows.
    """
    source = dataset.source
    if config.likelihood == "bernoulli" and len(source.class_names) != 2:
        raise ConfigError(
            "likelihood", expected="two classes for bernoulli", found=len(source.class_names), fix='use "categorical"'
        )
    spec, modules = config.network, tuple[str, ...]()
    if isinstance(spec, ModuleSpec):
        spec, modules = spec.model_copy(update={"running_statistics": True}), (spec.module,)
    model = Model(
        network=spec,
        likelihood=config.likelihood,
        preprocessing=preprocessing_of(config.posterior, dataset),
        feature_shape=dataset.calibration.x.shape[1:],
        feature_names=source.feature_names,
        class_names=source.class_names,
        target_name=config.data.target or "y",
    ).allow(modules)
    for claim in model_claims(model):
        if not claim.holds:
            key = claim.field.replace("model.preprocessing.", "posterior: ")
            raise ConfigError(
                key, expected=claim.expected, found=claim.found, fix="give one number, or one per feature"
            )
    if STATISTICS not in model.parameter_shapes()["network"] and isinstance(spec, ModuleSpec):
        plain = spec.model_copy(update={"running_statistics": False})
        model = model.model_copy(update={"network": plain}).allow(modules)
    return model


def preprocessing_of(posterior: PosteriorConfig, dataset: Dataset) -> Preprocessing:
    """Returns the scaling of an imported network; in later tables the calibration part's median replaces a gap."""

    def numbers(value: float | tuple[float, ...]) -> tuple[float, ...]:
        return value if isinstance(value, tuple) else (value,)

    _check_columns(dataset)
    medians = np.median(dataset.calibration.x.reshape(len(dataset.calibration), -1), axis=0).tolist()
    columns = tuple(
        Column(name=column.name, missing=float(median))
        for column, median in zip(dataset.source.columns, medians, strict=False)
    )
    return Preprocessing(
        columns=columns,
        shift=numbers(posterior.input_shift),
        scale=numbers(posterior.input_scale),
        target_shift=posterior.target_shift,
        target_scale=posterior.target_scale,
        float64_target=target_needs_float64(posterior.target_shift, posterior.target_scale),
    )


def _check_columns(dataset: Dataset) -> None:
    """Refuses columns that are not numbers: how the network was given them is not known.

    Raises:
        DataError: names the columns.
    """
    others = [f"{column.name!r} ({column.kind})" for column in dataset.source.columns if column.kind != "number"]
    if others:
        raise DataError(
            "columns",
            where=dataset.source.where,
            expected="numbers, as the network takes them",
            found=", ".join(others),
            fix="write the numbers that the network was trained on, such as a column of 0 and 1 for each category, or "
            "list the columns in data.drop",
        )


def check_servable(model: Model, draws: int) -> None:
    """Refuses draws that could not be loaded, because predicting a batch needs too much memory.

    Raises:
        ConfigError: the text names the memory.
    """
    claim = batch_memory_claim(model, draws, {})
    if not claim.holds:
        expected = f"a batch that takes {claim.expected} when it is served"
        raise ConfigError("draws", expected=expected, found=str(claim.found), fix="set draws to keep fewer")
