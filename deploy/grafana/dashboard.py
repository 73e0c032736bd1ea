"""The Grafana dashboard as code: `python deploy/grafana/dashboard.py` writes `dashboards/abstain.json`.

Its rows show, from top to bottom: is it up, does it get strange rows, is it slow, is a new version as good, and why.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from panels import (
    ANSWERS,
    GREEN,
    RATE,
    RED,
    SOURCE,
    VERSION,
    YELLOW,
    Query,
    beyond,
    heat,
    lines,
    quantiles,
    rejected_share,
    stat,
    table,
)
from rollouts import ROLLOUTS

FILE = Path(__file__).with_name("dashboards") / "abstain.json"
WIDTH = 24
"""Width of the dashboard in Grafana's columns."""

UP = (
    stat(
        "Workers ready",
        "Share of workers that have loaded, verified and compiled every served version. If it is below 100 % for longer than "
        "a start takes, GET /readyz says why.",
        "sum(abstain_workers_ready) / sum(abstain_workers)",
        unit="percentunit",
        base=RED,
        steps=((1, GREEN),),
    ),
    stat(
        "Servers that respond to Prometheus",
        "Share of servers with a readable /metrics. Below 100 %, a server is down or cannot be reached; no value at all means "
        "that Prometheus has no server to watch.",
        'avg(up{job="abstain"})',
        unit="percentunit",
        base=RED,
        steps=((1, GREEN),),
    ),
    stat(
        "Alerts",
        "Number of firing alerts of abstain; the table below names them.",
        'count(ALERTS{alertname=~"Abstain.+",alertstate="firing"}) or vector(0)',
        steps=((1, RED),),
    ),
    stat(
        "Requests",
        "Requests for predictions per second. If there are none but should be, check the load balancer and the clients.",
        f"sum(rate(abstain_requests_total{{{ANSWERS}}}{RATE}))",
        unit="reqps",
    ),
    stat(
        "Rejected",
        "Share of rejected rows. At percentile 99 it is about 1 %; several times that for minutes is unusual.",
        f"(sum(rate(abstain_rejected_total{{{VERSION}}}{RATE})) or vector(0))"
        f" / sum(rate(abstain_rows_total{{{VERSION}}}{RATE}))",
        unit="percentunit",
        steps=((0.02, YELLOW), (0.05, RED)),
    ),
    stat(
        "99th percentile of latency",
        "99 of 100 responses are faster. The objective is 0.25 s.",
        quantiles("abstain_request_seconds", ANSWERS)[2].expr,
        unit="s",
        steps=((0.1, YELLOW), (0.25, RED)),
    ),
    table(
        "Alerts that are firing or pending",
        "Pending: the condition holds, but not for long enough yet. docs/monitoring.md says how to handle each alert.",
        'ALERTS{alertname=~"Abstain.+"}',
        ("alertname", "alertstate", "severity", "model", "version", "score", "instance"),
    ),
    lines(
        "Workers ready, and how many there should be",
        "A gap to the dashed line means that a worker is starting, or cannot load a version. A gap of five minutes raises an "
        "alert.",
        Query("abstain_workers_ready", "{{instance}} ready"),
        Query("abstain_workers", "{{instance}} workers"),
        unit="short",
        width=12,
        dashed="workers$",
    ),
    lines(
        "Traffic by route",
        "All requests, including probes and scrapes. If a route falls to zero, a client has stopped.",
        Query(f"sum by (route) (rate(abstain_requests_total{RATE}))", "{{route}}"),
        unit="reqps",
        stacked=True,
    ),
    lines(
        "Responses by code",
        "Responses to requests for predictions. 4xx are errors of clients, but 429 is a full queue; 5xx are errors of the "
        "server.",
        Query(f"sum by (code) (rate(abstain_requests_total{{{ANSWERS}}}{RATE}))", "{{code}}"),
        unit="reqps",
        stacked=True,
    ),
    lines(
        "Errors and refusals",
        "Shares of responses with 5xx, and with 429 because the queue is full. Above 1 % and 5 % they raise alerts.",
        *(
            Query(
                f'(sum(rate(abstain_requests_total{{{ANSWERS},code=~"{code}"}}{RATE})) or vector(0))'
                f" / sum(rate(abstain_requests_total{{{ANSWERS}}}{RATE}))",
                name,
            )
            for code, name in (("5..", "errors (5xx)"), ("429", "turned away (429)"))
        ),
        unit="percentunit",
        steps=((0.01, RED),),
    ),
)

