// What is said of one row, drawn: the verdict, the probabilities or the interval, the parts of the doubt, every score.

import { el, number, ordinal, percent, placed, plain, svg } from "./dom.js";

const MEANING = {
  classification: {
    std: "widest spread of a class's probability over draws",
    entropy: "doubt of either kind, in nats",
    mutual_information: "what the draws disagree about, in nats",
    expected_entropy: "doubt that every draw has, in nats",
    max_probability: "1 − the largest probability",
    variation_ratio: "draws that name another class",
    energy: "how little any class speaks up",
    gen: "how far from sure the probabilities are",
  },
  regression: { std: "spread of the draws' means", total_std: "that spread and the noise together" },
};
/** The least standard deviation that a whisker is drawn for: what is printed as 0.00 has none. */
const SEEN = 0.005;
const WIDE = matchMedia("(min-width: 56rem)");

const OF_ANY = {
  combined: "several scores together, calibrated as one",
  range: "how far a feature lies outside its training range",
  mahalanobis: "distance from the training rows, as the network sees them",
  relative_mahalanobis: "distance from the nearest class, beside that from all",
  subspace: "what the training rows' main directions leave over",
  local_subspace: "what those of the predicted class leave over",
  feature_subspace: "the same, as the network sees it",
  knn: "distance to the nearest training rows, as the network sees them",
  input_knn: "distance to the nearest training rows",
  vim: "what the network's main directions leave over, beside its logits",
};

/** The verdict in words; `prediction` null: nothing has been asked yet. */
export function showVerdict(place, description, prediction, percentile) {
  if (!prediction) {
    place.className = "verdict";
    place.replaceChildren(
      el("p", { class: "word muted" }, "Nothing asked yet"),
      el("p", { class: "why" }, "Draw something, or take an example: the answer comes by itself."),
    );
    return;
  }
  const doubtful = close(prediction.scores[description.decision], percentile) || fitsNone(prediction);
  place.className = prediction.reject ? "verdict unknown" : `verdict accepted${doubtful ? " doubtful" : ""}`;
  place.replaceChildren(
    el("p", { class: "word" }, prediction.reject ? "I don’t know" : `accepted: ${named(description, prediction)}`),
    el("p", { class: "why" }, reason(description, prediction, percentile)),
  );
}

const named = (description, prediction) =>
  description.task === "classification" ? prediction.label : `${number(prediction.mean)}`;

/** Whether a row would be rejected at twice the rate asked for, or at one of five points more. */
const close = ({ p_value: p }, percentile) => 100 * p < 100 - percentile + Math.min(100 - percentile, 5);

const fitsNone = ({ prediction_set: among }) => among?.length === 0;

function reason(description, prediction, percentile) {
  const decision = prediction.scores[description.decision];
  const sentences = prediction.reject
    ? [capital(prediction.reasons.map(plain).join("; "))]
    : [accepted(description, prediction, decision, percentile)];
  if (prediction.reject && decision.extrapolated) {
    sentences.push(`Stranger than every one of ${rowsOf(description, prediction)}`);
  }
  if (description.task === "classification") {
    if (fitsNone(prediction)) sentences.push(`No class fits at a coverage of ${percent(description.coverage, 0)}`);
    if (prediction.reject) sentences.push(`Forced to choose, it would say ${prediction.label}`);
  }
  return sentences.map((sentence) => `${sentence}.`).join(" ");
}

function accepted(description, prediction, decision, percentile) {
  const limit = `${close(decision, percentile) ? "close to" : "within"} the limit of ${percentile} %`;
  const by = description.combination.length ? "By its scores together" : `By ${plain(description.decision)}`;
  const share = decision.percentile > 0 ? `than ${placeOf(decision, percentile)} of` : "than none of";
  return `${by} it is stranger ${share} ${rowsOf(description, prediction)}, ${limit}`;
}

/** The rows that a score is ranked among. */
const rowsOf = ({ per_class: perClass }, { label }) =>
  perClass ? `the calibration rows that are predicted as ${label}` : "the calibration rows";

/** What share of the calibration rows a score is above; never rounded to the limit, nor to all of them. */
function placeOf({ percentile: place, extrapolated }, limit) {
  if (extrapolated) return "every one";
  const digits = [1, 2, 3].find((count) => {
    const shown = Number(place.toFixed(count));
    return shown < 100 && (shown < limit) === (place < limit);
  });
  return `${place.toFixed(digits ?? 4)} %`;
}

const capital = (text) => text.replace(/^./, (first) => first.toUpperCase());

/** All that stands behind the verdict. */
export function showEvidence(place, description, prediction, percentile) {
  if (!prediction) return place.replaceChildren();
  const parts =
    description.task === "classification"
      ? [probabilities(prediction, description.class_names), split("Doubt", "nats", entropyParts(prediction))]
      : [
          interval(prediction, description),
          split("Variance", "in the target’s units squared", varianceParts(prediction)),
        ];
  return place.replaceChildren(...parts, scores(prediction, description, percentile));
}

