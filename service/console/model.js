// Model: how a version was made, its metrics, and the other versions in the store.

import { el, hasKey, number, percent, plain, save, svg } from "./dom.js";

const container = document.getElementById("description");

/** Shows a version, and the versions of all models. */
export function showModel(found, models) {
  const { data, method } = found;
  // The rates and the diagram are shown below the list.
  const { reject_rate: rejected, reliability: _, ...headline } = found.metrics;
  container.replaceChildren(
    ...[
      remarks("Failed publication checks", found.shortfalls, "shortfall"),
      remarks("Notes", found.notes, "note"),
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
                (found.ambiguity ? `, and of ambiguity by ${plain(found.ambiguity)}` : ""),
            ],
            ["percentile", String(found.percentile)],
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
          facts(flat(headline).map(([name, value]) => [plain(name), value])),
          rates(rejected),
          reliability(found),
        ),
      ),
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
function rates(rejected) {
  if (!rejected) return null;
  const { reject, novel, ambiguous, ...others } = rejected;
  const row = ([name, share]) => [plain(name), percent(share, 2)];
  return el(
    "div",
    {},
    facts([
      ["reject rate", percent(reject, 2)],
      ...(novel === undefined ? [] : Object.entries({ novel, ambiguous }).map(row)),
    ]),
    el("details", {}, el("summary", {}, "Reject rate of each score alone"), facts(Object.entries(others).map(row))),
  );
}

/** A tree of facts as rows of names and texts. */
function flat(tree, prefix = "") {
  if (tree !== null && typeof tree === "object" && !Array.isArray(tree)) {
    return Object.entries(tree).flatMap(([name, value]) => flat(value, prefix ? `${prefix} ${name}` : name));
  }
  const texts = [tree].flat().map((value) => (typeof value === "number" ? number(value) : String(value)));
  return [[prefix, texts.join(", ")]];
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