STRANGE = (
    lines(
        "Rejected rows",
        "Share of rows that each version rejects, and the share that it is calibrated to (dashed). More than "
        "twice that, beyond chance, raises an alert. If it stays far below, rows are more familiar than the calibration rows.",
        Query(rejected_share("model, version"), "{{model}}:{{version}}"),
        Query(
            f"max by (model, version) (version:abstain_reject_ratio:expected{{{VERSION}}})",
            "{{model}}:{{version}} expected",
        ),
        unit="percentunit",
        dashed="expected$",
    ),
    lines(
        "Rejected rows, by reason",
        "Rows per second, by the score that contributed most. If a single score rises, it shows in which way rows are strange.",
        Query(
            f"sum by (model, version, reason) (rate(abstain_rejected_total{{{VERSION}}}{RATE}))",
            "{{model}}:{{version}} {{reason}}",
        ),
        unit="suffix: rows/s",
        stacked=True,
    ),
    lines(
        "Rejected rows, by part",
        "Rows per second that are novel (unlike the training rows) and ambiguous (unsure of the answer), for decisions of two "
        "parts. If novel rows rise, inputs have changed; if ambiguous rows rise, there are more hard cases of a known kind.",
        Query(
            f"sum by (model, version, part) (rate(abstain_rejected_by_part_total{{{VERSION}}}{RATE}))",
            "{{model}}:{{version}} {{part}}",
        ),
        unit="suffix: rows/s",
        stacked=True,
    ),
    lines(
        "Rows by version",
        "Rows predicted per second. With few rows, shares vary much: check this before you rely on them.",
        Query(f"sum by (model, version) (rate(abstain_rows_total{{{VERSION}}}{RATE}))", "{{model}}:{{version}}"),
        unit="suffix: rows/s",
        stacked=True,
    ),
    lines(
        "Drift: the test martingale against its level",
        "Evidence, in nats, that rows are unlike the calibration rows of the version: the largest of all workers, for each "
        "score. Familiar rows reach the dashed level in at most one start of a hundred (with ABSTAIN_STATE: one version of a "
        "hundred, in its whole life). Above the level, it is drift.",
        Query(f"abstain_drift_log_martingale{{{VERSION}}}", "{{model}}:{{version}} {{score}} {{instance}}"),
        Query(f"max by (model, version) (abstain_drift_alarm_level{{{VERSION}}})", "{{model}}:{{version}} level"),
        unit="suffix: nats",
        bottom=None,
        dashed="level$",
    ),
    lines(
        "Drift: Kolmogorov–Smirnov distance",
        "Largest difference between the distribution functions of a score over the last 1,000 rows and over the calibration "
        "rows. With as many calibration rows, chance exceeds 0.07 in one of a hundred looks. Because it is computed again and "
        "again, rely on the martingale first.",
        Query(f"abstain_drift_ks{{{VERSION}}}", "{{model}}:{{version}} {{score}} {{instance}}"),
        unit="short",
        steps=((0.1, RED),),
    ),
    lines(
        "Drift: population stability index",
        "Compares the same windows by the shares of bins; needs 300 rows. By convention: below 0.1 no change, up to 0.25 watch it, above "
        "0.25 a change.",
        Query(f"abstain_drift_psi{{{VERSION}}}", "{{model}}:{{version}} {{score}} {{instance}}"),
        unit="short",
        steps=((0.1, YELLOW), (0.25, RED)),
    ),
    lines(
        "Drift: p-value of the window",
        "p-value of the Kolmogorov–Smirnov distance. For familiar rows it varies between 0 and 1; near 0 for many minutes is a change.",
        Query(f"abstain_drift_ks_p_value{{{VERSION}}}", "{{model}}:{{version}} {{score}} {{instance}}"),
        unit="short",
        top=1,
    ),
    lines(
        "Drift: rows watched",
        "Rows in the current epoch, over all workers; a worker starts a new epoch at 20,000. The martingale needs a few "
        "hundred rows. If the line is flat despite traffic, the drift test has failed, and the log says why.",
        Query(f"abstain_drift_rows{{{VERSION}}}", "{{model}}:{{version}} {{instance}}"),
        unit="suffix: rows",
    ),
    lines(
        "Drift: time since the last crossing",
        "A line that falls to zero and rises again is a crossing; the alert fires in the first hour after it.",
        Query(
            f"time() - (abstain_drift_crossed_timestamp_seconds{{{VERSION}}} > 0)"
            f" or 0 * abstain_drift_crossed_timestamp_seconds{{{VERSION}}}",
            "{{model}}:{{version}} {{score}} {{instance}}",
        ),
        unit="s",
    ),
    lines(
        "Scores beyond the calibration's 99th percentile",
        "For rows like the calibration rows, percentiles are uniform and 1 % is beyond (dashed). Above it, this score has more "
        "extreme values.",
        beyond("99.0"),
        unit="percentunit",
        steps=((0.01, RED),),
    ),
    lines(
        "Scores beyond the calibration's 90th percentile",
        "Like the previous panel, with 10 % (dashed). It rises earlier if all rows become a little stranger.",
        beyond("90.0"),
        unit="percentunit",
        steps=((0.1, RED),),
    ),
    lines(
        "Scores beyond the calibration's median",
        "Like the previous panel, with 50 % (dashed). A deviation in either direction means that rows are strange or very easy.",
        beyond("50.0"),
        unit="percentunit",
        steps=((0.5, RED),),
        top=1,
    ),
    heat(
        "Percentiles of scores among the calibration's",
        "Percentiles of all scores; the bands have unequal widths. If the top band becomes darker, there are rows that are "
        "stranger than nearly all calibration rows.",
        "abstain_score_percentile",
        "suffix: th",
    ),
    heat(
        "Entropy",
        "Entropy of predictions, in nats: the total uncertainty. Ten equally likely classes have 2.3. A second band at the top means "
        "a second type of rows.",
        "abstain_entropy_nats",
        "suffix: nats",
    ),
    heat(
        "Mutual information",
        "The disagreement between draws, in nats, which more training data would reduce. Classifiers only. If it rises, rows "
        "are unlike the training rows.",
        "abstain_mutual_information_nats",
        "suffix: nats",
    ),
)