// ---- classes --------------------------------------------------------------------------------------------------------

function probabilities({ probabilities: means, std, index, prediction_set: among }, names) {
  const rows = means.map((mean, place) => {
    const low = Math.max(0, mean - std[place]);
    const high = Math.min(1, mean + std[place]);
    const bar = el(
      "div",
      { class: "track", "aria-hidden": "true" },
      placed(el("span", { class: "fill" }), { width: 100 * mean }),
      std[place] < SEEN
        ? null
        : placed(el("span", { class: "whisker" }), { left: 100 * low, width: 100 * (high - low) }),
    );
    return el(
      "tr",
      { class: place === index ? "top" : null },
      el("th", { scope: "row" }, names[place]),
      el("td", { class: "bar-cell" }, bar),
      el("td", {}, mean.toFixed(2)),
      el("td", { class: "muted" }, `± ${std[place].toFixed(2)}`),
    );
  });
  const order =
    rows.length > 12
      ? means
          .map((_, place) => place)
          .sort((a, b) => means[b] - means[a])
          .slice(0, 12)
      : rows.keys();
  return el(
    "section",
    {},
    el("h2", {}, "Probability of each class"),
    el(
      "table",
      { class: "bars", id: "probabilities" },
      el("caption", { class: "hidden-text" }, "Mean and standard deviation over draws of each class’s probability"),
      el(
        "thead",
        { class: "hidden-text" },
        el(
          "tr",
          {},
          ...["class", "bar", "probability", "standard deviation"].map((head) => el("th", { scope: "col" }, head)),
        ),
      ),
      el("tbody", {}, ...[...order].map((place) => rows[place])),
    ),
    el(
      "p",
      { class: "small" },
      rows.length > 12 ? `The 12 likeliest of ${rows.length}. ` : "",
      "Whiskers: one standard deviation over the draws. ",
      `Prediction set: ${among.length ? among.join(", ") : "empty, no class fits"}.`,
    ),
  );
}

const entropyParts = (prediction) => ({
  total: ["entropy", prediction.entropy],
  parts: [
    ["mutual information", prediction.mutual_information, "the draws disagree", "epistemic"],
    ["aleatoric entropy", prediction.aleatoric_entropy, "each draw is unsure", "aleatoric"],
  ],
});

const varianceParts = (prediction) => ({
  total: ["total", prediction.std ** 2],
  parts: [
    ["epistemic", prediction.epistemic_std ** 2, "the draws disagree", "epistemic"],
    ["aleatoric", prediction.aleatoric_std ** 2, "noise in the data", "aleatoric"],
  ],
});

/** A whole and the two parts that add up to it. */
function split(title, unit, { total: [whole, sum], parts }) {
  return el(
    "section",
    {},
    el("h2", {}, title),
    el(
      "div",
      { class: "stack", "aria-hidden": "true" },
      ...parts.map(([, value, , kind]) =>
        placed(el("span", { class: kind }), { width: sum > 0 ? (100 * value) / sum : 0 }),
      ),
    ),
    el(
      "dl",
      { class: "split-terms", id: "split" },
      ...parts.map(([name, value, said, kind]) =>
        el(
          "div",
          {},
          el("dt", {}, el("span", { class: `key ${kind}`, "aria-hidden": "true" }), name),
          el("dd", {}, number(value), el("span", { class: "small" }, ` ${said}`)),
        ),
      ),
      el("div", {}, el("dt", {}, `= ${whole}`), el("dd", {}, number(sum), el("span", { class: "small" }, ` ${unit}`))),
    ),
  );
}

// ---- numbers --------------------------------------------------------------------------------------------------------

function interval({ mean, std, quantiles, interval: [lower, upper] }, { target_name: target, coverage }) {
  const ends = [lower, upper, ...Object.values(quantiles)];
  const [low, high] = [Math.min(...ends), Math.max(...ends)];
  const margin = 0.06 * (high - low) || 1;
  const at = (value) => (100 * (value - low + margin)) / (high - low + 2 * margin);
  const line = el(
    "div",
    { class: "number-line", "aria-hidden": "true" },
    placed(el("span", { class: "span interval" }), { left: at(lower), width: at(upper) - at(lower) }),
    placed(el("span", { class: "span quantiles" }), {
      left: at(quantiles["0.025"]),
      width: at(quantiles["0.975"]) - at(quantiles["0.025"]),
    }),
    placed(el("span", { class: "mark" }), { left: at(mean) }),
  );
  const facts = [
    ["mean", number(mean)],
    ["standard deviation", number(std)],
    [`interval, ${percent(coverage, 0)}`, `${number(lower)} to ${number(upper)}`],
    ...Object.entries(quantiles).map(([level, value]) => [`quantile ${level}`, number(value)]),
  ];
  return el(
    "section",
    {},
    el("h2", {}, `Prediction of ${target}`),
    line,
    el(
      "dl",
      { class: "facts", id: "interval" },
      ...facts.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value))),
    ),
    el(
      "p",
      { class: "small" },
      "Thin: the calibrated interval. Thick: from the 0.025 to the 0.975 quantile of the draws’ mixture.",
    ),
  );
}

