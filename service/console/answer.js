// Draws the prediction of one row: the verdict, the probabilities or the interval, the parts of the uncertainty, every score.

import { el, number, ordinal, percent, placed, plain, svg } from "./dom.js";

const MEANING = {
  classification: {
    std: "largest standard deviation of a class's probability over the draws",
    entropy: "total uncertainty, in nats",
    mutual_information: "epistemic uncertainty: disagreement of the draws, in nats",
    expected_entropy: "aleatoric uncertainty: mean entropy of the draws, in nats",
    max_probability: "1 − the largest probability",
    variation_ratio: "share of the draws that predict another class",
    energy: "large if the network gives no class a large logit",
    gen: "generalized entropy of the probabilities",
  },
  regression: { std: "standard deviation of the draws' means", total_std: "standard deviation including the noise" },
};
/** The smallest standard deviation that gets a whisker; a smaller one is printed as 0.00. */
const SMALLEST_WHISKER = 0.005;
const WIDE = matchMedia("(min-width: 56rem)");

const OF_ANY = {
  combined: "several scores combined, and calibrated together",
  novelty: "several scores of distance combined",
  range: "how far a column is outside its training range",
  mahalanobis: "distance of the features from the training rows",
  relative_mahalanobis: "distance of the features from the nearest class, relative to the distance from all rows",
  subspace: "distance from the main directions of the training rows",
  local_subspace: "distance from the main directions of the predicted class",
  feature_subspace: "distance of the features from their main directions",
  knn: "distance of the features to the nearest training rows",
  input_knn: "distance to the nearest training rows",
  vim: "distance of the features from their main directions, relative to the logits",
};

/** Shows the verdict in words; `prediction` is null before the first prediction. */
export function showVerdict(container, description, prediction, percentile) {
  if (!prediction) {
    container.className = "verdict";
    container.replaceChildren(
      el("p", { class: "word muted" }, "No prediction yet"),
      el("p", { class: "why" }, "Draw something, or choose an example: the prediction appears at once."),
    );
    return;
  }
  const doubtful = close(prediction.scores[description.decision], percentile) || fitsNone(prediction);
  container.className = prediction.reject ? "verdict unknown" : `verdict accepted${doubtful ? " doubtful" : ""}`;
  container.replaceChildren(
    el("p", { class: "word" }, prediction.reject ? "I don’t know" : `accepted: ${valueOf(description, prediction)}`),
    el("p", { class: "why" }, reason(description, prediction, percentile)),
  );
}

const valueOf = (description, prediction) =>
  description.task === "classification" ? prediction.label : `${number(prediction.mean)}`;

/** Whether a row would be rejected at twice the requested rate, or at a rate five percentage points larger. */
const close = ({ p_value: p }, percentile) => 100 * p < 100 - percentile + Math.min(100 - percentile, 5);

const fitsNone = ({ prediction_set: members }) => members?.length === 0;

function reason(description, prediction, percentile) {
  const decision = prediction.scores[description.decision];
  const sentences = prediction.reject
    ? rejected(prediction)
    : [accepted(description, prediction, decision, percentile)];
  if (prediction.reject && decision.extrapolated) {
    sentences.push(`Stranger than all of ${rowsOf(description, prediction)}`);
  }
  if (description.task === "classification") {
    if (fitsNone(prediction)) sentences.push(`No class fits at a coverage of ${percent(description.coverage, 0)}`);
    if (prediction.reject) sentences.push(`The most probable class is ${prediction.label}`);
  }
  return sentences.map((sentence) => `${sentence}.`).join(" ");
}

/** The reasons in sentences, one for each part of the decision if it has two. */
function rejected({ reasons, novel }) {
  if (novel === undefined) return [capital(reasons.map(plain).join("; "))];
  const byPart = ["novel: ", "ambiguous: "].map((part) => [part, reasons.filter((reason) => reason.startsWith(part))]);
  return byPart
    .filter(([, own]) => own.length)
    .map(([part, own]) => capital(part) + own.map((reason) => plain(reason.slice(part.length))).join("; "));
}

