// Parses Prometheus's text format, and computes differences of two readings. Pure functions.

const LINE = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)/;
const LABEL = /([a-zA-Z_]\w*)="((?:[^"\\]|\\.)*)"/g;

/** The samples of an exposition, by metric: `{ labels, value }` each. */
export function parse(text) {
  const samples = new Map();
  for (const line of text.split("\n")) {
    const found = line.startsWith("#") ? null : LINE.exec(line);
    if (!found) continue;
    const labels = {};
    for (const [, name, value] of (found[2] ?? "").matchAll(LABEL)) {
      labels[name] = value.replace(/\\(.)/g, (_, character) => (character === "n" ? "\n" : character));
    }
    if (!samples.has(found[1])) samples.set(found[1], []);
    samples.get(found[1]).push({ labels, value: toNumber(found[3]) });
  }
  return samples;
}

const toNumber = (text) => (text.endsWith("Inf") ? (text.startsWith("-") ? -Infinity : Infinity) : Number(text));

/** A metric's samples with these labels; a label may be given by a function. */
export function matching(samples, name, labels = {}) {
  const agrees = (found, expected) => (typeof expected === "function" ? expected(found) : found === expected);
  return (samples.get(name) ?? []).filter((sample) =>
    Object.entries(labels).every(([label, expected]) => agrees(sample.labels[label], expected)),
  );
}

/** The sum of a metric's samples with these labels; 0 if there are none. */
export function total(samples, name, labels) {
  return matching(samples, name, labels).reduce((sum, sample) => sum + sample.value, 0);
}

/** The histogram of all samples with these labels together: `{ bounds, counts }`, with the count of each bucket. */
export function histogram(samples, name, labels) {
  const upTo = new Map();
  for (const { labels: own, value } of matching(samples, `${name}_bucket`, labels)) {
    const bound = toNumber(own.le);
    upTo.set(bound, (upTo.get(bound) ?? 0) + value);
  }
  const bounds = [...upTo.keys()].sort((a, b) => a - b);
  return { bounds, counts: bounds.map((bound, index) => upTo.get(bound) - (index ? upTo.get(bounds[index - 1]) : 0)) };
}

/** The difference of a histogram and an earlier reading of it. */
export function since(later, earlier) {
  return { bounds: later.bounds, counts: later.counts.map((count, index) => count - (earlier?.counts[index] ?? 0)) };
}

/** A quantile of a histogram, by linear interpolation within its bucket; null if it is empty. */
export function quantile({ bounds, counts }, level) {
  const all = counts.reduce((sum, count) => sum + count, 0);
  if (!(all > 0)) return null;
  let below = 0;
  for (let index = 0; index < bounds.length; index++) {
    if (below + counts[index] >= level * all && counts[index] > 0) {
      const low = index ? bounds[index - 1] : 0;
      return Number.isFinite(bounds[index])
        ? low + ((bounds[index] - low) * (level * all - below)) / counts[index]
        : low;
    }
    below += counts[index];
  }
  return bounds.at(-2) ?? null;
}
