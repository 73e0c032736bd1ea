"""The row of the dashboard about rollouts: a candidate beside the version that it may replace."""

from __future__ import annotations

from panels import RATE, VERSION, Query, lines

_BY_SIDE = "{{model}}:{{version}} {{side}}"


def _share(metric: str, part: str, by: str) -> str:
    """Returns the query of the share of a part of a counter."""
    chosen, whole = (f"sum by ({by}) (rate({metric}{{{labels}}}{RATE}))" for labels in (f"{VERSION},{part}", VERSION))
    return f"{chosen} / {whole}"


def _median(metric: str) -> str:
    """Returns the query of the median of a histogram, by side."""
    return f"histogram_quantile(0.5, sum by (model, version, side, le) (rate({metric}_bucket{{{VERSION}}}{RATE})))"


ROLLOUTS = (
    lines(
        "Evidence on rollouts",
        "Logarithm of the e-values, in nats, of the candidate in the legend. With alpha 0.05 there is a verdict at 3.0: promote, if every "
        "difference is below the margin, or abort. Frequent looks do no harm; abstain rollout status says more.",
        Query(
            f"max by (model, version, verdict) (abstain_rollout_log_e_value{{{VERSION}}})",
            "{{model}}:{{version}} {{verdict}}",
        ),
        unit="short",
        bottom=None,
        steps=((3.0, "green"),),
    ),
    lines(
        "Rejected in rollouts",
        "Share of rejected rows of the candidate in the legend, and of the baseline that it is compared with.",
        Query(_share("abstain_rollout_rows_total", 'decision="rejected"', "model, version, side"), _BY_SIDE),
        unit="percentunit",
    ),
    lines(
        "Other labels of a shadow",
        "Share of rows for which the candidate predicts another label than the baseline.",
        Query(_share("abstain_shadow_rows_total", 'label="other"', "model, version"), "{{model}}:{{version}}"),
        unit="percentunit",
    ),
    lines(
        "Time in rollouts",
        "Median time of both versions: from a parsed request to its answer, or of a shadow's computation, which waits for idle time.",
        Query(_median("abstain_rollout_seconds"), _BY_SIDE),
        unit="s",
    ),
    lines(
        "Percentile in rollouts",
        "Median percentile of the decision's score among those of the calibration part: 50 for familiar rows.",
        Query(_median("abstain_rollout_percentile"), _BY_SIDE),
        unit="short",
        top=100,
    ),
    lines(
        "Failed in rollouts",
        "Requests for a second that the candidate in the legend, or its baseline, could not answer. They count as rejected.",
        Query(f"sum by (model, version, side) (rate(abstain_rollout_failed_total{{{VERSION}}}{RATE}))", _BY_SIDE),
        unit="reqps",
    ),
    lines(
        "Dropped by shadows",
        "Requests for a second that a shadow did not compute, because the server was busy.",
        Query(
            f"sum by (model, version) (rate(abstain_shadow_dropped_total{{{VERSION}}}{RATE}))", "{{model}}:{{version}}"
        ),
        unit="reqps",
    ),
)
