"""The publication checks of an import: of chains, of predictions and of the decision, with the baseline they are compared with."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from pydantic import JsonValue

from abstain.models.bundles.shortfalls import Shortfall
from abstain.models.decisions.judging import judge
from abstain.models.prediction.posterior import Model, Posterior
from abstain.models.prediction.predictive import predict_draw
from abstain.training.calibration.far_rows import try_far_rows
from abstain.training.calibration.pipeline import Calibrated
from abstain.training.data.rows import Rows
from abstain.training.evaluation.baselines import Baseline, training_baseline
from abstain.training.evaluation.checks import (
    decision_notes,
    draws_notes,
    metric_shortfalls,
    prediction_notes,
    prediction_shortfalls,
)
from abstain.training.evaluation.quality import average_terms, proper_terms
from abstain.training.evaluation.records import ReportData
from abstain.training.evaluation.served_quality import ServedQuality
from abstain.training.importing.found import Found
from abstain.training.importing.held_out import HeldOut
from abstain.training.importing.matching import Matched
from abstain.training.inference.diagnostics import (
    FUNCTION_ROWS,
    convergence_shortfalls,
    divergence_shortfalls,
    summary,
)


class Checked(NamedTuple):
    """The checks of imported draws: diagnostics of chains, shortfalls and notes."""

    diagnostics: dict[str, JsonValue]
    shortfalls: tuple[Shortfall, ...]
    notes: tuple[str, ...]


def check_chains(found: Found, matched: Matched, model: Model, rows: Rows) -> Checked:
    """Checks whether chains agree about the predictions for some calibration inputs, and how many transitions diverged."""
    total = len(jax.tree.leaves(matched.draws)[0])
    diagnostics: dict[str, JsonValue] = {}
    shortfalls: tuple[Shortfall, ...] = ()
    notes: tuple[str, ...] = ()
    if found.divergences is not None:
        diagnostics["divergences"] = found.divergences
        shortfalls = divergence_shortfalls(found.divergences, total, "raise target_accept_prob of the kernel")
    if matched.chains:
        values = chain_values(model, matched, rows)
        function = summary(values, 0.0)
        diagnostics |= {"function": function.to_json(), "chains": matched.chains, "samples": total}
        shortfalls = (*convergence_shortfalls(function), *shortfalls)
    elif not found.members:
        notes = ("the draws have no axis of chains, so whether chains agree was not checked",)
    return Checked(diagnostics, shortfalls, notes)


def chain_values(model: Model, matched: Matched, rows: Rows) -> Float[np.ndarray, "chains samples values"]:
    """Computes each draw's predictions for some calibration inputs: each class's probability, or the mean."""
    chosen = np.linspace(0, len(rows) - 1, min(FUNCTION_ROWS, len(rows))).round().astype(int)
    x = jnp.asarray(rows.x[chosen], jnp.float32)

    def of_draw(draw: Any) -> Any:
        return jax.vmap(partial(predict_draw, model, draw))(x)

    parts = np.asarray(jax.jit(lambda draws: jax.lax.map(of_draw, draws))(matched.draws))
    classify = model.likelihood_functions.task == "classification"
    values = np.exp(parts).reshape(len(parts), -1) if classify else parts[..., 0]
    return values.reshape(matched.chains, -1, values.shape[-1])


def known_baseline(posterior: Posterior, rows: HeldOut) -> Baseline:
    """Returns the baseline of the training rows, or of the calibration part if there are none."""
    return replace(training_baseline(rows.known.y, posterior.model.class_names), part=rows.known_part)


def check_predictions(
    checked: Checked,
    posterior: Posterior,
    calibrated: Calibrated,
    rows: HeldOut,
    metrics: ServedQuality,
    report_data: ReportData,
) -> Checked:
    """Adds the shortfalls and notes of the predictions and the decision."""
    test, baseline = rows.dataset.test, known_baseline(posterior, rows)
    view = report_data.view
    prediction = view.familiar.prediction if view else calibrated.predictor(test.x)
    judgement = view.familiar.judgement if view else judge(calibrated.calibration, prediction)
    far_rows = try_far_rows(calibrated)
    terms, average = proper_terms(posterior, prediction, test), average_terms(prediction, test.y)
    shortfalls = (
        *checked.shortfalls,
        *prediction_shortfalls(
            terms, average, test.y, rows.known.y, calibrated.calibration, baseline.part, imported=True
        ),
        *metric_shortfalls(metrics.metrics),
        *far_rows.shortfalls,
    )
    notes = (
        *checked.notes,
        *draws_notes(posterior.size),
        *rows.dataset.notes,
        *rows_notes(rows, calibrated),
        *far_rows.notes,
        *prediction_notes(terms, prediction, test.y, baseline, shortfalls, weighted=False),
        *decision_notes(judgement, prediction, test.y),
    )
    return Checked(checked.diagnostics, shortfalls, notes)


def rows_notes(rows: HeldOut, calibrated: Calibrated) -> tuple[str, ...]:
    """Returns a note if there are no training rows: what they would show is not known."""
    if rows.train is not None:
        return ()
    return (
        f"no training rows were given: {calibrated.calibration.decision_name}, a score of the predictions alone, decides, so "
        "absurd rows are accepted if all draws agree about them; and the labelled rows are taken to be new to the network: "
        "calibrated on training rows it would reject more than requested",
    )
