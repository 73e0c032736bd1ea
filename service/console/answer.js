// Draws the prediction of one row: the probabilities or the interval, the parts of the uncertainty, every score.

import { el, measured, number, ordinal, percent, placed, plain, svg } from "./dom.js";
import { inWords, rowsOf, shareBelow } from "./verdict.js";

const MEANING = {
  classification: {
    std: "largest standard deviation of a class's probability over the draws",
    entropy: "total uncertainty, in nats",
    mutual_information: "epistemic uncertainty: disagreement of the draws, in nats",
    expected_entropy: "aleatoric uncertainty: mean entropy of the draws, in nats",
    max_probability: "how unsure the answer is",
    variation_ratio: "share of the draws that predict another class",
    energy: "large if the network gives no class a large logit",
    gen: "generalized entropy of the probabilities",
  },
  regression: { std: "standard deviation of the draws' means", total_std: "standard deviation including the noise" },
};
/** The smallest standard deviation that gets a whisker; a smaller one is printed as 0.00. */
const SMALLEST_WHISKER = 0.005;
/** An axis that far calibration rows make more than this many times wider is clipped, as in the report. */
const STRETCH = 3;

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
    ...ticks(low - margin, high + margin).map((value) =>
      placed(el("span", { class: "tick small" }, measured(value)), { left: at(value) }),
    ),
    placed(el("span", { class: "span interval" }), { left: at(lower), width: at(upper) - at(lower) }),
    placed(el("span", { class: "span quantiles" }), {
      left: at(quantiles["0.025"]),
      width: at(quantiles["0.975"]) - at(quantiles["0.025"]),
    }),
    placed(el("span", { class: "mark" }), { left: at(mean) }),
  );
  const facts = [
    ["mean", measured(mean)],
    ["standard deviation", measured(std)],
    [`prediction interval, ${percent(coverage, 0)}`, `${measured(lower)} to ${measured(upper)}`],
    ...Object.entries(quantiles).map(([level, value]) => [`quantile ${level}`, measured(value)]),
  ];
  return el(
    "section",
    {},
    el("h2", {}, `Prediction of ${target}`),
    line,
    el("p", { class: "small axis", "aria-hidden": "true" }, `${target}, in the units of the training data`),
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

/** Three to six round numbers between two ends. */
function ticks(low, high) {
  const least = (high - low) / 6;
  const ten = 10 ** Math.floor(Math.log10(least));
  const step = [1, 2, 5, 10].map((factor) => factor * ten).find((one) => one >= least);
  const first = Math.ceil(low / step);
  const count = Math.floor(high / step) - first + 1;
  return Array.from({ length: Math.max(0, Math.min(count, 7)) }, (_, index) => Number(((first + index) * step).toPrecision(12)));
}

// ---- scores ---------------------------------------------------------------------------------------------------------

/** All scores; closed until a person opens them, and then open for the next predictions, too. */
function scores(prediction, description, percentile) {
  const { decision } = description;
  const parts = description.ambiguity ? [description.novelty, description.ambiguity] : [];
  const combination = [...description.combination, ...parts];
  const names = Object.keys(prediction.scores).filter((name) => description.scores[name]);
  const combined = names.filter((name) => name !== decision && combination.includes(name));
  const rest = names.filter((name) => name !== decision && !combination.includes(name));
  const strip = (name, large) => scoreStrip(name, prediction, description, percentile, large);
  const group = (title, some) =>
    some.length ? [el("h3", {}, title), el("div", { class: "multiples" }, ...some.map((name) => strip(name, false)))] : [];
  return el(
    "details",
    {
      id: "scores",
      open: scoresOpen,
      ontoggle: (event) => {
        scoresOpen = event.target.open;
      },
    },
    el("summary", {}, el("h2", {}, "Scores, compared with the calibration rows")),
    names.includes(decision) ? strip(decision, true) : null,
    ...group("Scores of the decision", combined),
    ...group("Other scores, which do not decide", rest),
  );
}

let scoresOpen = false;

/** A score on the distribution function of the calibration rows, with its threshold. */
function scoreStrip(name, prediction, description, percentile, large) {
  const score = prediction.scores[name];
  const { quantiles } = description.scores[name];
  const [low, top] = endsOf(quantiles, score.threshold);
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
      el("span", { class: "name" }, name === "max_probability" ? inWords(name) : plain(name), large ? el("span", { class: "tag" }, "decides") : null),
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

/** The ends of the calibration rows and the threshold; of the central 98 % if farther rows would stretch the axis. */
function endsOf(quantiles, threshold) {
  const ends = (low, high) => [Math.min(low, threshold), Math.max(high, threshold)];
  const [all, inner] = [ends(quantiles[0], quantiles.at(-1)), ends(quantiles[1], quantiles.at(-2))];
  const width = ([low, high]) => high - low;
  return width(inner) > 0 && width(all) > STRETCH * width(inner) ? inner : all;
}

/** A text below a position, kept within the plot. */
function limitLabel(text, at) {
  return placed(el("span", { class: "limit" }, text), at > 50 ? { right: 100 - at } : { left: at });
}