SLOW = (
    lines(
        "Latency",
        "Time from the head of a request for predictions to the end of its response. The line is the objective, 0.25 s "
        "for 99 %.",
        *quantiles("abstain_request_seconds", ANSWERS),
        unit="s",
        steps=((0.25, RED),),
    ),
    lines(
        "Latency by route: 99th percentile",
        "Shows the slow route. /metrics and /docs.json are rarely requested and slower; they do not count.",
        Query(
            f"histogram_quantile(0.99, sum by (le, route) (rate(abstain_request_seconds_bucket{RATE})))", "{{route}}"
        ),
        unit="s",
    ),
    lines(
        "Burn rate of the latency objective",
        "How many times faster than allowed the error budget is spent: the share of responses slower than 0.25 s, divided by "
        "1 %. Alerts above 14.4 (over 1 h and 5 min) and above 6 (over 6 h and 30 min).",
        *(
            Query(f"max(job:abstain_slow_answers:ratio_rate{window}) / 0.01", window)
            for window in ("5m", "30m", "1h", "6h")
        ),
        unit="suffix: ×",
        steps=((6, YELLOW), (14.4, RED)),
    ),
    lines(
        "Time in the queue",
        "The time that a request waits before it is computed. If it is as long as the latency, the workers are overloaded; "
        "otherwise computing is slow, or requests are large.",
        *quantiles("abstain_queue_seconds"),
        unit="s",
    ),
    heat(
        "Batch sizes",
        "Rows computed together. Under load, large batches are normal.",
        "abstain_batch_rows",
        "suffix: rows",
    ),
    lines(
        "Rows in a batch, on average",
        "At 1, requests are computed one by one, because the load is low. It grows with load.",
        Query(
            f"sum by (model, version) (rate(abstain_batch_rows_sum{{{VERSION}}}{RATE}))"
            f" / sum by (model, version) (rate(abstain_batch_rows_count{{{VERSION}}}{RATE}))",
            "{{model}}:{{version}}",
        ),
        unit="suffix: rows",
    ),
)

