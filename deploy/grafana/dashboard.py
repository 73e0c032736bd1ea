"""The Grafana dashboard, as code: `python deploy/grafana/dashboard.py` writes `dashboards/abstain.json`.

Read top-down, as a person at night reads it: is it up, is it asked strange things, is it slow, and why.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("dashboards") / "abstain.json"
WIDTH = 24
"""Of the dashboard, in Grafana's columns."""

SOURCE = {"type": "prometheus", "uid": "${datasource}"}
VERSION = 'model=~"$model",version=~"$version"'
ANSWERS = 'route=~"/predict|/v2/.+/infer"'
RATE = "[$__rate_interval]"
GREEN, YELLOW, RED = "green", "yellow", "red"
Steps = tuple[tuple[float, str], ...]


@dataclass(frozen=True)
class Query:
    """What is asked of Prometheus, and what its lines are called."""

    expr: str
    legend: str = ""
    form: str = "time_series"
    instant: bool = False

    def as_json(self, ref: str) -> dict[str, Any]:
        """As Grafana keeps it."""
        return {
            "datasource": SOURCE,
            "editorMode": "code",
            "expr": self.expr,
            "format": self.form,
            "instant": self.instant,
            "legendFormat": self.legend,
            "range": not self.instant,
            "refId": ref,
        }


@dataclass(frozen=True)
class Panel:
    """A panel without its place.

    Args:
        about: what one sees, and when to worry.
        unit: Grafana's name of a unit, or "suffix: …".
        base: the colour below all steps.
        steps: from which value on which colour, ascending.
        bottom, top: of the axis; None: as the values have it.
        custom: how lines are drawn.
        dashed: lines whose names match are levels to compare with, not measurements.
    """

    kind: str
    title: str
    about: str
    queries: tuple[Query, ...]
    unit: str = "short"
    width: int = 8
    height: int = 8
    base: str = GREEN
    steps: Steps = ()
    bottom: float | None = None
    top: float | None = None
    custom: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    dashed: str | None = None
    transformations: tuple[dict[str, Any], ...] = ()

    def as_json(self, number: int, x: int, y: int) -> dict[str, Any]:
        """As Grafana keeps it, at its place."""
        steps = [
            {"color": self.base, "value": None},
            *({"color": color, "value": value} for value, color in self.steps),
        ]
        defaults: dict[str, Any] = {
            "unit": self.unit,
            "color": {"mode": "palette-classic" if self.kind == "timeseries" else "thresholds"},
            "min": self.bottom,
            "max": self.top,
            "thresholds": {"mode": "absolute", "steps": steps},
            "custom": self.custom,
        }
        return {
            "id": number,
            "type": self.kind,
            "title": self.title,
            "description": self.about,
            "datasource": SOURCE,
            "gridPos": {"x": x, "y": y, "w": self.width, "h": self.height},
            "fieldConfig": {
                "defaults": {key: value for key, value in defaults.items() if value is not None},
                "overrides": [dashed_line(self.dashed)] if self.dashed else [],
            },
            "options": self.options,
            "targets": [query.as_json(ref) for query, ref in zip(self.queries, "ABCDEFGH", strict=False)],
            "transformations": list(self.transformations),
        }


def dashed_line(names: str) -> dict[str, Any]:
    """Draws the lines whose names match dashed and grey."""
    return {
        "matcher": {"id": "byRegexp", "options": f"/{names}/"},
        "properties": [
            {"id": "custom.lineStyle", "value": {"fill": "dash", "dash": [8, 6]}},
            {"id": "custom.fillOpacity", "value": 0},
            {"id": "color", "value": {"mode": "fixed", "fixedColor": "text"}},
        ],
    }


def stat(title: str, about: str, expr: str, *, unit: str = "short", base: str = GREEN, steps: Steps = ()) -> Panel:
    """The newest value, large, on the colour of its threshold."""
    options = {
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        "colorMode": "background",
        "graphMode": "area",
        "textMode": "auto",
    }
    return Panel("stat", title, about, (Query(expr),), unit, 4, 4, base=base, steps=steps, options=options)


