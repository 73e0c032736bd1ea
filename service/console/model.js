// Model: how a version was made, its metrics, and the other versions in the store.

import { el, hasKey, number, percent, plain, save, svg } from "./dom.js";
import { rolloutOf } from "./rollout.js";
import { inWords } from "./verdict.js";

const container = document.getElementById("description");

/** The table of classes is open if the recall of a class is below this, as in the report, or if there are few classes. */
const LEAST_ACCURACY = 0.5;
const FEW_CLASSES = 12;
/** Lists of more numbers are summarised; lists of more texts are shortened. */
const FEW_VALUES = 4;
const MANY_VALUES = 12;

/** Shows a version, and the versions of all models. */
export function showModel(found, models) {
  const { data, method } = found;
  container.replaceChildren(
    ...[
      remarks("Failed publication checks", found.shortfalls, "shortfall"),
      remarks("Notes", found.notes, "note"),
      rolloutOf(models.find(({ name }) => name === found.name)),
      el(
        "div",
        { class: "columns" },
        el(
          "section",
          {},
          el("h2", {}, `${found.name}:${found.version}`),
          facts([
            ["created", new Date(found.created).toLocaleString("en-GB", { dateStyle: "medium", timeStyle: "short" })],
            ["method", `${method.kind}, ${found.draws} draws`],
            [
              "network",
              found.network.kind + (found.network.hidden?.length ? `, hidden ${found.network.hidden.join("–")}` : ""),
            ],
            ["likelihood", plain(found.likelihood)],
            ["inputs", found.feature_shape.join(" × ")],
            found.class_names.length
              ? [
                  "classes",
                  found.class_names.length <= 12 ? found.class_names.join(", ") : `${found.class_names.length}`,
                ]
              : ["target", found.target_name],
            ["data", data.source],
            [
              "rows",
              [
                `${number(data.train_rows)} to train`,
                `${number(data.calibration_rows)} to calibrate`,
                `${number(data.test_rows)} to test`,
              ].join(", "),
            ],
            [
              "decision",
              plain(found.decision) +
                (found.combination.length ? ` of ${found.combination.map(plain).join(", ")}` : "") +
                (found.ambiguity ? `, and of ambiguity by ${inWords(found.ambiguity)}` : ""),
            ],
            ["percentile", String(found.percentile)],
            ...(found.risk
              ? [["limit of the error", `${percent(found.risk.max_error)} with a confidence of ${percent(found.risk.confidence)}`]]
              : []),
            ["coverage asked for", coverage(found)],
            ["seed", String(found.seed)],
            ["digest", found.digest],
          ]),
          found.report
            ? el("p", {}, reportLink(found.name, found.version, "The full report of this version"))
            : null,
        ),
        el(
          "section",
          {},
          el("h2", {}, "Metrics of the test part"),
          metrics(found.metrics),
          rates(found),
          classes(found),
          reliability(found),
        ),
      ),
      strangeSets(found.metrics),
      el(
        "details",
        {},
        el("summary", {}, "Settings of the method"),
        facts(flat(method.settings).map(([name, value]) => [plain(name), value])),
      ),
      el("details", {}, el("summary", {}, "Packages"), facts(Object.entries(found.packages))),
      versions(models),
    ].filter(Boolean),
  );
}

/** A link to a version's report. A link sends no key; if there is one, the report is fetched with it and saved as a file. */
function reportLink(name, version, text, attributes = {}) {
  const address = `console/models/${encodeURIComponent(name)}/versions/${version}/report.html`;
  const link = el("a", { href: address, ...attributes }, text);
  link.addEventListener("click", async (event) => {
    if (!hasKey()) return;
    event.preventDefault();
    try {
      await save(address, `${name}-${version}-report.html`);
    } catch (error) {
      link.replaceWith(error.message);
    }
  });
  return link;
}

function facts(rows) {
  return el(
    "dl",
    { class: "facts" },
    ...rows.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value))),
  );
}

function remarks(title, sentences, type) {
  return sentences.length
    ? el(
        "aside",
        { class: `remarks ${type}` },
        el("h2", {}, title),
        el("ul", {}, ...sentences.map((sentence) => el("li", {}, sentence))),
      )
    : null;
}