WHY = (
    lines(
        "CPU per worker",
        "Cores in use. If a worker uses its full share of the cores, new requests must wait.",
        Query(f"rate(abstain_worker_cpu_seconds{RATE})", "{{instance}} worker {{worker}}"),
        unit="suffix: cores",
    ),
    lines(
        "Memory per worker",
        "Resident bytes. Constant after the versions are loaded; after a steady rise, the kernel kills the worker.",
        Query("abstain_worker_memory_bytes", "{{instance}} worker {{worker}}"),
        unit="bytes",
    ),
    lines(
        "Workers replaced",
        "A worker's CPU seconds fell, so another worker has replaced it. Normal at a deployment, but not again and again.",
        Query(f"resets(abstain_worker_cpu_seconds{RATE})", "{{instance}} worker {{worker}}"),
        unit="short",
    ),
    lines(
        "Compiled programs",
        "Programs that XLA compiled. It rises at a start and when a worker is replaced. At other times, a request waits for "
        "the compiler, which is a bug in abstain.",
        Query("sum by (instance) (abstain_compiles_total)", "{{instance}}"),
        unit="short",
    ),
    lines(
        "Loads of versions",
        "How often all workers have loaded each version, or failed to, since the server's start. A line of failures raises an "
        "alert.",
        Query(
            f"sum by (model, version, outcome) (abstain_model_loads_total{{{VERSION}}})",
            "{{model}}:{{version}} {{outcome}}",
        ),
        unit="short",
    ),
    lines(
        "Servers by version",
        "Number of servers that serve each version. At a change of versions one line ends and another begins.",
        Query(f"sum by (model, version) (abstain_model_info{{{VERSION}}})", "{{model}}:{{version}}"),
        unit="short",
    ),
    table(
        "Versions served",
        "The current versions: method, number of draws, and the digest in GET /models and in every response.",
        f"abstain_model_info{{{VERSION}}} == 1",
        ("model", "version", "method", "draws", "digest", "instance"),
        width=16,
    ),
    lines(
        "Soundness of versions",
        "1 if a version's fit met every criterion, 0 if it has shortfalls, such as chains that disagree or a model that has "
        "learned nothing. A line at 0 raises an alert; GET /models names the shortfalls.",
        Query(f"min by (model, version) (abstain_model_sound{{{VERSION}}})", "{{model}}:{{version}}"),
        unit="short",
        top=1,
    ),
)

ROWS = (
    ("Is it up?", UP),
    ("Does it get strange rows?", STRANGE),
    ("Is it slow?", SLOW),
    ("Is the new version as good?", ROLLOUTS),
    ("Why?", WHY),
)


def place_panels() -> list[dict[str, Any]]:
    """Returns all panels, row by row, each to the right of the previous one while there is space."""
    panels: list[dict[str, Any]] = []
    y = 0
    for title, row in ROWS:
        panels.append(heading(len(panels) + 1, title, y))
        x, y, tallest = 0, y + 1, 0
        for panel in row:
            if x + panel.width > WIDTH:
                x, y, tallest = 0, y + tallest, 0
            panels.append(panel.as_json(len(panels) + 1, x, y))
            x, tallest = x + panel.width, max(tallest, panel.height)
        y += tallest
    return panels


def heading(number: int, title: str, y: int) -> dict[str, Any]:
    """Returns the title of a row of panels."""
    position = {"x": 0, "y": y, "w": WIDTH, "h": 1}
    return {"id": number, "type": "row", "title": title, "collapsed": False, "gridPos": position, "panels": []}


def variable(name: str, label: str, query: str) -> dict[str, Any]:
    """Returns a variable for the selection of a label's values; all are selected by default."""
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": SOURCE,
        "query": {"query": query, "refId": f"variable-{name}"},
        "definition": query,
        "refresh": 2,
        "sort": 3,
        "multi": True,
        "includeAll": True,
        "allValue": ".+",
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
    }


def annotation(name: str, expr: str, title: str, color: str) -> dict[str, Any]:
    """Returns an annotation: a mark in every panel at the times when a query has a value."""
    return {
        "name": name,
        "datasource": SOURCE,
        "enable": True,
        "expr": expr,
        "titleFormat": title,
        "iconColor": color,
        "step": "15s",
    }


def dashboard() -> dict[str, Any]:
    """Returns the whole dashboard in Grafana's format."""
    source = {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus", "refresh": 1}
    now, before = (f"group by (model, version) (abstain_model_info{when} == 1)" for when in ("", " offset 1m"))
    return {
        "uid": "abstain",
        "title": "abstain",
        "description": "A model server that rejects rows it does not know. How to handle alerts: docs/monitoring.md.",
        "tags": ["abstain"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "time": {"from": "now-3h", "to": "now"},
        "refresh": "30s",
        "timezone": "browser",
        "templating": {
            "list": [
                source,
                variable("model", "Model", "label_values(abstain_model_info, model)"),
                variable("version", "Version", 'label_values(abstain_model_info{model=~"$model"}, version)'),
            ]
        },
        "annotations": {
            "list": [
                annotation(
                    "Version begins",
                    f"{now} unless {before}",
                    "{{model}}:{{version}} begins to be served",
                    "blue",
                ),
                annotation(
                    "Version ends",
                    f"{before} unless {now}",
                    "{{model}}:{{version}} is no longer served",
                    "purple",
                ),
                annotation("Alerts", 'ALERTS{alertname=~"Abstain.+",alertstate="firing"}', "{{alertname}}", "red"),
            ]
        },
        "links": [],
        "panels": place_panels(),
    }


def text() -> str:
    """Returns the content of the dashboard's file."""
    return json.dumps(dashboard(), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    FILE.write_text(text(), "utf-8")
