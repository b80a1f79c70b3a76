/** The page: what can be asked of whom, asking, and what comes back. */

import { Refusal, draw, getModels, useToken } from "./api.js";
import { byId, counted, make, show } from "./dom.js";
import { isLink, readLink, readSeed } from "./exact.js";
import { blameField, fieldOf, forgive, sentence } from "./fields.js";
import { GraphInput } from "./graph.js";
import { History } from "./history.js";
import { NarrativeInput } from "./narrative.js";
import { picturesView } from "./pictures.js";
import { reasonsView } from "./reasons.js";
import { Tabs } from "./tabs.js";
import { SentenceInput } from "./sentence.js";

/** @typedef {import("./exact.js").Drawing} Drawing */
/** @typedef {"prompt" | "narrative" | "graph"} Kind */

const IN_WORDS = { prompt: "sentence", narrative: "narrative", graph: "scene graph" };

const say = (/** @type {string} */ text) => {
  byId("status").textContent = text;
};

/** @type {any[]} */
let models = [];
/** @type {AbortController | null} */
let drawing = null;

const inputs = { prompt: new SentenceInput(), narrative: new NarrativeInput(say), graph: new GraphInput(say) };
const tabs = new Tabs(byId("kinds"), () => showExample());
const history = new History((link) => openLink(link));

/** The chosen model, as it is served; a link may ask for a version that is not. */
function chosen() {
  return models.find((model) => model.name === byId("model").value.split("@")[0]);
}

/** @param {any} model */
function titleOf(model) {
  const takes = model.accepts.map((/** @type {Kind} */ kind) => IN_WORDS[kind] ?? kind).join(", ");
  return `${model.name}, version ${model.version}: ${takes || "takes nothing that can be written"}`;
}

async function loadModels() {
  show(byId("retry"), false);
  try {
    const reply = await getModels();
    models = reply.models;
    show(byId("token-part"), false);
    byId("token-error").textContent = "";
    byId("notice").textContent = models.length ? "" : "No model answers yet: promote a version, then look again.";
    show(byId("retry"), !models.length);
    const before = byId("model").value;
    byId("model").replaceChildren(...models.map((model) => make("option", { value: model.name }, titleOf(model))));
    const first = ["prompt", "narrative", "graph"].map((kind) => String(reply.default?.[kind] ?? "").split("@")[0]);
    const wanted = [before, ...first].find((name) => models.some((model) => model.name === name));
    if (wanted) byId("model").value = wanted;
    show(byId("work"), models.length > 0);
    if (models.length) modelChanged();
    return models.length > 0;
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    if (error.code === "unauthorized") askForToken(error);
    else {
      byId("notice").textContent = sentence(error.message);
      show(byId("retry"), true);
    }
    return false;
  }
}

/** @param {Refusal} error */
function askForToken(error) {
  const first = byId("token-part").hidden;
  show(byId("token-part"), true);
  byId("notice").textContent = "";
  if (first) byId("token").focus();
  else blameField("token", error.message);
}

/** Offers what the chosen model takes, and nothing else. */
function modelChanged() {
  const model = chosen();
  const accepts = /** @type {Kind[]} */ (model?.accepts ?? Object.keys(inputs));
  tabs.offer(accepts);
  show(byId("truncation-field"), Boolean(model?.truncation));
  inputs.graph.know(model?.graph);
  const facts = model ? [model.recipe, `${model.resolution} × ${model.resolution} pixels`, model.note] : [];
  byId("model-hint").textContent = facts.filter(Boolean).join(" · ");
  showExample();
}

function showExample() {
  const examples = chosen()?.examples ?? {};
  const kind = tabs.chosen;
  const example = kind ? (examples[kind] ?? "") : "";
  if (examples.prompt) byId("prompt").placeholder = `such as: ${examples.prompt}`;
  show(byId("example"), Boolean(example));
  byId("example").onclick = () => {
    fill(kind, example);
    say("The example is in place: draw it, or change it");
  };
}

/** @param {Kind} kind @param {unknown} given */
function fill(kind, given) {
  let value = given;
  if (kind !== "prompt" && typeof given === "string" && given.trimStart().startsWith("{")) {
    try {
      value = JSON.parse(given);
    } catch {
      // Words, after all.
    }
  }
  inputs[kind].fill(value);
}

/** What the form says. Throws a Refusal for what no request can carry. @returns {Drawing} */
function asked() {
  const kind = /** @type {Kind | null} */ (tabs.chosen);
  if (!kind) throw new Refusal("unknown_model", "This model draws from nothing that can be written: choose another.");
  const seed = readSeed(byId("seed").value);
  if (seed === null) throw new Refusal("wrong_field", "seed is no whole number: write one from 0 to 2^63 - 1.");
  const count = Number(byId("count").value);
  if (byId("count").value.trim() === "" || !Number.isInteger(count)) {
    throw new Refusal("wrong_field", "count is no whole number: write one from 1 to 16.");
  }
  /** @type {any} */
  const request = { type: kind, [kind]: inputs[kind].value(), model: byId("model").value, seed, count };
  const truncation = byId("truncation").value.trim();
  if (truncation && !byId("truncation-field").hidden) {
    request.truncation = Number(truncation.replace(",", "."));
    if (!Number.isFinite(request.truncation)) {
      throw new Refusal("wrong_field", "truncation is no number: write one above 0, or leave it empty.");
    }
  }
  return request;
}

