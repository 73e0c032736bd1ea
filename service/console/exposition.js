// Prometheus's text format, and what is computed of two readings of it. Pure.

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

/** A metric's samples that have these labels; a label may be told by a function. */
export function matching(samples, name, labels = {}) {
  const agrees = (found, wanted) => (typeof wanted === "function" ? wanted(found) : found === wanted);
  return (samples.get(name) ?? []).filter((sample) =>
    Object.entries(labels).every(([label, wanted]) => agrees(sample.labels[label], wanted)),
  );
}

/** The sum of a metric's samples that have these labels; 0 where there are none. */
export function total(samples, name, labels) {
  return matching(samples, name, labels).reduce((sum, sample) => sum + sample.value, 0);
}

/** A histogram, of all samples with these labels together: `{ bounds, counts }`, the counts of the buckets alone. */
export function histogram(samples, name, labels) {
  const upTo = new Map();
  for (const { labels: own, value } of matching(samples, `${name}_bucket`, labels)) {
    const bound = toNumber(own.le);
    upTo.set(bound, (upTo.get(bound) ?? 0) + value);
  }
  const bounds = [...upTo.keys()].sort((a, b) => a - b);
  return { bounds, counts: bounds.map((bound, place) => upTo.get(bound) - (place ? upTo.get(bounds[place - 1]) : 0)) };
}

/** What a histogram has gained since an earlier reading. */
export function since(later, earlier) {
  return { bounds: later.bounds, counts: later.counts.map((count, place) => count - (earlier?.counts[place] ?? 0)) };
}

/** A quantile of a histogram, by a straight line within its bucket; null where it is empty. */
export function quantile({ bounds, counts }, level) {
  const all = counts.reduce((sum, count) => sum + count, 0);
  if (!(all > 0)) return null;
  let below = 0;
  for (let place = 0; place < bounds.length; place++) {
    if (below + counts[place] >= level * all && counts[place] > 0) {
      const low = place ? bounds[place - 1] : 0;
      return Number.isFinite(bounds[place])
        ? low + ((bounds[place] - low) * (level * all - below)) / counts[place]
        : low;
    }
    below += counts[place];
  }
  return bounds.at(-2) ?? null;
}