def lines(
    title: str,
    about: str,
    *queries: Query,
    unit: str,
    width: int = 8,
    steps: Steps = (),
    bottom: float | None = 0,
    top: float | None = None,
    stacked: bool = False,
    dashed: str | None = None,
) -> Panel:
    """Values over time, with a legend that tells the newest and the largest."""
    custom = {
        "lineWidth": 1,
        "fillOpacity": 25 if stacked else 8,
        "showPoints": "never",
        "stacking": {"mode": "normal" if stacked else "none", "group": "A"},
        "thresholdsStyle": {"mode": "dashed" if steps else "off"},
    }
    options = {
        "legend": {"showLegend": True, "displayMode": "table", "placement": "bottom", "calcs": ["lastNotNull", "max"]},
        "tooltip": {"mode": "multi", "sort": "desc"},
    }
    looks = {"steps": steps, "bottom": bottom, "top": top, "custom": custom, "options": options, "dashed": dashed}
    return Panel("timeseries", title, about, queries, unit, width, **looks)


def heat(title: str, about: str, metric: str, unit: str, selector: str = VERSION) -> Panel:
    """A histogram over time: the darker, the more."""
    options = {
        "calculate": False,
        "cellGap": 1,
        "color": {"mode": "scheme", "scheme": "Oranges", "steps": 64, "exponent": 0.5, "reverse": False},
        "yAxis": {"unit": unit, "axisPlacement": "left"},
        "rowsFrame": {"layout": "auto"},
        "legend": {"show": True},
        "tooltip": {"mode": "single", "yHistogram": True},
    }
    query = Query(f"sum by (le) (rate({metric}_bucket{{{selector}}}{RATE}))", "{{le}}", "heatmap")
    return Panel("heatmap", title, about, (query,), unit, options=options)


def table(title: str, about: str, expr: str, columns: tuple[str, ...], *, width: int = 12, height: int = 8) -> Panel:
    """The labels of what there is now, as rows."""
    shown = {"include": {"names": list(columns)}}
    order = {"indexByName": {name: place for place, name in enumerate(columns)}}
    return Panel(
        "table",
        title,
        about,
        (Query(expr, "", "table", instant=True),),
        width=width,
        height=height,
        options={"showHeader": True, "cellHeight": "sm"},
        transformations=({"id": "filterFieldsByName", "options": shown}, {"id": "organize", "options": order}),
    )


def quantiles(metric: str, selector: str = "") -> tuple[Query, ...]:
    """Median, 95th and 99th percentile of a histogram."""
    chosen = f"{{{selector}}}" if selector else ""
    return tuple(
        Query(f"histogram_quantile({quantile}, sum by (le) (rate({metric}_bucket{chosen}{RATE})))", name)
        for quantile, name in ((0.5, "p50"), (0.95, "p95"), (0.99, "p99"))
    )


def rejected_share(by: str) -> str:
    """Rejected rows of all rows; zero where none was rejected."""
    rows = f"sum by ({by}) (rate(abstain_rows_total{{{VERSION}}}{RATE}))"
    return f"(sum by ({by}) (rate(abstain_rejected_total{{{VERSION}}}{RATE})) or 0 * {rows}) / {rows}"


def beyond(percentile: str) -> Query:
    """The share of rows whose score lies beyond this percentile of the calibration rows."""
    parts = "sum by (model, version, score) (rate(abstain_score_percentile_"
    return Query(
        f'1 - {parts}bucket{{{VERSION},le="{percentile}"}}{RATE})) / {parts}count{{{VERSION}}}{RATE}))',
        "{{model}}:{{version}} {{score}}",
    )


