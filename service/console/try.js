// Try it: a row is edited, the server is asked, its answer is shown. The latest row wins, however late answers come.

import { showEvidence, showVerdict } from "./answer.js";
import { el, fetchJSON } from "./dom.js";
import { editorFor } from "./editors.js";

const places = Object.fromEntries(
  ["editor", "verdict", "trouble", "evidence", "unsound"].map((id) => [id, document.getElementById(id)]),
);

let description = null;
let editor = null;
let percentile = null;
let asking = false;
let again = false;

/** Shows the editor for a version's rows. */
export function use(found) {
  description = found;
  editor = null;
  percentile = el("input", {
    id: "percentile",
    type: "number",
    min: "1",
    max: "99.99",
    step: "any",
    value: found.percentile,
    onchange: ask,
  });
  warn(found);
  show(null);
  editor = editorFor(found, ask);
  places.editor.replaceChildren(
    editor.element,
    el(
      "p",
      { class: "percentile" },
      el("label", { for: "percentile" }, "Say “I don’t know” above the percentile "),
      percentile,
    ),
  );
  ask();
}

/** A banner above every answer of a version whose fit fell short. */
function warn({ shortfalls, name, version }) {
  places.unsound.hidden = !shortfalls.length;
  places.unsound.replaceChildren(
    el("h2", {}, "Not fit to be relied on"),
    el(
      "p",
      {},
      `The fit of ${name}:${version} fell short in ${shortfalls.length === 1 ? "one way" : `${shortfalls.length} ways`}, `,
      "so its answers, and when it says “I don’t know”, may be wrong. ",
      el("a", { href: `#model/${encodeURIComponent(`${name}:${version}`)}` }, "What it fell short in"),
    ),
  );
}

/** Draws again what depends on the theme. */
export function repaint() {
  editor?.repaint();
}

async function ask() {
  if (!editor) return;
  if (asking) {
    again = true;
    return;
  }
  const row = editor.row();
  if (!row) {
    show(null);
    return;
  }
  asking = true;
  const asked = description;
  try {
    const answer = await predict(asked, row, Number(percentile.value));
    if (asked === description) show(answer.predictions[0], answer.percentile);
  } catch (error) {
    if (asked === description) show(null, null, error.message);
  }
  asking = false;
  if (again) {
    again = false;
    ask();
  }
}

/** The answer to one flat row. */
function predict({ name, version }, row, percentileAsked) {
  const body = { inputs: [row], model: `${name}:${version}`, percentile: percentileAsked };
  return fetchJSON("predict", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
  });
}

function show(prediction, at = null, trouble = "") {
  showVerdict(places.verdict, description, prediction, at);
  showEvidence(places.evidence, description, prediction, at);
  places.trouble.hidden = !trouble;
  places.trouble.textContent = trouble;
}
