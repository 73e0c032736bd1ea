// Editors of a row: a canvas for an image, or a form with a field for each column. Both are `{ element, row() }`.
//
// A row has a number, a text (a category or a date), or null for a gap, for each column; it is null before anything is drawn.
// `row()` throws an Error that says why there is none.

import { el, number } from "./dom.js";
import { EXAMPLES, image } from "./drawing.js";
import { fieldFor } from "./fields.js";
import { rowOf } from "./pasted.js";
import { dateOf } from "./requests.js";

const PAD = 280;
const MAX_FIELDS = 300;
const MANY = 24;
const SMALLEST_IMAGE = 8;

/** The editor for a version's rows; it calls `changed` whenever the row changes. */
export function editorFor(description, changed) {
  const shape = imageShape(description);
  return shape ? drawingEditor(description, shape, changed) : rowEditor(description, changed);
}

/** The size of an image with one channel; rows without column names that form a square are images. Null for a table. */
export function imageShape({ feature_shape: shape, features }) {
  if (shape.length === 2 || (shape.length === 3 && shape[2] === 1)) return { rows: shape[0], columns: shape[1] };
  const side = Math.sqrt(features.length);
  const unnamed = features.every((feature) => !feature.name && !feature.categories.length);
  return shape.length === 1 && unnamed && Number.isInteger(side) && side >= SMALLEST_IMAGE
    ? { rows: side, columns: side }
    : null;
}

// ---- images ---------------------------------------------------------------------------------------------------------

function drawingEditor(description, { rows, columns }, changed) {
  const low = Math.min(...description.features.map((feature) => feature.low));
  const high = Math.max(...description.features.map((feature) => feature.high));
  const format = { rows, columns, low, high };
  let strokes = [];
  let pixels = null;
  let cursor = 0;

  const pad = el("canvas", {
    id: "pad",
    width: PAD,
    height: PAD,
    role: "img",
    "aria-label": "Drawing area for mouse, touch or pen. By keyboard, use the examples or the pixels below.",
  });
  const grid = el("canvas", {
    id: "pixels",
    width: PAD,
    height: Math.round((PAD * rows) / columns),
    tabindex: "0",
    role: "application",
    "aria-label": `What the model sees: ${rows} by ${columns} pixels. Arrow keys move, space changes a pixel.`,
    "aria-describedby": "pixel-value",
  });
  const pixelValue = el("p", { id: "pixel-value", class: "hidden-text", "aria-live": "polite" });
  const hint = el("p", { class: "pad-hint", "aria-hidden": "true" }, "Draw here");

  function updateImage() {
    pixels = image(strokes, format);
    paint();
    changed();
  }
  function begin(event) {
    if (event.button > 0) return;
    pad.setPointerCapture(event.pointerId);
    strokes.push([position(event)]);
    paint();
    event.preventDefault();
  }
  function move(event) {
    if (!pad.hasPointerCapture(event.pointerId)) return;
    for (const point of event.getCoalescedEvents?.() ?? [event]) strokes.at(-1).push(position(point));
    pixels = image(strokes, format);
    paint();
  }
  function end(event) {
    if (pad.hasPointerCapture(event.pointerId)) pad.releasePointerCapture(event.pointerId);
    updateImage();
  }
  function position(event) {
    const box = pad.getBoundingClientRect();
    return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
  }
  pad.addEventListener("pointerdown", begin);
  pad.addEventListener("pointermove", move);
  pad.addEventListener("pointerup", end);
  pad.addEventListener("pointercancel", end);

  function pressKey(event) {
    const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
    if (step) {
      const row = Math.min(rows - 1, Math.max(0, Math.floor(cursor / columns) + step[0]));
      cursor = row * columns + Math.min(columns - 1, Math.max(0, (cursor % columns) + step[1]));
    } else if (event.key === " " || event.key === "Enter") {
      flip(cursor);
    } else return;
    event.preventDefault();
    announce();
    paint();
  }
  function clickPixel(event) {
    const box = grid.getBoundingClientRect();
    const row = Math.floor(((event.clientY - box.top) / box.height) * rows);
    cursor = row * columns + Math.floor(((event.clientX - box.left) / box.width) * columns);
    flip(cursor);
    announce();
  }
  function flip(at) {
    pixels ??= new Array(rows * columns).fill(low);
    pixels[at] = pixels[at] > (low + high) / 2 ? low : high;
    strokes = [];
    paint();
    changed();
  }
  function announce() {
    const shade = pixels?.[cursor] ?? low;
    const [row, column] = [Math.floor(cursor / columns) + 1, (cursor % columns) + 1];
    pixelValue.textContent = `row ${row}, column ${column}: ${number(shade)} of ${number(high)}`;
  }
  grid.addEventListener("keydown", pressKey);
  grid.addEventListener("click", clickPixel);
  grid.addEventListener("focus", paint);
  grid.addEventListener("blur", paint);

  function paint() {
    hint.hidden = strokes.length > 0;
    paintStrokes(pad, strokes);
    paintPixels(grid, pixels, format, document.activeElement === grid ? cursor : null);
  }
  function drawExample(example) {
    strokes = EXAMPLES[example].map((stroke) => stroke.map((point) => [...point]));
    updateImage();
  }
  function clear() {
    [strokes, pixels] = [[], null];
    paint();
    changed();
  }

  const names = Object.keys(EXAMPLES);
  const element = el(
    "div",
    { class: "drawing" },
    el(
      "div",
      { class: "pads" },
      el("figure", {}, el("div", { class: "pad-frame" }, pad, hint), el("figcaption", {}, "Your drawing")),
      el("figure", {}, grid, el("figcaption", {}, `What the model sees, ${rows}×${columns}`)),
    ),
    pixelValue,
    el(
      "div",
      { class: "buttons", role: "group", "aria-label": "Examples" },
      ...names.map((name) =>
        el(
          "button",
          { type: "button", "data-example": name, "aria-label": `Example: ${spoken(name)}`, onclick: () => drawExample(name) },
          name,
        ),
      ),
      el("button", { type: "button", class: "quiet", id: "clear", onclick: clear }, "Clear"),
    ),
  );
  paint();
  return { element, row: () => pixels, repaint: paint };
}

