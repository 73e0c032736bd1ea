// The fields of a table's row: a number or a date with the range of its training rows, a category with its choices.
//
// A field is `{ element, read(), write(value) }`. A value is a number, a text (a category or a date), or null for a gap.

import { el } from "./dom.js";
import { excess, nameOf, shown } from "./requests.js";

const OTHER = "other";
const EMPTY = "";

/** The field of a column; it calls `changed` whenever its value changes. */
export function fieldFor(feature, index, ranges, changed) {
  return feature.categories.length ? categoryField(feature, index, changed) : rangeField(feature, index, ranges, changed);
}

function framed(id, name, hint, ...controls) {
  return el(
    "div",
    { class: "field" },
    el("label", { for: id }, name),
    ...controls,
    el("span", { class: "range small", id: `${id}-hint` }, hint),
  );
}

function rangeField(feature, index, ranges, changed) {
  const id = `feature-${index}`;
  const isDate = feature.kind === "date";
  const control = el("input", {
    id,
    ...(isDate ? { type: "text", spellcheck: "false" } : { type: "number", step: "any", inputmode: "decimal" }),
    oninput: changed,
    placeholder: feature.missing === null ? null : "empty",
    "aria-describedby": `${id}-hint`,
  });
  const about = ranges === "training" ? "" : "about ";
  const hint = `training rows: ${about}${shown(feature, feature.low)} to ${shown(feature, feature.high)}`;
  const element = framed(id, nameOf(feature, index), hint, control);

  function read() {
    // A text that is no number has an empty value, too.
    const empty = control.validity.badInput ? Number.NaN : null;
    const value = control.value === "" ? empty : isDate ? control.value : Number(control.value);
    const wrong = Number.isNaN(value) || (value === null && feature.missing === null);
    control.setAttribute("aria-invalid", String(wrong));
    element.classList.toggle("outside", excess(feature, value) > 0);
    return value;
  }
  return { element, read, write: (value) => (control.value = value ?? "") };
}

function categoryField(feature, index, changed) {
  const id = `feature-${index}`;
  const name = nameOf(feature, index);
  const other = el("input", {
    id: `${id}-other`,
    type: "text",
    spellcheck: "false",
    "aria-label": `Another value of ${name}`,
    oninput: changed,
    hidden: true,
  });
  const select = el(
    "select",
    { id, onchange: choose, "aria-describedby": `${id}-hint` },
    ...feature.categories.map((category, code) => el("option", { value: code }, category)),
    el("option", { value: OTHER }, "another value…"),
    feature.missing === null ? null : el("option", { value: EMPTY }, "empty"),
  );
  const element = framed(id, name, `${feature.categories.length} categories`, select, other);

  function choose() {
    other.hidden = select.value !== OTHER;
    if (!other.hidden) other.focus();
    changed();
  }
  function read() {
    if (select.value === OTHER) return other.value.trim() === "" ? null : other.value;
    return select.value === EMPTY ? null : feature.categories[Number(select.value)];
  }
  function write(value) {
    const code = feature.categories.indexOf(value);
    select.value = value === null ? EMPTY : code < 0 ? OTHER : String(code);
    other.hidden = select.value !== OTHER;
    if (!other.hidden) other.value = value;
  }
  return { element, read, write };
}
