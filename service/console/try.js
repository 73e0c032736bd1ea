// Try it: sends the edited row to the server and shows its prediction. Only the prediction of the latest row is shown.

import { showDetails, showVerdict } from "./answer.js";
import { el, fetchJSON } from "./dom.js";
import { editorFor } from "./editors.js";

const elements = Object.fromEntries(
  ["editor", "verdict", "trouble", "details", "unsound"].map((id) => [id, document.getElementById(id)]),
);

let description = null;
let editor = null;
let percentile = null;
let predicting = false;
let again = false;

/** Shows the editor for a version's rows. */
export function use(version) {
  description = version;
  editor = null;
  percentile = el("input", {
    id: "percentile",
    type: "number",
    min: "1",
    max: "99.99",
    step: "any",
    value: version.percentile,
    onchange: update,
  });
  warn(version);
  showPrediction(null);
  editor = editorFor(version, update);
  elements.editor.replaceChildren(
    editor.element,
    el(
      "p",
      { class: "percentile" },
      el("label", { for: "percentile" }, "Say “I don’t know” above the percentile "),
      percentile,
    ),
  );
  update();
}

/** Shows a banner above the predictions of a version with shortfalls. */
function warn({ shortfalls, name, version }) {
  elements.unsound.hidden = !shortfalls.length;
  elements.unsound.replaceChildren(
    el("h2", {}, "Failed publication checks"),
    el(
      "p",
      {},
      `${name}:${version} has ${shortfalls.length === 1 ? "one shortfall" : `${shortfalls.length} shortfalls`}: `,
      "its predictions and reject flags may be wrong. ",
      el("a", { href: `#model/${encodeURIComponent(`${name}:${version}`)}` }, "Show shortfalls"),
    ),
  );
}

/** Draws the parts that depend on the theme again. */
export function repaint() {
  editor?.repaint();
}

async function update() {
  if (!editor) return;
  if (predicting) {
    again = true;
    return;
  }
  const row = editor.row();
  if (!row) {
    showPrediction(null);
    return;
  }
  predicting = true;
  const requested = description;
  try {
    const response = await predict(requested, row, Number(percentile.value));
    if (requested === description) showPrediction(response.predictions[0], response.percentile);
  } catch (error) {
    if (requested === description) showPrediction(null, null, error.message);
  }
  predicting = false;
  if (again) {
    again = false;
    update();
  }
}

/** The response for one flat row. */
function predict({ name, version }, row, requestedPercentile) {
  const body = { inputs: [row], model: `${name}:${version}`, percentile: requestedPercentile };
  return fetchJSON("predict", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
  });
}

function showPrediction(prediction, at = null, trouble = "") {
  showVerdict(elements.verdict, description, prediction, at);
  showDetails(elements.details, description, prediction, at);
  elements.trouble.hidden = !trouble;
  elements.trouble.textContent = trouble;
}