function accepted(description, prediction, decision, percentile) {
  const limit = `${close(decision, percentile) ? "close to" : "within"} the limit of ${percentile} %`;
  const by = description.decision === "combined" ? "By its combined score" : `By ${plain(description.decision)}`;
  const rank = description.ambiguity && !description.limits_error ? "stranger or less sure" : "stranger";
  const share = decision.percentile > 0 ? `than ${shareBelow(decision, percentile)} of` : "than none of";
  return `${by} it is ${rank} ${share} ${rowsOf(description, prediction)}, ${limit}`;
}

/** The rows that a score is ranked among. */
const rowsOf = ({ per_class: perClass }, { label }) =>
  perClass ? `the calibration rows that are predicted as ${label}` : "the calibration rows";

/** The share of the calibration rows below a score, as text; never rounded to the limit or to 100 %. */
function shareBelow({ percentile, extrapolated }, limit) {
  if (extrapolated) return "all";
  const digits = [1, 2, 3].find((count) => {
    const rounded = Number(percentile.toFixed(count));
    return rounded < 100 && (rounded < limit) === (percentile < limit);
  });
  return `${percentile.toFixed(digits ?? 4)} %`;
}

const capital = (text) => text.replace(/^./, (first) => first.toUpperCase());

/** Shows the details of the verdict. */
export function showDetails(container, description, prediction, percentile) {
  if (!prediction) return container.replaceChildren();
  const parts =
    description.task === "classification"
      ? [probabilities(prediction, description.class_names), split("Uncertainty", "nats", entropyParts(prediction))]
      : [
          interval(prediction, description),
          split("Variance", "in squared units of the target", varianceParts(prediction)),
        ];
  return container.replaceChildren(...parts, scores(prediction, description, percentile));
}

// ---- classes --------------------------------------------------------------------------------------------------------

function probabilities({ probabilities: means, std, index: predicted, prediction_set: members, ...rest }, names) {
  const ends = rest.probability_interval?.map((end) => end.toFixed(2));
  const rows = means.map((mean, index) => {
    const low = Math.max(0, mean - std[index]);
    const high = Math.min(1, mean + std[index]);
    const bar = el(
      "div",
      { class: "track", "aria-hidden": "true" },
      placed(el("span", { class: "fill" }), { width: 100 * mean }),
      std[index] < SMALLEST_WHISKER
        ? null
        : placed(el("span", { class: "whisker" }), { left: 100 * low, width: 100 * (high - low) }),
    );
    return el(
      "tr",
      { class: index === predicted ? "top" : null },
      el("th", { scope: "row" }, names[index]),
      el("td", { class: "bar-cell" }, bar),
      el("td", {}, mean.toFixed(2)),
      el("td", { class: "muted" }, `± ${std[index].toFixed(2)}`),
    );
  });
  const order =
    rows.length > 12
      ? means
          .map((_, index) => index)
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
      el("tbody", {}, ...[...order].map((index) => rows[index])),
    ),
    el(
      "p",
      { class: "small" },
      rows.length > 12 ? `The 12 most probable of ${rows.length} classes. ` : "",
      "Whiskers: one standard deviation over the draws. ",
      `Prediction set: ${members.length ? members.join(", ") : "empty, no class fits"}.`,
      ends ? ` Probability interval of ${names[1]}: ${ends.join(" to ")}.` : "",
    ),
  );
}

const entropyParts = (prediction) => ({
  total: ["entropy", prediction.entropy],
  parts: [
    ["mutual information", prediction.mutual_information, "the draws disagree", "epistemic"],
    ["aleatoric entropy", prediction.aleatoric_entropy, "each draw is uncertain", "aleatoric"],
  ],
});

