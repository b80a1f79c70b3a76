/** The words of a narrative, how they fall into phrases, and when each is said. Times are seconds, places 0 to 1. */

/** @typedef {{x: number, y: number, t: number}} Point */
/** Words from `start` to before `end`. @typedef {{start: number, end: number, text: string}} Phrase */

/** Said without a stroke, a word takes this long, in milliseconds. */
export const PACE = 350;
/** A word of a stroke takes at least this long: a dot is drawn in no time. */
export const SHORTEST = 60;
/** Between phrases, so that a stroke's end is not taken for the next phrase's. */
export const PAUSE = 200;
/** Of all strokes together; what the server takes. */
export const MOST_POINTS = 10_000;

const ENDS = /[,.;:!?\u2026\u3001\u3002\u060c\u061b\uff0c\uff1b]["'\u2019\u201d)\]]*$/u;

/** What spaces part. @param {string} text @returns {string[]} */
export function wordsOf(text) {
  return text.split(/\s+/u).filter((word) => word !== "");
}

/**
 * Where phrases begin by themselves: behind a comma, a full stop and the like. Gap `i` is before word `i`.
 * @param {string[]} words
 * @returns {Set<number>}
 */
export function gapsAtMarks(words) {
  return new Set(words.map((_, place) => place).filter((place) => place > 0 && ENDS.test(words[place - 1])));
}

/**
 * The phrases: split at marks, but for the gaps that a person turned round.
 * @param {string[]} words
 * @param {Set<number>} [turned]
 * @returns {Phrase[]}
 */
export function phrasesOf(words, turned = new Set()) {
  const marks = gapsAtMarks(words);
  /** @type {Phrase[]} */
  const phrases = [];
  let start = 0;
  for (let gap = 1; gap <= words.length; gap += 1) {
    if (gap < words.length && marks.has(gap) === turned.has(gap)) continue;
    phrases.push({ start, end: gap, text: words.slice(start, gap).join(" ") });
    start = gap;
  }
  return phrases;
}

/**
 * How many of two lists are alike from their starts, and of the rest from their ends.
 * @param {string[]} before
 * @param {string[]} after
 */
function alike(before, after) {
  const most = Math.min(before.length, after.length);
  let head = 0;
  while (head < most && before[head] === after[head]) head += 1;
  let tail = 0;
  while (tail < most - head && before.at(-1 - tail) === after.at(-1 - tail)) tail += 1;
  return { head, tail };
}

/**
 * The gaps that a person turned round, after the words were edited: those between words that stayed.
 * @param {Set<number>} turned
 * @param {string[]} before
 * @param {string[]} after
 * @returns {Set<number>}
 */
export function movedGaps(turned, before, after) {
  const { head, tail } = alike(before, after);
  const shift = after.length - before.length;
  const kept = new Set();
  for (const gap of turned) {
    if (gap < head) kept.add(gap);
    else if (gap - 1 >= before.length - tail) kept.add(gap + shift);
  }
  return kept;
}

/**
 * The strokes of phrases, after phrases were edited, split or joined: each stays with its phrase, or with what took
 * that phrase's place.
 * @template T
 * @param {(T | null)[]} strokes
 * @param {string[]} before
 * @param {string[]} after
 * @returns {(T | null)[]}
 */
export function movedStrokes(strokes, before, after) {
  const { head, tail } = alike(before, after);
  const shift = after.length - before.length;
  return after.map((_, place) => {
    if (place >= after.length - tail) return strokes[place - shift] ?? null;
    return place < before.length - tail ? (strokes[place] ?? null) : null;
  });
}

/** A word's share of its phrase's time: its letters and digits, at least one. @param {string} word */
export function letters(word) {
  return Math.max(1, [...word].filter((character) => /[\p{L}\p{N}]/u.test(character)).length);
}

/**
 * At most so many points, evenly taken, the first and the last among them.
 * @template T
 * @param {T[]} points
 * @param {number} most
 * @returns {T[]}
 */
export function thinned(points, most) {
  if (points.length <= most || most < 2) return points.slice(0, Math.max(most, 0));
  return Array.from({ length: most }, (_, place) => points[Math.round((place * (points.length - 1)) / (most - 1))]);
}

/**
 * The times of words and points: phrases follow each other, a phrase lasts as long as its stroke, and its words share
 * that out by their letters. Without a stroke words are said at a fixed pace. Whole milliseconds, so that nothing runs
 * backwards by rounding.
 * @param {string[]} words
 * @param {Phrase[]} phrases
 * @param {(Point[] | null)[]} strokes one a phrase; t from the stroke's start
 * @returns {{said: {utterance: string, start_time: number, end_time: number}[], traces: Point[][],
 *   spans: [number, number][]}} spans: of the phrases
 */
export function timed(words, phrases, strokes) {
  const said = [];
  const traces = [];
  /** @type {[number, number][]} */
  const spans = [];
  const drawn = strokes.filter((stroke) => stroke?.length).length;
  const most = Math.floor(MOST_POINTS / Math.max(1, drawn));
  let now = 0;
  phrases.forEach((phrase, place) => {
    const stroke = strokes[place]?.length ? thinned(/** @type {Point[]} */ (strokes[place]), most) : null;
    const count = phrase.end - phrase.start;
    const lasted = stroke ? (stroke[stroke.length - 1].t - stroke[0].t) * 1000 : 0;
    const length = stroke ? Math.max(Math.round(lasted), SHORTEST * count) : PACE * count;
    if (stroke) traces.push(placed(stroke, now, lasted, length));
    const shares = words.slice(phrase.start, phrase.end).map(letters);
    const total = shares.reduce((sum, share) => sum + share, 0);
    let before = 0;
    shares.forEach((share, index) => {
      const start = now + Math.round((length * before) / total);
      before += share;
      const end = now + Math.round((length * before) / total);
      said.push({ utterance: words[phrase.start + index], start_time: start / 1000, end_time: end / 1000 });
    });
    spans.push([now / 1000, (now + length) / 1000]);
    now += length + PAUSE;
  });
  return { said, traces, spans };
}

/**
 * A stroke that begins at `start` and lasts `length` ms, where it lasted `lasted`.
 * @param {Point[]} stroke
 * @param {number} start
 * @param {number} lasted
 * @param {number} length
 * @returns {Point[]}
 */
function placed(stroke, start, lasted, length) {
  const unit = (/** @type {number} */ value) => Math.round(Math.min(1, Math.max(0, value)) * 10_000) / 10_000;
  const points = stroke.length === 1 ? [stroke[0], stroke[0]] : stroke;
  let latest = 0;
  return points.map(({ x, y, t }, place) => {
    // Without a length of its own a stroke is spread evenly.
    const part = lasted > 0 ? ((t - stroke[0].t) * 1000) / lasted : place / (points.length - 1);
    latest = Math.max(latest, Math.min(length, Math.round(part * length)));
    return { x: unit(x), y: unit(y), t: (start + latest) / 1000 };
  });
}

/**
 * What is sent: plain words where nothing was drawn, else the published form of a narrative.
 * @param {string[]} words
 * @param {Phrase[]} phrases
 * @param {(Point[] | null)[]} strokes
 */
export function narrativeOf(words, phrases, strokes) {
  if (!strokes.some((stroke) => stroke?.length)) return words.join(" ");
  const { said, traces } = timed(words, phrases, strokes);
  return { caption: words.join(" "), timed_caption: said, traces };
}

/**
 * The traces in a narrative that was pasted or linked, for showing; the forms are those that the server reads.
 * @param {any} narrative
 * @returns {Point[][]}
 */
export function tracesOf(narrative) {
  const isPoint = (/** @type {any} */ point) => Number.isFinite(point?.x) && Number.isFinite(point?.y);
  const short = Array.isArray(narrative?.trace) ? narrative.trace : [];
  const given = Array.isArray(narrative?.traces)
    ? narrative.traces
    : [short.map((/** @type {any} */ point) => ({ x: point?.[0], y: point?.[1], t: point?.[2] }))];
  return given.filter(Array.isArray).map((/** @type {any[]} */ points) => points.filter(isPoint));
}
