/** Why pictures look as they do: what was read, found and chosen on the way. */

import { counted, make, pngAddress, safeColour } from "./dom.js";
import { graphView } from "./graph_view.js";

/**
 * The reasons of a reply as elements; none where there is nothing to say.
 * @param {any} reasons
 * @param {number} pictures in the reply
 * @returns {Node[]}
 */
export function reasonsView(reasons, pictures) {
  const views = { prompt: promptView, narrative: narrativeView, graph: graphReasonsView };
  const view = Object.hasOwn(views, reasons?.type) ? /** @type {any} */ (views)[reasons.type] : null;
  return view ? view(reasons, pictures).filter((/** @type {unknown} */ each) => each instanceof Node) : [];
}

/** @param {string} text */
const title = (text) => make("h3", {}, text);

/** @param {string} text */
const note = (text) => make("p", { class: "note" }, text);

/** @param {any} reasons */
function promptView(reasons) {
  const unread = reasons.unread ?? [];
  const unknown = reasons.words.filter((/** @type {any} */ word) => !word.known).length;
  /** @param {string} word @param {string} why */
  const struck = (word, why) => make("li", { class: "unread" }, word, make("span", { class: "hidden" }, ` (${why})`));
  const said = [
    unknown ? `The model does not know ${counted(unknown, "word")} and reads over what is struck through.` : "",
    unread.length ? `The last ${counted(unread.length, "word")} are beyond what it reads.` : "",
  ];
  return [
    title("What was read"),
    make(
      "ol",
      { class: "words" },
      ...reasons.words.map(({ word, known }) => (known ? make("li", {}, word) : struck(word, "not known"))),
      ...unread.map((/** @type {string} */ word) => struck(word, "not read")),
    ),
    note(said.filter(Boolean).join(" ") || `The model knows ${counted(reasons.words.length, "word")}: all of them.`),
  ];
}

/** Its colour is set by script: the page allows no style attributes. @param {string | undefined} colour */
function swatch(colour) {
  if (!safeColour(colour)) return null;
  const found = make("span", { class: "swatch", "aria-hidden": "true" });
  found.style.backgroundColor = safeColour(colour);
  return found;
}

/** @param {any} reasons */
function narrativeView(reasons) {
  /** Of several things of a class, the first one's colour. @type {Map<string, string>} */
  const colours = new Map([...reasons.legend].reverse().map(({ label, colour }) => [label, colour]));
  const words = runsOf(reasons.words).map(({ text, tag }) => {
    const colour = safeColour(colours.get(tag));
    const run = make("span", { class: "run" }, text);
    if (colour) run.style.borderColor = colour;
    return make("li", { class: colour ? "tagged" : "silent" }, run, make("small", {}, tag || "–"));
  });
  const mentions = reasons.mentions.map((/** @type {any} */ one) => mentionView(one, colours.get(one.tag)));
  const known = reasons.stuff !== null && reasons.stuff !== undefined;
  const stuff = known
    ? `The background is from picture ${reasons.stuff}${part(reasons.stuff_fit, ", which fits the trace by ")}.`
    : "No retrieved picture gave the background.";
  const legend = reasons.legend.map(({ label, colour }) => make("li", {}, swatch(colour), label));
  const alt = `Canvas of ${[...colours.keys()].reverse().join(", ") || "nothing"}`;
  return [
    title("Words and what they name"),
    make("ol", { class: "words" }, ...words),
    title("What is mentioned, and the mask it got"),
    mentions.length ? make("ul", { class: "mentions" }, ...mentions) : note("Nothing that can be drawn is mentioned."),
    title("The canvas that was painted"),
    make(
      "div",
      { class: "canvas-and-legend" },
      make("img", { class: "pixels canvas", src: pngAddress(reasons.canvas), alt }),
      make("ul", { class: "legend" }, ...legend),
    ),
    title("Pictures that were retrieved"),
    note(stuff),
    reasons.retrieved.length > 0 && make("ol", { class: "retrieved" }, ...reasons.retrieved.map(retrievedView)),
  ];
}

