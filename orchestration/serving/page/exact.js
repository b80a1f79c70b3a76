/** JSON with whole numbers of any size, and links that hold a request. Seeds reach 2^63, and doubles do not. */

const TOKENS = /"[^"\\]*(?:\\.[^"\\]*)*"|-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?/g;
const FIELDS = ["type", "prompt", "narrative", "graph", "model", "seed", "count", "truncation"];
const KINDS = ["prompt", "narrative", "graph"];
const MARK = "#r=";

/**
 * A request of POST /v1/images; the seed is held as its digits.
 * @typedef {{type: "prompt" | "narrative" | "graph", prompt?: string, narrative?: unknown, graph?: unknown,
 *   model?: string, seed: string, count?: number, truncation?: number}} Drawing
 */

/** A JSON text's value; a whole number that a double may not hold becomes its digits. @param {string} text */
export function readJson(text) {
  return JSON.parse(text.replace(TOKENS, (token) => (/^-?\d{16,}$/.test(token) ? `"${token}"` : token)));
}

/** A request as JSON, the seed as a number whatever its size. @param {Drawing & Record<string, unknown>} request */
export function writeRequest(request) {
  const { seed, ...rest } = request;
  return `${JSON.stringify(rest).slice(0, -1)},"seed":${BigInt(seed)}}`;
}

/** What a person wrote as a seed as its digits, null where it is no whole number. @param {string} text */
export function readSeed(text) {
  return /^[+-]?\d{1,400}$/.test(text.trim()) ? BigInt(text.trim().replace(/^\+/, "")).toString() : null;
}

/** A link's fragment that holds a request. @param {Drawing} request @returns {string} */
export function linkOf(request) {
  const bytes = new TextEncoder().encode(writeRequest(request));
  let binary = "";
  for (let start = 0; start < bytes.length; start += 8192) {
    binary += String.fromCharCode(...bytes.subarray(start, start + 8192));
  }
  return MARK + btoa(binary).replaceAll("+", "-").replaceAll("/", "_").replace(/=+$/, "");
}

/** Whether a fragment means to hold a request. @param {string} fragment */
export function isLink(fragment) {
  return fragment.startsWith(MARK);
}

/**
 * The request in a link's fragment. Throws an Error with one sentence for what is none; what the values mean, the
 * server checks.
 * @param {string} fragment
 * @returns {Drawing}
 */
export function readLink(fragment) {
  let found;
  try {
    const binary = atob(fragment.slice(MARK.length).replaceAll("-", "+").replaceAll("_", "/"));
    const bytes = Uint8Array.from(binary, (character) => character.charCodeAt(0));
    found = readJson(new TextDecoder("utf-8", { fatal: true }).decode(bytes));
  } catch {
    throw new Error("This link is broken and holds no request: copy it again, whole, or write below what to draw.");
  }
  const unknown = found && typeof found === "object" ? Object.keys(found).filter((name) => !FIELDS.includes(name)) : [];
  const seed = readSeed(String(found?.seed ?? "0"));
  const kind = found?.type ?? "prompt";
  if (!found || typeof found !== "object" || Array.isArray(found) || unknown.length || !KINDS.includes(kind)) {
    throw new Error("This link holds something else than a request: copy it again, or write below what to draw.");
  }
  const words = found[kind];
  const isParts = kind !== "prompt" && words !== null && typeof words === "object" && !Array.isArray(words);
  if (seed === null || !(isParts || typeof words === "string")) {
    throw new Error("This link holds a request without words or with a wrong seed: copy it again, whole.");
  }
  if (found.model !== undefined && typeof found.model !== "string") {
    throw new Error("This link names no model that could be asked: copy it again, whole.");
  }
  /** @type {any} */
  const request = { type: kind, [kind]: words, seed };
  if (found.model !== undefined) request.model = found.model;
  if (Number.isInteger(found.count)) request.count = found.count;
  if (typeof found.truncation === "number") request.truncation = found.truncation;
  return request;
}

/** What a request says, in words, for a label. @param {Drawing} request @returns {string} */
export function inWords(request) {
  const given = /** @type {any} */ (request)[request.type];
  if (typeof given === "string") return given.trim();
  if (request.type === "narrative") return String(given.caption ?? (given.words ?? []).join?.(" ") ?? "").trim();
  const objects = Array.isArray(given.objects) ? given.objects : [];
  const relations = Array.isArray(given.relations) ? given.relations : [];
  const name = (/** @type {number} */ place) => String(objects[place]?.name ?? "");
  const said = relations.filter(Array.isArray).map(([from, word, to]) => `${name(from)} ${word} ${name(to)}`);
  const related = new Set(relations.filter(Array.isArray).flatMap(([from, , to]) => [from, to]));
  return [...said, ...objects.map((_, place) => place).filter((place) => !related.has(place)).map(name)].join(", ");
}
