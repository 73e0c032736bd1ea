// Requests of one row, and the same requests for a terminal and for Python. Pure functions.

import { measured } from "./dom.js";

/** The name of a column; columns of arrays have numbers. */
export const nameOf = (feature, index) => feature.name || `feature ${index}`;

/**
 * The body of `POST /predict` for one row: a record for a table, else a list of numbers.
 *
 * A value is a number, a text (a category or a date), or null for a gap. Throws an Error that names a column whose value cannot be
 * sent.
 */
export function bodyOf({ name, version, features, percentile, records }, values, requestedPercentile) {
  values.forEach((value, index) => check(features[index], nameOf(features[index], index), value));
  const rows = records
    ? { records: [Object.fromEntries(values.map((value, index) => [features[index].name, value]))] }
    : { inputs: [values] };
  const body = { ...rows, model: `${name}:${version}` };
  return requestedPercentile === percentile ? body : { ...body, percentile: requestedPercentile };
}

function check(feature, name, value) {
  if (value === null) {
    if (feature.missing === null) throw new Error(`${name} is empty: expected a number, because this model takes no gaps`);
  } else if (feature.kind === "number" && !Number.isFinite(value)) throw new Error(`${name}: expected a number`);
}

// ---- dates: a text in the form, seconds since 1970-01-01 00:00 UTC in the model ---------------------------------------

/** A date in ISO 8601, without a time at midnight. */
export function dateOf(seconds) {
  const date = new Date(1000 * seconds);
  return Number.isNaN(date.getTime()) ? "–" : date.toISOString().replace(/T00:00:00\.000Z$/, "").replace(/\.000Z$/, "Z");
}

/** The seconds of a date; NaN if the browser does not understand it. A time without an offset is UTC. */
const secondsOf = (text) => Date.parse(/T[^Z+-]*$/.test(text) ? `${text}Z` : text) / 1000;

/** A value of a column in words. */
export const shown = ({ kind }, value) =>
  typeof value === "string" ? value : kind === "date" ? dateOf(value) : measured(value);

/** What the model puts in place of a gap, in words. */
export function replacementOf(feature) {
  const { categories, missing } = feature;
  return categories.length ? `${categories[missing]}, the most frequent category` : `${shown(feature, missing)}, the median`;
}

// The tolerance of the score `range`, in widths of the range (models/prediction/feature_scores.py, RANGE_TOLERANCE).
const TOLERANCE = 1e-4;

/** How many widths of its range a number is outside of it; 0 inside, for a category and for a gap. */
export function excess({ kind, low, high }, value) {
  const position = kind === "date" && value !== null ? secondsOf(value) : value;
  if (kind === "category" || !Number.isFinite(position)) return 0;
  const outside = Math.max(low - position, position - high) / (high - low || 1);
  return outside > TOLERANCE ? outside : 0;
}

// ---- for a terminal and for Python ----------------------------------------------------------------------------------

/** A command of curl that sends the body; the key, if one is needed, is read from the variable KEY. */
export function asCurl(address, body, keyed) {
  const quoted = JSON.stringify(body).replaceAll("'", "'\\''");
  const key = keyed ? ' -H "X-API-Key: $KEY"' : "";
  return `curl -s ${address} -H 'Content-Type: application/json'${key} -d '${quoted}'\n`;
}

/** A program that sends the body with httpx. */
export function asPython(address, body, keyed) {
  const key = keyed ? ', headers={"X-API-Key": os.environ["KEY"]}' : "";
  return [
    ...(keyed ? ["import os", ""] : []),
    "import httpx",
    "",
    `response = httpx.post(${JSON.stringify(address)}, json=${literal(body)}${key})`,
    "response.raise_for_status()",
    'print(response.json()["predictions"][0])',
    "",
  ].join("\n");
}

/** A value of JSON as Python writes it. */
function literal(value) {
  if (value === null) return "None";
  if (value === true || value === false) return value ? "True" : "False";
  if (Array.isArray(value)) return `[${value.map(literal).join(", ")}]`;
  if (typeof value !== "object") return JSON.stringify(value);
  return `{${Object.entries(value)
    .map(([key, member]) => `${JSON.stringify(key)}: ${literal(member)}`)
    .join(", ")}}`;
}
