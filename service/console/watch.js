// Watch it: reads /metrics every two seconds while the page is visible, and draws the changes.

import { capital, el, number, ordinal, percent, placed, plain, request } from "./dom.js";
import { histogram, matching, parse, quantile, since, total } from "./exposition.js";
import uPlot from "./uPlot.esm.js";

const PERIOD = 2000;
const KEPT = 150;
/** The number of readings over which a rate is computed. */
const SPAN = 5;
/** Fewer rows are too few to judge; drift needs as many (models/decisions/drift.py, FEWEST). */
const FEWEST = 300;
const PREDICTIONS = { route: (route) => route === "/predict" || route.endsWith("/infer") };

const elements = Object.fromEntries(["watched", "pulse", "pause"].map((id) => [id, document.getElementById(id)]));

let description = null;
let readings = [];
/** The first reading, which is kept when later ones are dropped. */
let opening = null;
let charts = [];
let paused = false;
let sinceStart = true;
let score = null;
let parts = null;

/** Starts reading; called once. */
export function start() {
  elements.pause.addEventListener("click", () => {
    paused = !paused;
    elements.pause.setAttribute("aria-pressed", String(paused));
    elements.pause.textContent = paused ? "Resume" : "Pause";
    setStatus(paused ? "paused" : "");
    if (!paused) read();
  });
  document.addEventListener("visibilitychange", () => document.hidden || read());
  window.addEventListener("resize", () =>
    charts.forEach(({ plot, container }) => plot.setSize({ width: container.clientWidth, height: 160 })),
  );
  read();
}

/** Watches a version. */
export function use(version) {
  description = version;
  score = version.decision;
  build();
}

/** Draws the view again after it has been opened or the theme has changed. */
export function repaint() {
  if (description) build();
}

let timer = null;

async function read() {
  clearTimeout(timer);
  if (paused || document.hidden) return;
  try {
    const response = await request("metrics", { cache: "no-store" });
    if (!response.ok) throw new Error(`the server responded with status ${response.status}`);
    const reading = { time: Date.now() / 1000, samples: parse(await response.text()) };
    if (paused) return;
    // A restarted server counts from 0, so earlier readings are dropped.
    const before = readings.at(-1);
    const counted = (one) => total(one.samples, "abstain_requests_total");
    if (!before || counted(reading) < counted(before)) [readings, opening] = [[], reading];
    readings = [...readings, reading].slice(-KEPT);
    setStatus(`read at ${new Date().toLocaleTimeString("en-GB")}`, true);
    update();
  } catch (error) {
    setStatus(`no metrics: ${error.message}`);
  }
  clearTimeout(timer);
  timer = setTimeout(read, PERIOD);
}

/** Sets the status in the head of the view; screen readers do not read a `quiet` one, which repeats. */
function setStatus(text, quiet = false) {
  elements.pulse.setAttribute("aria-live", quiet ? "off" : "polite");
  elements.pulse.textContent = text;
}

// ---- the elements of the view --------------------------------------------------------------------------------------------------

