// Watch it: /metrics is read every two seconds while the page is seen, and what has changed is drawn.

import { ask, el, number, ordinal, percent, placed, plain } from "./dom.js";
import { histogram, matching, parse, quantile, since, total } from "./exposition.js";
import uPlot from "./uPlot.esm.js";

const PERIOD = 2000;
const KEPT = 150;
/** Readings over which a rate is taken. */
const SPAN = 5;
const PREDICTIONS = { route: (route) => route === "/predict" || route.endsWith("/infer") };

const places = Object.fromEntries(["watched", "pulse", "pause"].map((id) => [id, document.getElementById(id)]));

let description = null;
let readings = [];
/** The first of all, which is kept when those after it are let go. */
let opening = null;
let charts = [];
let paused = false;
let whole = true;
let score = null;
let parts = null;

/** Starts reading; called once. */
export function start() {
  places.pause.addEventListener("click", () => {
    paused = !paused;
    places.pause.setAttribute("aria-pressed", String(paused));
    places.pause.textContent = paused ? "Resume" : "Pause";
    say(paused ? "paused" : "");
    if (!paused) read();
  });
  document.addEventListener("visibilitychange", () => document.hidden || read());
  window.addEventListener("resize", () =>
    charts.forEach(({ plot, place }) => plot.setSize({ width: place.clientWidth, height: 160 })),
  );
  read();
}

/** Watches a version. */
export function use(found) {
  description = found;
  score = found.decision;
  build();
}

/** Draws anew: the view has been opened, or the theme has changed. */
export function repaint() {
  if (description) build();
}

let timer = null;

async function read() {
  clearTimeout(timer);
  if (paused || document.hidden) return;
  try {
    const response = await ask("metrics", { cache: "no-store" });
    if (!response.ok) throw new Error(`the server answered ${response.status}`);
    const reading = { time: Date.now() / 1000, samples: parse(await response.text()) };
    if (paused) return;
    // A server that has started again counts from 0: what was read before is of another.
    const before = readings.at(-1);
    const counted = (one) => total(one.samples, "abstain_requests_total");
    if (!before || counted(reading) < counted(before)) [readings, opening] = [[], reading];
    readings = [...readings, reading].slice(-KEPT);
    say(`read at ${new Date().toLocaleTimeString("en-GB")}`, true);
    update();
  } catch (error) {
    say(`no metrics: ${error.message}`);
  }
  clearTimeout(timer);
  timer = setTimeout(read, PERIOD);
}

/** What the head of the view says; `quiet`, what repeats, is not for a screen reader to read out. */
function say(text, quiet = false) {
  places.pulse.setAttribute("aria-live", quiet ? "off" : "polite");
  places.pulse.textContent = text;
}

// ---- what is there --------------------------------------------------------------------------------------------------

function build() {
  charts.forEach(({ plot }) => plot.destroy());
  charts = [];
  const tile = (id, name) => el("div", { class: "tile" }, el("dt", {}, name), el("dd", { id }, "–"));
  const chart = (id, title, ...keys) =>
    el(
      "figure",
      { class: "chart" },
      el(
        "figcaption",
        {},
        title,
        ...keys.map(([kind, name]) =>
          el("span", { class: "small" }, el("span", { class: `key ${kind}`, "aria-hidden": "true" }), name),
        ),
      ),
      el("div", { id, role: "img", "aria-label": title }),
    );
  const select = el(
    "select",
    {
      id: "watched-score",
      onchange: () => {
        score = select.value;
        update();
      },
    },
    ...Object.keys(description.scores).map((name) =>
      el("option", { value: name, selected: name === score }, plain(name)),
    ),
  );
  const choice = (value, text) =>
    el(
      "label",
      {},
      el("input", {
        type: "radio",
        name: "since",
        checked: whole === value,
        onchange: () => {
          whole = value;
          update();
        },
      }),
      text,
    );

  parts = { spread: el("div", { id: "spread" }), drift: el("div", { id: "drift" }) };
  places.watched.replaceChildren(
    el(
      "fieldset",
      { class: "since" },
      el("legend", { class: "hidden-text" }, "Count"),
      choice(true, "since the server started"),
      choice(false, "since this page was opened"),
    ),
    el(
      "dl",
      { class: "tiles" },
      tile("reject-rate", "rejected"),
      tile("rows", "rows"),
      tile("rate", "requests a second, now"),
      tile("median", "median latency"),
      tile("slow", "99th percentile latency"),
    ),
    el(
      "div",
      { class: "charts" },
      chart("chart-reject", "Reject rate, %", ["unknown", "rejected"], ["muted", "expected"]),
      chart("chart-rate", "Requests a second"),
      chart("chart-latency", "Latency, ms", ["accept", "median"], ["muted", "99th percentile"]),
    ),
    el(
      "section",
      {},
      el("h2", {}, "Scores against their calibration"),
      el(
        "p",
        { class: "small" },
        "Familiar rows fall evenly over the calibration’s percentiles: each bar then ends at its mark.",
      ),
      el("p", {}, el("label", { for: "watched-score" }, "Score "), select),
      parts.spread,
    ),
    el(
      "section",
      {},
      el("h2", {}, "Drift"),
      parts.drift,
      el("div", { class: "charts" }, chart("chart-drift", "Log martingale, by score")),
    ),
  );
  charts = [
    drawn(
      "chart-reject",
      [line("rejected", "--unknown"), line("expected", "--muted", { dash: [4, 4], width: 1 })],
      () => [series(({ now, then }) => 100 * rejectRate(now, then)), readings.map(() => 100 - description.percentile)],
    ),
    drawn("chart-rate", [line("requests", "--accept")], () => [
      series(({ now, then, seconds }) => gained(now, then, "abstain_requests_total", PREDICTIONS) / seconds),
    ]),
    drawn("chart-latency", [line("median", "--accept"), line("99th percentile", "--muted")], () =>
      [0.5, 0.99].map((level) => series(({ now, then }) => milliseconds(latency(now, then), level))),
    ),
  ];
  update();
}

