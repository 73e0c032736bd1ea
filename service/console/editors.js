// Editors of a row: a canvas for an image, or a form with a field for each column. Both are `{ element, row() }`.

import { el, number } from "./dom.js";
import { EXAMPLES, image } from "./drawing.js";

const PAD = 280;
const DIGITS = 4;
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

function rowEditor({ features }, changed) {
  const inputs =
    features.length <= MAX_FIELDS ? features.map((feature, index) => input(feature, index, changed)) : [];
  const trouble = el("p", { class: "trouble", role: "alert", hidden: true });
  const typical = features.map((feature) => feature.typical);
  let pastedRow = typical;

  const pasted = el("textarea", {
    id: "pasted",
    rows: "3",
    spellcheck: "false",
    "aria-describedby": "paste-hint",
    oninput: () => pasted.value.trim() && paste(),
  });
  function paste() {
    const cells = pasted.value
      .trim()
      .split(/[\s,;]+/)
      .filter(Boolean);
    const row = cells.map((cell, index) => code(features[index], cell));
    const wrong = row.findIndex((value) => !Number.isFinite(value));
    trouble.hidden = cells.length === features.length && wrong < 0;
    if (cells.length !== features.length) {
      trouble.textContent = `expected ${features.length} values, found ${cells.length}`;
      return;
    }
    if (wrong >= 0) {
      const { name, categories } = features[wrong];
      const expected = categories.join(", ") || "a number";
      trouble.textContent = `${name || `feature ${wrong}`}: expected ${expected}, found ${cells[wrong]}`;
      return;
    }
    fill(row);
  }
  function fill(row) {
    pastedRow = row;
    inputs.forEach((field, index) => {
      field.value = features[index].categories.length ? row[index] : short(row[index]);
    });
    changed();
  }
  function row() {
    if (!inputs.length) return pastedRow;
    const values = inputs.map((field) => (field.value === "" ? Number.NaN : Number(field.value)));
    inputs.forEach((field, index) => {
      field.setAttribute("aria-invalid", String(!Number.isFinite(values[index])));
      field.closest(".field").classList.toggle("outside", !within(features[index], values[index]));
    });
    return values.every(Number.isFinite) ? values : null;
  }
  const beyond = features.map((feature, index) =>
    feature.categories.length ? feature.typical : feature.high + (1 + (index % 2)) * (feature.high - feature.low),
  );

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
    inputs.length
      ? el(
          "div",
          { class: inputs.length > MANY ? "fields many" : "fields" },
          ...inputs.map((field) => field.closest(".field")),
        )
      : null,
    el(
      "details",
      { open: !inputs.length },
      el("summary", {}, "Paste a row"),
      el(
        "label",
        { for: "pasted", class: "small", id: "paste-hint" },
        `${features.length} values, separated by commas or spaces`,
      ),
      pasted,
      trouble,
    ),
  );
  fill(typical);
  return { element, row, repaint: () => {} };
}

/** The label, field and range of one column. */
function input(feature, index, changed) {
  const id = `feature-${index}`;
  const name = feature.name || `feature ${index}`;
  const field = feature.categories.length
    ? el(
        "select",
        { id, onchange: changed },
        ...feature.categories.map((category, at) => el("option", { value: at }, category)),
      )
    : el("input", {
        id,
        type: "number",
        step: "any",
        inputmode: "decimal",
        oninput: changed,
        "aria-describedby": `${id}-range`,
      });
  el(
    "div",
    { class: "field" },
    el("label", { for: id }, name),
    field,
    el(
      "span",
      { class: "range small", id: `${id}-range` },
      feature.categories.length
        ? `${feature.categories.length} categories`
        : `training rows: ${number(feature.low)} to ${number(feature.high)}`,
    ),
  );
  return field;
}

function code(feature, cell) {
  if (!feature) return Number.NaN;
  const index = feature.categories.indexOf(cell);
  return feature.categories.length && index >= 0 ? index : Number(cell);
}

const within = (feature, value) => feature.categories.length > 0 || (value >= feature.low && value <= feature.high);

const short = (value) => String(Number(value.toPrecision(DIGITS)));