function build() {
  charts.forEach(({ plot }) => plot.destroy());
  charts = [];
  const tile = (id, name, ...more) => el("div", { class: "tile" }, el("dt", {}, name), el("dd", { id }, "–"), ...more);
  const chart = (id, title, ...keys) =>
    el(
      "figure",
      { class: "chart" },
      el(
        "figcaption",
        {},
        title,
        ...keys.map(([style, name]) =>
          el("span", { class: "small" }, el("span", { class: `key ${style}`, "aria-hidden": "true" }), name),
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
        checked: sinceStart === value,
        onchange: () => {
          sinceStart = value;
          update();
        },
      }),
      text,
    );

  parts = { spread: el("div", { id: "spread" }), drift: el("div", { id: "drift" }) };
  elements.watched.replaceChildren(
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
      tile("reject-rate", "reject rate", el("dd", { id: "too-few", class: "small", hidden: true })),
      tile("rows", "rows"),
      tile("rate", "requests per second, now"),
      tile("median", "median latency"),
      tile("slow", "99th percentile latency"),
    ),
    el(
      "div",
      { class: "charts" },
      chart("chart-reject", "Reject rate, %", ["unknown", "rejected"], ["muted", "expected"]),
      chart("chart-rate", "Requests per second"),
      chart("chart-latency", "Latency, ms", ["accept", "median"], ["muted", "99th percentile"]),
    ),
    el(
      "section",
      {},
      el("h2", {}, "Scores, compared with the calibration rows"),
      el(
        "p",
        { class: "small" },
        "Familiar rows are spread evenly over the percentiles of the calibration rows: each bar then ends at its mark.",
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
    makeChart(
      "chart-reject",
      [line("rejected", "--unknown"), line("expected", "--muted", { dash: [4, 4], width: 1 })],
      () => [series(({ now, then }) => 100 * rejectRate(now, then)), readings.map(() => 100 * description.expected_reject_rate)],
    ),
    makeChart("chart-rate", [line("requests", "--accept")], () => [
      series(({ now, then, seconds }) => gained(now, then, "abstain_requests_total", PREDICTIONS) / seconds),
    ]),
    makeChart("chart-latency", [line("median", "--accept"), line("99th percentile", "--muted")], () =>
      [0.5, 0.99].map((level) => series(({ now, then }) => milliseconds(latency(now, then), level))),
    ),
  ];
  update();
}

function makeChart(id, lines, values) {
  const container = document.getElementById(id);
  const axis = {
    stroke: tint("--muted"),
    grid: { stroke: tint("--line"), width: 1 },
    ticks: { show: false },
    font: "12px system-ui",
  };
  const plot = new uPlot(
    {
      width: Math.max(200, container.clientWidth),
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
    container,
  );
  return { plot, container, values };
}

/** A line of a chart, in one of the page's colours. */
function line(label, colour, more = {}) {
  return { label, stroke: tint(colour), width: 2, points: { show: false }, ...more };
}

const tint = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

// ---- computed values -----------------------------------------------------------------------------------------------

const model = () => ({ model: description.name, version: String(description.version) });

/** For every reading, the value of `figure` for it and an earlier one; null if that is not a number. */
function series(figure) {
  return readings.map((now, index) => {
    if (!index) return null;
    const then = readings[Math.max(0, index - SPAN)];
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
  const then = sinceStart ? null : opening.samples;
  const rows = gained(now, then, "abstain_rows_total", model());
  const durations = latency(now, then);
  const setText = (id, text) => {
    document.getElementById(id).textContent = text;
  };
  const rate = series(
    ({ now: a, then: b, seconds }) => gained(a, b, "abstain_requests_total", PREDICTIONS) / seconds,
  ).at(-1);
  setText("rows", number(rows));
  setText("too-few", tooFew(rows));
  document.getElementById("too-few").hidden = !(rows > 0 && rows < FEWEST);
  setText("reject-rate", rows ? percent(rejectRate(now, then)) : "–");
  setText("rate", rate === null ? "–" : rate.toFixed(1));
  setText("median", durations.counts.some(Boolean) ? `${number(milliseconds(durations, 0.5))} ms` : "–");
  setText("slow", durations.counts.some(Boolean) ? `${number(milliseconds(durations, 0.99))} ms` : "–");
  showSpread(now, then);
  showDrift(now);
  const times = readings.map((reading) => reading.time);
  for (const { plot, container, values } of charts) {
    const data = values();
    plot.setData([times, ...data]);
    const last = data[0].findLast?.((value) => value !== null);
    container.setAttribute(
      "aria-label",
      `${container.previousSibling.firstChild.textContent}: ${last === undefined ? "no data yet" : `now ${number(last)}`}`,
    );
  }
}

const tooFew = (rows) => `too few rows to judge: ${number(rows)} of ${FEWEST}`;

/** The share of the rows in each range of percentiles, and the expected share. */
function showSpread(now, then) {
  const of = (samples) => histogram(samples, "abstain_score_percentile", { ...model(), score });
  const { bounds, counts } = then ? since(of(now), of(then)) : of(now);
  const rows = counts.reduce((sum, count) => sum + count, 0);
  if (!rows) {
    parts.spread.replaceChildren(el("p", { class: "muted" }, "No rows yet."));
    return;
  }
  const finite = bounds
    .map((bound, index) => ({ bound, count: counts[index] }))
    .filter(({ bound }) => Number.isFinite(bound));
  // Square roots, so that a hundredth of the rows is visible next to a quarter of them.
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
        ...finite.map(({ bound, count }, index) => {
          const from = index ? finite[index - 1].bound : 0;
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
      rows < FEWEST ? `${capital(tooFew(rows))}. ` : `${number(rows)} rows. `,
      `If this score decides, rows above the ${ordinal(description.percentile)} percentile of the `,
      "calibration rows are rejected. The lengths are square roots.",
    ),
  );
}

// ---- drift ----------------------------------------------------------------------------------------------------------

const DRIFT = "abstain_drift_log_martingale";

function showDrift(now) {
  const found = matching(now, DRIFT, model());
  const container = document.getElementById("chart-drift");
  container.parentElement.hidden = !found.length;
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
            el("td", {}, windowedPSI(of("abstain_drift_psi", labels.score))),
            el("td", {}, windowed(of("abstain_drift_ks", labels.score))),
            el("td", {}, crossed > 0 ? `since ${new Date(1000 * crossed).toLocaleString("en-GB")}` : "none"),
          );
        }),
      ),
    ),
    el(
      "p",
      { class: "small" },
      level === undefined ? "" : `Alarm at ${number(level)}. `,
      `${TOO_FEW} means too few rows: PSI and KS need ${FEWEST}, and PSI as many calibration rows; `,
      `this version has ${number(description.calibration_rows)}.`,
    ),
  );
  drawDrift(
    found.map(({ labels }) => labels.score),
    level,
  );
}

/** In place of a statistic; the line below the table says why. */
const TOO_FEW = "–";

/** A statistic of a worker's last rows; the server gives it once there are enough of them. */
const windowed = (value) => (value === undefined ? TOO_FEW : number(value));

/** The PSI needs as many calibration rows, too. */
const windowedPSI = (value) => (description.calibration_rows < FEWEST ? TOO_FEW : windowed(value));

/** Draws the martingales over time; makes the chart again when the scores change. */
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
  charts = [...charts.filter((chart) => chart !== old), { ...makeChart("chart-drift", lines, values), key }];
}
