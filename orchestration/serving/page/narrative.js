/** The narrative: its text, its phrases, and a stroke for each; or one that was recorded elsewhere, as it is. */

import { byId, counted, make, refill, show } from "./dom.js";
import { inWords, readJson } from "./exact.js";
import { blame } from "./fields.js";
import { COLOURS, TraceCanvas } from "./trace.js";
import { movedGaps, movedStrokes, narrativeOf, phrasesOf, timed, tracesOf, wordsOf } from "./words.js";

/** @typedef {import("./words.js").Point} Point */

export class NarrativeInput {
  /** @param {(text: string) => void} say */
  constructor(say) {
    this.say = say;
    this.text = byId("narrative");
    this.list = byId("phrases");
    /** @type {string[]} */
    this.words = [];
    /** The gaps that the person turned round. @type {Set<number>} */
    this.turned = new Set();
    /** @type {import("./words.js").Phrase[]} */
    this.phrases = [];
    /** @type {(Point[] | null)[]} */
    this.strokes = [];
    /** @type {{turned: Set<number>, strokes: (Point[] | null)[], current: number | null}[]} */
    this.past = [];
    /** The phrase that is drawn next. @type {number | null} */
    this.current = null;
    this.gap = 1;
    /** @type {any} */
    this.recorded = null;
    this.canvas = new TraceCanvas(byId("trace"), {
      asks: () => this.asks(),
      drew: (points) => this.drew(points),
      undo: () => this.undo(),
      say,
    });
    this.text.addEventListener("input", () => this.edited());
    this.list.addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => this.steer(event));
    byId("undo").addEventListener("click", () => this.undo());
    byId("clear-trace").addEventListener("click", () => {
      this.change(() => this.strokes.fill(null), "All strokes cleared");
    });
    byId("use-recorded").addEventListener("click", () => this.paste());
    byId("drop-recorded").addEventListener("click", () => {
      const words = this.recorded ? inWords({ type: "narrative", narrative: this.recorded, seed: "0" }) : "";
      this.fill(words);
      this.text.focus();
    });
    this.render();
  }

  /** What is sent as `narrative`. */
  value() {
    return this.recorded ?? narrativeOf(this.words, this.phrases, this.strokes);
  }

  /** Puts a narrative in place of what is there. @param {unknown} given plain words, or as it is sent */
  fill(given) {
    this.recorded = given !== null && typeof given === "object" ? given : null;
    this.text.value = typeof given === "string" ? given : "";
    this.turned = new Set();
    this.past = [];
    this.strokes = [];
    this.words = wordsOf(this.text.value);
    this.regroup();
    this.current = this.phrases.length ? 0 : null;
    this.render();
  }

  /** Says what is wrong with the narrative. @param {{field: string}} _where @param {string} message */
  blame(_where, message) {
    blame(this.recorded ? byId("drop-recorded") : this.text, byId("narrative-error"), message);
  }

  asks() {
    if (this.recorded) this.say("A recorded narrative keeps its trace: choose “Draw a trace of my own” first");
    else if (!this.phrases.length) this.say("Write the narrative first, then draw where each phrase is");
    else if (this.current === null) this.say("Every phrase has its stroke: choose a phrase to draw it again");
    return this.recorded || this.current === null ? null : (this.phrases[this.current]?.text ?? null);
  }

  edited() {
    const words = wordsOf(this.text.value);
    this.turned = movedGaps(this.turned, this.words, words);
    this.words = words;
    this.past = [];
    this.regroup();
    this.render();
  }

  /** Phrases anew from words and gaps; strokes stay with theirs. */
  regroup() {
    const before = this.phrases.map((phrase) => phrase.text);
    this.phrases = phrasesOf(this.words, this.turned);
    this.strokes = movedStrokes(this.strokes, before, this.phrases.map((phrase) => phrase.text));
    const free = this.strokes.findIndex((stroke) => !stroke);
    if (this.current === null || this.current >= this.phrases.length) this.current = free >= 0 ? free : null;
    this.gap = Math.min(Math.max(this.gap, 1), Math.max(this.words.length - 1, 1));
  }

  /** A change that can be undone. @param {() => void} act @param {string} said */
  change(act, said) {
    this.past.push({ turned: new Set(this.turned), strokes: [...this.strokes], current: this.current });
    act();
    this.regroup();
    this.render();
    this.say(said);
  }

  undo() {
    const before = this.past.pop();
    if (!before) return this.say("There is nothing to undo");
    this.turned = before.turned;
    this.phrases = phrasesOf(this.words, this.turned);
    this.strokes = before.strokes;
    this.current = before.current;
    this.render();
    this.say("Undone");
  }

  /** @param {Point[]} points */
  drew(points) {
    const place = this.current;
    if (place === null) return;
    const free = this.strokes.flatMap((stroke, other) => (!stroke && other !== place ? [other] : []));
    const next = free.find((other) => other > place) ?? free[0] ?? -1;
    const then = next >= 0 ? `Next: “${this.phrases[next].text}”` : "Every phrase has its stroke";
    this.change(() => {
      this.strokes[place] = points;
      this.current = next >= 0 ? next : null;
    }, `Drawn. ${then}`);
  }

  /** @param {number} gap */
  turn(gap) {
    this.gap = gap;
    const joined = this.phrases.some((phrase) => phrase.start === gap);
    this.change(
      () => (this.turned.has(gap) ? this.turned.delete(gap) : this.turned.add(gap)),
      joined ? "Phrases joined" : "Phrase split",
    );
  }

  /** Arrow keys move between the gaps, which are one stop of the Tab key. @param {KeyboardEvent} event */
  steer(event) {
    const key = event.target instanceof HTMLElement ? (event.target.dataset.key ?? "") : "";
    if (!key.startsWith("gap-")) return;
    const last = this.words.length - 1;
    const at = Number(key.slice(4));
    const steps = { ArrowLeft: at - 1, ArrowUp: at - 1, ArrowRight: at + 1, ArrowDown: at + 1, Home: 1, End: last };
    const to = /** @type {Record<string, number>} */ (steps)[event.key];
    if (to === undefined) return;
    event.preventDefault();
    this.gap = Math.min(Math.max(to, 1), last);
    for (const each of this.list.querySelectorAll("[data-key^=gap-]")) {
      each.tabIndex = each.dataset.key === `gap-${this.gap}` ? 0 : -1;
      if (each.tabIndex === 0) each.focus();
    }
  }

  paste() {
    const box = byId("recorded-text");
    const place = byId("recorded-text-error");
    place.textContent = "";
    box.removeAttribute("aria-invalid");
    let found = null;
    try {
      found = readJson(box.value);
    } catch {
      // Said below.
    }
    if (found === null || typeof found !== "object" || Array.isArray(found)) {
      return blame(box, place, "This is no JSON object: paste one whole line of a Localized Narratives file.");
    }
    this.fill(found);
    byId("paste").open = false;
    byId("drop-recorded").focus();
    this.say("The recorded narrative is in place");
  }

  render() {
    const { recorded } = this;
    const traces = recorded ? tracesOf(recorded) : [];
    show(byId("own-narrative"), !recorded);
    show(byId("recorded"), Boolean(recorded));
    const points = traces.reduce((sum, trace) => sum + trace.length, 0);
    byId("recorded-words").textContent = recorded ? inWords({ type: "narrative", narrative: recorded, seed: "0" }) : "";
    byId("recorded-size").textContent = `${counted(traces.length, "trace")}, ${counted(points, "point")}`;
    const { spans } = timed(this.words, this.phrases, this.strokes);
    refill(this.list, recorded ? [] : this.phrases.map((phrase, place) => this.row(phrase, place, spans[place])));
    const now = this.current === null ? null : this.phrases[this.current];
    byId("now").textContent = recorded
      ? "The trace as it was recorded."
      : now
        ? `Now draw where this is: “${now.text}”`
        : this.phrases.length
          ? "Every phrase has its stroke. Choose one to draw it again."
          : "Write first. Then draw, phrase by phrase, where things are.";
    byId("undo").disabled = Boolean(recorded) || this.past.length === 0;
    byId("clear-trace").disabled = Boolean(recorded) || !this.strokes.some(Boolean);
    const own = this.strokes.flatMap((stroke, place) => (stroke ? [{ points: stroke, place }] : []));
    this.canvas.show(recorded ? traces.map((trace, place) => ({ points: trace, place })) : own, this.current);
  }

  /** @param {import("./words.js").Phrase} phrase @param {number} place @param {[number, number]} span */
  row(phrase, place, span) {
    const stroke = this.strokes[place];
    const chosen = this.current === place;
    const words = phrase.start > 0 ? [this.gapButton(phrase.start, true)] : [];
    for (let word = phrase.start; word < phrase.end; word += 1) {
      // A gap stays with the word before it where the line breaks.
      const gap = word + 1 < phrase.end && this.gapButton(word + 1, false);
      words.push(make("span", { class: "word" }, make("span", {}, this.words[word]), gap));
    }
    const time = `${span[0].toFixed(1)}–${span[1].toFixed(1)} s`;
    const size = stroke ? counted(stroke.length, "point") : "no stroke yet";
    return make(
      "li",
      { class: `phrase colour-${(place % COLOURS) + 1}${chosen ? " chosen" : ""}` },
      make("button", {
        type: "button", class: "number", "data-key": `phrase-${place}`, "aria-pressed": chosen,
        "aria-label": `Draw phrase ${place + 1}: ${phrase.text}`,
        onclick: () => {
          this.current = place;
          this.render();
          this.say(`Now draw “${phrase.text}”`);
        },
      }, place + 1),
      make("span", { class: "said" }, ...words),
      make("span", { class: "span" }, `${time}, ${size}`),
      stroke && make("button", {
        type: "button", class: "small", "data-key": `clear-${place}`,
        "aria-label": `Clear the stroke of phrase ${place + 1}`,
        onclick: () => this.change(() => {
          this.strokes[place] = null;
          this.current = place;
        }, "Stroke cleared"),
      }, "Clear"),
    );
  }

  /** @param {number} gap @param {boolean} splits */
  gapButton(gap, splits) {
    const [before, after] = [this.words[gap - 1], this.words[gap]];
    return make("button", {
      type: "button", class: splits ? "gap splits" : "gap", "data-key": `gap-${gap}`,
      tabindex: gap === this.gap ? 0 : -1,
      "aria-label": `${splits ? "Join" : "Split between"} “${before}” and “${after}”`,
      title: splits ? "Join with the phrase before" : "Split here",
      onclick: () => this.turn(gap),
    });
  }
}