/** The share of the test part that each score alone would reject; the decision comes first. */
function rates({ metrics: { reject_rate: rejected }, expected_reject_rate: expected, part_rates: parts }) {
  if (!rejected) return null;
  const { reject, novel, ambiguous, ...others } = rejected;
  const row = ([name, share, calibrated]) => [plain(name), percent(share, 2), percent(calibrated, 2)];
  const ofParts = novel === undefined ? [] : [["novel", novel, parts.novel], ["ambiguous", ambiguous, parts.ambiguous]];
  return el(
    "div",
    {},
    table(["reject rate", "test part", "expected"], [["rejected", reject, expected], ...ofParts].map(row)),
    el(
      "details",
      {},
      el("summary", {}, "Reject rate of each score alone"),
      facts(Object.entries(others).map(([name, share]) => [plain(name), percent(share, 2)])),
    ),
  );
}

/** The coverage that was asked for, of which rows, and its bounds. */
function coverage({ coverage: asked, coverage_rows: rows, coverage_bounds: bounds }) {
  const kinds = [rows?.among === "accepted" ? "accepted rows" : "", rows?.per_class ? "each true class" : ""];
  const among = kinds.filter(Boolean).map((kind) => ` of ${kind}`);
  const between = bounds ? `; for 95 % of calibrations between ${percent(bounds[0])} and ${percent(bounds[1])}` : "";
  return `${percent(asked)}${among.join("")}${between}`;
}

/** The metrics that are single numbers, each with that of the baseline. */
function metrics({ baseline = {}, ...all }) {
  const numbers = Object.entries(all).filter(([, value]) => typeof value === "number");
  const compared = numbers.some(([name]) => name in baseline);
  const guess = baseline.class === undefined ? `the training mean, ${number(baseline.mean)}` : `“${baseline.class}”`;
  return el(
    "div",
    {},
    table(
      ["metric", "value", ...(compared ? ["baseline"] : [])],
      numbers.map(([name, value]) => [
        plain(name),
        number(value),
        ...(compared ? [name in baseline ? number(baseline[name]) : ""] : []),
      ]),
    ),
    compared ? el("p", { class: "small" }, `The baseline ignores the row: it always predicts ${guess}.`) : null,
  );
}

/** The rows, the predictions and the quality of each class, of the test part. */
function classes({ classes: rows }) {
  if (!rows) return null;
  const share = (value) => (value === null ? "–" : percent(value));
  const poor = rows.some(({ accuracy }) => accuracy !== null && accuracy < LEAST_ACCURACY);
  return el(
    "details",
    { id: "classes", open: poor || rows.length <= FEW_CLASSES },
    el("summary", {}, "Class by class"),
    table(
      ["class", "rows", "predicted", "recall", "precision"],
      rows.map((own) => [own.name, number(own.rows), number(own.predicted), share(own.accuracy), share(own.precision)]),
    ),
    el(
      "p",
      { class: "small" },
      "Recall: of the rows of the class, the share predicted as it. Precision: of the rows predicted as it, the share of the class.",
    ),
  );
}

/** How well the decision finds the rows of each OOD set. */
function strangeSets({ ood, ood_rows: counts }) {
  if (!ood) return null;
  return el(
    "section",
    {},
    el("h2", {}, "Strange inputs"),
    table(
      ["OOD set", "rows", "rejected", "AUROC"],
      Object.entries(ood).map(([name, { reject }]) => [
        plain(name),
        number(counts?.[name]),
        percent(reject?.detection),
        number(reject?.auroc),
      ]),
    ),
  );
}

/** A table whose first column names its rows. */
function table(heads, rows) {
  return el(
    "div",
    { class: "wide" },
    el(
      "table",
      { class: "figures" },
      el("thead", {}, el("tr", {}, ...heads.map((head) => el("th", { scope: "col" }, head)))),
      el(
        "tbody",
        {},
        ...rows.map(([name, ...cells]) =>
          el("tr", {}, el("th", { scope: "row" }, name), ...cells.map((cell) => el("td", {}, cell))),
        ),
      ),
    ),
  );
}