UP = (
    stat(
        "Workers ready",
        "Workers that have loaded, verified and compiled every served version, of those that there should be. Below 100 % "
        "for longer than a start takes: GET /readyz says why.",
        "sum(abstain_workers_ready) / sum(abstain_workers)",
        unit="percentunit",
        base=RED,
        steps=((1, GREEN),),
    ),
    stat(
        "Servers that answer Prometheus",
        "Share of servers whose /metrics is read. Below 100 %, a server is down or cannot be reached; no value at all means "
        "that Prometheus watches none.",
        'avg(up{job="abstain"})',
        unit="percentunit",
        base=RED,
        steps=((1, GREEN),),
    ),
    stat(
        "Alerts",
        "Firing alerts of abstain; the table below names them. Any is a reason to read on.",
        'count(ALERTS{alertname=~"Abstain.+",alertstate="firing"}) or vector(0)',
        steps=((1, RED),),
    ),
    stat(
        "Requests",
        "Requests for predictions a second. None where there should be some: look at what stands before the server.",
        f"sum(rate(abstain_requests_total{{{ANSWERS}}}{RATE}))",
        unit="reqps",
    ),
    stat(
        "Rejected",
        "Share of rows that the models do not know. At percentile 99 about 1 %; several times that for minutes is strange.",
        f"(sum(rate(abstain_rejected_total{{{VERSION}}}{RATE})) or vector(0))"
        f" / sum(rate(abstain_rows_total{{{VERSION}}}{RATE}))",
        unit="percentunit",
        steps=((0.02, YELLOW), (0.05, RED)),
    ),
    stat(
        "99th percentile of latency",
        "99 of 100 answers are faster. The objective is 0.25 s.",
        quantiles("abstain_request_seconds", ANSWERS)[2].expr,
        unit="s",
        steps=((0.1, YELLOW), (0.25, RED)),
    ),
    table(
        "Alerts that are firing or pending",
        "Pending: the condition holds, but not for long enough yet. What to do about each is in docs/watching.md.",
        'ALERTS{alertname=~"Abstain.+"}',
        ("alertname", "alertstate", "severity", "model", "version", "score", "instance"),
    ),
    lines(
        "Workers ready, and how many there should be",
        "A gap to the dashed line is a worker that starts, or one that cannot load a version. A gap that stays for five "
        "minutes is an alert.",
        Query("abstain_workers_ready", "{{instance}} ready"),
        Query("abstain_workers", "{{instance}} workers"),
        unit="short",
        width=12,
        dashed="workers$",
    ),
    lines(
        "Traffic by route",
        "Every request, probes and scrapes too. A route that falls to nothing is a client that is gone.",
        Query(f"sum by (route) (rate(abstain_requests_total{RATE}))", "{{route}}"),
        unit="reqps",
        stacked=True,
    ),
    lines(
        "Answers by code",
        "Answers to requests for predictions. 4xx are clients' mistakes, but 429 is a full queue; 5xx are ours.",
        Query(f"sum by (code) (rate(abstain_requests_total{{{ANSWERS}}}{RATE}))", "{{code}}"),
        unit="reqps",
        stacked=True,
    ),
    lines(
        "Errors and refusals",
        "Share of answers that are 5xx, and that are 429 for the queue is full. Above 1 % and 5 % they are alerts.",
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
        "Share of rows rejected by each version, and what it is calibrated to (dashed). Over twice that, by more than chance "
        "explains, is an alert. Far below it for long: the rows are more familiar than the calibration rows were.",
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
        "Rows a second, by the score that spoke loudest. One score alone that rises says what kind of strange it is.",
        Query(
            f"sum by (model, version, reason) (rate(abstain_rejected_total{{{VERSION}}}{RATE}))",
            "{{model}}:{{version}} {{reason}}",
        ),
        unit="suffix: rows/s",
        stacked=True,
    ),
    lines(
        "Rows by version",
        "Rows predicted a second. Small numbers make shares jump: look here before you believe them.",
        Query(f"sum by (model, version) (rate(abstain_rows_total{{{VERSION}}}{RATE}))", "{{model}}:{{version}}"),
        unit="suffix: rows/s",
        stacked=True,
    ),
    lines(
        "Drift: the test martingale against its level",
        "Evidence, in nats, that rows are not those that the version was calibrated on: of the worst worker, for each score. "
        "Familiar rows reach the dashed level in at most one start of a hundred (with ABSTAIN_STATE: one version of a hundred, "
        "in its whole life). Reached: it is drift.",
        Query(f"abstain_drift_log_martingale{{{VERSION}}}", "{{model}}:{{version}} {{score}} {{instance}}"),
        Query(f"max by (model, version) (abstain_drift_alarm_level{{{VERSION}}})", "{{model}}:{{version}} level"),
        unit="suffix: nats",
        bottom=None,
        dashed="level$",
    ),
    lines(
        "Drift: Kolmogorov–Smirnov distance",
        "Largest difference between the distribution functions of a score over the last 1,000 rows and over the calibration "
        "rows. With as many calibration rows, chance reaches 0.07 once in a hundred looks: it is looked at again and "
        "again, so believe the martingale first.",
        Query(f"abstain_drift_ks{{{VERSION}}}", "{{model}}:{{version}} {{score}} {{instance}}"),
        unit="short",
        steps=((0.1, RED),),
    ),
    lines(
        "Drift: population stability index",
        "The same windows, by shares of bins, once they have 300 rows. By custom: below 0.1 nothing, up to 0.25 look at it, beyond that it has moved.",
        Query(f"abstain_drift_psi{{{VERSION}}}", "{{model}}:{{version}} {{score}} {{instance}}"),
        unit="short",
        steps=((0.1, YELLOW), (0.25, RED)),
    ),
    lines(
        "Drift: p-value of the window",
        "Of the Kolmogorov–Smirnov distance. For familiar rows it is anywhere between 0 and 1; near 0 for many minutes is not.",
        Query(f"abstain_drift_ks_p_value{{{VERSION}}}", "{{model}}:{{version}} {{score}} {{instance}}"),
        unit="short",
        top=1,
    ),
    lines(
        "Drift: rows watched",
        "Of the present epoch, of all workers together: at 20,000 a worker begins anew. A few hundred are needed before the "
        "martingale can say anything; level while there is traffic, watching has failed, and the log says why.",
        Query(f"abstain_drift_rows{{{VERSION}}}", "{{model}}:{{version}} {{instance}}"),
        unit="suffix: rows",
    ),
    lines(
        "Drift: time since the last crossing",
        "A line that falls to zero and rises from there is a crossing; within the first hour the alert fires.",
        Query(
            f"time() - (abstain_drift_crossed_timestamp_seconds{{{VERSION}}} > 0)"
            f" or 0 * abstain_drift_crossed_timestamp_seconds{{{VERSION}}}",
            "{{model}}:{{version}} {{score}} {{instance}}",
        ),
        unit="s",
    ),
    lines(
        "Scores beyond the calibration's 99th percentile",
        "Were rows like the calibration rows, percentiles would be uniform and 1 % lie beyond (dashed). More: the far is more "
        "frequent, for that score.",
        beyond("99.0"),
        unit="percentunit",
        steps=((0.01, RED),),
    ),
    lines(
        "Scores beyond the calibration's 90th percentile",
        "As beside, with 10 % (dashed). It moves before the 99th does when all rows grow a little stranger.",
        beyond("90.0"),
        unit="percentunit",
        steps=((0.1, RED),),
    ),
    lines(
        "Scores beyond the calibration's median",
        "As beside, with 50 % (dashed). Away from it in either direction: these are other rows, strange or all too easy.",
        beyond("50.0"),
        unit="percentunit",
        steps=((0.5, RED),),
        top=1,
    ),
    heat(
        "Where scores lie among the calibration's",
        "Percentiles of all scores together; rows of the picture are of unequal width. A band that darkens at the top is rows "
        "that are stranger than nearly all calibration rows.",
        "abstain_score_percentile",
        "suffix: th",
    ),
    heat(
        "Entropy",
        "Of predictions, in nats: all that is uncertain. Ten classes that are equally likely have 2.3. A second band that "
        "rises is a second kind of rows.",
        "abstain_entropy_nats",
        "suffix: nats",
    ),
    heat(
        "Mutual information",
        "What the draws disagree about, in nats: what more training data would remove. Classifiers only. Rising: rows that "
        "training has not seen.",
        "abstain_mutual_information_nats",
        "suffix: nats",
    ),
)

