/** The endpoint, asked over HTTP. Addresses are relative, so that the page works behind a prefix. */

import { readJson, writeRequest } from "./exact.js";

const TOKEN = "t2i-token";
const ATTEMPTS = 3;
const LONGEST_WAIT = 30;

/** What the endpoint refused, or that it could not be reached: `message` is a sentence for a person. */
export class Refusal extends Error {
  /**
   * @param {string} code
   * @param {string} message
   * @param {string} [field] of the request that it concerns, such as graph.objects[2].name
   * @param {number} [retryAfter] seconds, none where it is not worth it
   */
  constructor(code, message, field, retryAfter) {
    super(message);
    this.code = code;
    this.field = field;
    this.retryAfter = retryAfter;
  }
}

let token = "";
try {
  token = sessionStorage.getItem(TOKEN) ?? "";
} catch {
  // Storage is blocked: the token lasts as long as the page.
}

/** Remembers the token until the browser's tab is closed. @param {string} given */
export function useToken(given) {
  token = given.trim();
  try {
    sessionStorage.setItem(TOKEN, token);
  } catch {
    // As above.
  }
}

/** @param {string} path @param {RequestInit} [options] @returns {Promise<any>} */
async function call(path, options = {}) {
  /** @type {Record<string, string>} */
  const headers = { Accept: "application/json" };
  if (options.body) headers["Content-Type"] = "application/json";
  // A header carries Latin-1; another token is wrong anyway, and the server says so.
  if (token) headers.Authorization = `Bearer ${token.replace(/[^\x21-\x7e]/g, "?")}`;
  let response;
  let text;
  try {
    response = await fetch(path, { ...options, headers, cache: "no-store" });
    text = await response.text();
  } catch (error) {
    if (options.signal?.aborted) throw error;
    throw new Refusal(
      "unreachable",
      "The server cannot be reached: check that it runs and that you are connected, then try again.",
    );
  }
  let found;
  try {
    found = readJson(text);
  } catch {
    found = null;
  }
  if (response.ok && found !== null) return found;
  const wait = Number(response.headers.get("Retry-After") ?? NaN);
  const unsaid = `The server answered with status ${response.status} and no reason: try again, or tell who runs it.`;
  throw new Refusal(
    String(found?.error?.code ?? `status ${response.status}`),
    String(found?.error?.message ?? unsaid),
    typeof found?.error?.field === "string" ? found.error.field : undefined,
    Number.isFinite(wait) ? Math.min(Math.max(wait, 0), LONGEST_WAIT) : undefined,
  );
}

/** What is being served. @param {AbortSignal} [signal] */
export function getModels(signal) {
  return call("v1/models", { signal });
}

/** Where a picture comes from. @param {string} id */
export function getLineage(id) {
  return call(`v1/lineage/${encodeURIComponent(id)}`);
}

/**
 * Pictures for a request, with their reasons. A busy server is asked again when it says that it is worth it.
 * @param {import("./exact.js").Drawing} request
 * @param {AbortSignal} signal
 * @param {(seconds: number, attempt: number, attempts: number) => void} onWait
 */
export async function draw(request, signal, onWait) {
  const body = writeRequest({ ...request, format: "json", explain: true });
  for (let attempt = 1; ; attempt += 1) {
    try {
      return await call("v1/images", { method: "POST", body, signal });
    } catch (error) {
      const busy = error instanceof Refusal && ["busy", "not_ready"].includes(error.code);
      if (!busy || error.retryAfter === undefined || attempt > ATTEMPTS) throw error;
      onWait(error.retryAfter, attempt, ATTEMPTS);
      await waited(error.retryAfter, signal);
    }
  }
}

/** @param {number} seconds @param {AbortSignal} signal @returns {Promise<void>} */
function waited(seconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, seconds * 1000);
    signal.addEventListener("abort", () => (clearTimeout(timer), reject(signal.reason)), { once: true });
  });
}
