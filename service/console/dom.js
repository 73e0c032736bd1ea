// Elements and numbers. Text from the server only ever becomes text nodes and attributes here.

const SVG = "http://www.w3.org/2000/svg";

/** An element with attributes and children; `on…` attributes are listeners, null ones are left out. */
export function el(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

/** The same in SVG. */
export function svg(tag, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), attributes, children);
}

function filled(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

/** Places an element by percentages, which a strict Content-Security-Policy lets scripts do but not markup. */
export function placed(element, places) {
  for (const [side, value] of Object.entries(places)) element.style[side] = `${value}%`;
  return element;
}

/** A number in three or four digits, as short as it can be said. */
export function number(value) {
  return digits(value).replace("-", "−");
}

function digits(value) {
  const size = Math.abs(value);
  if (!Number.isFinite(value)) return "–";
  if (value === 0) return "0";
  if (Number.isInteger(value) && size < 1e6) return value.toLocaleString("en");
  if (size >= 1e5 || size < 1e-4) return value.toExponential(1).replace("e+", "e").replace("e-", "e−");
  if (size >= 100) return value.toLocaleString("en", { maximumFractionDigits: 0 });
  if (size >= 10) return value.toFixed(1);
  return size >= 1 ? value.toFixed(2) : value.toFixed(3);
}

/** A share as a percentage. */
export function percent(share, digits = 1) {
  return Number.isFinite(share) ? `${(100 * share).toFixed(digits)} %` : "–";
}

/** 99 → "99th". */
export function ordinal(value) {
  const tens = Math.floor(value) % 100;
  const ending = Number.isInteger(value) && (tens < 11 || tens > 13) ? ["th", "st", "nd", "rd"][tens % 10] : "th";
  return `${value}${ending ?? "th"}`;
}

/** A name as people write it. */
export const plain = (name) => name.replaceAll("_", " ");

const KEY = "abstain-key";
/** Why the server refused the key, or its absence; null while it does not. */
let refusal = null;

/** Keeps the key that requests are sent with, for as long as this tab is open. */
export function keepKey(key) {
  sessionStorage.setItem(KEY, key);
  refusal = null;
}

/** Whether requests are sent with a key. */
export const hasKey = () => sessionStorage.getItem(KEY) !== null;

/** Asks this server, with the key if there is one. Dispatches the event `refused` where the server does not take the key. */
export async function ask(address, options = {}) {
  // Until there is another key, the answer would be the same.
  if (refusal) throw new Error(refusal);
  const key = sessionStorage.getItem(KEY);
  const response = await fetch(address, {
    ...options,
    headers: key ? { ...options.headers, "X-API-Key": key } : options.headers,
  });
  if (response.status === 401) {
    refusal = (await response.json()).error;
    document.dispatchEvent(new CustomEvent("refused", { detail: refusal }));
    throw new Error(refusal);
  }
  return response;
}

/** The JSON that a request is answered with. Throws an Error with the server's own words. */
export async function fetchJSON(address, options = {}) {
  const response = await ask(address, options);
  const told = await response.json().catch(() => ({}));
  if (!response.ok) throw new Error(told.error ?? `the server answered ${response.status}`);
  return told;
}

/** Saves what is at an address as a file. Throws an Error with the server's own words. */
export async function save(address, name) {
  const response = await ask(address);
  if (!response.ok) throw new Error((await response.json()).error);
  const url = URL.createObjectURL(await response.blob());
  const link = el("a", { href: url, download: name });
  link.click();
  URL.revokeObjectURL(url);
}
