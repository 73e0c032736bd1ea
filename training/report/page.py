"""`report.html`: what a fit came to, for people to look at. One file, its pictures inside it, no script.

In the order in which a person asks who has to decide about a deployment: what falls short, how good it is, where it
says that it does not know, how it was come by, from what settings. What is not there is said, with the reason.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from abstain.models.bundles.bundle import Manifest
from abstain.models.decisions.calibration import Calibration
from abstain.models.decisions.ranks import ordinal
from abstain.training.data.ood_sets import SAME_INTENSITY, readable
from abstain.training.evaluation.coverage import coverage_by_decision
from abstain.training.evaluation.quality import class_quality, conformal_quality, terms_of
from abstain.training.evaluation.records import Shown, View
from abstain.training.inference.diagnostics import rhat_text
from abstain.training.runs.failures import Failure, attempt

STYLE = """
:root { color-scheme: light dark; --page: #fff; --ink: #1c2733; --soft: #5b6874; --line: #dde3e8; --wash: #f4f6f8;
  --accent: #0b7285; --muted: #adb5bd; --warm: #d55e00; --violet: #8250c4; --set-1: #cc79a7; --set-2: #e69f00;
  --set-3: #56b4e9; --set-5: #7a5c3e; --bad: #c92a2a; --good: #2b8a3e }
@media (prefers-color-scheme: dark) { :root { --page: #14191f; --ink: #dde5ec; --soft: #9aa7b3; --line: #303943;
  --wash: #1d242c; --accent: #3bc9db; --muted: #66717c; --warm: #ff922b; --violet: #b197fc; --set-1: #f0a6cb;
  --set-2: #ffc145; --set-3: #74c0fc; --set-5: #c9a67f; --bad: #ff6b6b; --good: #69db7c } }
* { box-sizing: border-box }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 54rem; margin: 0 auto; padding: 1.5rem 1rem 3rem;
  color: var(--ink); background: var(--page); overflow-wrap: break-word }
h1 { font-size: 1.7rem; margin: 0 } h2 { font-size: 1.3rem; margin: 0 0 .6rem } h3 { font-size: 1.02rem; margin: 1.8rem 0 .3rem }
section { border-top: 1px solid var(--line); margin-top: 2.2rem; padding-top: 1.4rem }
nav { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; margin: .8rem 0 } a { color: var(--accent) }
p { margin: .4rem 0 } .soft, figcaption, footer { color: var(--soft) }
.wide { overflow-x: auto } figure { margin: .6rem 0 1.2rem } figure svg { display: block; width: 100%; max-width: var(--wide); height: auto }
svg * { stroke-linejoin: round; stroke-linecap: butt } svg text { font-family: system-ui, sans-serif !important }
figcaption { font-size: .92rem; max-width: 46rem }
table { border-collapse: collapse; margin: .5rem 0; font-size: .95rem }
td, th { padding: .25rem 1.2rem .25rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line) }
th { font-weight: 600 } .num td { white-space: nowrap } td + td, th + th { font-variant-numeric: tabular-nums }
.figures { display: grid; grid-template-columns: repeat(auto-fill, minmax(11rem, 1fr)); gap: .7rem; margin: 1rem 0 }
.figures div { background: var(--wash); border-radius: .4rem; padding: .6rem .8rem } .figures dd { margin: 0 }
.figures dt { color: var(--soft); font-size: .88rem } .figures b { font-size: 1.3rem; font-variant-numeric: tabular-nums }
aside { border-left: .3rem solid var(--muted); background: var(--wash); padding: .4rem 1rem; margin: 1rem 0 }
aside.shortfall { border-color: var(--bad) } aside.good { border-color: var(--good) } aside ul { padding-left: 1.1rem; margin: .4rem 0 }
details { margin: .6rem 0 } summary { cursor: pointer; font-weight: 600 }
code { background: var(--wash); padding: 0 .25rem } footer { margin-top: 3rem; font-size: .85rem }
@media (max-width: 40rem) { figure svg { min-width: min(31rem, var(--wide)) } td, th { padding-right: .8rem } }
"""
PARTS = {
    "verdict": "Verdict",
    "quality": "Quality",
    "strange": "I don't know",
    "fit": "The fit",
    "settings": "Settings",
}
MOST_CLASSES = 100
"""That have a line each in the table of classes."""
MEANINGS = {
    "accuracy": "share of rows whose most probable class is right",
    "nll": "negative log-likelihood, nats a row; less is better",
    "brier": "squared error of the probabilities, summed over classes; 0 is perfect",
    "ece": "mean gap between confidence and accuracy, 15 bins of equal mass; 0 is perfect",
    "aurc": "mean error of the surest rows, over all shares of them; less is better",
    "rmse": "root mean squared error, in the target's units",
    "crps": "continuous ranked probability score, in the target's units; less is better",
    "coverage_95": "share of rows within the central 95 % of their predicted distribution, before conformal calibration",
    "interval_width": "mean width of that central 95 %, in the target's units",
}


class Picture(NamedTuple):
    """A picture still to be drawn, described for those who do not see it, and what good looks like."""

    name: str
    draw: Callable[[], Any]
    description: str
    good: str


Part = str | Picture
"""Of a section: HTML, or a picture."""


def write_report(
    path: Path,
    manifest: Manifest,
    calibration: Calibration,
    shown: Shown = Shown(),  # noqa: B008
) -> tuple[str, ...]:
    """Writes the report of a version; returns what could not be written or drawn, a note for the manifest each.

    Args:
        shown: what it is drawn from, besides; what is missing there is missing in the report, and said to be.
    """
    missing: list[str] = []
    written = {
        "quality": ("On the test part", _section("quality", lambda: _quality(manifest, shown), missing)),
        "strange": (
            "Where it says “I don't know”",
            _section("strange", lambda: _strange(manifest, calibration, shown), missing),
        ),
        "fit": ("The fit", _section("fit", lambda: _fit(manifest, shown), missing)),
        "settings": ("Settings and data", _section("settings", lambda: _settings(manifest), missing)),
    }
    noted = manifest.model_copy(update={"notes": (*manifest.notes, *missing)})
    sections = {"verdict": ("Verdict", _section("verdict", lambda: _verdict(noted, shown), missing)), **written}
    links = "".join(f'<a href="#{key}">{html.escape(title)}</a>' for key, title in PARTS.items())
    body = "".join(
        f'<section id="{key}" aria-label="{html.escape(PARTS[key])}"><h2>{title}</h2>{content}</section>'
        for key, (title, content) in sections.items()
    )
    title = html.escape(f"{manifest.name}:{manifest.version}")
    path.write_text(
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}: report</title><style>{STYLE}</style></head><body><header>{_heading(manifest)}"
        f'<nav aria-label="Contents">{links}</nav></header><main>{body}</main>'
        f"<footer>{_packages(manifest)}</footer></body></html>\n",
        "utf-8",
    )
    return tuple(missing)


def _section(key: str, write: Callable[[], Sequence[Part]], missing: list[str]) -> str:
    """The HTML of a section; what fails is replaced by a sentence that says why."""
    parts = attempt(f"the report's section “{PARTS[key]}”", write, missing)
    if isinstance(parts, Failure):
        return _absent(parts.sentence)
    return "".join(part if isinstance(part, str) else _figure(part, missing) for part in parts)


def _heading(manifest: Manifest) -> str:
    name = html.escape(f"{manifest.name}:{manifest.version}")
    shape = "×".join(map(str, manifest.model.feature_shape))
    inputs = f"inputs of {shape}" if len(manifest.model.feature_shape) > 1 else f"{shape} input{'s' * (shape != '1')}"
    draws = f"{manifest.draws} draws" if manifest.draws > 1 else "One draw"
    return (
        f"<h1>{name}</h1><p>{draws} by <code>{html.escape(manifest.method.kind)}</code> of the network "
        f"<code>{html.escape(manifest.model.network.kind)}</code> on {inputs}, with the likelihood "
        f'<code>{html.escape(manifest.model.likelihood)}</code>.</p><p class="soft">{html.escape(manifest.created)}</p>'
    )


# ---- the verdict -----------------------------------------------------------------------------------------------------


def _verdict(manifest: Manifest, shown: Shown) -> list[Part]:
    if manifest.shortfalls:
        said = _box("shortfall", "Not fit to be relied on", manifest.shortfalls)
    else:
        said = (
            '<aside class="good"><p><strong>Nothing falls short.</strong> The checks of the fit have found nothing that '
            "keeps this version from the label <code>stable</code>. They do not know what a mistake would cost you.</p></aside>"
        )
    return [said, _box("note", "Worth knowing", manifest.notes), _glance(manifest, shown)]


def _box(kind: str, title: str, sentences: tuple[str, ...]) -> str:
    """A box of sentences; nothing where there are none."""
    if not sentences:
        return ""
    items = "".join(f"<li>{html.escape(sentence)}</li>" for sentence in sentences)
    return f'<aside class="{kind}"><p><strong>{html.escape(title)}</strong></p><ul>{items}</ul></aside>'


def _glance(manifest: Manifest, shown: Shown) -> str:
    """The few figures that one asks for first."""
    metrics: Any = manifest.metrics
    cards: list[tuple[str, str, str]] = []
    rows = f"of {manifest.data.test_rows:,} test rows"
    if _is_number(metrics.get("accuracy")):
        cards.append(("right", f"{metrics['accuracy']:.2%}", rows))
    if _is_number(metrics.get("rmse")):
        cards.append(("RMSE", f"{metrics['rmse']:.4g}", f"on {manifest.data.test_rows:,} test rows"))
    if _is_number(metrics.get("ece")):
        cards.append(("calibration error (ECE)", f"{metrics['ece']:.4f}", "confidence against accuracy"))
    if "reject_rate" in metrics:
        asked = 100 - manifest.calibration.percentile
        cards.append(("rejected", f"{metrics['reject_rate']['reject']:.2%}", f"{rows}; {asked:.4g} % asked for"))
    if shown.view:
        found = conformal_quality(shown.view.familiar.judgement, shown.view.rows.y)
        what = "sets hold the class" if "mean_size" in found else "intervals hold the target"
        cards.append(
            (what, f"{found['coverage']:.2%}", f"{100 * found['asked']:.4g} % asked for; {_size(found)} on average")
        )
        cards += _coverage_cards(what, shown.view)
    for name, scores in metrics.get("ood", {}).items():
        if name.endswith(SAME_INTENSITY):
            continue
        decided = scores["reject"]
        beside = f"{metrics['ood_rows'][name]:,} rows; AUROC {decided['auroc']:.3f}"
        cards.append((f"rejected of {readable(name)}", f"{decided['detection']:.2%}", beside))
    shown_cards = "".join(
        f"<div><dt>{html.escape(what)}</dt><dd><b>{html.escape(value)}</b></dd><dd class='soft'>{html.escape(beside)}</dd></div>"
        for what, value, beside in cards
    )
    return f'<dl class="figures">{shown_cards}</dl>' if cards else ""


def _coverage_cards(what: str, view: View) -> list[tuple[str, str, str]]:
    """Coverage among accepted and rejected rows, each with its exact interval."""
    found = coverage_by_decision(view.familiar.judgement, view.rows.y)
    return [
        (
            f"… of {part} rows",
            f"{found[key]:.2%}",
            f"95 % interval {found[f'{key}_interval'][0]:.1%} to "
            f"{found[f'{key}_interval'][1]:.1%}; {what}, no guarantee of this part alone",
        )
        for part in ("accepted", "rejected")
        if (key := f"coverage_{part}") in found
    ]


def _size(found: dict[str, Any]) -> str:
    return f"{found['mean_size']:.2f} classes" if "mean_size" in found else f"{found['mean_width']:.4g} wide"


# ---- how good it is --------------------------------------------------------------------------------------------------


def _quality(manifest: Manifest, shown: Shown) -> list[Part]:
    metrics = {key: value for key, value in manifest.metrics.items() if not isinstance(value, dict)}
    lines = [(readable(key), _text(value), MEANINGS.get(key, "")) for key, value in metrics.items()]
    parts: list[Part] = [_table(lines, ("metric", "value", "what it is"))]
    if shown.view is None:
        return [*parts, _absent(shown.absent.get("test", "The test part was not looked at for this report."))]
    if manifest.model.class_names:
        return [*parts, *_class_pictures(manifest, shown.view)]
    return [*parts, *_number_pictures(manifest, shown, shown.view)]


def _class_pictures(manifest: Manifest, view: View) -> list[Part]:
    from abstain.training.report import confidence_plots  # noqa: PLC0415 - a second to import

    metrics: Any = manifest.metrics
    bins = metrics["reliability"]
    gap, place = max(
        (abs(right - sure), place)
        for place, (right, sure) in enumerate(zip(bins["accuracy"], bins["confidence"], strict=True))
    )
    told = (
        f"Reliability diagram of {len(view.rows):,} test rows in {len(bins['rows'])} bins of equal mass: expected "
        f"calibration error {metrics['ece']:.4f}. The widest gap, {gap:.3f}, is at confidence "
        f"{bins['confidence'][place]:.3f}, where the accuracy is {bins['accuracy'][place]:.3f}."
    )
    return [
        "<h3>Is it as often right as it is sure?</h3>",
        Picture(
            "reliability",
            partial(confidence_plots.draw_reliability_wide, view),
            told,
            "Good: all points on the diagonal, all gaps about zero within their bars (exact 95 % limits). Below the line "
            "it is too sure of itself, above it too modest.",
        ),
        *_risk_picture(view, "accuracy"),
        *_class_table(manifest, view),
    ]


def _class_table(manifest: Manifest, view: View) -> list[Part]:
    names = manifest.model.class_names
    if len(names) > MOST_CLASSES:
        return []
    terms = terms_of(view.posterior, view.familiar.prediction, view.rows)
    found = class_quality(names, terms, view.familiar.judgement, view.rows.y)
    lines = [
        (name, f"{own['rows']:,}", *(f"{own[key]:.1%}" for key in ("accuracy", "reject_rate", "set_coverage")))
        for name, own in found.items()
    ]
    table = _table(lines, ("true class", "rows", "right", "rejected", "in its prediction set"))
    return [f"<details><summary>Class by class</summary>{table}</details>"]


def _risk_picture(view: View, metric: str) -> list[Part]:
    from abstain.training.report.confidence_plots import draw_risk_coverage, losses  # noqa: PLC0415 - a second to import

    reject, loss = view.familiar.judgement.reject, losses(view.familiar.prediction, view)
    told = []
    for part, chosen in (("accepted", ~reject), ("rejected", reject)):
        mean = loss[chosen].mean() if chosen.any() else None
        quality = f"accuracy {1 - mean:.2%}" if metric == "accuracy" and mean is not None else ""
        if metric == "rmse" and mean is not None:
            quality = f"RMSE {np.sqrt(mean):.4g}"
        told.append(f"{chosen.sum():,} {part}{', ' * bool(quality)}{quality}")
    return [
        "<h3>Does leaving out the doubtful help?</h3>",
        Picture(
            "risk",
            partial(draw_risk_coverage, view),
            f"Risk against coverage on {len(reject):,} test rows, by the decision score "
            f"({readable(view.familiar.decision_name)}) and by confidence. Of the rows now: {'; '.join(told)}.",
            f"Good: curves that fall towards the left, where fewer rows are answered. The dot is where the "
            f"threshold stands now: {'; '.join(told)}.",
        ),
    ]


def _number_pictures(manifest: Manifest, shown: Shown, view: View) -> list[Part]:
    from abstain.training.report import regression_plots  # noqa: PLC0415 - a second to import

    metrics: Any = manifest.metrics
    found = conformal_quality(view.familiar.judgement, view.rows.y)
    parts: list[Part] = []
    if shown.curve:
        parts += [
            "<h3>What it says along its input</h3>",
            Picture(
                "band",
                partial(regression_plots.draw_band, shown.curve, view.rows, *_axis_names(manifest)),
                _band_told(shown, metrics),
                "Good: the rows lie within the grey band, and the coloured one, what the draws disagree about, grows "
                "where training rows (between the dotted lines) end. The dashed conformal interval promises its share "
                "only on rows like the calibration rows.",
            ),
        ]
    else:
        parts += [
            "<h3>Predicted and true</h3>",
            Picture(
                "predicted",
                partial(regression_plots.draw_predicted, view),
                f"Predicted against true values of up to 300 of {len(view.rows):,} test rows: RMSE {metrics['rmse']:.4g}; "
                f"{found['coverage']:.1%} of the intervals hold the target, {found['asked']:.0%} asked for, "
                f"mean width {found['mean_width']:.4g}.",
                "Good: points about the line, and intervals that reach it as often as asked for, longer where the points "
                "lie further away.",
            ),
            _absent(shown.absent["curve"]) if "curve" in shown.absent and manifest.model.features == 1 else "",
        ]
    return [
        *parts,
        "<h3>Are its distributions as wide as they should be?</h3>",
        Picture(
            "pit",
            partial(regression_plots.draw_pit, view),
            f"Histogram of where {len(view.rows):,} targets fall in their predicted distributions; "
            f"{metrics['coverage_95']:.1%} of them within the central 95 %.",
            "Good: bars within the grey band. A ∪ means distributions that are too narrow, a ∩ too wide, a slope that "
            "predictions are too high or too low.",
        ),
        *_risk_picture(view, "rmse"),
    ]


def _axis_names(manifest: Manifest) -> tuple[str, str]:
    names = manifest.model.feature_names
    return (names[0] if names else "input"), manifest.model.target_name


def _band_told(shown: Shown, metrics: Any) -> str:
    assert shown.curve is not None  # noqa: S101 - the caller looked
    summary = shown.curve.along.prediction.summary
    x, train = shown.curve.along.x.reshape(-1), shown.curve.train.x
    inside = (x >= np.nanmin(train)) & (x <= np.nanmax(train))
    spread = np.sqrt(np.asarray(summary.epistemic_variance, np.float64))
    return (
        f"Mean and bands along the input, from {x[0]:.4g} to {x[-1]:.4g}, trained between {np.nanmin(train):.4g} and "
        f"{np.nanmax(train):.4g}: RMSE {metrics['rmse']:.4g}, {metrics['coverage_95']:.1%} of the test rows within the "
        f"95 % band. The epistemic standard deviation is {spread[inside].mean():.3g} on average between the training "
        f"rows' ends and {spread[~inside].mean():.3g} beyond."
    )


# ---- where it says that it does not know -----------------------------------------------------------------------------


def _strange(manifest: Manifest, calibration: Calibration, shown: Shown) -> list[Part]:
    from abstain.training.report import separation_plots  # noqa: PLC0415 - a second to import

    terms, view = manifest.calibration, shown.view
    limit = terms.thresholds[terms.decision]
    decided = readable(terms.decision)
    made = ""
    if terms.combination is not None:
        made = f", of {', '.join(map(readable, terms.combination.scores))} by the rule “{terms.combination.rule}”"
    intro = (
        f"<p>One score decides: <code>{html.escape(terms.decision)}</code>{html.escape(made)}. A row is rejected if its score is above the "
        f"{ordinal(terms.percentile)} percentile of {terms.rows:,} calibration rows, {limit:.4g}"
        f"{', or its own limit where its predicted class has one' if terms.per_class else ''}.</p>"
    )
    parts: list[Part] = [intro, *_augmented(manifest)]
    if view:
        rates = "; ".join(
            f"{readable(name)}: {seen.judgement.reject.mean():.2%} of {len(seen.x):,} rows"
            for name, seen in {"test rows": view.familiar, **view.strange}.items()
        )
        parts.append(
            Picture(
                "decision",
                partial(separation_plots.draw_ecdf, view),
                f"Distribution of the decision score, {decided}, with its threshold {limit:.4g}. Rejected: {rates}.",
                f"Good: the grey curve of the test rows reaches {terms.percentile:.4g} % at the line"
                + (", and the others have hardly begun there." if view.strange else "."),
            )
        )
    parts += _ood(manifest, shown)
    parts += [
        "<h3>Every score, and where strangeness begins</h3>",
        Picture(
            "scores",
            partial(separation_plots.draw_scores, calibration, view.familiar if view else None),
            f"Distributions of {len(terms.thresholds)} scores on {terms.rows:,} calibration rows, with thresholds: "
            + ", ".join(f"{readable(name)} {value:.4g}" for name, value in terms.thresholds.items())
            + ".",
            "Coloured: the calibration rows; dashed: the threshold; bold: the score that decides."
            + (" Good: the grey curve of the test rows lies under the coloured one." if view else ""),
        ),
        _threshold_table(manifest),
    ]
    return parts


def _ood(manifest: Manifest, shown: Shown) -> list[Part]:
    metrics: Any = manifest.metrics
    parts: list[Part] = ["<h3>Strange inputs</h3>"]
    if "ood" in shown.absent:
        parts.append(_absent(shown.absent["ood"]))
    view = shown.view
    if view is None or not view.strange:
        return parts if "ood" in shown.absent else [*parts, _absent("No set of strange inputs was given.")]
    from abstain.training.report.separation_plots import draw_roc  # noqa: PLC0415 - a second to import

    sets: dict[str, Any] = metrics["ood"]
    told = "; ".join(
        f"{readable(name)}: AUROC of the decision {scores['reject']['auroc']:.3f}, "
        f"{scores['reject']['detection']:.1%} of {metrics['ood_rows'][name]:,} rows rejected"
        for name, scores in sets.items()
    )
    names = ["reject", *(score for score in next(iter(sets.values())) if score != "reject")]
    decided = f"the decision ({readable(manifest.calibration.decision)})"
    aurocs = [
        (decided if score == "reject" else readable(score), *(f"{sets[name][score]['auroc']:.3f}" for name in sets))
        for score in names
    ]
    caught = [
        (
            readable(name),
            f"{metrics['ood_rows'][name]:,}",
            _with_interval(scores["reject"], "detection", "{:.1%}"),
            _with_interval(scores["reject"], "auroc", "{:.3f}"),
            f"{scores['reject']['fpr95']:.1%}",
        )
        for name, scores in sets.items()
    ]
    return [
        *parts,
        "<p>Nothing was fitted to these sets, and nothing was chosen by them.</p>",
        Picture(
            "roc",
            partial(draw_roc, view, across=2),
            f"ROC curves of test rows against strange inputs. {told}.",
            "Good: curves that rise at the left edge. The dot is where the threshold puts the decision; the familiar rows "
            "turned away are on a logarithmic axis, for few of them are to be.",
        ),
        _table(caught, ("set", "rows", "rejected (95 % limits)", "AUROC of the decision", "FPR95"), numbers=True),
        f"<details open><summary>AUROC of every score</summary>{_table(aurocs, ('score', *map(readable, sets)), numbers=True)}</details>",
    ]


def _with_interval(found: dict[str, Any], key: str, form: str) -> str:
    low, high = (form.format(end) for end in found[f"{key}_interval"])
    return f"{form.format(found[key])} ({low} … {high})"


def _threshold_table(manifest: Manifest) -> str:
    terms, metrics = manifest.calibration, manifest.metrics
    rates: Any = metrics.get("reject_rate", {})
    lines = [
        (
            readable(name) + (" (decides)" if name == terms.decision else ""),
            f"{limit:.4g}",
            f"{rates[name]:.2%}" if name in rates else "",
        )
        for name, limit in terms.thresholds.items()
    ]
    table = _table(lines, ("score", "threshold", "test rows above"))
    own = [(name, f"{limit:.4g}") for name, limit in terms.class_thresholds.items()]
    if own:
        table += _table(own, ("predicted class", "threshold of the decision"))
    return f"<details><summary>Thresholds</summary>{table}</details>"


# ---- how it was come by ----------------------------------------------------------------------------------------------


def _fit(manifest: Manifest, shown: Shown) -> list[Part]:
    from abstain.training.report import fit_plots  # noqa: PLC0415 - a second to import

    facts: Any = manifest.diagnostics
    parts: list[Part] = []
    if "loss" in facts and facts.get("reports"):
        kind, watched = fit_plots.reported_parts(facts["reports"][-1])
        loss = np.array(facts["loss"], np.float64)
        last = facts["reports"][-1]
        ends = " and ".join(f"{last[f'{part}_{kind}']:.4g} on {words}" for part, words in watched.items())
        parts += [
            "<h3>The loss</h3>",
            Picture(
                "loss",
                partial(fit_plots.draw_loss, facts),
                f"Loss over {last['step']:,} steps, from {loss[0]:.4g} to {loss[-1]:.4g}; at the end the "
                f"{readable(kind)} is {ends}.",
                "Good: a loss that has become flat, and held-out rows that do as well as training rows, or nearly so.",
            ),
        ]
    if "trace" in facts:
        parts += _chains(facts, shown)
    pictured = {"loss", "loss_unit", "reports", "trace"}
    told = {key: value for key, value in facts.items() if key not in pictured}
    told |= facts["reports"][-1] if facts.get("reports") else {}
    return [*parts, f"<details><summary>Diagnostics</summary>{_table(_flat(told))}</details>"]


def _chains(facts: Any, shown: Shown) -> list[Part]:
    from abstain.training.report import fit_plots  # noqa: PLC0415 - a second to import

    trace = np.array(facts["trace"], np.float64)
    ends = ", ".join(f"{value:.4g}" for value in trace[:, -1])
    agreed = shown.agreement
    parts: list[Part] = [
        f"<h3>The chains</h3><p>{html.escape(_agreement(facts))}</p>",
        Picture(
            "trace",
            partial(fit_plots.draw_trace, facts),
            f"Log posterior density of {facts['chains']} chains over {facts['samples'] // facts['chains']:,} samples each; "
            f"they end at {ends} nats.",
            "Good: chains that lie over one another, level, without a trend or long pauses.",
        ),
    ]
    if agreed is None:
        if not facts["function"]["values"]:
            return parts
        return [*parts, _absent(shown.absent.get("chains", "Ranks were not looked at for this report."))]
    shown_chains = len(fit_plots.least_even(agreed.worst))
    furthest = {kind: _furthest(counts) for kind, counts in (("worst", agreed.worst), ("best", agreed.best))}
    some = (
        f" Of {len(agreed.worst)} chains the {shown_chains} least even are shown."
        if shown_chains < len(agreed.worst)
        else ""
    )
    return [
        *parts,
        "<h3>Ranks of predictions</h3>",
        Picture(
            "ranks",
            partial(fit_plots.draw_ranks, agreed),
            f"Rank histograms, by chain, of the prediction whose chains agree worst (R-hat {rhat_text(agreed.rhat.max())}) and "
            f"best (R-hat {rhat_text(agreed.rhat.min())}), of {len(agreed.rhat)}. The bar furthest from an even spread is "
            f"{furthest['worst']:.2f} times it in the worst, {furthest['best']:.2f} times in the best.{some}",
            "Good: bars about the line in every chain. A slope or a hill means that a chain's predictions lie elsewhere than "
            f"the others' (Vehtari et al., 2021).{some}",
        ),
        "<h3>R-hat and effective sample size in function space</h3>",
        Picture(
            "agreement",
            partial(fit_plots.draw_agreement, agreed),
            f"Histograms over {len(agreed.rhat)} predictions: worst R-hat {rhat_text(facts['function']['rhat'])}, least bulk ESS "
            f"{facts['function']['ess_bulk']:.0f}, least tail ESS {facts['function']['ess_tail']:.0f}; limits 1.01 and 400.",
            "Good: every R-hat left of its limit, every effective sample size right of its own. Predictions at held-out inputs "
            "are counted, not weights: those may be permuted without a difference.",
        ),
    ]


def _furthest(counts: np.ndarray) -> float:
    shares = counts / (counts[0].sum() / counts.shape[1])
    return float(shares.flat[np.abs(shares - 1).argmax()])


def _agreement(facts: Any) -> str:
    """What the chains' predictions came to, in plain words."""
    function = facts["function"]
    if not function["values"]:
        return "The chains' predictions at held-out inputs are the same in every sample."
    return (
        f"Over {function['values']} predictions at held-out inputs the worst R-hat is {rhat_text(function['rhat'])} and the "
        f"least effective sample size {function['ess_bulk']:.0f} in the bulk, {function['ess_tail']:.0f} in the tails, "
        f"of {facts['samples']:,} samples in {facts['chains']} chains. Chains that agree have an R-hat of at most 1.01."
    )


# ---- settings and data -----------------------------------------------------------------------------------------------


def _augmented(manifest: Manifest) -> list[str]:
    """Both reject rates, where the calibration rows were augmented."""
    terms = manifest.calibration
    if terms.augmented_reject_rate is None or terms.plain_reject_rate is None:
        return []
    return [
        "<p>The calibration rows were augmented (<code>[calibration.augment]</code>). Of them the decision rejects "
        f"{terms.augmented_reject_rate:.2%}; of the same rows as they came, {terms.plain_reject_rate:.2%}. Expect the "
        "second rate of traffic that is not augmented. Drift is watched against the rows as they came.</p>"
    ]


def _settings(manifest: Manifest) -> list[Part]:
    data = manifest.data
    rows = [
        ("source", data.source),
        ("rows to train on", f"{data.train_rows:,}"),
        ("rows to calibrate on", f"{data.calibration_rows:,}"),
        ("rows to test on", f"{data.test_rows:,}"),
        ("fingerprint", data.fingerprint),
        *_flat({key: value for key, value in data.settings.items() if key != "source"}),
    ]
    terms = manifest.calibration.settings
    return [
        f"<details open><summary>Data</summary>{_table(rows)}</details>",
        f"<details><summary>Method {html.escape(manifest.method.kind)}</summary>"
        f"{_table([*_flat(manifest.method.settings), ('seed', str(manifest.seed))])}</details>",
        f"<details><summary>Network</summary>{_table(_flat(manifest.model.network.model_dump(mode='json')))}</details>",
        f"<details><summary>Calibration</summary>{_table(_flat(terms))}</details>" if terms else "",
    ]


def _packages(manifest: Manifest) -> str:
    listed = ", ".join(f"{html.escape(name)} {html.escape(version)}" for name, version in manifest.packages.items())
    return f"{listed}; commit {html.escape(manifest.git_commit or 'unknown')}"


# ---- what pages are made of ------------------------------------------------------------------------------------------


def _figure(figure: Picture, missing: list[str]) -> str:
    """A picture, and below it what good looks like; where it cannot be drawn, why."""
    from abstain.training.report.svg import picture  # noqa: PLC0415 - a second to import

    drawn = attempt(
        f"the picture “{readable(figure.name)}”",
        lambda: picture(figure.name, figure.draw, figure.description),
        missing,
    )
    if isinstance(drawn, Failure):
        return _absent(f"{drawn.sentence} It would show: {figure.description}")
    return f'<figure><div class="wide">{drawn}</div><figcaption>{html.escape(figure.good)}</figcaption></figure>'


def _absent(sentence: str) -> str:
    return f'<p class="soft">{html.escape(sentence)}</p>'


def _table(rows: list[tuple[str, ...]], head: tuple[str, ...] = (), *, numbers: bool = False) -> str:
    top = "".join(f'<th scope="col">{html.escape(cell)}</th>' for cell in head)
    top = f"<thead><tr>{top}</tr></thead>" if head else ""
    body = "".join(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    kind = "num" if numbers else "facts"
    return f'<div class="wide"><table class="{kind}">{top}<tbody>{body}</tbody></table></div>'


def _flat(tree: Any, prefix: str = "") -> list[tuple[str, ...]]:
    """A line for each leaf that says something."""
    if tree is None or (isinstance(tree, (list, tuple, dict)) and not tree):
        return []
    if isinstance(tree, dict):
        return [row for key, value in tree.items() for row in _flat(value, f"{prefix}{key} ")]
    return [(readable(prefix.strip()), _text(tree))]


def _text(value: Any) -> str:
    values = value if isinstance(value, (list, tuple)) else [value]
    return ", ".join(f"{part:.4g}" if isinstance(part, float) else str(part) for part in values)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and bool(np.isfinite(value))