function drawn(id, lines, values) {
  const place = document.getElementById(id);
  const axis = {
    stroke: tint("--muted"),
    grid: { stroke: tint("--line"), width: 1 },
    ticks: { show: false },
    font: "12px system-ui",
  };
  const plot = new uPlot(
    {
      width: Math.max(200, place.clientWidth),
      height: 160,
      legend: { show: false },
      cursor: { show: false },
      scales: {
        x: { time: true },
        y: { range: (_, low, high) => [Math.min(0, low ?? 0), Math.max(1e-9, (high ?? 1) * 1.15 || 1)] },
      },
      axes: [
        { ...axis, size: 28, space: 70, values: "{HH}:{mm}:{ss}" },
        { ...axis, size: 44, values: (_, ticks) => ticks.map((tick) => number(tick)) },
      ],
      series: [{}, ...lines],
    },
    [[], ...lines.map(() => [])],
    place,
  );
  return { plot, place, values };
}

/** A line of a chart, in one of the page's colours. */
function line(label, colour, more = {}) {
  return { label, stroke: tint(colour), width: 2, points: { show: false }, ...more };
}

const tint = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

// ---- what it comes to -----------------------------------------------------------------------------------------------

const model = () => ({ model: description.name, version: String(description.version) });

/** For every reading, what `figure` says of it and of one a few readings before; null where that is no number. */
function series(figure) {
  return readings.map((now, place) => {
    if (!place) return null;
    const then = readings[Math.max(0, place - SPAN)];
    const value = figure({ now: now.samples, then: then.samples, seconds: now.time - then.time });
    return Number.isFinite(value) ? value : null;
  });
}

const gained = (now, then, name, labels) => total(now, name, labels) - (then ? total(then, name, labels) : 0);

const rejectRate = (now, then) =>
  gained(now, then, "abstain_rejected_total", model()) / gained(now, then, "abstain_rows_total", model());

function latency(now, then) {
  const of = (samples) => histogram(samples, "abstain_request_seconds", PREDICTIONS);
  return then ? since(of(now), of(then)) : of(now);
}

function milliseconds(durations, level) {
  const seconds = quantile(durations, level);
  return seconds === null ? Number.NaN : 1000 * seconds;
}

function update() {
  if (!description || !readings.length || document.getElementById("watch").hidden) return;
  const now = readings.at(-1).samples;
  const then = whole ? null : opening.samples;
  const rows = gained(now, then, "abstain_rows_total", model());
  const durations = latency(now, then);
  const tell = (id, text) => {
    document.getElementById(id).textContent = text;
  };
  const rate = series(
    ({ now: a, then: b, seconds }) => gained(a, b, "abstain_requests_total", PREDICTIONS) / seconds,
  ).at(-1);
  tell("rows", number(rows));
  tell("reject-rate", rows ? percent(rejectRate(now, then)) : "–");
  tell("rate", rate === null ? "–" : rate.toFixed(1));
  tell("median", durations.counts.some(Boolean) ? `${number(milliseconds(durations, 0.5))} ms` : "–");
  tell("slow", durations.counts.some(Boolean) ? `${number(milliseconds(durations, 0.99))} ms` : "–");
  showSpread(now, then);
  showDrift(now);
  const times = readings.map((reading) => reading.time);
  for (const { plot, place, values } of charts) {
    const data = values();
    plot.setData([times, ...data]);
    const last = data[0].findLast?.((value) => value !== null);
    place.setAttribute(
      "aria-label",
      `${place.previousSibling.firstChild.textContent}: ${last === undefined ? "nothing yet" : `now ${number(last)}`}`,
    );
  }
}