function spoken(name) {
  if (/^\d$/.test(name)) return `the digit ${name}`;
  return name.length === 1 ? `the letter ${name}` : `a ${name}`;
}

function paintStrokes(canvas, strokes) {
  const pen = canvas.getContext("2d");
  pen.clearRect(0, 0, canvas.width, canvas.height);
  pen.strokeStyle = colour(canvas, "--ink");
  pen.lineWidth = canvas.width * 0.065;
  pen.lineCap = pen.lineJoin = "round";
  for (const stroke of strokes) {
    pen.beginPath();
    for (const [x, y] of [stroke[0], ...stroke]) pen.lineTo(x * canvas.width, y * canvas.height);
    pen.stroke();
  }
}

function paintPixels(canvas, pixels, { rows, columns, low, high }, cursor) {
  const pen = canvas.getContext("2d");
  const [width, height] = [canvas.width / columns, canvas.height / rows];
  pen.clearRect(0, 0, canvas.width, canvas.height);
  pen.fillStyle = colour(canvas, "--ink");
  pixels?.forEach((value, index) => {
    pen.globalAlpha = (value - low) / (high - low);
    pen.fillRect((index % columns) * width, Math.floor(index / columns) * height, width + 0.5, height + 0.5);
  });
  pen.globalAlpha = 1;
  if (cursor === null) return;
  pen.strokeStyle = colour(canvas, "--focus");
  pen.lineWidth = 3;
  pen.strokeRect((cursor % columns) * width + 1.5, Math.floor(cursor / columns) * height + 1.5, width - 3, height - 3);
}

const colour = (element, name) => getComputedStyle(element).getPropertyValue(name).trim();

// ---- tables ---------------------------------------------------------------------------------------------------------

function rowEditor(description, changed) {
  const { features, ranges } = description;
  const fields =
    features.length <= MAX_FIELDS ? features.map((feature, index) => fieldFor(feature, index, ranges, edited)) : [];
  const trouble = el("p", { class: "trouble", role: "alert", hidden: true });
  const note = el("p", { class: "small", role: "status", id: "pasted-note" });
  const typical = features.map((feature) =>
    feature.categories.length ? feature.categories[feature.typical] : valueIn(feature, feature.typical),
  );
  const beyond = features.map((feature, index) =>
    feature.categories.length
      ? typical[index]
      : valueIn(feature, feature.high + (1 + (index % 2)) * (feature.high - feature.low)),
  );
  let pastedRow = typical;

  const pasted = el("textarea", {
    id: "pasted",
    rows: "3",
    spellcheck: "false",
    "aria-describedby": "paste-hint",
    oninput: paste,
  });
  function paste() {
    if (!pasted.value.trim()) {
      if (!fields.length) pastedRow = typical;
      edited();
      return;
    }
    try {
      const row = rowOf(pasted.value, description);
      fill(row.values);
      note.textContent = row.note;
    } catch (error) {
      report(error.message);
      changed();
    }
  }
  function fill(values) {
    pastedRow = values;
    fields.forEach((field, index) => field.write(values[index]));
    edited();
  }
  /** The form has the row, whatever the box had before. */
  function edited() {
    report("");
    changed();
  }
  function report(message) {
    note.textContent = "";
    trouble.textContent = message;
    trouble.hidden = !message;
  }
  function row() {
    if (trouble.textContent) throw new Error(`The pasted row cannot be read: ${trouble.textContent}`);
    return fields.length ? fields.map((field) => field.read()) : pastedRow;
  }

  const element = el(
    "div",
    { class: "row-editor" },
    el(
      "div",
      { class: "buttons", role: "group", "aria-label": "Examples" },
      el("button", { type: "button", "data-example": "typical", onclick: () => fill(typical) }, "A typical row"),
      el(
        "button",
        { type: "button", "data-example": "beyond", onclick: () => fill(beyond) },
        "Far outside the training rows",
      ),
    ),
    fields.length
      ? el(
          "div",
          { class: fields.length > MANY ? "fields many" : "fields" },
          ...fields.map((field) => field.element),
        )
      : null,
    el(
      "details",
      { open: !fields.length },
      el("summary", {}, "Paste a row"),
      el(
        "label",
        { for: "pasted", class: "small", id: "paste-hint" },
        `${features.length} values, separated by commas, semicolons, tabs or spaces` +
          (features.some(({ name }) => name) ? "; or the header of your file and a line of it" : ""),
      ),
      pasted,
      trouble,
      note,
    ),
  );
  fill(typical);
  return { element, row, repaint: () => {} };
}

/** A date as a text, with whole seconds; another number rounded. */
const valueIn = (feature, value) => (feature.kind === "date" ? dateOf(Math.round(value)) : rounded(feature, value));

/** A number with the digits that tell rows of this column apart: a thousandth of its range. */
function rounded({ low, high }, value) {
  const places = Math.ceil(3 - Math.log10(high - low));
  return Number.isFinite(places) ? Number(value.toFixed(Math.min(20, Math.max(0, places)))) : value;
}