// ---- scores ---------------------------------------------------------------------------------------------------------

function scores(prediction, description, percentile) {
  const { decision, combination } = description;
  const known = Object.keys(prediction.scores).filter((name) => description.scores[name]);
  const own = known.filter((name) => name !== decision && combination.includes(name));
  const rest = known.filter((name) => name !== decision && !combination.includes(name));
  const strip = (name, large) => scoreStrip(name, prediction, description, percentile, large);
  const several = (names) => el("div", { class: "multiples" }, ...names.map((name) => strip(name, false)));
  return el(
    "section",
    { id: "scores" },
    el("h2", {}, "Against the calibration rows"),
    known.includes(decision) ? strip(decision, true) : null,
    own.length ? el("h3", {}, "What it is made of") : null,
    own.length ? several(own) : null,
    rest.length
      ? el(
          "details",
          {
            open: restOpen ?? (WIDE.matches && !own.length),
            ontoggle: (event) => {
              restOpen = event.target.open;
            },
          },
          el("summary", {}, `${rest.length} other scores, which do not decide`),
          several(rest),
        )
      : null,
  );
}

/** Whether the other scores are shown: as the reader left them, whatever is asked next. */
let restOpen = null;

/** A score on the distribution function of the calibration rows, and the threshold it is held against. */
function scoreStrip(name, prediction, description, percentile, large) {
  const score = prediction.scores[name];
  const { quantiles } = description.scores[name];
  const [low, most] = [quantiles[0], Math.max(quantiles.at(-1), score.threshold)];
  const width = most - low || 1;
  const high = Math.min(Math.max(most, score.value), most + width) + 0.04 * width;
  const left = Math.max(Math.min(low, score.value), low - width) - 0.04 * width;
  const at = (value) => Math.min(100, Math.max(0, (100 * (value - left)) / (high - left)));
  const above = !(score.value <= score.threshold);
  const share = Math.min(100, Math.max(0, score.percentile));
  const curve = quantiles.map((value, place) => `${at(value).toFixed(2)},${(100 - place).toFixed(2)}`);
  const picture = svg(
    "svg",
    { viewBox: "0 0 100 100", preserveAspectRatio: "none", "aria-hidden": "true" },
    svg("rect", { class: "beyond", x: at(score.threshold), y: 0, width: 100 - at(score.threshold), height: 100 }),
    svg("polyline", { class: "ecdf", points: `0,100 ${curve.join(" ")} 100,0` }),
    svg("line", { class: "threshold", x1: at(score.threshold), x2: at(score.threshold), y1: 0, y2: 100 }),
  );
  const off = score.value > high || score.value < left;
  const dot = placed(el("span", { class: off ? "dot off" : "dot", "aria-hidden": "true" }), {
    left: at(score.value),
    bottom: share,
  });
  const meaning = MEANING[description.task][name] ?? OF_ANY[name] ?? "";
  return el(
    "figure",
    { class: `strip ${large ? "large" : ""} ${above ? "above" : "below"}`, "data-score": name },
    el(
      "figcaption",
      {},
      el("span", { class: "name" }, plain(name), large ? el("span", { class: "tag" }, "decides") : null),
      el(
        "span",
        { class: "value" },
        number(score.value),
        above ? el("span", { class: "hidden-text" }, " above its threshold") : null,
      ),
      el(
        "span",
        { class: "small" },
        large
          ? `${meaning ? `${meaning}. ` : ""}Above ${placeOf(score, percentile)} of ` +
              `${rowsOf(description, prediction)}; p = ${number(score.p_value)}`
          : `above ${placeOf(score, percentile)} · limit ${number(score.threshold)}`,
      ),
    ),
    el("div", { class: "plot", title: meaning || null }, picture, dot),
    large
      ? el(
          "div",
          { class: "scale small", "aria-hidden": "true" },
          el("span", {}, number(low)),
          limitLabel(`${ordinal(percentile)} percentile: ${number(score.threshold)}`, at(score.threshold)),
          el("span", {}, number(high)),
        )
      : null,
  );
}

/** A text under a place, kept within the plot. */
function limitLabel(text, at) {
  return placed(el("span", { class: "limit" }, text), at > 50 ? { right: 100 - at } : { left: at });
}
