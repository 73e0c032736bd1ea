"""THE STORY of `abstain evaluate`: a version, rows and OOD sets → predictions → judgements → figures and plots."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Num

from abstain.models.bundles.bundle import Bundle, Manifest, load_published
from abstain.models.bundles.store import resolve
from abstain.models.bundles.trained_rows import TrainedRows, find_trained, most_by_chance, read_trained
from abstain.models.decisions.calibration import judge
from abstain.models.decisions.ranks import percentile_rank
from abstain.models.errors import DataError
from abstain.models.prediction.posterior import Model, Posterior
from abstain.models.prediction.predictive import Prediction, Predictor
from abstain.training.config.data import DataConfig
from abstain.training.data.dataset import split_again
from abstain.training.data.ood_sets import strange_sets
from abstain.training.data.rows import Rows
from abstain.training.data.sources import read_source
from abstain.training.evaluation.bootstrap import share_interval
from abstain.training.evaluation.coverage import coverage_by_decision
from abstain.training.evaluation.quality import (
    calibration_errors,
    check_finite,
    class_quality,
    conformal_quality,
    headline,
    part_quality,
    quality,
    rates_of,
    reject_rates,
    seen_detection,
    selective_risk,
    terms_of,
    twin_detection,
)
from abstain.training.evaluation.records import Seen, Twin, View
from abstain.training.evaluation.results import Evaluation, TwinQuality
from abstain.training.runs.journal import Progress

__all__ = ["evaluate_version", "quality", "reject_rates"]
BUCKETS = (256,)
REPORT_EVERY = 32 * BUCKETS[0]


def quiet(done: int, total: int, passage: str = "", **facts: float) -> None:
    """No progress shown."""


def evaluate_version(
    store: Path,
    model: str,
    where: str,
    percentile: float | None,
    ood: dict[str, str],
    *,
    beside: str | None = None,
    plots: Path | None = None,
    progress: Progress = quiet,
) -> Evaluation:
    """What `abstain evaluate` prints: the quality of a version on a source's test part, and on OOD sets.

    Args:
        where: a path or the name of an embedded set.
        ood: paths, or embedded sets, by the name to report them under.
        beside: another version to compare with; the middle one of the posterior's own networks if None.
        plots: a folder to write pictures into.
        progress: told how many rows of each set have been predicted.

    Raises:
        DataError: the rows, or an OOD set, cannot be read, do not fit the model, or have no finite prediction.
        CalibrationError: the calibration split is too small for the percentile.
    """
    name, bundle = load_version(store, model)
    manifest, calibration = bundle.manifest, bundle.calibration
    trained = read_trained(store / manifest.name / str(manifest.version), manifest.files)
    percentile_rank(calibration.percentile if percentile is None else percentile, calibration.rows)
    rows, notes = rows_to_test(manifest, where, trained)
    sets = strange_sets(ood, rows.x, manifest.model)
    everything = [(where, rows.x), *sets.items()]

    predictor = bundle.predictor(BUCKETS)
    predictions = [predict_rows(predictor, x, label, progress) for label, x in everything]
    familiar, *others = (
        Seen(x, prediction, judge(calibration, prediction, percentile))
        for (_, x), prediction in zip(everything, predictions, strict=True)
    )
    strange = dict(zip(sets, others, strict=True))
    twin = find_twin(store, name, bundle, beside, everything, progress)

    terms = terms_of(bundle.posterior, familiar.prediction, rows)
    figures, intervals = headline(familiar.prediction, terms)
    rejected = familiar.judgement.reject
    names = manifest.model.class_names
    result = Evaluation(
        model=name,
        rows=len(rows),
        metrics=figures,
        intervals=intervals,
        calibration_errors=calibration_errors(familiar.prediction, rows),
        risk_at_coverage=selective_risk(familiar.prediction, terms),
        percentile=familiar.judgement.percentile,
        decision=familiar.decision_name,
        reject_rates=rates_of(familiar.judgement),
        reject_interval=share_interval(int(rejected.sum()), len(rejected)),
        conformal=conformal_quality(familiar.judgement, rows.y),
        coverage=coverage_by_decision(familiar.judgement, rows.y),
        accepted=part_quality(terms, ~rejected),
        rejected=part_quality(terms, rejected),
        ood={label: seen_detection(familiar, found) for label, found in strange.items()},
        notes=tuple(notes),
        classes=class_quality(names, terms, familiar.judgement, rows.y) if names else None,
        twin=twin_quality(twin, rows) if twin else None,
    )
    if plots is None:
        return result
    from abstain.training.report.plots import write_plots  # noqa: PLC0415 - a second to import, and fit draws none of these

    written = write_plots(plots, View(name, bundle.posterior, rows, familiar, strange, twin))
    return replace(result, plots=tuple(written))


# ---- what is evaluated -----------------------------------------------------------------------------------------------


def load_version(store: Path, model: str) -> tuple[str, Bundle]:
    """A version of the store by any of its names, and what it is called in full."""
    name, version = resolve(store, model)
    return f"{name}:{version}", load_published(store, name, version)


def rows_to_test(manifest: Manifest, where: str, trained: TrainedRows | None = None) -> tuple[Rows, list[str]]:
    """The rows of a source to evaluate on, and notes about them.

    They are the source's own test part; else, of the data that the model was fitted with, the part that the fit kept for
    testing; else all rows.

    Args:
        trained: hashes of the rows that the model was trained on; None if its bundle has none.

    Raises:
        DataError: the source has no rows, or not the model's.
    """
    config = DataConfig.model_validate(manifest.data.settings)
    source = read_source(
        where, config, manifest.model, classify=manifest.model.likelihood_functions.task == "classification"
    )
    rows = source.test
    if rows is None:
        fitted = split_again(source, config, manifest.seed, manifest.data.fingerprint)
        if fitted is not None:
            return fitted.test, []
        rows = source.train
    if rows is None:
        raise DataError("rows", where=where, expected="x_test and y_test, or x and y", found="neither")
    if rows.x.shape[1:] != manifest.model.feature_shape:
        raise DataError("feature shape", where=where, expected=manifest.model.feature_shape, found=rows.x.shape[1:])
    notes = overlap_notes(manifest, rows, trained)
    if source.test is None:
        notes = [
            f"not the data that the model was fitted with: every row is evaluated, {len(rows):,} in all; rows that "
            "this version was calibrated on are not recognised: leave them out yourself, for on them its rates are right by "
            "construction",
            *notes,
        ]
    return rows, notes


def overlap_notes(manifest: Manifest, rows: Rows, trained: TrainedRows | None) -> list[str]:
    """Says so where more rows than chance explains equal training rows, or where that cannot be known."""
    if trained is None:
        return ["this version keeps no hashes of its training rows: whether it was trained on these rows is not known"]
    known = int(find_trained(trained, manifest.model.preprocessing, rows.x).sum())
    said = f"{known:,} of {len(rows):,} rows equal rows that the model was trained on"
    allowed = most_by_chance(trained, len(rows))
    if known and allowed >= len(rows):
        return [f"{said}; so do new rows of this table, so whether the model was trained on these is not known"]
    if known <= allowed:
        return []
    return [
        f"{said}, {trained.repeats * len(rows):,.0f} were to be expected by chance: the figures are better than on new rows"
    ]


def predict_rows(predictor: Predictor, x: Num[np.ndarray, "rows ..."], where: str, progress: Progress) -> Prediction:
    """The predictions for a set of inputs, all of them finite."""
    parts = []
    for start in range(0, len(x), REPORT_EVERY):
        parts.append(predictor(x[start : start + REPORT_EVERY]))
        progress(min(start + REPORT_EVERY, len(x)), len(x), Path(where).name)
    prediction = jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
    check_finite(prediction, where)
    return prediction


# ---- what stands beside it -------------------------------------------------------------------------------------------


def find_twin(
    store: Path,
    name: str,
    bundle: Bundle,
    beside: str | None,
    everything: list[tuple[str, Num[np.ndarray, "..."]]],
    progress: Progress,
) -> Twin | None:
    """The deterministic twin and its predictions; None where the posterior is one network and no other is named.

    Raises:
        DataError: the other version takes other inputs, or tells other classes apart.
    """
    if beside is None:
        if bundle.posterior.size == 1:
            return None
        middle = bundle.posterior.size // 2
        name, posterior = f"{name}, draw {middle + 1} of {bundle.posterior.size}", one_draw(bundle.posterior, middle)
    else:
        name, other = load_version(store, beside)
        posterior = other.posterior
        check_alike(bundle.manifest.model, posterior.model, name)
    predictor = Predictor(posterior, BUCKETS)
    familiar, *strange = (predict_rows(predictor, x, f"{Path(label).name}, twin", progress) for label, x in everything)
    return Twin(
        name, posterior, familiar, {label: found for (label, _), found in zip(everything[1:], strange, strict=True)}
    )


def one_draw(posterior: Posterior, place: int) -> Posterior:
    """The posterior that is one network of another."""
    return Posterior(posterior.model, jax.tree.map(lambda leaf: leaf[place : place + 1], posterior.draws))


def check_alike(own: Model, other: Model, name: str) -> None:
    """Refuses a twin whose answers cannot be held against the model's."""
    for what in ("feature_shape", "class_names"):
        expected, found = getattr(own, what), getattr(other, what)
        if expected != found:
            raise DataError(f"{what} of the twin", where=name, expected=f"the model's, {expected}", found=found)


def twin_quality(twin: Twin, rows: Rows) -> TwinQuality:
    """The quality of the twin, and how well its own scores tell the OOD sets apart, at no threshold."""
    return TwinQuality(
        model=twin.name,
        draws=twin.posterior.size,
        metrics=quality(twin.posterior, twin.familiar, rows),
        ood={label: twin_detection(twin.familiar, found) for label, found in twin.strange.items()},
    )
