"""Checks, before a fit, of the rows over which the coverage is to hold."""

from __future__ import annotations

import numpy as np
from jaxtyping import Num

from abstain.models.decisions.ranks import ordinal, percentile_rank, rows_needed
from abstain.models.errors import CalibrationError, ConfigError
from abstain.models.prediction.posterior import Model
from abstain.training.config.calibration import CalibrationConfig


def check_coverage_settings(settings: CalibrationConfig, model: Model, targets: Num[np.ndarray, " rows"]) -> None:
    """Refuses settings of the coverage that cannot be met.

    How many rows of a class are accepted is known only after the fit, which refuses too few of them.

    Args:
        targets: targets of the calibration rows: class indices, or numbers; enough for the percentile.

    Raises:
        ConfigError: the settings contradict each other or the likelihood, or a class has too few rows.
        CalibrationError: too few rows are accepted.
    """
    _check_kind(settings, model)
    needed = rows_needed(settings.coverage)
    if settings.coverage_among == "accepted":
        _check_accepted(settings)
        accepted = percentile_rank(settings.percentile, len(targets)) - 1
        if accepted < needed:
            raise CalibrationError(
                "calibration.coverage_among",
                expected=f"at least {needed} accepted calibration rows at coverage {settings.coverage:g}",
                found=f"{accepted} of {len(targets)} rows at the {ordinal(settings.percentile)} percentile",
                fix="raise data.calibration_size or the percentile, or lower the coverage",
            )
    if not settings.coverage_per_class:
        return
    classes = len(model.class_names)
    if not classes:
        raise ConfigError(
            "calibration.coverage_per_class",
            expected="a likelihood of classes",
            found=model.likelihood,
            fix="leave it out",
        )
    counts = np.bincount(targets.astype(int), minlength=classes)
    if counts.min() < needed:
        raise ConfigError(
            "calibration.coverage_per_class",
            expected=f"at least {needed} calibration rows of each class at coverage {settings.coverage:g}",
            found=f"{counts.min()} of class {model.class_names[int(counts.argmin())]}",
            fix="raise data.calibration_size, set data.stratify, or lower the coverage",
        )


def _check_kind(settings: CalibrationConfig, model: Model) -> None:
    """Refuses another kind of prediction sets for numbers, and of intervals for classes: it would have no effect."""
    key, value, of = (
        ("intervals", settings.intervals, "numbers") if model.class_names else ("sets", settings.sets, "classes")
    )
    if value != CalibrationConfig.model_fields[key].default:
        raise ConfigError(
            f"calibration.{key}", expected=f"a likelihood of {of}", found=model.likelihood, fix="leave it out"
        )


def _check_accepted(settings: CalibrationConfig) -> None:
    """Refuses settings by which the rows accepted depend on targets, or are chosen within predicted classes."""
    for name, active, fix in (
        ("max_error", settings.max_error is not None, "; abstain evaluate measures the coverage of the accepted rows"),
        ("per_class", settings.per_class, ""),
    ):
        if active:
            raise ConfigError(
                "calibration.coverage_among",
                expected=f'"all" with calibration.{name}',
                found='"accepted"',
                fix=f"leave out one of them{fix}",
            )
