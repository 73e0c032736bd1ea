// Rollout: what is known of the candidate of a model, read again every few seconds.

import { el, fetchJSON, number, percent } from "./dom.js";

const SECONDS = 2;

/** The section of a model's rollout; null if it has none. */
export function rolloutOf(model) {
  if (!model?.rollout) return null;
  const section = el("section", { id: "rollout" }, ...content(model.name, { rollout: model.rollout }));
  const read = async () => {
    try {
      section.replaceChildren(...content(model.name, await fetchJSON(`models/${encodeURIComponent(model.name)}/rollout`)));
    } catch {
      // The server has observed nothing yet, or there is no connection: what is shown stays.
    }
    setTimeout(() => section.isConnected && read(), 1000 * SECONDS);
  };
  read();
  return section;
}

function content(name, state) {
  const { rollout } = state;
  return [
    el("h2", {}, `Rollout of ${name}:${rollout.candidate}`),
    el(
      "p",
      {},
      `A ${rollout.mode} of ${name}:${rollout.baseline}, ${percent(rollout.share)} of the callers`,
      rollout.auto ? "; the server ends it when there is a verdict." : ".",
    ),
    ...(state.state ? evidence(name, state) : [el("p", { class: "small" }, "Nothing was observed yet.")]),
  ];
}

function evidence(name, state) {
  const { rollout } = state;
  const known = [
    ["state", state.state],
    ["observed", `${state.observations.toLocaleString("en")} callers, ${state.rows.toLocaleString("en")} rows`],
    ["reject rate", difference(state.reject_rate, "candidate − baseline", rollout.margin)],
    state.disagreement ? ["other labels", difference(state.disagreement, "of the same rows", rollout.margin)] : null,
    state.failed_candidate || state.failed_baseline
      ? [
          "failed",
          `${state.failed_candidate.toLocaleString("en")} requests of the candidate, ${state.failed_baseline.toLocaleString("en")} of the baseline`,
        ]
      : null,
    state.dropped ? ["not computed", `${state.dropped.toLocaleString("en")} requests, because the server was busy`] : null,
    ["verdict", verdict(state, name)],
    state.why ? ["note", state.why] : null,
  ].filter(Boolean);
  return [
    el("dl", { class: "facts" }, ...known.map(([term, text]) => el("div", {}, el("dt", {}, term), el("dd", {}, text)))),
    el(
      "div",
      { class: "e-values" },
      eValue("promote", state.promote, state.needed, "every difference is below the margin"),
      eValue("abort", state.abort, state.needed, "a difference is above the margin"),
    ),
  ];
}

function difference({ mean, standard_error: error }, what, margin) {
  if (mean === null) return "unknown";
  return `${percent(mean, 2)}${error === null ? "" : ` ± ${percent(error, 2)}`} (${what}; margin ${percent(margin)})`;
}

function verdict({ verdict: found, missing, state, rollout }, name) {
  if (found && state === "running" && !rollout.auto) return `${found}: abstain rollout ${found} ${name}`;
  if (found) return found;
  return missing === null ? "none yet" : `none yet; about ${missing.toLocaleString("en")} more callers at the present difference`;
}

/** Evidence as a meter: logarithmic, because capitals multiply; full at the e-value of a verdict. */
function eValue(name, value, needed, meaning) {
  const share = Math.min(1, Math.max(0, Math.log(Math.max(value, 1)) / Math.log(needed)));
  const text = `e-value ${value >= 1e4 ? value.toExponential(1) : number(value)} of ${number(needed)}`;
  return el(
    "div",
    { class: "e-value" },
    el("span", {}, el("b", {}, name), ` ${text}`),
    el("meter", { min: "0", max: "1", value: String(share), "aria-label": `${name}: ${text}` }),
    el("span", { class: "small" }, `evidence that ${meaning}`),
  );
}
