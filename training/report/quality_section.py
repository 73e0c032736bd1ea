"""The section “On the test part”: metrics, and pictures of the quality of the predictions for the test rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from abstain.models.bundles.manifest import CalibrationRecord, Manifest
from abstain.models.decisions.radii import Among
from abstain.models.prediction.summaries import RegressionSummary
from abstain.training.data.ood_sets import readable_name
from abstain.training.evaluation.coverage import coverage_by_decision
from abstain.training.evaluation.quality import class_quality, confidence, conformal_quality
from abstain.training.evaluation.records import Curve, ReportData, ReportView
from abstain.training.evaluation.reliability import ReliabilityBins
from abstain.training.evaluation.report_data import MOST_CLASSES
from abstain.training.evaluation.results import PartCoverage
from abstain.training.report import confidence_plots, regression_plots
from abstain.training.report.contents import (
    Band,
    Classification,
    ClassRow,
    Conformal,
    CoveredPart,
    Draw,
    PredictedPlot,
    Quality,
    Regression,
    Reliability,
    Risk,
    RiskPart,
    Share,
)
from abstain.training.report.facts import value_text

LEAST_ACCURACY = 0.5
"""The table of classes is open if the accuracy of a class is below this."""


def build_quality(manifest: Manifest, report_data: ReportData, draw: Draw) -> Quality:
    """Builds the section: the metrics of the manifest, and the quality of the classifier or regression on the test part."""
    values = {name: value for name, value in manifest.metrics.items() if not isinstance(value, dict)}
    metrics = tuple((name, value_text(value)) for name, value in values.items())
    known: Any = manifest.metrics.get("baseline", {})
    baseline = {name: value_text(known[name]) for name in known if name in values}
    quality = Quality(
        metrics, baseline, guess_text(known), describe_recalibration(manifest.calibration), None, None, ""
    )
    if report_data.view is None:
        return replace(quality, absent=report_data.absent.get("test", "This report was made without the test part."))
    if manifest.model.class_names:
        return replace(quality, classification=build_classification(manifest, report_data.view, draw))
    return replace(quality, regression=build_regression(manifest, report_data, report_data.view, draw))


def describe_recalibration(record: CalibrationRecord) -> str:
    """Says which recalibration is applied, or why none is; empty if no choice was requested."""
    choice = record.recalibration_choice
    if choice is None:
        return ""
    if not choice.rows:
        return "Not recalibrated: there are too few calibration rows."
    if choice.best.kind == "none":
        return f"Not recalibrated: no temperature raises the log-likelihood of {choice.rows:,} calibration rows."
    factor = f"{choice.best.factor:.4g}"
    best = {
        "pooled": f"a temperature of {factor} on the mean probabilities",
        "draws": f"a temperature of {factor} on the probabilities of each draw",
        "variance": f"a factor of {factor} on the standard deviations",
    }[choice.best.kind]
    applied = record.recalibration.kind != "none"
    return (
        f"{'Recalibrated' if applied else 'Not recalibrated'}: {best} fits {choice.rows:,} calibration rows best. Their "
        f"log-likelihood is {choice.gain:.4g} nats higher than without; at least {choice.least_gain:.3g} are needed. Without "
        f"it their error is {abs(choice.deviation):.3g} standard errors {'above' if choice.deviation > 0 else 'below'} the "
        f"stated one; at least {choice.least_deviation:.3g} are needed."
    )


def build_conformal(view: ReportView, among: Among = "all") -> Conformal:
    """Returns the coverage of prediction sets or intervals for all test rows, and for parts of them."""
    names = view.posterior.model.class_names
    whole = conformal_quality(view.familiar.judgement, view.rows.y)
    parts = coverage_by_decision(view.familiar.judgement, view.rows.y, names, among)
    named = {"accepted rows": parts.accepted, "rejected rows": parts.rejected}
    if parts.worst_class is not None:
        kind = "accepted rows of " if among == "accepted" else ""
        named[f"{kind}true class {parts.worst_class.name}, the lowest"] = PartCoverage(
            parts.worst_class.rows, parts.worst_class.coverage
        )
    shares = tuple(
        CoveredPart(name, part.rows, Share(part.coverage.share, *part.coverage.interval))
        for name, part in named.items()
        if part is not None
    )
    return Conformal(whole.stated, whole.coverage.share, whole.mean_size, whole.mean_width, shares)


def guess_text(baseline: Mapping[str, Any]) -> str:
    """Returns what the baseline in a manifest predicts; empty if it has none."""
    if "class" in baseline:
        return f"always “{baseline['class']}”"
    return f"always the training mean, {baseline['mean']:.4g}" if "mean" in baseline else ""


def share_with_interval(figures: dict[str, Any], name: str) -> Share:
    """Returns a number with its 95 % interval, which has the key `NAME_interval`."""
    return Share(figures[name], *figures[f"{name}_interval"])


# ---- classification --------------------------------------------------------------------------------------------------


def build_classification(manifest: Manifest, view: ReportView, draw: Draw) -> Classification:
    """Builds the part of a classifier: reliability, risk against coverage, and the figures of each class."""
    classes = build_classes(manifest, view)
    poor = any(own.accuracy < LEAST_ACCURACY for own in classes)
    return Classification(build_reliability(manifest, view, draw), build_risk(view, draw), classes, poor)


def build_reliability(manifest: Manifest, view: ReportView, draw: Draw) -> Reliability | None:
    """Builds the reliability diagram from the manifest's bins, which the console draws too; None without bins."""
    content: Any = manifest.metrics.get("reliability")
    if content is None:
        return None
    bins = ReliabilityBins.from_json(content)
    gaps = [abs(right - stated) for right, stated in zip(bins.accuracy, bins.confidence, strict=True)]
    widest = int(np.argmax(gaps))
    certain = confidence(view.familiar.prediction)
    return Reliability(
        draw("reliability", partial(confidence_plots.draw_reliability_wide, bins, certain)),
        sum(bins.rows),
        len(bins.rows),
        confidence_plots.calibration_error(bins),
        gaps[widest],
        bins.confidence[widest],
        bins.accuracy[widest],
    )


