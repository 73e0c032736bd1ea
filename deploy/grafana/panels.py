"""Kinds of panels of the Grafana dashboard, and queries that several panels share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

SOURCE = {"type": "prometheus", "uid": "${datasource}"}
VERSION = 'model=~"$model",version=~"$version"'
ANSWERS = 'route=~"/predict|/v2/.+/infer"'
RATE = "[$__rate_interval]"
GREEN, YELLOW, RED = "green", "yellow", "red"
Steps = tuple[tuple[float, str], ...]


@dataclass(frozen=True)
class Query:
    """A query of Prometheus, and the legend of its lines."""

    expr: str
    legend: str = ""
    form: str = "time_series"
    instant: bool = False

    def as_json(self, ref: str) -> dict[str, Any]:
        """Returns the query in Grafana's format."""
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
    """A panel without its position.

    Args:
        about: what the panel shows, and which values are a problem.
        unit: Grafana's name of a unit, or "suffix: …".
        base: the colour below all steps.
        steps: values and the colour from each value on, ascending.
        bottom, top: limits of the axis; None for automatic limits.
        custom: Grafana's options for lines.
        dashed: a pattern for the names of lines that are reference levels, not measurements.
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
        """Returns the panel at a position in Grafana's format."""
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
    """Returns the override that draws lines with matching names dashed and grey."""
    return {
        "matcher": {"id": "byRegexp", "options": f"/{names}/"},
        "properties": [
            {"id": "custom.lineStyle", "value": {"fill": "dash", "dash": [8, 6]}},
            {"id": "custom.fillOpacity", "value": 0},
            {"id": "color", "value": {"mode": "fixed", "fixedColor": "text"}},
        ],
    }


def stat(title: str, about: str, expr: str, *, unit: str = "short", base: str = GREEN, steps: Steps = ()) -> Panel:
    """Makes a panel with the newest value, large, on the colour of its threshold."""
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
    """Makes a panel of values over time; its legend shows the newest and the largest value."""
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
    """Makes a panel of a histogram over time; darker cells have more rows."""
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
    """Makes a table of the labels of the current time series."""
    included = {"include": {"names": list(columns)}}
    order = {"indexByName": {name: index for index, name in enumerate(columns)}}
    return Panel(
        "table",
        title,
        about,
        (Query(expr, "", "table", instant=True),),
        width=width,
        height=height,
        options={"showHeader": True, "cellHeight": "sm"},
        transformations=({"id": "filterFieldsByName", "options": included}, {"id": "organize", "options": order}),
    )


def quantiles(metric: str, selector: str = "") -> tuple[Query, ...]:
    """Returns queries for the median, the 95th and the 99th percentile of a histogram."""
    labels = f"{{{selector}}}" if selector else ""
    return tuple(
        Query(f"histogram_quantile({quantile}, sum by (le) (rate({metric}_bucket{labels}{RATE})))", name)
        for quantile, name in ((0.5, "p50"), (0.95, "p95"), (0.99, "p99"))
    )


def rejected_share(by: str) -> str:
    """Returns the expression for the share of rejected rows; zero if none was rejected."""
    rows = f"sum by ({by}) (rate(abstain_rows_total{{{VERSION}}}{RATE}))"
    return f"(sum by ({by}) (rate(abstain_rejected_total{{{VERSION}}}{RATE})) or 0 * {rows}) / {rows}"


def beyond(percentile: str) -> Query:
    """Returns a query for the share of rows with a score beyond this percentile of the calibration rows."""
    parts = "sum by (model, version, score) (rate(abstain_score_percentile_"
    return Query(
        f'1 - {parts}bucket{{{VERSION},le="{percentile}"}}{RATE})) / {parts}count{{{VERSION}}}{RATE}))',
        "{{model}}:{{version}} {{score}}",
    )
