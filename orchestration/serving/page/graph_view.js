/** A scene graph as a small drawing: objects as boxes with a name, relations as arrows with a word. */

import { makeSvg } from "./dom.js";

const WIDTH = 420;
const HIGH = 30;
const LETTER = 8.2; // of the style sheet's font, about

/**
 * Names told apart as the server's grammar does: the first tree is "tree", the next one "tree 2".
 * @param {string[]} names
 * @returns {string[]}
 */
export function numbered(names) {
  /** @type {Map<string, number>} */
  const seen = new Map();
  return names.map((name) => {
    const count = (seen.get(name) ?? 0) + 1;
    seen.set(name, count);
    return count === 1 ? name : `${name} ${count}`;
  });
}

/** @param {string[]} labels @param {[number, string, number][]} relations */
function described(labels, relations) {
  const said = relations.map(([from, word, to]) => `${labels[from]} ${word} ${labels[to]}`);
  const related = new Set(relations.flatMap(([from, , to]) => [from, to]));
  const alone = labels.filter((_, place) => !related.has(place));
  return `Scene graph: ${[...said, ...alone].join(", ") || "nothing yet"}`;
}

/**
 * The drawing. Relations of objects that are not there are left out.
 * @param {string[]} labels
 * @param {[number, string, number][]} given
 * @returns {SVGSVGElement}
 */
export function graphView(labels, given) {
  const relations = given.filter(([from, , to]) => labels[from] !== undefined && labels[to] !== undefined);
  const count = labels.length;
  const height = count <= 2 ? 120 : Math.min(420, 150 + 34 * count);
  const spots = labels.map((_, place) => {
    if (count === 1) return { x: WIDTH / 2, y: height / 2 };
    // From the left, clockwise: two objects stand side by side.
    const angle = Math.PI + (2 * Math.PI * place) / count;
    return { x: WIDTH / 2 + Math.cos(angle) * (WIDTH / 2 - 62), y: height / 2 + Math.sin(angle) * (height / 2 - 26) };
  });
  const shown = labels.map((label) => (label.length > 14 ? `${label.slice(0, 13)}…` : label || "?"));
  const wide = shown.map((label) => Math.max(44, label.length * LETTER + 20));
  const drawing = makeSvg("svg", {
    class: "graph", viewBox: `0 0 ${WIDTH} ${height}`, role: "img", "aria-label": described(labels, relations),
  });
  /** @type {Map<string, number>} */
  const between = new Map();
  const arrows = relations.map(([from, word, to]) => {
    const pair = `${Math.min(from, to)} ${Math.max(from, to)}`;
    const nth = between.get(pair) ?? 0;
    between.set(pair, nth + 1);
    if (from === to) return loop(spots[from], word, nth);
    return arrow(spots[from], spots[to], wide[from], wide[to], word, from < to, nth);
  });
  drawing.append(...arrows.map(({ shape }) => shape));
  shown.forEach((label, place) => {
    const { x, y } = spots[place];
    const width = wide[place];
    const box = { x: x - width / 2, y: y - HIGH / 2, width, height: HIGH, rx: HIGH / 2, class: "node" };
    const name = makeSvg("text", { x, y: y + 5, class: "name" }, label);
    drawing.append(makeSvg("g", {}, makeSvg("title", {}, labels[place]), makeSvg("rect", box), name));
  });
  drawing.append(...arrows.map(({ text }) => text));
  return drawing;
}

/** @typedef {{x: number, y: number}} Spot */

/** Where a line from a node's middle leaves its box. @param {Spot} from @param {Spot} to @param {number} wide */
function edge(from, to, wide) {
  const [dx, dy] = [to.x - from.x, to.y - from.y];
  const [aside, along] = [Math.max(Math.abs(dx), 1e-6), Math.max(Math.abs(dy), 1e-6)];
  const part = Math.min((wide / 2 + 4) / aside, (HIGH / 2 + 4) / along, 0.5);
  return { x: from.x + dx * part, y: from.y + dy * part };
}

/**
 * @param {Spot} from @param {Spot} to @param {number} wideFrom
 * @param {number} wideTo @param {string} word @param {boolean} forward @param {number} nth of those between the two
 */
function arrow(from, to, wideFrom, wideTo, word, forward, nth) {
  const [start, end] = [edge(from, to, wideFrom), edge(to, from, wideTo)];
  const [dx, dy] = [end.x - start.x, end.y - start.y];
  const far = Math.hypot(dx, dy) || 1;
  // Bent to one side, each further one more, so that no two relations of a pair lie on each other.
  const bend = (nth === 0 ? 0 : 26 * Math.ceil(nth / 2) * (nth % 2 ? 1 : -1)) * (forward ? 1 : -1);
  const middle = { x: (start.x + end.x) / 2 - (dy / far) * bend * 2, y: (start.y + end.y) / 2 + (dx / far) * bend * 2 };
  const way = Math.atan2(end.y - middle.y, end.x - middle.x);
  const said = (/** @type {Spot} */ { x, y }) => `${x.toFixed(1)} ${y.toFixed(1)}`;
  const wing = (/** @type {number} */ turn) =>
    said({ x: end.x - 9 * Math.cos(way + turn), y: end.y - 9 * Math.sin(way + turn) });
  const head = `M${wing(0.45)} L${said(end)} L${wing(-0.45)}`;
  const shape = makeSvg("path", { class: "arrow", d: `M${said(start)} Q${said(middle)} ${said(end)} ${head}` });
  const at = { x: (start.x + end.x) / 4 + middle.x / 2, y: (start.y + end.y) / 4 + middle.y / 2 };
  return { shape, text: makeSvg("text", { class: "relation", x: at.x, y: at.y - 5 }, word) };
}

/** @param {Spot} at @param {string} word @param {number} nth */
function loop(at, word, nth) {
  const top = at.y - HIGH / 2;
  const high = 26 + 16 * nth;
  const d = `M${at.x - 12} ${top} C${at.x - 26} ${top - high} ${at.x + 26} ${top - high} ${at.x + 12} ${top}`;
  const text = makeSvg("text", { class: "relation", x: at.x, y: top - high + 4 }, word);
  return { shape: makeSvg("path", { class: "arrow", d }), text };
}