def build_risk(view: ReportView, draw: Draw) -> Risk:
    """Builds risk against coverage, and the quality of accepted and rejected rows at the current threshold."""
    reject, loss = view.familiar.judgement.reject, confidence_plots.row_losses(view.familiar.prediction, view)
    classify = bool(view.posterior.model.class_names)
    parts: list[RiskPart] = []
    for name, chosen in (("accepted", ~reject), ("rejected", reject)):
        mean = float(loss[chosen].mean()) if chosen.any() else None
        accuracy = 1 - mean if classify and mean is not None else None
        rmse = float(np.sqrt(mean)) if not classify and mean is not None else None
        parts.append(RiskPart(name, int(chosen.sum()), accuracy, rmse))
    picture = draw("risk", partial(confidence_plots.draw_risk_coverage, view))
    return Risk(picture, len(reject), readable_name(view.familiar.decision_name), tuple(parts))


def build_classes(manifest: Manifest, view: ReportView) -> tuple[ClassRow, ...]:
    """Returns the figures of each class that has test rows; none if there are more than `MOST_CLASSES`."""
    names = manifest.model.class_names
    if len(names) > MOST_CLASSES:
        return ()
    classes = class_quality(names, view.familiar.prediction, view.familiar.judgement, view.rows.y)
    return tuple(
        ClassRow(
            name,
            own.rows,
            own.predicted,
            own.accuracy.share,
            own.precision.share if own.precision else None,
            own.reject_rate.share,
            own.set_coverage.share,
        )
        for name, own in classes.items()
    )


# ---- regression ------------------------------------------------------------------------------------------------------


def build_regression(manifest: Manifest, report_data: ReportData, view: ReportView, draw: Draw) -> Regression:
    """Builds the part of a regression: band or predicted against true, PIT histogram, and risk against coverage."""
    metrics: Any = manifest.metrics
    return Regression(
        rows=len(view.rows),
        rmse=metrics["rmse"],
        coverage_95=metrics["coverage_95"],
        conformal=build_conformal(view),
        band=build_band(manifest, report_data.curve, view, draw) if report_data.curve else None,
        predicted=None if report_data.curve else build_predicted(manifest, report_data, view, draw),
        pit=draw("pit", partial(regression_plots.draw_pit, view)),
        risk=build_risk(view, draw),
    )


def build_band(manifest: Manifest, curve: Curve, view: ReportView, draw: Draw) -> Band:
    """Builds the plot of predictions along the input, and their epistemic spread inside and outside the training range."""
    names = manifest.model.feature_names
    axes = (names[0] if names else "input"), manifest.model.target_name
    x, train, summary = curve.along.x.reshape(-1), curve.train.x, curve.along.prediction.summary
    assert isinstance(summary, RegressionSummary)  # noqa: S101 - only a regression has a curve
    low, high = float(np.nanmin(train)), float(np.nanmax(train))
    inside = (x >= low) & (x <= high)
    spread = np.sqrt(np.asarray(summary.epistemic_variance, np.float64))
    picture = draw("band", partial(regression_plots.draw_band, curve, view.rows, *axes))
    means = float(spread[inside].mean()), float(spread[~inside].mean())
    return Band(picture, float(x[0]), float(x[-1]), low, high, *means)


def build_predicted(manifest: Manifest, report_data: ReportData, view: ReportView, draw: Draw) -> PredictedPlot:
    """Builds the plot of predicted against true targets; for a model of one input, with the reason for the missing band."""
    picture = draw("predicted", partial(regression_plots.draw_predicted, view))
    return PredictedPlot(picture, report_data.absent.get("curve", "") if manifest.model.features == 1 else "")
