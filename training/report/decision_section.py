"""The section “Where it says ‘I don't know’”: the decision score, all scores' thresholds, and the OOD sets."""

from __future__ import annotations

from functools import partial
from typing import Any

from abstain.models.bundles.manifest import Manifest
from abstain.models.decisions.ranks import ordinal
from abstain.models.decisions.records import Calibration
from abstain.training.data.ood_sets import SAME_INTENSITY, readable_name
from abstain.training.evaluation.records import ReportData, ReportView
from abstain.training.report import ood_plots
from abstain.training.report.contents import (
    AugmentedRates,
    DecisionPart,
    Draw,
    Ood,
    OodSet,
    RejectRate,
    ScoreAurocs,
    Threshold,
)
from abstain.training.report.quality_section import share_with_interval

NO_OOD_SET = "No OOD set was given."


def build_decision(manifest: Manifest, calibration: Calibration, report_data: ReportData, draw: Draw) -> DecisionPart:
    """Builds the section: the score that decides, the rows that it rejects, the OOD sets, and every score's threshold."""
    record, view = manifest.calibration, report_data.view
    picture = draw("decision", partial(ood_plots.draw_ecdf, view)) if view else None
    ood = build_ood(manifest, view, draw) if view and view.strange else None
    scores = partial(ood_plots.draw_scores, calibration, view.familiar if view else None)
    return DecisionPart(
        decision=record.decision,
        combined=tuple(map(readable_name, record.combination.scores)) if record.combination else (),
        rule=record.combination.rule if record.combination else "",
        ambiguity=record.ambiguity or "",
        novelty=calibration.novelty_name,
        novelty_limit=_limit_text(calibration, calibration.novelty_name),
        ambiguity_limit=_limit_text(calibration, record.ambiguity or ""),
        novelty_share=record.novelty_share or 1.0,
        risk=record.risk,
        limit=record.thresholds[record.decision],
        percentile=record.percentile,
        ordinal=ordinal(record.percentile),
        calibration_rows=record.rows,
        per_class=record.per_class,
        augmented=build_augmented(manifest),
        picture=picture,
        reject_rates=build_reject_rates(view) if view else (),
        ood=ood,
        ood_absent=report_data.absent.get("ood", "" if ood else NO_OOD_SET),
        scores=draw("scores", scores),
        thresholds=build_thresholds(manifest),
        class_thresholds=tuple((name, f"{limit:.4g}") for name, limit in record.class_thresholds.items()),
        coverage=record.conditional_coverage,
        coverage_bounds=record.coverage_bounds,
        coverage_level=record.coverage,
    )


def build_augmented(manifest: Manifest) -> AugmentedRates | None:
    """Returns the reject rates with and without augmentation; None if the calibration rows were not augmented."""
    record = manifest.calibration
    if record.augmented_reject_rate is None or record.plain_reject_rate is None:
        return None
    return AugmentedRates(record.augmented_reject_rate, record.plain_reject_rate)


def build_reject_rates(view: ReportView) -> tuple[RejectRate, ...]:
    """Returns the rates at which the decision rejects the test rows and each OOD set."""
    sets = {"test rows": view.familiar, **view.strange}
    return tuple(
        RejectRate(readable_name(name), float(rows.judgement.reject.mean()), len(rows.x)) for name, rows in sets.items()
    )


def build_ood_sets(manifest: Manifest) -> tuple[OodSet, ...]:
    """Returns the decision's figures on each OOD set; empty if the manifest has none."""
    metrics: Any = manifest.metrics
    return tuple(
        OodSet(
            readable_name(name),
            metrics["ood_rows"][name],
            share_with_interval(scores["reject"], "detection"),
            share_with_interval(scores["reject"], "auroc"),
            scores["reject"]["fpr95"],
            name.endswith(SAME_INTENSITY),
        )
        for name, scores in metrics.get("ood", {}).items()
    )


def build_ood(manifest: Manifest, view: ReportView, draw: Draw) -> Ood:
    """Builds the part on OOD sets: ROC curves, and the figures of the decision and of every score on each set."""
    metrics: Any = manifest.metrics
    sets: dict[str, Any] = metrics["ood"]
    names = ["reject", *(name for name in next(iter(sets.values())) if name != "reject")]
    scores = tuple(
        ScoreAurocs(
            readable_name(manifest.calibration.decision if name == "reject" else name),
            name == "reject",
            tuple(scores[name]["auroc"] for scores in sets.values()),
        )
        for name in names
    )
    return Ood(draw("roc", partial(ood_plots.draw_roc, view, across=2)), build_ood_sets(manifest), scores)


def _limit_text(calibration: Calibration, name: str) -> str:
    """Returns the limit of a part of the decision; empty if it has none."""
    limit = calibration.part_limits.get(name)
    return "" if limit is None else f"{limit:.4g}"


def build_thresholds(manifest: Manifest) -> tuple[Threshold, ...]:
    """Returns every score's threshold, and the share of test rows above it."""
    record = manifest.calibration
    rates: Any = manifest.metrics.get("reject_rate", {})
    return tuple(
        Threshold(readable_name(name), name == record.decision, limit, rates.get(name))
        for name, limit in record.thresholds.items()
    )
