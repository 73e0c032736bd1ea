// Elements and numbers. Text from the server becomes only text nodes and attributes here.

const SVG = "http://www.w3.org/2000/svg";

/** Makes an element with attributes and children; `on…` attributes are listeners, null ones are ignored. */
export function el(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** Makes an SVG element in the same way. */
export function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

/** Sets sizes and positions of an element in percent; the Content-Security-Policy allows it in scripts, not in markup. */
export function placed(element, sides) {
  for (const [side, value] of Object.entries(sides)) element.style[side] = `${value}%`;
  return element;
}

/** A number with three or four digits. */
export function number(value) {
  return digits(value).replace("-", "−");
}

function digits(value) {
  const size = Math.abs(value);
  if (!Number.isFinite(value)) return "–";
  if (value === 0) return "0";
  if (Number.isInteger(value) && size < 1e6) return value.toLocaleString("en");
  if (size >= 1e5 || size < 1e-4) return value.toExponential(1).replace("e+", "e").replace("e-", "e−");
  if (size < 1e-3) return String(Number(value.toPrecision(2)));
  if (size >= 100) return value.toLocaleString("en", { maximumFractionDigits: 0 });
  if (size >= 10) return value.toFixed(1);
  return size >= 1 ? value.toFixed(2) : value.toFixed(3);
}

/** A value in the units of the data, such as 1,070,000: with all digits before the point, and four digits in all. */
export function measured(value) {
  const size = Math.abs(value);
  if (!Number.isFinite(value) || size >= 1e15 || (size > 0 && size < 1e-4)) return number(value);
  if (Number.isInteger(value) || size >= 1000) return value.toLocaleString("en", { maximumFractionDigits: 0 }).replace("-", "−");
  return String(Number(value.toPrecision(DIGITS))).replace("-", "−");
}

const DIGITS = 4;

/** A share as a percentage, on one line. */
export function percent(share, digits = 1) {
  return Number.isFinite(share) ? `${(100 * share).toFixed(digits)}\u00a0%` : "–";
}

/** 99 → "99th". */
export function ordinal(value) {
  const tens = Math.floor(value) % 100;
  const ending = Number.isInteger(value) && (tens < 11 || tens > 13) ? ["th", "st", "nd", "rd"][tens % 10] : "th";
  return `${value}${ending ?? "th"}`;
}

/** A text with a capital at its start. */
export const capital = (text) => text.replace(/^./, (first) => first.toUpperCase());

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

/** Sends a request to this server, with the key if there is one. Dispatches the event `refused` if the server refuses it. */
export async function request(address, options = {}) {
  // Until there is another key, the response would be the same.
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

/** Returns the JSON of a response. Throws an Error with the server's error. */
export async function fetchJSON(address, options = {}) {
  const response = await request(address, options);
  const content = await response.json().catch(() => ({}));
  if (!response.ok) throw new Error(content.error ?? `the server responded with status ${response.status}`);
  return content;
}

/** Saves the content of an address as a file. Throws an Error with the server's error. */
export async function save(address, name) {
  const response = await request(address);
  if (!response.ok) throw new Error((await response.json()).error);
  const url = URL.createObjectURL(await response.blob());
  const link = el("a", { href: url, download: name });
  link.click();
  URL.revokeObjectURL(url);
}