/** Neighbouring words of one tag as one text. @param {{word: string, tag: string}[]} words */
function runsOf(words) {
  /** @type {{text: string, tag: string}[]} */
  const runs = [];
  for (const { word, tag } of words) {
    const last = runs.at(-1);
    if (last?.tag === tag) last.text += ` ${word}`;
    else runs.push({ text: word, tag });
  }
  return runs;
}

/** @param {{image: number, score: number}} found */
function retrievedView({ image, score }) {
  return make("li", {}, `picture ${image}`, make("small", {}, score.toFixed(3)));
}

/** @param {number | null | undefined} share @param {string} before */
function part(share, before) {
  return typeof share === "number" ? `${before}${Math.round(share * 100)} %` : "";
}

/** @param {any} one @param {string | undefined} colour */
function mentionView(one, colour) {
  const from = one.image === null ? "mask" : `mask of ${one.image}`;
  return make(
    "li",
    {},
    make("p", {}, make("q", {}, one.words), " ", make("small", {}, swatch(colour), one.tag)),
    make(
      "div",
      { class: "steps" },
      one.hull && stepView(one.hull, `What the trace encloses for ${one.words}`, "trace"),
      one.mask && stepView(one.mask, `Mask for ${one.words}`, from),
    ),
    note(`${one.why || ""}${part(one.iou, one.why ? "; fits by " : "fits the trace by ")}`),
  );
}

/** @param {string} png @param {string} alt @param {string} caption */
function stepView(png, alt, caption) {
  const picture = make("img", { src: pngAddress(png), alt, class: "pixels" });
  return make("figure", { class: "step" }, picture, make("figcaption", {}, caption));
}

/** @param {any} reasons @param {number} pictures */
function graphReasonsView(reasons, pictures) {
  /** @type {any[]} */
  const objects = reasons.objects;
  const lists = objects.map(() => make("ul", { class: "patches" }));
  /** @param {number} picture */
  const choose = (picture) => {
    for (const [place, { name, candidates, chosen }] of objects.entries()) {
      const patches = [...candidates.entries()].map(([at, one]) => patchView(name, one, at === chosen[picture]));
      lists[place].replaceChildren(...patches);
    }
  };
  choose(0);
  const parts = [
    title("The graph as it was read"),
    graphView(objects.map((object) => object.name), reasons.relations),
    note(reasons.text),
  ];
  if (!objects.some((object) => object.candidates.length)) return parts;
  const rows = objects.map((object, place) => {
    const shown = object.candidates.length ? lists[place] : note("Drawn without a patch.");
    return make("li", {}, make("p", {}, make("b", {}, object.name)), shown);
  });
  return [
    ...parts,
    title("Candidate patches, the chosen one framed"),
    pictures > 1 && pickerView(pictures, choose),
    make("ul", { class: "candidates" }, ...rows),
  ];
}

/**
 * Whose choices are shown: each picture has its own.
 * @param {number} pictures
 * @param {(picture: number) => void} choose
 */
function pickerView(pictures, choose) {
  const option = (/** @type {number} */ place) => make("option", { value: place }, `picture ${place + 1}`);
  const options = Array.from({ length: pictures }, (_, place) => option(place));
  const onchange = (/** @type {any} */ event) => choose(Number(event.target.value));
  const select = make("select", { id: "patches-of", onchange }, ...options);
  return make("p", { class: "picker" }, make("label", { for: "patches-of" }, "Patches of "), select);
}

/** @param {string} name @param {any} candidate @param {boolean} chosen */
function patchView(name, candidate, chosen) {
  const alt = `Patch for ${name} of picture ${candidate.image}${chosen ? ", chosen" : ""}`;
  const picture = make("img", { class: "pixels", src: pngAddress(candidate.patch), alt });
  return make("li", { class: chosen ? "chosen" : "" }, picture, make("small", {}, chosen ? "chosen" : candidate.image));
}