async function drawAsked() {
  if (drawing || byId("work").hidden) return;
  forgive();
  try {
    await answer(asked());
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    blameRefusal(error);
  }
}

/** @param {Drawing} request */
async function answer(request) {
  drawing = new AbortController();
  const { signal } = drawing;
  const began = performance.now();
  const passed = () => performance.now() - began;
  const clock = setInterval(() => (byId("clock").textContent = `${(passed() / 1000).toFixed(1)} s`), 100);
  busy(true);
  say(`Drawing ${counted(request.count ?? 1, "picture")} …`);
  try {
    const reply = await draw(request, signal, (wait, attempt, attempts) =>
      say(`The server is busy: trying again in ${counted(Math.ceil(wait), "second")} (${attempt} of ${attempts})`));
    showReply(request, reply);
    const time = passed() < 1000 ? `${Math.round(passed())} ms` : `${(passed() / 1000).toFixed(1)} s`;
    const { name, version } = reply.model;
    say(`${counted(reply.images.length, "picture")} in ${time} by ${name}, version ${version}`);
    if (location.hash) window.history.replaceState(null, "", location.pathname + location.search);
    await history.add(request, reply);
  } catch (error) {
    if (signal.aborted) say("Cancelled: nothing was drawn");
    else throw error;
  } finally {
    clearInterval(clock);
    byId("clock").textContent = "";
    busy(false);
    drawing = null;
  }
}

/** @param {boolean} on */
function busy(on) {
  byId("output").setAttribute("aria-busy", String(on));
  // Not disabled, which would take the focus from whoever pressed it.
  byId("draw").setAttribute("aria-disabled", String(on));
  show(byId("cancel"), on);
  if (!on && document.activeElement === document.body) byId("draw").focus();
}

/** @param {Drawing} request @param {any} reply */
function showReply(request, reply) {
  show(byId("empty"), false);
  byId("pictures").replaceChildren(...picturesView(request, reply, say));
  byId("pictures").classList.toggle("many", reply.images.length > 1);
  const reasons = reasonsView(reply.reasons, reply.images.length);
  byId("reasons").replaceChildren(...reasons);
  show(byId("reasons-part"), reasons.length > 0);
  if (matchMedia("(max-width: 60rem)").matches) byId("output").scrollIntoView({ block: "start" });
}

/** @param {Refusal} error */
function blameRefusal(error) {
  const where = fieldOf(error);
  say("Nothing was drawn");
  if (where.field === "token") {
    show(byId("token-part"), true);
    blameField("token", error.message);
    return;
  }
  const kind = /** @type {Kind | null} */ (tabs.chosen);
  if (where.field === "words" && kind) inputs[kind].blame(where, error.message);
  else if (["form", "words"].includes(where.field) || byId(where.field).closest("[hidden]")) {
    byId("form-error").textContent = sentence(error.message);
  } else blameField(where.field, error.message);
}

/** Fills the form from a link, and draws it. @param {string} fragment */
async function openLink(fragment) {
  if (drawing) drawing.abort();
  forgive();
  let request;
  try {
    request = readLink(fragment);
  } catch (error) {
    byId("notice").textContent = error instanceof Error ? error.message : String(error);
    return;
  }
  byId("notice").textContent = "";
  if (request.model) {
    const known = [...byId("model").options].some((option) => option.value === request.model);
    if (!known) byId("model").append(make("option", { value: request.model }, `${request.model}, as the link says`));
    byId("model").value = request.model;
  }
  modelChanged();
  tabs.choose(request.type, true);
  fill(request.type, /** @type {any} */ (request)[request.type]);
  byId("seed").value = request.seed;
  byId("count").value = String(request.count ?? 1);
  byId("truncation").value = request.truncation === undefined ? "" : String(request.truncation);
  // One that is still being cancelled ends first.
  for (let turns = 0; drawing && turns < 100; turns += 1) await new Promise((resolve) => setTimeout(resolve, 10));
  await drawAsked();
}

function newSeed() {
  byId("seed").value = String(crypto.getRandomValues(new Uint32Array(1))[0]);
}

byId("ask").addEventListener("submit", (/** @type {Event} */ event) => (event.preventDefault(), drawAsked()));
byId("ask").addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => {
  if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
  event.preventDefault();
  drawAsked();
});
byId("cancel").addEventListener("click", () => drawing?.abort());
byId("new-seed").addEventListener("click", () => (newSeed(), say("New seed")));
byId("model").addEventListener("change", () => {
  forgive();
  modelChanged();
});
byId("retry").addEventListener("click", () => start());
byId("token-form").addEventListener("submit", (/** @type {Event} */ event) => {
  event.preventDefault();
  forgive();
  useToken(byId("token").value);
  start();
});
addEventListener("hashchange", () => isLink(location.hash) && !byId("work").hidden && openLink(location.hash));

async function start() {
  if ((await loadModels()) && isLink(location.hash)) await openLink(location.hash);
}

newSeed();
start();
