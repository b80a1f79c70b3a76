/** The canvas that a narrative's trace is drawn on: by mouse, pen or finger, or by keyboard. */

import { counted } from "./dom.js";

/** @typedef {import("./words.js").Point} Point */

/** How many colours strokes have; the style sheet says which. */
export const COLOURS = 8;

const STEP = 0.02;
const LEAP = 0.1;
const KEY_PACE = 0.25; // seconds between two points that are set by keyboard
const NEAR = 0.003;
const SOON = 0.012;

/**
 * @typedef {object} Listener
 * @property {() => string | null} asks what is to be drawn now, or null
 * @property {(points: Point[]) => void} drew
 * @property {() => void} undo
 * @property {(text: string) => void} say
 */

export class TraceCanvas {
  /** @param {HTMLCanvasElement} canvas @param {Listener} listener */
  constructor(canvas, listener) {
    this.canvas = canvas;
    this.listener = listener;
    /** @type {{points: Point[], place: number}[]} */
    this.strokes = [];
    /** The place of the phrase that is being drawn. @type {number | null} */
    this.active = null;
    /** @type {Point[] | null} */
    this.stroke = null;
    this.cursor = { x: 0.5, y: 0.5 };
    this.byKeys = false;
    this.began = 0;
    canvas.addEventListener("pointerdown", (event) => this.down(event));
    canvas.addEventListener("pointermove", (event) => this.move(event));
    canvas.addEventListener("pointerup", (event) => this.up(event));
    canvas.addEventListener("pointercancel", () => this.end());
    canvas.addEventListener("keydown", (event) => this.key(event));
    canvas.addEventListener("blur", () => {
      if (this.byKeys && this.stroke) this.end();
      this.byKeys = false;
      this.paint();
    });
    new ResizeObserver(() => this.paint()).observe(canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.paint());
  }

  /** @param {{points: Point[], place: number}[]} strokes @param {number | null} active */
  show(strokes, active) {
    this.strokes = strokes;
    this.active = active;
    this.paint();
  }

  /** @param {PointerEvent} event @returns {{x: number, y: number}} */
  spot(event) {
    const box = this.canvas.getBoundingClientRect();
    const unit = (/** @type {number} */ value) => Math.min(1, Math.max(0, value));
    return { x: unit((event.clientX - box.left) / box.width), y: unit((event.clientY - box.top) / box.height) };
  }

  /** @param {PointerEvent} event */
  down(event) {
    if (event.button !== 0 || !event.isPrimary) return;
    event.preventDefault();
    this.canvas.focus({ preventScroll: true });
    this.byKeys = false;
    if (this.listener.asks() === null) return;
    this.canvas.setPointerCapture(event.pointerId);
    this.began = event.timeStamp;
    this.stroke = [{ ...this.spot(event), t: 0 }];
    this.paint();
  }

  /** @param {PointerEvent} event */
  move(event) {
    if (!this.stroke || this.byKeys || !event.isPrimary) return;
    const events = event.getCoalescedEvents?.() ?? [];
    for (const each of events.length ? events : [event]) {
      const last = this.stroke[this.stroke.length - 1];
      const point = { ...this.spot(each), t: Math.max(last.t, (each.timeStamp - this.began) / 1000) };
      if (Math.hypot(point.x - last.x, point.y - last.y) >= NEAR && point.t - last.t >= SOON) this.stroke.push(point);
    }
    this.paint();
  }

  /** A stroke ends where the hand ended, however fast it came there. @param {PointerEvent} event */
  up(event) {
    if (!this.stroke || this.byKeys || !event.isPrimary) return;
    const last = this.stroke[this.stroke.length - 1];
    const t = Math.max(last.t, (event.timeStamp - this.began) / 1000);
    const point = { ...this.spot(event), t };
    if (Math.hypot(point.x - last.x, point.y - last.y) >= NEAR) this.stroke.push(point);
    this.end();
  }

  end() {
    const points = this.stroke;
    this.stroke = null;
    if (points?.length) this.listener.drew(points);
    this.paint();
  }

