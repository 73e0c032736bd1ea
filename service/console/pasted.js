// A row that is pasted as text: the values in the model's order, or a line of a file with the header above it. Pure functions.

import { nameOf } from "./requests.js";

// A number that is missing is written in one of these ways; in a column of categories they are categories: NA is a country
// (models/prediction/preprocessing.py, _NO_NUMBER).
const NO_NUMBER = new Set(["", "NA", "N/A", "n/a", "null", "NULL", "None", "nan", "NaN", "NAN"]);
const SEPARATORS = ["\t", ";", ","];
const SPACES = " ";

/**
 * The values of a pasted row, and what became of the rest of the text, in words.
 *
 * Throws an Error that says what is wrong with the text.
 */
export function rowOf(text, { features, target_name: target }) {
  const lines = text.split(/\r?\n/).filter((line) => line.trim());
  if (lines.length > 1) {
    const separator = separatorOf(lines[0]);
    const header = cellsOf(lines[0], separator);
    const known = features.filter(({ name }) => name && header.includes(name));
    if (known.length > 0 && 2 * known.length >= features.length) {
      return rowByName(header, cellsOf(lines[1], separator), lines.length - 1, features, target);
    }
  }
  return { values: rowInOrder(cellsOf(text, separatorOf(text)), features), note: "" };
}

function rowInOrder(cells, features) {
  if (cells.length !== features.length) {
    const hint = features.some(({ name }) => name) ? "; paste the header above the row if the row has other columns, too" : "";
    throw new Error(`expected ${features.length} values, found ${cells.length}${hint}`);
  }
  return cells.map((cell, index) => checkedValue(features[index], index, cell));
}

function rowByName(header, cells, rows, features, target) {
  if (cells.length !== header.length) {
    throw new Error(`expected ${header.length} values as in the header, found ${cells.length}`);
  }
  const twice = header.find((name, at) => header.indexOf(name) < at && features.some((feature) => feature.name === name));
  if (twice) throw new Error(`expected one column ${twice}, found two`);
  const missing = features.filter(({ name }) => !header.includes(name)).map(({ name }) => name);
  if (missing.length) throw new Error(`columns are missing in the header: ${missing.join(", ")}`);
  const values = features.map((feature, index) => checkedValue(feature, index, cells[header.indexOf(feature.name)]));
  const others = header
    .filter((name) => !features.some((feature) => feature.name === name))
    .map((name) => (name === target ? `${name} (what the model predicts)` : name || "a column without a name"));
  const parts = [
    rows > 1 ? `the first of ${rows} rows` : "",
    others.length ? `left out: ${others.join(", ")}` : "",
  ];
  return { values, note: parts.filter(Boolean).join("; ") };
}

function checkedValue(feature, index, cell) {
  const value = valueOf(feature, cell);
  if (Number.isNaN(value)) throw new Error(`${nameOf(feature, index)}: expected a number, found ${cell}`);
  return value;
}

const separatorOf = (text) => SEPARATORS.find((one) => text.includes(one)) ?? SPACES;

/** The cells of a row: separated by tabs, semicolons or commas, with gaps and quotes; or by spaces. */
function cellsOf(text, separator) {
  const row = text.replace(/^[ \r\n]+|[ \r\n]+$/g, "");
  if (separator === SPACES) return row.split(/\s+/).filter(Boolean);
  const cells = [""];
  let quoted = false;
  // A line ends with its separator, or its end is one.
  for (const character of row.replace(/([\t;,])[ \r]*\n/g, "$1").replace(/[\r\n]+/g, separator)) {
    if (character === '"') quoted = !quoted;
    else if (character === separator && !quoted) cells.push("");
    else cells[cells.length - 1] += character;
  }
  return cells.map((cell) => cell.trim());
}

/** The value of a cell; NaN if it should be a number and is none. A category may also be given by its code. */
function valueOf({ kind, categories }, cell) {
  if (kind === "date") return cell === "" ? null : cell;
  if (!categories.length) return NO_NUMBER.has(cell) ? null : Number(cell);
  if (cell === "") return null;
  // Programs write True or TRUE, and 2.0 in columns with gaps: the server takes them for true and 2 (models/tables/values.py).
  const plain = /^(true|false)$/i.test(cell) ? cell.toLowerCase() : cell.replace(/^(-?\d+)\.0+$/, "$1");
  const own = [cell, plain].find((text) => categories.includes(text));
  return own ?? categories[/^\d+$/.test(cell) ? Number(cell) : -1] ?? cell;
}
