"""The section “The fit”: the loss of an optimisation, or the traces, ranks and agreement of chains."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Int

from abstain.models.bundles.manifest import Manifest
from abstain.training.data.ood_sets import readable_name
from abstain.training.evaluation.records import ReportData
from abstain.training.inference.diagnostics import Agreement, rhat_text
from abstain.training.report import fit_plots
from abstain.training.report.contents import Draw
from abstain.training.report.facts import flatten
from abstain.training.report.fit_contents import ChainsPart, FinalMetric, Fit, Loss, Ranks

DRAWN = {"loss", "loss_unit", "reports", "trace"}
"""The diagnostics that a picture shows; the table leaves them out."""


def build_fit(manifest: Manifest, report_data: ReportData, draw: Draw) -> Fit:
    """Builds the section: loss and chains, if the method has them, and all other diagnostics."""
    facts: Any = manifest.diagnostics
    listed = {name: value for name, value in facts.items() if name not in DRAWN}
    listed |= facts["reports"][-1] if facts.get("reports") else {}
    return Fit(
        loss=build_loss(facts, draw) if "loss" in facts and facts.get("reports") else None,
        chains=build_chains(facts, report_data, draw) if "trace" in facts else None,
        diagnostics=flatten(listed),
    )


def build_loss(facts: Any, draw: Draw) -> Loss:
    """Returns the loss curve, and the metric at the last step."""
    last = facts["reports"][-1]
    metric, parts = fit_plots.reported_parts(last)
    # JSON has no NaN; it is written as null and read as None.
    loss = np.array(facts["loss"], np.float64)
    finals = tuple(FinalMetric(rows, last[f"{part}_{metric}"]) for part, rows in parts.items())
    picture = draw("loss", partial(fit_plots.draw_loss, facts))
    return Loss(picture, last["step"], float(loss[0]), float(loss[-1]), readable_name(metric), finals)


def build_chains(facts: Any, report_data: ReportData, draw: Draw) -> ChainsPart:
    """Returns the traces, and how well the chains' predictions agree."""
    trace, function = np.array(facts["trace"], np.float64), facts["function"]
    absent = report_data.absent.get("chains", "This report was made without the ranks.") if function["values"] else ""
    return ChainsPart(
        picture=draw("trace", partial(fit_plots.draw_trace, facts)),
        count=facts["chains"],
        samples=facts["samples"],
        ends=tuple(trace[:, -1].tolist()),
        predictions=function["values"],
        rhat=rhat_text(function["rhat"]) if function["values"] else "",
        ess_bulk=function["ess_bulk"] if function["values"] else None,
        ess_tail=function["ess_tail"] if function["values"] else None,
        ranks=build_ranks(report_data.agreement, draw) if report_data.agreement else None,
        ranks_absent="" if report_data.agreement else absent,
    )


def build_ranks(agreement: Agreement, draw: Draw) -> Ranks:
    """Returns the rank histograms, and the histograms of R-hat and ESS."""
    return Ranks(
        picture=draw("ranks", partial(fit_plots.draw_ranks, agreement)),
        agreement=draw("agreement", partial(fit_plots.draw_agreement, agreement)),
        predictions=len(agreement.rhat),
        worst_rhat=rhat_text(float(agreement.rhat.max())),
        best_rhat=rhat_text(float(agreement.rhat.min())),
        worst_bar=most_uneven(agreement.worst),
        best_bar=most_uneven(agreement.best),
        chains=len(agreement.worst),
        shown_chains=len(fit_plots.least_even(agreement.worst)),
    )


def most_uneven(counts: Int[np.ndarray, "chains bins"]) -> float:
    """Returns the height of the bar that is furthest from an even spread, as a multiple of the even height."""
    shares = counts / (counts[0].sum() / counts.shape[1])
    return float(shares.flat[np.abs(shares - 1).argmax()])
