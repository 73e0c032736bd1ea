// The console: which version, which view, which theme. `#view/model:version` is where one is.

import { el, fetchJSON, keepKey } from "./dom.js";
import * as model from "./model.js";
import * as tried from "./try.js";
import * as watch from "./watch.js";

const VIEWS = ["try", "watch", "model"];
const RETRY = 2000;
const NAMES = { try: "Try it", watch: "Watch it", model: "Model" };

const notice = document.getElementById("notice");
const select = document.getElementById("version");
const signIn = document.getElementById("sign-in");
const theme = document.getElementById("theme");
const dark = matchMedia("(prefers-color-scheme: dark)");

let models = [];
let shown = null;

async function begin() {
  theme.addEventListener("click", switchTheme);
  dark.addEventListener("change", themed);
  window.addEventListener("hashchange", follow);
  document.addEventListener("refused", refused);
  signIn.addEventListener("submit", signedIn);
  select.addEventListener("change", () => go(place().view, select.value));
  themed();
  watch.start();
  await list();
}

/** Reads which versions answer; asks again until there is one. */
async function list() {
  try {
    ({ models } = await fetchJSON("models"));
  } catch (error) {
    return signIn.hidden ? later(error.message) : undefined;
  }
  const ready = models.flatMap(({ name, versions }) =>
    versions.filter(({ state }) => state === "ready").map((version) => ({ name, ...version })),
  );
  if (!ready.length) {
    const why = models.flatMap(({ name, versions }) =>
      versions.filter(({ state }) => state !== "idle").map(({ version, state }) => `${name}:${version} is ${state}`),
    );
    return later(why.join("; ") || "the store has no models");
  }
  select.replaceChildren(
    ...ready.map(({ name, version, labels, sound }) =>
      el(
        "option",
        { value: `${name}:${version}` },
        [`${name}:${version}`, ...labels, ...(sound ? [] : ["fell short"])].join(" · "),
      ),
    ),
  );
  const stable = ready.find(({ labels }) => labels.includes("stable")) ?? ready[0];
  select.value = `${stable.name}:${stable.version}`;
  select.disabled = false;
  notice.hidden = true;
  await follow();
}

/** This server wants a key, or another one. */
function refused({ detail }) {
  document.getElementById("sign-in-why").textContent = detail;
  if (!signIn.hidden) return;
  signIn.hidden = false;
  notice.hidden = true;
  signIn.elements.key.focus();
}

async function signedIn(event) {
  event.preventDefault();
  keepKey(signIn.elements.key.value.trim());
  signIn.reset();
  signIn.hidden = true;
  await list();
}

function later(why) {
  tell(`Not ready: ${why}`);
  setTimeout(list, RETRY);
}

function tell(text) {
  notice.textContent = text;
  notice.hidden = false;
}

/** The view and the version that the address names. */
function place() {
  const [view, reference] = location.hash.slice(1).split("/").map(decodeURIComponent);
  const known = [...select.options].some((option) => option.value === reference);
  return { view: VIEWS.includes(view) ? view : "try", reference: known ? reference : select.value };
}

function go(view, reference) {
  location.hash = `${view}/${encodeURIComponent(reference)}`;
}

async function follow() {
  if (select.disabled) return;
  const { view, reference } = place();
  select.value = reference;
  if (shown?.reference !== reference) {
    const [name, version] = [
      reference.slice(0, reference.lastIndexOf(":")),
      reference.slice(reference.lastIndexOf(":") + 1),
    ];
    try {
      const found = await fetchJSON(`console/models/${encodeURIComponent(name)}/versions/${version}`);
      if (place().reference !== reference) return;
      shown = { reference, found };
      notice.hidden = true;
    } catch (error) {
      tell(error.message);
      return;
    }
    tried.use(shown.found);
    model.show(shown.found, models);
  }
  for (const name of VIEWS) document.getElementById(name).hidden = name !== view;
  for (const link of document.querySelectorAll("nav a")) {
    link.setAttribute("href", `#${link.dataset.view}/${encodeURIComponent(reference)}`);
    if (link.dataset.view === view) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.title = `${NAMES[view]} · ${reference} · abstain`;
  watch.use(shown.found);
  tried.repaint();
}

// ---- light and dark -------------------------------------------------------------------------------------------------

const isDark = () => (document.documentElement.dataset.theme ?? (dark.matches ? "dark" : "light")) === "dark";

function switchTheme() {
  const chosen = isDark() ? "light" : "dark";
  document.documentElement.dataset.theme = chosen;
  try {
    localStorage.setItem("abstain-theme", chosen);
  } catch {
    // Not remembered, then.
  }
  themed();
}

function themed() {
  theme.textContent = isDark() ? "Light" : "Dark";
  theme.setAttribute("aria-label", `Switch to the ${isDark() ? "light" : "dark"} theme`);
  tried.repaint();
  watch.repaint();
}

begin();