/** A tree of facts as rows of names and texts; many numbers are summarised. */
function flat(tree, prefix = "") {
  if (tree !== null && typeof tree === "object" && !Array.isArray(tree)) {
    return Object.entries(tree).flatMap(([name, value]) => flat(value, prefix ? `${prefix} ${name}` : name));
  }
  const values = [tree].flat(Infinity);
  if (values.length > FEW_VALUES && values.every((value) => typeof value === "number")) {
    const [low, high] = values.reduce(([a, b], value) => [Math.min(a, value), Math.max(b, value)], [Infinity, -Infinity]);
    return [[prefix, `${number(values.length)} numbers, ${number(low)} to ${number(high)}`]];
  }
  const texts = values.slice(0, MANY_VALUES).map((value) => (typeof value === "number" ? number(value) : String(value)));
  const more = values.length > MANY_VALUES ? [`${number(values.length - MANY_VALUES)} more`] : [];
  return [[prefix, [...texts, ...more].join(", ")]];
}

/** The reliability diagram of the test part, with the bins of the manifest as in the report. */
function reliability({ reliability: bins }) {
  if (!bins) return null;
  const size = 200;
  const at = (share) => size * share;
  const rows = bins.reduce((sum, { rows: own }) => sum + own, 0);
  return el(
    "section",
    {},
    el("h2", {}, "Reliability"),
    svg(
      "svg",
      {
        class: "reliability",
        viewBox: `-34 -16 ${size + 52} ${size + 52}`,
        role: "img",
        "aria-label": "Reliability diagram; the table below has its numbers",
      },
      svg("rect", { class: "frame", x: 0, y: 0, width: size, height: size }),
      svg("line", { class: "threshold", x1: 0, y1: size, x2: size, y2: 0 }),
      svg("polyline", {
        class: "ecdf",
        points: bins.map((bin) => `${at(bin.confidence)},${size - at(bin.accuracy)}`).join(" "),
      }),
      ...bins.map((bin) =>
        svg("circle", { class: "bin", cx: at(bin.confidence), cy: size - at(bin.accuracy), r: 4 }),
      ),
      ...[0, 0.5, 1].flatMap((share) => [
        svg("text", { x: at(share), y: size + 14, "text-anchor": "middle" }, String(share)),
        svg("text", { x: -6, y: size - at(share) + 4, "text-anchor": "end" }, String(share)),
      ]),
      svg("text", { x: size / 2, y: size + 30, "text-anchor": "middle" }, "confidence"),
      svg("text", { x: 6, y: 14 }, "accuracy"),
    ),
    el(
      "p",
      { class: "small" },
      `On the ${number(rows)} test rows, in ${number(bins.length)} bins of equal mass. `,
      "On the dashed line, confidence equals accuracy.",
    ),
    el(
      "details",
      {},
      el("summary", {}, "As a table"),
      el(
        "table",
        {},
        el("thead", {}, el("tr", {}, ...["confidence", "accuracy", "rows"].map((head) => el("th", { scope: "col" }, head)))),
        el(
          "tbody",
          {},
          ...bins.map((bin) =>
            el(
              "tr",
              {},
              el("td", {}, percent(bin.confidence)),
              el("td", {}, percent(bin.accuracy)),
              el("td", {}, number(bin.rows)),
            ),
          ),
        ),
      ),
    ),
  );
}

function versions(models) {
  const rows = models.flatMap((model) =>
    [...model.versions].reverse().map((version) =>
      el(
        "tr",
        {},
        el("th", { scope: "row" }, `${model.name}:${version.version}`),
        el("td", {}, ...version.labels.map((label) => el("span", { class: "tag" }, label))),
        el(
          "td",
          {},
          version.state,
          version.shortfalls.length && version.state !== "refused" ? el("span", { class: "tag" }, "has shortfalls") : null,
          version.why ? el("span", { class: "small block" }, version.why) : null,
        ),
        el("td", {}, version.method ?? "–"),
        el(
          "td",
          {},
          version.digest
            ? reportLink(model.name, version.version, "report", {
                "aria-label": `Report of ${model.name}:${version.version}`,
              })
            : "–",
        ),
      ),
    ),
  );
  return el(
    "section",
    {},
    el("h2", {}, "Versions in the store"),
    el(
      "table",
      { class: "versions", id: "versions" },
      el(
        "thead",
        {},
        el("tr", {}, ...["version", "labels", "state", "method", ""].map((head) => el("th", { scope: "col" }, head))),
      ),
      el("tbody", {}, ...rows),
    ),
  );
}