SLOW = (
    lines(
        "Latency",
        "From a request's head to its answer's end, of all requests for predictions. The line is the objective, 0.25 s for 99 %.",
        *quantiles("abstain_request_seconds", ANSWERS),
        unit="s",
        steps=((0.25, RED),),
    ),
    lines(
        "Latency by route: 99th percentile",
        "Which door is slow. /metrics and /docs.json are seldom asked and slower; they do not count.",
        Query(
            f"histogram_quantile(0.99, sum by (le, route) (rate(abstain_request_seconds_bucket{RATE})))", "{{route}}"
        ),
        unit="s",
    ),
    lines(
        "Burn rate of the latency objective",
        "How many times faster than allowed the error budget is spent: share of answers slower than 0.25 s, over 1 %. An alert "
        "above 14.4 (over 1 h and 5 min) and above 6 (over 6 h and 30 min).",
        *(
            Query(f"max(job:abstain_slow_answers:ratio_rate{window}) / 0.01", window)
            for window in ("5m", "30m", "1h", "6h")
        ),
        unit="suffix: ×",
        steps=((6, YELLOW), (14.4, RED)),
    ),
    lines(
        "Time in the queue",
        "What a request waits before it is computed. As long as the latency: there is more to do than these workers can; else "
        "it is computing, or long requests.",
        *quantiles("abstain_queue_seconds"),
        unit="s",
    ),
    heat(
        "Batch sizes",
        "Rows computed together. Large ones under load are as they should be.",
        "abstain_batch_rows",
        "suffix: rows",
    ),
    lines(
        "Rows in a batch, on average",
        "At 1 requests are computed one by one: the server is idle enough. It grows with load.",
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
        "Cores in use. At its share of the cores, a worker computes all the time, and what arrives must wait.",
        Query(f"rate(abstain_worker_cpu_seconds{RATE})", "{{instance}} worker {{worker}}"),
        unit="suffix: cores",
    ),
    lines(
        "Memory per worker",
        "Resident bytes. Level once the versions are loaded; a steady rise ends in the kernel's kill.",
        Query("abstain_worker_memory_bytes", "{{instance}} worker {{worker}}"),
        unit="bytes",
    ),
    lines(
        "Workers replaced",
        "A worker's CPU seconds fell: another has taken its place. Now and then is a deployment; again and again is not.",
        Query(f"resets(abstain_worker_cpu_seconds{RATE})", "{{instance}} worker {{worker}}"),
        unit="short",
    ),
    lines(
        "Compiled programs",
        "Programs that XLA compiled. It rises at a start and where a worker is replaced, and never otherwise: then a request "
        "waits for a compiler, which is a fault of abstain's.",
        Query("sum by (instance) (abstain_compiles_total)", "{{instance}}"),
        unit="short",
    ),
    lines(
        "Loads of versions",
        "How often each version was loaded, or could not be, by all workers since the server's start. A line that is failed is "
        "an alert.",
        Query(
            f"sum by (model, version, outcome) (abstain_model_loads_total{{{VERSION}}})",
            "{{model}}:{{version}} {{outcome}}",
        ),
        unit="short",
    ),
    lines(
        "Servers by version",
        "How many servers serve each version. Versions change where one line ends and another begins.",
        Query(f"sum by (model, version) (abstain_model_info{{{VERSION}}})", "{{model}}:{{version}}"),
        unit="short",
    ),
    table(
        "Versions served",
        "What answers now: method, number of draws, and the digest that GET /models and every answer name.",
        f"abstain_model_info{{{VERSION}}} == 1",
        ("model", "version", "method", "draws", "digest", "instance"),
        width=16,
    ),
    lines(
        "Soundness of versions",
        "1 where a version's fit met every criterion, 0 where it fell short: chains that disagree, a model that has learned "
        "nothing. A line at 0 is an alert; GET /models names the shortfalls.",
        Query(f"min by (model, version) (abstain_model_sound{{{VERSION}}})", "{{model}}:{{version}}"),
        unit="short",
        top=1,
    ),
)

ROWS = (("Is it up?", UP), ("Is it asked strange things?", STRANGE), ("Is it slow?", SLOW), ("Why?", WHY))


def placed() -> list[dict[str, Any]]:
    """All panels, row by row, each beside the last one as long as there is room."""
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
    """The title of a row of panels."""
    place = {"x": 0, "y": y, "w": WIDTH, "h": 1}
    return {"id": number, "type": "row", "title": title, "collapsed": False, "gridPos": place, "panels": []}


def variable(name: str, label: str, query: str) -> dict[str, Any]:
    """A choice among a label's values, all of them at first."""
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
    """A mark in every panel where a query has a value."""
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
    """The whole dashboard, as Grafana reads it."""
    source = {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus", "refresh": 1}
    now, before = (f"group by (model, version) (abstain_model_info{when} == 1)" for when in ("", " offset 1m"))
    return {
        "uid": "abstain",
        "title": "abstain",
        "description": "A model server that knows when to say: I don't know. What to do at night: docs/watching.md.",
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
        "panels": placed(),
    }


def text() -> str:
    """The file's content."""
    return json.dumps(dashboard(), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    FILE.write_text(text(), "utf-8")
