// Try it: sends the edited row to the server and shows its prediction. Only the prediction of the latest row is shown.

import { showDetails } from "./answer.js";
import { el, fetchJSON, hasKey } from "./dom.js";
import { editorFor } from "./editors.js";
import { asCurl, asPython, bodyOf } from "./requests.js";
import { showVerdict } from "./verdict.js";

const elements = Object.fromEntries(
  ["editor", "pinned", "verdict", "trouble", "details", "unsound"].map((id) => [id, document.getElementById(id)]),
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
  showPrediction({});
  editor = editorFor(version, update);
  elements.editor.replaceChildren(
    editor.element,
    el(
      "p",
      { class: "percentile" },
      el("label", { for: "percentile" }, "Say “I don’t know” above the percentile "),
      percentile,
    ),
    copies(),
  );
  update();
}

/** Buttons that copy the current request. */
function copies() {
  const status = el("span", { id: "copied", class: "small", role: "status" });
  // Shown where the browser gives pages no clipboard, as over plain HTTP from another machine.
  const text = el("textarea", { id: "copy-text", rows: "6", readonly: true, "aria-label": "The request", hidden: true });
  async function copy(write) {
    let code = "";
    text.hidden = true;
    try {
      code = write(new URL("predict", document.baseURI).href, currentBody(), hasKey());
    } catch (error) {
      status.textContent = error.message;
      return;
    }
    try {
      await navigator.clipboard.writeText(code);
      status.textContent = "Copied.";
    } catch {
      text.value = code;
      text.hidden = false;
      text.select();
      status.textContent = "The browser allows no copying here: copy the text below.";
    }
  }
  return el(
    "div",
    { class: "copies" },
    el(
      "div",
      { class: "buttons", role: "group", "aria-label": "The current request" },
      el("button", { type: "button", class: "quiet", onclick: () => copy(asCurl) }, "Copy as curl"),
      el("button", { type: "button", class: "quiet", onclick: () => copy(asPython) }, "Copy as Python"),
      status,
    ),
    text,
  );
}

/** The body of the request for the edited row. Throws an Error that says why there is none. */
function currentBody() {
  const values = editor.row();
  if (!values) throw new Error("Draw something, or choose an example: the prediction appears at once.");
  return bodyOf(description, values, Number(percentile.value));
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
  const requested = description;
  let values = null;
  let body = null;
  try {
    values = editor.row();
    body = currentBody();
  } catch (error) {
    showPrediction({ missing: error.message });
    return;
  }
  predicting = true;
  try {
    const { predictions, percentile: at } = await predict(body);
    if (requested === description) showPrediction({ prediction: predictions[0], percentile: at, values });
  } catch (error) {
    if (requested === description) showPrediction({ trouble: error.message });
  }
  predicting = false;
  if (again) {
    again = false;
    update();
  }
}

function predict(body) {
  return fetchJSON("predict", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
  });
}

/** Shows a prediction of the row's values, or `missing`: what the row still lacks, or `trouble`: the error of the server. */
function showPrediction({ prediction = null, percentile: at = null, values = [], missing = "", trouble = "" }) {
  if (prediction) showVerdict(elements.verdict, description, prediction, at, values);
  else showNone(missing);
  // On a narrow page this stays in view while the row is edited below it.
  elements.pinned.className = elements.verdict.className;
  elements.pinned.replaceChildren(
    elements.verdict.querySelector(".word").textContent,
    prediction ? "" : el("span", { class: "small block" }, missing || trouble),
  );
  showDetails(elements.details, description, prediction, at);
  elements.trouble.hidden = !trouble;
  elements.trouble.textContent = trouble;
}

function showNone(missing) {
  elements.verdict.className = "verdict";
  elements.verdict.replaceChildren(
    el("p", { class: "word muted" }, "No prediction yet"),
    el("p", { class: "why" }, missing),
  );
}
