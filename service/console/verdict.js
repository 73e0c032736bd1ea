// The verdict in words: the columns out of range, how strange the row is, and why it is rejected.

import { el, measured, percent, plain } from "./dom.js";
import { excess, nameOf, replacementOf, shown } from "./requests.js";

const MOST_COLUMNS = 4;
/** The names of scores in sentences, where the plain name would say something else. */
const IN_WORDS = {
  max_probability: "1 − the largest probability",
  combined: "its combined score",
  novelty: "its combined novelty",
  std: "the standard deviation over the draws",
  total_std: "the standard deviation",
};

/** Shows the verdict on a row with these values. */
export function showVerdict(container, description, prediction, percentile, values) {
  const parts = partsOf(description, prediction, percentile);
  const doubtful = parts.some(({ close }) => close) || fitsNone(prediction);
  const columns = [...unseenOf(prediction), ...columnsOf(description, values)];
  container.className = prediction.reject ? "verdict unknown" : `verdict accepted${doubtful ? " doubtful" : ""}`;
  container.replaceChildren(
    el("p", { class: "word" }, prediction.reject ? "I don’t know" : `accepted: ${valueOf(description, prediction)}`),
    ...(columns.length ? [el("ul", { class: "columns-of-row" }, ...columns.map((text) => el("li", {}, text)))] : []),
    el("p", { class: "why" }, ...reason(description, prediction, parts).flatMap(sentence)),
  );
}

/** A sentence on a line of its own, which never begins with a percent sign. */
const sentence = (text) => [el("span", { class: "block" }, `${text.replaceAll(" %", "\u00a0%")}.`), " "];

const valueOf = (description, prediction) =>
  description.task === "classification" ? prediction.label : `${measured(prediction.mean)}`;

const UNSEEN = /^(?:novel: )?(.* was not in training)$/s;

/** The columns with a category that was not in training, in the words of the response. */
const unseenOf = ({ reasons: texts }) => texts.map((text) => UNSEEN.exec(text)?.[1]).filter(Boolean);

/** The columns outside of the training rows, the farthest first, and the empty ones. */
function columnsOf({ features, ranges }, values) {
  const about = ranges === "training" ? "" : "about ";
  const outside = values
    .map((value, index) => ({ value, index, far: excess(features[index], value) }))
    .filter(({ far }) => far > 0)
    .sort((a, b) => b.far - a.far)
    .map(({ value, index }) => {
      const feature = features[index];
      const range = `${about}${shown(feature, feature.low)} – ${shown(feature, feature.high)}`;
      return `${nameOf(feature, index)} ${shown(feature, value)}; trained on ${range}`;
    });
  const empty = values.flatMap((value, index) =>
    value === null ? [`${nameOf(features[index], index)} is empty; the model uses ${replacementOf(features[index])}`] : [],
  );
  return [...shortened(outside, "out of range"), ...shortened(empty, "empty")];
}

const shortened = (texts, state) =>
  texts.length > MOST_COLUMNS
    ? [...texts.slice(0, MOST_COLUMNS), `${texts.length - MOST_COLUMNS} more columns ${state}`]
    : texts;

// ---- how strange ----------------------------------------------------------------------------------------------------

/**
 * How strange the row is by each part of the decision: `{ above, close, text }`.
 *
 * The parts of a decision of two share its rate, so each has a limit of its own, which is known for the version's own percentile.
 */