/** The share of the rows in each span of percentiles, beside the share that belongs there. */
function showSpread(now, then) {
  const of = (samples) => histogram(samples, "abstain_score_percentile", { ...model(), score });
  const { bounds, counts } = then ? since(of(now), of(then)) : of(now);
  const rows = counts.reduce((sum, count) => sum + count, 0);
  if (!rows) {
    parts.spread.replaceChildren(el("p", { class: "muted" }, "No rows yet."));
    return;
  }
  const finite = bounds
    .map((bound, place) => ({ bound, count: counts[place] }))
    .filter(({ bound }) => Number.isFinite(bound));
  // Square roots, so that a hundredth of the rows is seen beside a quarter of them.
  const long = (share) => 100 * Math.sqrt(share);
  parts.spread.replaceChildren(
    el(
      "table",
      { class: "bars spread" },
      el(
        "thead",
        {},
        el("tr", {}, ...["percentile", "", "rows", "expected"].map((head) => el("th", { scope: "col" }, head))),
      ),
      el(
        "tbody",
        {},
        ...finite.map(({ bound, count }, place) => {
          const from = place ? finite[place - 1].bound : 0;
          const [share, expected] = [count / rows, (bound - from) / 100];
          return el(
            "tr",
            { class: from >= description.percentile ? "top" : null },
            el("th", { scope: "row" }, `${from}–${bound}`),
            el(
              "td",
              { class: "bar-cell" },
              el(
                "div",
                { class: "track", "aria-hidden": "true" },
                placed(el("span", { class: "fill" }), { width: long(share) }),
                placed(el("span", { class: "expected" }), { left: long(expected) }),
              ),
            ),
            el("td", {}, percent(share)),
            el("td", { class: "muted" }, percent(expected)),
          );
        }),
      ),
    ),
    el(
      "p",
      { class: "small" },
      `${number(rows)} rows. The calibration’s ${ordinal(description.percentile)} percentile is the limit of what is `,
      "accepted, if the score decides. Lengths are square roots.",
    ),
  );
}

// ---- drift ----------------------------------------------------------------------------------------------------------

const DRIFT = "abstain_drift_log_martingale";

function showDrift(now) {
  const found = matching(now, DRIFT, model());
  const place = document.getElementById("chart-drift");
  place.parentElement.hidden = !found.length;
  if (!found.length) {
    parts.drift.replaceChildren(el("p", { class: "muted", id: "no-drift" }, "Not measured yet."));
    return;
  }
  const level = matching(now, "abstain_drift_alarm_level").at(0)?.value;
  const of = (name, own) => matching(now, name, { ...model(), score: own }).at(0)?.value;
  parts.drift.replaceChildren(
    el(
      "table",
      {},
      el(
        "thead",
        {},
        el(
          "tr",
          {},
          ...["score", "log martingale", "PSI", "KS", "alarm"].map((head) => el("th", { scope: "col" }, head)),
        ),
      ),
      el(
        "tbody",
        {},
        ...found.map(({ labels, value }) => {
          const crossed = of("abstain_drift_crossed_timestamp_seconds", labels.score);
          return el(
            "tr",
            { class: crossed > 0 ? "top" : null },
            el("th", { scope: "row" }, plain(labels.score)),
            el("td", {}, number(value)),
            el("td", {}, windowed(of("abstain_drift_psi", labels.score))),
            el("td", {}, windowed(of("abstain_drift_ks", labels.score))),
            el("td", {}, crossed > 0 ? `since ${new Date(1000 * crossed).toLocaleString("en-GB")}` : "none"),
          );
        }),
      ),
    ),
    el("p", { class: "small" }, level === undefined ? "" : `Alarm at ${number(level)}.`),
  );
  drawDrift(
    found.map(({ labels }) => labels.score),
    level,
  );
}

/** A figure of the last rows, which the server gives once a worker has seen enough of them (models/decisions/drift.py, FEWEST). */
const windowed = (value) => (value === undefined ? "needs 300 rows" : number(value));

/** The martingales over time; made when there are any, and again when there are others. */
function drawDrift(names, level) {
  const key = names.join(" ");
  const old = charts.find((chart) => chart.key);
  if (old?.key === key) return;
  old?.plot.destroy();
  const values = () => [
    ...names.map((own) =>
      readings.map(({ samples }) => matching(samples, DRIFT, { ...model(), score: own }).at(0)?.value ?? null),
    ),
    readings.map(() => level ?? null),
  ];
  const lines = [
    ...names.map((own) => line(plain(own), own === description.decision ? "--accept" : "--muted")),
    line("alarm", "--unknown", { dash: [4, 4], width: 1 }),
  ];
  charts = [...charts.filter((chart) => chart !== old), { ...drawn("chart-drift", lines, values), key }];
}
