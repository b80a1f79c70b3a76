/** Elements are made here and nowhere else: what comes from a person, a link or a server is only ever text. */

/**
 * An element with attributes and children; strings become text. A function under "onclick" and the like listens; true
 * writes an empty attribute, and false, null and undefined write none.
 * @param {string} tag
 * @param {Record<string, unknown>} [attributes]
 * @param {...(Node | string | number | null | undefined | false)} children
 * @returns {any}
 */
export function make(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

/**
 * As `make`, for SVG.
 * @param {string} tag
 * @param {Record<string, unknown>} [attributes]
 * @param {...(Node | string | number | null | undefined | false)} children
 * @returns {any}
 */
export function makeSvg(tag, attributes = {}, ...children) {
  return filled(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

/** @param {any} element @param {Record<string, unknown>} attributes @param {unknown[]} children */
function filled(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, String(value));
  }
  for (const child of children) {
    if (child === null || child === undefined || child === false) continue;
    element.append(child instanceof Node ? child : String(child));
  }
  return element;
}

/** The element of an id; the page is broken where there is none. @param {string} id @returns {any} */
export function byId(id) {
  const found = document.getElementById(id);
  if (found === null) throw new Error(`the page has no #${id}`);
  return found;
}

/** Shows or hides. @param {HTMLElement | SVGElement} element @param {boolean} shown */
export function show(element, shown) {
  element.toggleAttribute("hidden", !shown);
}

/** A colour of a reply as one that is safe to set: "#rrggbb", else none. @param {unknown} colour @returns {string} */
export function safeColour(colour) {
  return typeof colour === "string" && /^#[0-9a-f]{6}$/i.test(colour) ? colour : "";
}

/** An address that shows base64 of a PNG. @param {string} png @returns {string} */
export function pngAddress(png) {
  return `data:image/png;base64,${png}`;
}

/** "1 picture", "2 pictures". @param {number} count @param {string} what @returns {string} */
export function counted(count, what) {
  return `${count.toLocaleString("en")} ${what}${count === 1 ? "" : "s"}`;
}

/**
 * Puts new children into a place; what was focused is focused again where its `data-key` is still there.
 * @param {HTMLElement} place
 * @param {Node[]} children
 */
export function refill(place, children) {
  const focused = document.activeElement;
  const key = focused instanceof HTMLElement && place.contains(focused) ? focused.dataset.key : undefined;
  place.replaceChildren(...children);
  if (key === undefined) return;
  for (const found of place.querySelectorAll("[data-key]")) {
    if (/** @type {HTMLElement} */ (found).dataset.key === key) /** @type {HTMLElement} */ (found).focus();
  }
}
