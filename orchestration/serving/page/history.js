/** What was drawn here before: kept by the browser, each picture as a link that draws it again. */

import { byId, make, show } from "./dom.js";
import { inWords, linkOf } from "./exact.js";
import { requestOf } from "./pictures.js";

const KEY = "t2i-history";
const MOST = 50;
const SIDE = 96; // of a thumbnail, pixels
const SHOWN = 140; // characters

/** @typedef {{link: string, text: string, model: string, seed: string, thumb: string}} Entry */

export class History {
  /** @param {(link: string) => void} open */
  constructor(open) {
    this.open = open;
    /** @type {Entry[]} */
    this.entries = restored();
    byId("clear-history").addEventListener("click", () => {
      this.entries = [];
      this.keep();
      byId("history-title").focus();
    });
    this.render();
  }

  /**
   * Adds the pictures of a reply, the first on top; a picture that is there already moves up.
   * @param {import("./exact.js").Drawing} request
   * @param {any} reply
   */
  async add(request, reply) {
    const fresh = await Promise.all(reply.images.map(async (/** @type {any} */ image, /** @type {number} */ place) => ({
      link: linkOf(requestOf(request, reply, place)),
      text: inWords(request).slice(0, SHOWN),
      model: `${reply.model.name}@${reply.model.version}`,
      seed: String(image.seed),
      thumb: await thumbnail(image.png),
    })));
    const links = new Set(fresh.map((entry) => entry.link));
    this.entries = [...fresh, ...this.entries.filter((entry) => !links.has(entry.link))].slice(0, MOST);
    this.keep();
  }

  keep() {
    // Where the storage is full the oldest go; where it is blocked the history lasts as long as the page.
    for (let count = this.entries.length; count >= 0; count = count > 1 ? Math.floor(count / 2) : count - 1) {
      try {
        localStorage.setItem(KEY, JSON.stringify(this.entries.slice(0, count)));
        break;
      } catch {
        continue;
      }
    }
    this.render();
  }

  render() {
    const rows = this.entries.map((entry) => make("li", {}, make("a", {
      href: entry.link,
      onclick: (/** @type {MouseEvent} */ event) => {
        if (event.ctrlKey || event.metaKey || event.shiftKey) return;
        event.preventDefault();
        this.open(entry.link);
      },
    },
    entry.thumb ? make("img", { class: "pixels", src: entry.thumb, alt: "" }) : null,
    make("span", { class: "what" }, entry.text),
    make("small", {}, `${entry.model}, seed ${entry.seed}`))));
    byId("history").replaceChildren(...rows);
    show(byId("history-part"), rows.length > 0);
  }
}

/** @returns {Entry[]} */
function restored() {
  try {
    const found = JSON.parse(localStorage.getItem(KEY) ?? "[]");
    const fields = ["link", "text", "model", "seed", "thumb"];
    const isEntry = (/** @type {any} */ one) =>
      fields.every((name) => typeof one?.[name] === "string") &&
      one.link.startsWith("#r=") &&
      /^(data:image\/|$)/.test(one.thumb);
    return Array.isArray(found) ? found.filter(isEntry).slice(0, MOST) : [];
  } catch {
    return [];
  }
}

/**
 * A small copy of a picture as an address, empty where the browser makes none.
 * @param {string} png
 * @returns {Promise<string>}
 */
async function thumbnail(png) {
  try {
    const picture = make("img", { src: `data:image/png;base64,${png}` });
    await picture.decode();
    const side = Math.min(SIDE, picture.naturalWidth);
    const canvas = make("canvas", { width: side, height: side });
    canvas.getContext("2d").drawImage(picture, 0, 0, side, side);
    return canvas.toDataURL(side < SIDE ? "image/png" : "image/jpeg", 0.8);
  } catch {
    return "";
  }
}
