/** The pictures of a reply: each can be downloaded, linked to, and traced back to what made it. */

import { getLineage } from "./api.js";
import { make, makeSvg, pngAddress, show } from "./dom.js";
import { inWords, linkOf } from "./exact.js";
import { sentence } from "./fields.js";
import { COLOURS } from "./trace.js";

const SMALL = 160; // pixels; below, a picture is enlarged as squares

/** @typedef {import("./exact.js").Drawing} Drawing */

/**
 * The request that makes one picture of a reply again, from the same version of the model.
 * @param {Drawing} request
 * @param {any} reply
 * @param {number} place
 * @returns {Drawing}
 */
export function requestOf(request, reply, place) {
  /** @type {any} */
  const again = { type: request.type, [request.type]: /** @type {any} */ (request)[request.type] };
  again.model = `${reply.model.name}@${reply.model.version}`;
  if (request.truncation !== undefined) again.truncation = request.truncation;
  return { ...again, seed: String(reply.images[place].seed) };
}

/** A file's bytes from base64. @param {string} text @returns {Blob} */
export function pngFile(text) {
  return new Blob([Uint8Array.from(atob(text), (character) => character.charCodeAt(0))], { type: "image/png" });
}

/**
 * @param {Drawing} request
 * @param {any} reply
 * @param {(text: string) => void} say
 * @returns {HTMLElement[]}
 */
export function picturesView(request, reply, say) {
  const { name, version } = reply.model;
  return reply.images.map((/** @type {any} */ image, /** @type {number} */ place) => {
    const again = requestOf(request, reply, place);
    const seed = String(image.seed);
    const picture = make("img", { src: pngAddress(image.png), alt: `${inWords(request)}, seed ${seed}` });
    picture.addEventListener("load", () => picture.classList.toggle("pixels", picture.naturalWidth <= SMALL));
    const frame = make("div", { class: "frame" }, picture);
    const extra = make("div", { class: "extra", hidden: true });
    return make("figure", { class: "picture" }, frame,
      make("figcaption", {}, make("span", {}, `seed ${seed}`), make("span", {}, `${name}, version ${version}`)),
      make("div", { class: "actions", role: "group", "aria-label": `Picture ${place + 1}` },
        plain("Download", () => download(image.png, `${name}-${version}-${seed}.png`)),
        plain("Copy link", () => copyLink(again, extra, say)),
        toggle("Where from", (on) => (on ? whereFrom(image.id, extra) : show(extra, false))),
        reply.reasons?.type === "graph" && toggle("Boxes", (on) => boxes(frame, reply.reasons, on)),
      ),
      extra,
    );
  });
}

/** @param {string} name @param {() => void} onclick */
function plain(name, onclick) {
  return make("button", { type: "button", onclick }, name);
}

/** @param {string} name @param {(on: boolean) => void} act */
function toggle(name, act) {
  return make("button", {
    type: "button", "aria-pressed": "false",
    onclick: (/** @type {any} */ event) => {
      const on = event.currentTarget.getAttribute("aria-pressed") !== "true";
      event.currentTarget.setAttribute("aria-pressed", String(on));
      act(on);
    },
  }, name);
}

/** @param {string} png @param {string} name */
function download(png, name) {
  const address = URL.createObjectURL(pngFile(png));
  make("a", { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
}

/** @param {Drawing} request @param {HTMLElement} place @param {(text: string) => void} say */
async function copyLink(request, place, say) {
  const address = new URL(linkOf(request), location.href).href;
  try {
    await navigator.clipboard.writeText(address);
    say("The link is copied: whoever opens it gets the same picture");
  } catch {
    // Browsers give the clipboard to secure pages only: the link is shown, to be copied by hand.
    const box = make("input", { type: "text", readonly: true, "aria-label": "Link to this picture" });
    box.value = address;
    place.replaceChildren(box);
    show(place, true);
    box.select();
    say("Copy the link from the field below the picture");
  }
}

/** @param {string} id @param {HTMLElement} place */
async function whereFrom(id, place) {
  place.replaceChildren(make("p", { class: "note" }, "Looking it up …"));
  show(place, true);
  try {
    place.replaceChildren(lineageView(await getLineage(id)));
  } catch (error) {
    const told = sentence(error instanceof Error ? error.message : String(error));
    place.replaceChildren(make("p", { class: "error", role: "alert" }, told));
  }
}

/** Where a picture comes from, from the nearest to the farthest. @param {any} found */
export function lineageView(found) {
  const versions = `${found.versions.length === 1 ? "version" : "versions"} ${found.versions.join(", ")}`;
  const alone = "trained by itself, in no campaign";
  const trial = found.campaign ? `${found.trial ?? "a trial"} of campaign ${found.campaign}` : alone;
  const facts = [
    ["Picture", found.image, true],
    ["Model", `${found.model}, ${versions}${found.champion ? ", champion" : ""}`],
    ["Checkpoint", found.checkpoint_digest, true],
    ["Trial", trial],
    ["Run", `${found.run_name} (${found.run})`],
    ["Recipe", `${found.recipe}, system ${found.system}`],
    ["Experiment", found.experiment, true],
    ["Images seen", Number(found.images_seen).toLocaleString("en")],
    ["Data", found.data.source],
    ["Data digest", found.data.digest, true],
    ["Text reader", found.text_digest, true],
    ...Object.entries(found.figures ?? {}).map(([name, value]) => [name, Number(value).toPrecision(4)]),
    ...(found.history?.length ? [["Decisions", found.history.join("; ")]] : []),
  ];
  return make("dl", { class: "lineage" }, ...facts.flatMap(([name, value, digest]) => [
    make("dt", {}, name), make("dd", {}, digest ? make("code", {}, value) : value),
  ]));
}

/** Where objects were drawn, over the picture. @param {HTMLElement} frame @param {any} reasons @param {boolean} on */
function boxes(frame, reasons, on) {
  frame.querySelector("svg")?.remove();
  if (!on) return;
  const label = `Boxes of ${reasons.objects.map((/** @type {any} */ one) => one.name).join(", ")}`;
  const drawing = makeSvg("svg", { class: "boxes", viewBox: "0 0 100 100", role: "img", "aria-label": label });
  /** @type {{x: number, y: number}[]} */
  const names = [];
  reasons.objects.forEach((/** @type {any} */ object, /** @type {number} */ place) => {
    const [x0, y0, x1, y1] = object.box.map((/** @type {number} */ edge) => Math.min(100, Math.max(0, edge * 100)));
    const colour = `colour-${(place % COLOURS) + 1}`;
    const name = { x: x0 + 1.2, y: Math.max(5, y0 + 5) };
    // Names of boxes that begin at one place are written below each other.
    while (names.some(({ x, y }) => Math.abs(x - name.x) < 24 && Math.abs(y - name.y) < 5)) name.y += 5;
    names.push(name);
    drawing.append(makeSvg("g", { class: colour },
      makeSvg("rect", { x: x0, y: y0, width: Math.max(0, x1 - x0), height: Math.max(0, y1 - y0) }),
      makeSvg("text", name, object.name)));
  });
  frame.append(drawing);
}
