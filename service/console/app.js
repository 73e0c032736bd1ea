// The console: the version, the view and the theme. The address `#view/model:version` names a view of a version.

import { el, fetchJSON, keepKey } from "./dom.js";
import * as model from "./model.js";
import * as tryIt from "./try.js";
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
let current = null;

async function begin() {
  theme.addEventListener("click", switchTheme);
  dark.addEventListener("change", applyTheme);
  window.addEventListener("hashchange", openAddress);
  document.addEventListener("refused", showSignIn);
  signIn.addEventListener("submit", useKey);
  select.addEventListener("change", () => go(readAddress().view, select.value));
  applyTheme();
  watch.start();
  await listVersions();
}

/** Reads the ready versions; tries again until there is one. */
async function listVersions() {
  try {
    ({ models } = await fetchJSON("models"));
  } catch (error) {
    return signIn.hidden ? retryLater(error.message) : undefined;
  }
  const ready = models.flatMap(({ name, versions }) =>
    versions.filter(({ state }) => state === "ready").map((version) => ({ name, ...version })),
  );
  if (!ready.length) {
    const why = models.flatMap(({ name, versions }) =>
      versions.filter(({ state }) => state !== "idle").map(({ version, state }) => `${name}:${version} is ${state}`),
    );
    return retryLater(why.join("; ") || "the store has no models");
  }
  select.replaceChildren(
    ...ready.map(({ name, version, labels, sound }) =>
      el(
        "option",
        { value: `${name}:${version}` },
        [`${name}:${version}`, ...labels, ...(sound ? [] : ["has shortfalls"])].join(" · "),
      ),
    ),
  );
  const stable = ready.find(({ labels }) => labels.includes("stable")) ?? ready[0];
  select.value = `${stable.name}:${stable.version}`;
  select.disabled = false;
  notice.hidden = true;
  await openAddress();
}

/** Shows the form for a key, with the reason of the server. */
function showSignIn({ detail }) {
  document.getElementById("sign-in-why").textContent = detail;
  if (!signIn.hidden) return;
  signIn.hidden = false;
  notice.hidden = true;
  signIn.elements.key.focus();
}

async function useKey(event) {
  event.preventDefault();
  keepKey(signIn.elements.key.value.trim());
  signIn.reset();
  signIn.hidden = true;
  await listVersions();
}

function retryLater(why) {
  showNotice(`Not ready: ${why}`);
  setTimeout(listVersions, RETRY);
}

function showNotice(text) {
  notice.textContent = text;
  notice.hidden = false;
}

/** The view and the version in the address; `absent` is the version in it if that one cannot be shown. */
function readAddress() {
  const [view, named = ""] = location.hash.slice(1).split("/").map(decoded);
  const references = [...select.options].map((option) => option.value);
  const exists = references.includes(named);
  const another = references.find((reference) => reference.startsWith(`${named.replace(/:[^:]*$/, "")}:`));
  return {
    view: VIEWS.includes(view) ? view : "try",
    reference: exists ? named : (another ?? select.value),
    absent: exists ? "" : named,
  };
}

function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

/** Why the version in an address is not shown. */
function explainAbsent(absent, shown) {
  const version = models
    .flatMap(({ name, versions }) => versions.map((own) => ({ ...own, reference: `${name}:${own.version}` })))
    .find(({ reference }) => reference === absent);
  const why = version ? `is ${version.state}${version.why ? `: ${version.why}` : ""}` : "is not in the store";
  return `${absent} ${why}. This page shows ${shown}.`;
}

function go(view, reference) {
  location.hash = `${view}/${encodeURIComponent(reference)}`;
}

/** Shows the view and the version in the address. */
async function openAddress() {
  if (select.disabled) return;
  const { view, reference, absent } = readAddress();
  select.value = reference;
  if (current?.reference !== reference) {
    const [name, version] = [
      reference.slice(0, reference.lastIndexOf(":")),
      reference.slice(reference.lastIndexOf(":") + 1),
    ];
    try {
      const description = await fetchJSON(`console/models/${encodeURIComponent(name)}/versions/${version}`);
      if (readAddress().reference !== reference) return;
      current = { reference, description };
    } catch (error) {
      showNotice(error.message);
      return;
    }
    tryIt.use(current.description);
    model.showModel(current.description, models);
  }
  if (absent) showNotice(explainAbsent(absent, reference));
  else notice.hidden = true;
  for (const name of VIEWS) document.getElementById(name).hidden = name !== view;
  for (const link of document.querySelectorAll("nav a")) {
    link.setAttribute("href", `#${link.dataset.view}/${encodeURIComponent(reference)}`);
    if (link.dataset.view === view) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.title = `${NAMES[view]} · ${reference} · abstain`;
  watch.use(current.description);
  tryIt.repaint();
}

// ---- light and dark -------------------------------------------------------------------------------------------------

const isDark = () => (document.documentElement.dataset.theme ?? (dark.matches ? "dark" : "light")) === "dark";

function switchTheme() {
  const chosen = isDark() ? "light" : "dark";
  document.documentElement.dataset.theme = chosen;
  try {
    localStorage.setItem("abstain-theme", chosen);
  } catch {
    // Without storage the choice is lost when the page closes.
  }
  applyTheme();
}

function applyTheme() {
  theme.textContent = isDark() ? "Light" : "Dark";
  theme.setAttribute("aria-label", `Switch to the ${isDark() ? "light" : "dark"} theme`);
  tryIt.repaint();
  watch.repaint();
}

begin();
