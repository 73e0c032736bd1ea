// Requests of one row, and the same requests for a terminal and for Python. Pure functions.

import { measured } from "./dom.js";

/** The name of a column; columns of arrays have numbers. */
export const nameOf = (feature, index) => feature.name || `feature ${index}`;

/**
 * The body of `POST /predict` for one row: the only place that knows how a server takes rows.
 *
 * A value is a number, a category's name, or null for a gap. Throws an Error that names a column whose value cannot be sent.
 */
export function bodyOf({ name, version, features, percentile }, values, requestedPercentile) {
  const body = { inputs: [values.map((value, index) => encoded(features[index], index, value))], model: `${name}:${version}` };
  return requestedPercentile === percentile ? body : { ...body, percentile: requestedPercentile };
}

/** A category as its code, and a gap as the number that the model replaces it by. */
function encoded(feature, index, value) {
  const name = nameOf(feature, index);
  if (value === null) {
    if (feature.missing === null) throw new Error(`${name} is empty: expected a number, because this model takes no gaps`);
    return feature.missing;
  }
  if (feature.categories.length) {
    const code = feature.categories.indexOf(value);
    if (code < 0) throw new Error(`${name}: expected ${someOf(feature.categories)}, found ${value}`);
    return code;
  }
  if (!Number.isFinite(value)) throw new Error(`${name}: expected a number`);
  return value;
}

const MOST_NAMED = 8;

const someOf = (categories) =>
  categories.length > MOST_NAMED
    ? `one of ${categories.slice(0, MOST_NAMED).join(", ")} and ${categories.length - MOST_NAMED} others`
    : `one of ${categories.join(", ")}`;

/** What the model puts in place of a gap, in words. */
export function replacementOf({ categories, missing }) {
  return categories.length ? `${categories[missing]}, the most frequent category` : `${measured(missing)}, the median`;
}

// The tolerance of the score `range`, in widths of the range (models/prediction/feature_scores.py, RANGE_TOLERANCE).
const TOLERANCE = 1e-4;

/** How many widths of its range a number is outside of it; 0 inside, for a category and for a gap. */
export function excess({ categories, low, high }, value) {
  if (categories.length || !Number.isFinite(value)) return 0;
  const outside = Math.max(low - value, value - high) / (high - low || 1);
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
