// Converts a pen's strokes to an image like the training images. Pure functions: no page, no canvas.
//
// Strokes are lists of [x, y] with y downwards, in any unit: the drawing is fitted to the image's box, as the handwriting
// of the training images was. An image is a flat list of rows · columns numbers between `low` and `high`.

// Each pixel has DOTS × DOTS dots. The pixels of the 8×8 digits are counts of 4×4 dots.
const DOTS = 4;
const BISECTIONS = 10;

/**
 * The settings for images of this size.
 *
 * 28×28 as in MNIST: a box of 20×20, centred by mass, a pen of about 2.5 pixels. 8×8 as in the optical recognition
 * digits: the whole height, centred by the box, and almost the same ink in every image, so the pen is wider if the
 * strokes are short. Other sizes have a margin of a tenth.
 */
export function recipe(rows, columns) {
  if (rows === 28 && columns === 28) return { height: 20, width: 20, centre: "mass", pen: 2.5 };
  if (rows === 8 && columns === 8) return { height: 8, width: 6.5, centre: "box", ink: 19.5, pens: [0.9, 3] };
  return { height: 0.8 * rows, width: 0.8 * columns, centre: "box", pen: Math.max(1, 0.09 * Math.min(rows, columns)) };
}

/** The image of strokes; null if there are none. */
export function image(strokes, { rows, columns, low, high }) {
  if (!strokes.some((stroke) => stroke.length)) return null;
  const how = recipe(rows, columns);
  const pen = how.pen ?? penFor(strokes, rows, columns, how);
  let ink = inked(fitted(strokes, rows, columns, how, pen), rows, columns, pen);
  if (how.centre === "mass") {
    const [x, y] = middle(ink, columns);
    const moved = fitted(strokes, rows, columns, how, pen).map((stroke) =>
      stroke.map(([a, b]) => [a + columns / 2 - x, b + rows / 2 - y]),
    );
    ink = inked(moved, rows, columns, pen);
  }
  return ink.map((share) => low + share * (high - low));
}

/** The pen's width with which the image has the recipe's ink. */
function penFor(strokes, rows, columns, how) {
  let [thin, thick] = how.pens;
  for (let step = 0; step < BISECTIONS; step++) {
    const pen = (thin + thick) / 2;
    const ink = inked(fitted(strokes, rows, columns, how, pen), rows, columns, pen).reduce(
      (sum, share) => sum + share,
      0,
    );
    [thin, thick] = ink < how.ink ? [pen, thick] : [thin, pen];
  }
  return (thin + thick) / 2;
}

/** The strokes in pixels: with the pen's width they fill the recipe's box in one direction, centred in the image. */
function fitted(strokes, rows, columns, how, pen) {
  const points = strokes.flat();
  const [left, right] = extent(points.map(([x]) => x));
  const [top, bottom] = extent(points.map(([, y]) => y));
  const scale = Math.min((how.width - pen) / (right - left), (how.height - pen) / (bottom - top));
  const unit = Number.isFinite(scale) ? scale : 0;
  return strokes.map((stroke) =>
    stroke.map(([x, y]) => [columns / 2 + unit * (x - (left + right) / 2), rows / 2 + unit * (y - (top + bottom) / 2)]),
  );
}

function extent(values) {
  return [values.reduce((a, b) => Math.min(a, b)), values.reduce((a, b) => Math.max(a, b))];
}

/** The share of each pixel that a round pen covers. */
function inked(strokes, rows, columns, pen) {
  const width = columns * DOTS;
  const height = rows * DOTS;
  const reach = (pen / 2) * DOTS;
  const dots = new Uint8Array(width * height);
  for (const stroke of strokes) {
    for (let index = 0; index < stroke.length; index++) {
      cover(
        dots,
        width,
        height,
        reach,
        stroke[Math.max(0, index - 1)].map((v) => v * DOTS),
        stroke[index].map((v) => v * DOTS),
      );
    }
  }
  const pixels = new Array(rows * columns).fill(0);
  dots.forEach((dot, index) => {
    const row = Math.floor(index / width / DOTS);
    pixels[row * columns + Math.floor((index % width) / DOTS)] += dot / DOTS ** 2;
  });
  return pixels;
}

/** Marks the dots with a centre within reach of a segment. */
function cover(dots, width, height, reach, [ax, ay], [bx, by]) {
  const long = (bx - ax) ** 2 + (by - ay) ** 2;
  const between = (low, value, high) => Math.min(high, Math.max(low, value));
  const [fromX, toX] = [Math.min(ax, bx) - reach, Math.max(ax, bx) + reach].map((v) =>
    between(0, Math.floor(v), width - 1),
  );
  const [fromY, toY] = [Math.min(ay, by) - reach, Math.max(ay, by) + reach].map((v) =>
    between(0, Math.floor(v), height - 1),
  );
  for (let y = fromY; y <= toY; y++) {
    for (let x = fromX; x <= toX; x++) {
      const [px, py] = [x + 0.5 - ax, y + 0.5 - ay];
      const along = long ? between(0, (px * (bx - ax) + py * (by - ay)) / long, 1) : 0;
      if ((px - along * (bx - ax)) ** 2 + (py - along * (by - ay)) ** 2 <= reach ** 2) dots[y * width + x] = 1;
    }
  }
}

/** The centre of mass, in pixels. */
function middle(ink, columns) {
  let [mass, x, y] = [0, 0, 0];
  ink.forEach((share, index) => {
    mass += share;
    x += share * ((index % columns) + 0.5);
    y += share * (Math.floor(index / columns) + 0.5);
  });
  return [x / mass, y / mass];
}

// ---- examples, for users who do not draw ----------------------------------------------------------------------------

/** Points on an arc of an ellipse, in degrees: 0 is right, 90 is down. */
function arc(x, y, rx, ry, from, to) {
  const steps = 24;
  return Array.from({ length: steps + 1 }, (_, step) => {
    const turn = ((from + ((to - from) * step) / steps) * Math.PI) / 180;
    return [x + rx * Math.cos(turn), y + ry * Math.sin(turn)];
  });
}

/** Strokes in the unit square, by name. */
export const EXAMPLES = {
  0: [arc(0.5, 0.5, 0.24, 0.36, -90, 270)],
  3: [[...arc(0.46, 0.32, 0.2, 0.18, -150, 90), ...arc(0.46, 0.68, 0.24, 0.18, -90, 150)]],
  6: [[...arc(0.62, 0.56, 0.34, 0.44, -95, -180), ...arc(0.5, 0.68, 0.22, 0.18, 180, -180)]],
  8: [[...arc(0.5, 0.32, 0.17, 0.17, 90, -270), ...arc(0.5, 0.69, 0.21, 0.2, -90, 270)]],
  B: [
    [
      [0.3, 0.14],
      [0.3, 0.86],
    ],
    [[0.3, 0.14], ...arc(0.48, 0.32, 0.2, 0.18, -90, 90), [0.3, 0.5]],
    [[0.3, 0.5], ...arc(0.48, 0.68, 0.24, 0.18, -90, 90), [0.3, 0.86]],
  ],
  scribble: [
    [
      [0.15, 0.3],
      [0.8, 0.2],
      [0.25, 0.55],
      [0.85, 0.5],
      [0.2, 0.8],
      [0.75, 0.85],
      [0.5, 0.15],
      [0.35, 0.85],
    ],
  ],
};
