"""THE STORY of `abstain evaluate`: a version, rows and OOD sets → predictions → judgements → figures and plots."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
from jaxtyping import Num

from models.bundle import Bundle, Manifest, load
from models.calibration import judge
from models.errors import DataError
from models.posterior import Model, Posterior
from models.predictive import Prediction, Predictor
from models.ranks import percentile_rank
from models.store import resolve
from training.bootstrap import share_interval
from training.config import DataConfig
from training.coverage import coverage_by_decision
from training.data import evaluation_rows, split
from training.journal import Progress
from training.quality import (
    Figures,
    check_finite,
    class_quality,
    conformal_quality,
    further,
    headline,
    part_quality,
    quality,
    rates_of,
    reject_rates,
    seen_detection,
    terms_of,
    twin_detection,
)
from training.rows import Rows, Source
from training.seen import Seen, Twin, View
from training.sources import read_source
from training.strange import strange_sets

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
) -> Figures:
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
    percentile_rank(calibration.percentile if percentile is None else percentile, calibration.rows)
    rows, notes = rows_to_test(manifest, where)
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
    result = {
        "model": name,
        "rows": len(rows),
        **figures,
        **further(familiar.prediction, terms, rows),
        "percentile": familiar.judgement.percentile,
        "decision": familiar.decision_name,
        "reject_rate": rates_of(familiar.judgement),
        "intervals": intervals | {"reject": share_interval(int(rejected.sum()), len(rejected))},
        "conformal": conformal_quality(familiar.judgement, rows.y),
        **coverage_by_decision(familiar.judgement, rows.y),
        "accepted": part_quality(terms, ~rejected),
        "rejected": part_quality(terms, rejected),
        "ood": {label: seen_detection(familiar, found) for label, found in strange.items()},
        "ood_rows": {label: len(found.x) for label, found in strange.items()},
        "notes": notes,
    }
    if manifest.model.class_names:
        result["per_class"] = class_quality(manifest.model.class_names, terms, familiar.judgement, rows.y)
    if twin:
        result["twin"] = twin_figures(twin, rows)
    if plots:
        from training.plots import write_plots  # noqa: PLC0415 - a second to import, and fit draws none of these

        result["plots"] = write_plots(plots, View(name, bundle.posterior, rows, familiar, strange, twin))
    return result


# ---- what is evaluated -----------------------------------------------------------------------------------------------


def load_version(store: Path, model: str) -> tuple[str, Bundle]:
    """A version of the store by any of its names, and what it is called in full."""
    name, version = resolve(store, model)
    return f"{name}:{version}", load(store / name / str(version))


def rows_to_test(manifest: Manifest, where: str) -> tuple[Rows, list[str]]:
    """The test part of a source, and what to beware of."""
    config = DataConfig.model_validate(manifest.data.settings)
    source = read_source(where, config, manifest.model, classify=manifest.model.law.task == "classification")
    rows = evaluation_rows(source, config, manifest.seed)
    if rows.x.shape[1:] != manifest.model.feature_shape:
        raise DataError("feature shape", where=where, expected=manifest.model.feature_shape, found=rows.x.shape[1:])
    if source.test is None and fingerprint_of(source, config, manifest.seed) != manifest.data.fingerprint:
        return rows, ["the rows are not those the model was fitted with: some may have been trained on"]
    return rows, []


def fingerprint_of(source: Source, config: DataConfig, seed: int) -> str | None:
    """The fingerprint that a fit to the source would record; None where it has too few rows for a fit."""
    try:
        return split(source, config, seed).fingerprint
    except DataError:
        return None


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


def twin_figures(twin: Twin, rows: Rows) -> Figures:
    """The quality of the twin, and how well its own scores tell the OOD sets apart, at no threshold."""
    return {
        "model": twin.name,
        "draws": twin.posterior.size,
        **quality(twin.posterior, twin.familiar, rows),
        "ood": {label: twin_detection(twin.familiar, found) for label, found in twin.strange.items()},
    }
