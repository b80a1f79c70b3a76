/** Which field a refusal concerns, and its sentence beside that field. */

import { byId } from "./dom.js";

const BY_CODE = { unknown_model: "model", too_many_images: "count", unauthorized: "token" };
const OF_WORDS = ["wrong_input", "empty_prompt", "prompt_too_long", "wrong_prompt", "body_too_large"];
const PLAIN = ["model", "seed", "count", "truncation", "token"];

/** Which control: "words" is whatever the picture is asked for with, and of a graph's list, the place in it.
 * @typedef {{field: string, list?: "objects" | "relations", place?: number}} Where */

/**
 * The field that a refusal is about, "form" for none. The server names it; where it does not, code and message tell.
 * @param {{code: string, message: string, field?: string}} refusal
 * @returns {Where}
 */
export function fieldOf({ code, message, field }) {
  const listed = /\b(objects|relations)\[(\d+)\]/.exec(`${field ?? ""} ${message}`);
  if (listed) return { field: "words", list: /** @type {any} */ (listed[1]), place: Number(listed[2]) };
  if (code in BY_CODE) return { field: /** @type {any} */ (BY_CODE)[code] };
  if (OF_WORDS.includes(code)) return { field: "words" };
  const named = /^[a-z_]+/i.exec(field ?? (code.startsWith("wrong_") ? message : ""))?.[0].toLowerCase() ?? "";
  if (named === "images") return { field: "count" };
  if (PLAIN.includes(named)) return { field: named };
  return { field: ["prompt", "narrative", "graph"].includes(named) ? "words" : "form" };
}

/** A refusal's clause as a sentence. @param {string} message */
export function sentence(message) {
  const text = message.trim();
  return /[.!?]$/.test(text) ? text : `${text}.`;
}

/**
 * Says what is wrong beside a control, and goes there. @param {HTMLElement} control @param {HTMLElement} place
 * @param {string} message
 */
export function blame(control, place, message) {
  place.textContent = sentence(message);
  control.setAttribute("aria-invalid", "true");
  const described = (control.getAttribute("aria-describedby") ?? "").split(" ").filter(Boolean);
  if (!described.includes(place.id)) control.setAttribute("aria-describedby", [...described, place.id].join(" "));
  control.focus();
  control.closest(".field, fieldset, section")?.scrollIntoView({ block: "nearest" });
}

/** Takes all blame back. @param {ParentNode} [root] */
export function forgive(root = document) {
  for (const control of root.querySelectorAll("[aria-invalid]")) control.removeAttribute("aria-invalid");
  for (const place of root.querySelectorAll(".error")) place.textContent = "";
}

/** As `blame`, for a plain field. @param {string} field @param {string} message */
export function blameField(field, message) {
  blame(byId(field), byId(`${field}-error`), message);
}