  /** @param {KeyboardEvent} event */
  key(event) {
    const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    const way = /** @type {Record<string, number[]>} */ (moves)[event.key];
    if ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "z") this.drop() || this.listener.undo();
    else if (event.ctrlKey || event.metaKey || event.altKey) return;
    else if (way) this.steer(way[0], way[1], event.shiftKey ? LEAP : STEP);
    else if (event.key === " ") this.set();
    else if (event.key === "Enter" && this.stroke) this.end();
    else if (event.key === "Backspace") this.drop() || this.listener.undo();
    else if (event.key === "Escape" && this.stroke) this.drop();
    else return;
    event.preventDefault();
  }

  /** @param {number} dx @param {number} dy @param {number} by */
  steer(dx, dy, by) {
    const unit = (/** @type {number} */ value) => Math.min(1, Math.max(0, Math.round(value * 100) / 100));
    this.byKeys = true;
    this.cursor = { x: unit(this.cursor.x + dx * by), y: unit(this.cursor.y + dy * by) };
    const { x, y } = this.cursor;
    this.listener.say(`${Math.round(x * 100)} % from the left, ${Math.round(y * 100)} % from the top`);
    this.paint();
  }

  set() {
    const phrase = this.listener.asks();
    if (phrase === null) return;
    this.byKeys = true;
    this.stroke ??= [];
    this.stroke.push({ ...this.cursor, t: this.stroke.length * KEY_PACE });
    this.listener.say(`${counted(this.stroke.length, "point")} set for “${phrase}”; Enter ends the stroke`);
    this.paint();
  }

  /** Whether there was an unfinished stroke to drop. */
  drop() {
    const had = this.stroke !== null;
    this.stroke = null;
    if (had) this.listener.say("Stroke dropped");
    this.paint();
    return had;
  }

  paint() {
    const { canvas } = this;
    const side = canvas.clientWidth;
    const context = canvas.getContext("2d");
    if (!context || side === 0) return;
    const scale = window.devicePixelRatio || 1;
    if (canvas.width !== Math.round(side * scale)) canvas.width = canvas.height = Math.round(side * scale);
    const style = getComputedStyle(canvas);
    const colour = (/** @type {string} */ name) => style.getPropertyValue(name).trim();
    context.setTransform(scale, 0, 0, scale, 0, 0);
    context.clearRect(0, 0, side, side);
    context.strokeStyle = colour("--grid");
    context.lineWidth = 1;
    for (const part of [1 / 3, 2 / 3]) {
      const at = Math.round(side * part) + 0.5;
      line(context, [{ x: at, y: 0 }, { x: at, y: side }]);
      line(context, [{ x: 0, y: at }, { x: side, y: at }]);
    }
    for (const { points, place } of this.strokes) {
      // One that is being drawn again is gone already.
      if (!this.stroke || place !== this.active) this.trail(context, points, place, side, colour);
    }
    if (this.stroke?.length) this.trail(context, this.stroke, this.active ?? 0, side, colour);
    if (this.byKeys) {
      const [x, y] = [this.cursor.x * side, this.cursor.y * side];
      context.strokeStyle = colour("--ink");
      context.lineWidth = 1.5;
      line(context, [{ x: x - 10, y }, { x: x + 10, y }]);
      line(context, [{ x, y: y - 10 }, { x, y: y + 10 }]);
    }
  }

  /**
   * A stroke with its phrase's number where it begins: colours alone would not do for everybody.
   * @param {CanvasRenderingContext2D} context @param {Point[]} points @param {number} place @param {number} side
   * @param {(name: string) => string} colour
   */
  trail(context, points, place, side, colour) {
    if (!points.length) return;
    const at = (/** @type {number} */ part) => Math.min(1, Math.max(0, part)) * side;
    const spots = points.map(({ x, y }) => ({ x: at(x), y: at(y) }));
    const own = colour(`--stroke-${(place % COLOURS) + 1}`);
    context.strokeStyle = context.fillStyle = own;
    context.lineWidth = 3;
    context.lineCap = context.lineJoin = "round";
    line(context, spots.length > 1 ? spots : [spots[0], spots[0]]);
    const inside = (/** @type {number} */ at) => Math.min(side - 11, Math.max(11, at));
    const [x, y] = [inside(spots[0].x), inside(spots[0].y)];
    context.beginPath();
    context.arc(x, y, 10, 0, 2 * Math.PI);
    context.fill();
    context.fillStyle = colour("--raised");
    context.font = "600 12px system-ui, sans-serif";
    context.textAlign = "center";
    context.textBaseline = "middle";
    context.fillText(String(place + 1), x, y + 0.5);
  }
}

/** @param {CanvasRenderingContext2D} context @param {{x: number, y: number}[]} spots */
function line(context, spots) {
  context.beginPath();
  spots.forEach(({ x, y }, place) => (place ? context.lineTo(x, y) : context.moveTo(x, y)));
  context.stroke();
}