const varianceParts = (prediction) => ({
  total: ["total", prediction.std ** 2],
  parts: [
    ["epistemic", prediction.epistemic_std ** 2, "the draws disagree", "epistemic"],
    ["aleatoric", prediction.aleatoric_std ** 2, "noise in the data", "aleatoric"],
  ],
});

/** A total and the two parts that add up to it. */
function split(title, unit, { total: [name, sum], parts }) {
  return el(
    "section",
    {},
    el("h2", {}, title),
    el(
      "div",
      { class: "stack", "aria-hidden": "true" },
      ...parts.map(([, value, , type]) =>
        placed(el("span", { class: type }), { width: sum > 0 ? (100 * value) / sum : 0 }),
      ),
    ),
    el(
      "dl",
      { class: "split-terms", id: "split" },
      ...parts.map(([part, value, meaning, type]) =>
        el(
          "div",
          {},
          el("dt", {}, el("span", { class: `key ${type}`, "aria-hidden": "true" }), part),
          el("dd", {}, number(value), el("span", { class: "small" }, ` ${meaning}`)),
        ),
      ),
      el("div", {}, el("dt", {}, `= ${name}`), el("dd", {}, number(sum), el("span", { class: "small" }, ` ${unit}`))),
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
    [`prediction interval, ${percent(coverage, 0)}`, `${number(lower)} to ${number(upper)}`],
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
      "Thin: the prediction interval. Thick: from the 0.025 to the 0.975 quantile of the mixture of the draws.",
    ),
  );
}

// ---- scores ---------------------------------------------------------------------------------------------------------

function scores(prediction, description, percentile) {
  const { decision } = description;
  const combination = [...description.combination, ...(description.ambiguity ? ["novelty", description.ambiguity] : [])];
  const names = Object.keys(prediction.scores).filter((name) => description.scores[name]);
  const combined = names.filter((name) => name !== decision && combination.includes(name));
  const rest = names.filter((name) => name !== decision && !combination.includes(name));
  const strip = (name, large) => scoreStrip(name, prediction, description, percentile, large);
  const several = (some) => el("div", { class: "multiples" }, ...some.map((name) => strip(name, false)));
  return el(
    "section",
    { id: "scores" },
    el("h2", {}, "Scores, compared with the calibration rows"),
    names.includes(decision) ? strip(decision, true) : null,
    combined.length ? el("h3", {}, "Scores of the combination") : null,
    combined.length ? several(combined) : null,
    rest.length
      ? el(
          "details",
          {
            open: restOpen ?? (WIDE.matches && !combined.length),
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

/** Whether the other scores are open; kept for the next predictions. */
let restOpen = null;

/** A score on the distribution function of the calibration rows, with its threshold. */
function scoreStrip(name, prediction, description, percentile, large) {
  const score = prediction.scores[name];
  const { quantiles } = description.scores[name];
  const [low, top] = [quantiles[0], Math.max(quantiles.at(-1), score.threshold)];
  const width = top - low || 1;
  const high = Math.min(Math.max(top, score.value), top + width) + 0.04 * width;
  const left = Math.max(Math.min(low, score.value), low - width) - 0.04 * width;
  const at = (value) => Math.min(100, Math.max(0, (100 * (value - left)) / (high - left)));
  const above = !(score.value <= score.threshold);
  const share = Math.min(100, Math.max(0, score.percentile));
  const curve = quantiles.map((value, percent) => `${at(value).toFixed(2)},${(100 - percent).toFixed(2)}`);
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
          ? `${meaning ? `${meaning}. ` : ""}Above ${shareBelow(score, percentile)} of ` +
              `${rowsOf(description, prediction)}; p = ${number(score.p_value)}`
          : `above ${shareBelow(score, percentile)} · limit ${number(score.threshold)}`,
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

/** A text below a position, kept within the plot. */
function limitLabel(text, at) {
  return placed(el("span", { class: "limit" }, text), at > 50 ? { right: 100 - at } : { left: at });
}