function partsOf(description, prediction, percentile) {
  const { ambiguity, novelty, decision, part_rates: rates } = description;
  const rows = rowsOf(description, prediction);
  const part = (name, limit, above, more) => {
    const score = prediction.scores[name];
    const close = !above && limit !== null && isClose(score, limit);
    return { above, close, text: more(score, placeOf(score, limit, above, close)) };
  };
  const share = (score, limit) =>
    !score.extrapolated && score.percentile <= 0 ? `none of ${rows}` : `${shareBelow(score, limit)} of ${rows}`;
  if (!ambiguity) {
    return [
      part(decision, percentile, prediction.reject, (score, place) => `By ${inWords(decision)} it is stranger than ${share(score, percentile)}, ${place}`),
    ];
  }
  const limits = ["novel", "ambiguous"].map((name) =>
    percentile === description.percentile ? limitOf(rates[name]) : null,
  );
  return [
    part(novelty, limits[0], prediction.novel, (score, place) => `Novelty: stranger than ${share(score, limits[0])}, ${place}`),
    part(ambiguity, limits[1], prediction.ambiguous, (score, place) =>
      limits[1] === 0
        ? "Ambiguity: no limit of the error could be certified, so every row is ambiguous"
        : `Ambiguity: by ${inWords(ambiguity)}, ${measured(score.value)}, less sure than ${share(score, limits[1])}, ${place}`,
    ),
  ];
}

/** The percentile of a part's limit, from the share of the calibration rows that it rejects; without digits of rounding. */
const limitOf = (rate) => Number((100 * (1 - rate)).toFixed(2));

function placeOf(score, limit, above, close) {
  const side = above ? "above" : close ? "close to" : "within";
  return limit === null ? `${side} its limit` : `${side} the limit of ${limit} %`;
}

/** Whether a row would be rejected at twice the requested rate, or at a rate five percentage points larger. */
const isClose = ({ p_value: p }, percentile) => 100 * p < 100 - percentile + Math.min(100 - percentile, 5);

const fitsNone = ({ prediction_set: members }) => members?.length === 0;

/** The rows that a score is ranked among. */
export const rowsOf = ({ per_class: perClass }, { label }) =>
  perClass ? `the calibration rows that are predicted as ${label}` : "the calibration rows";

/** The share of the calibration rows below a score, as text; never rounded to the limit or to 100 %. */
export function shareBelow({ percentile, extrapolated }, limit) {
  if (extrapolated) return "all";
  const digits = [1, 2, 3].find((count) => {
    const rounded = Number(percentile.toFixed(count));
    return rounded < 100 && (limit === null || rounded < limit === percentile < limit);
  });
  return `${percentile.toFixed(digits ?? 4)} %`;
}

// ---- why ------------------------------------------------------------------------------------------------------------

function reason(description, prediction, parts) {
  const sentences = parts.map(({ text }) => text);
  sentences.push(...reasons(description, prediction.reasons));
  if (description.task === "classification") {
    if (fitsNone(prediction)) sentences.push(`No class fits at a coverage of ${percent(description.coverage, 0)}`);
    if (prediction.reject) sentences.push(`The most probable class is ${prediction.label}`);
  } else if (prediction.reject) {
    sentences.push(`The predicted mean is ${measured(prediction.mean)}`);
  }
  return sentences;
}

/** The scores that the reasons of the response name, in words: those above their own percentile, or the one that adds most. */
function reasons({ decision, novelty, ambiguity }, texts) {
  const above = [];
  let its = "";
  for (const text of texts.filter((one) => !one.startsWith(`ambiguous: ${ambiguity} `) && !UNSEEN.test(one))) {
    const [, loudest, share] = /, loudest (\w+): ([\d.]+) of 100$/.exec(text) ?? [];
    if (loudest) return [`What adds most is ${inWords(loudest)}: above ${share} % of the calibration rows`];
    const [, score, rank, column] = /(\w+) above its ([\d.]+\w+) percentile(?:: (.*))?$/s.exec(text) ?? [];
    if (score === decision || score === novelty || !score) continue;
    its = rank;
    above.push(column ? `${inWords(score)} (${column})` : inWords(score));
  }
  return above.length ? [`Above ${above.length > 1 ? "their" : "its"} ${its} percentile: ${above.join(", ")}`] : [];
}

export const inWords = (name) => IN_WORDS[name] ?? plain(name);
