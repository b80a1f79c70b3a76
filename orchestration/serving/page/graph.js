/** The scene graph: built of objects and relations, or typed. */

import { byId, make, refill } from "./dom.js";
import { Refusal } from "./api.js";
import { blame } from "./fields.js";
import { graphView, numbered } from "./graph_view.js";

/** @typedef {{name: string, box?: unknown}} GraphObject */
/** @typedef {[number, string, number]} Relation */

/**
 * What is sent of rows as they stand: objects without a name that no relation needs are left out. `rows` says which
 * row each object is of. Throws a Refusal that names the row of an object without a name that is needed.
 * @param {GraphObject[]} objects
 * @param {Relation[]} relations
 */
export function graphOf(objects, relations) {
  const needed = new Set(relations.flatMap(([from, , to]) => [from, to]));
  const rows = objects.map((_, place) => place).filter((place) => objects[place].name.trim() || needed.has(place));
  const nameless = rows.findIndex((row) => !objects[row].name.trim());
  if (nameless >= 0) {
    throw new Refusal("wrong_field", `objects[${nameless}] has a relation and no name: write or pick its name.`);
  }
  const places = new Map(rows.map((row, place) => [row, place]));
  const graph = {
    objects: rows.map((row) => ({ ...objects[row], name: objects[row].name.trim() })),
    relations: relations.map(([from, word, to]) => [places.get(from), word, places.get(to)]),
  };
  return { graph, rows };
}

/**
 * The graph in the words of the server's grammar.
 * @param {GraphObject[]} objects
 * @param {Relation[]} relations
 */
export function typedGraph(objects, relations) {
  const labels = numbered(objects.map((object) => object.name.trim()));
  const related = new Set(relations.flatMap(([from, , to]) => [from, to]));
  const said = relations.map(([from, word, to]) => `${labels[from]} ${word} ${labels[to]}`);
  return [...said, ...labels.filter((label, place) => label && !related.has(place))].join(" and ");
}

/**
 * A refusal that counts from 0, in the numbers of the rows.
 * @param {string} list
 * @param {number} row
 * @param {string} message
 */
function asRow(list, row, message) {
  const path = /^(graph\.)?(objects|relations)\[\d+\](\.name|\[\d\])?( of the graph)?/;
  return message.replace(path, `${list === "objects" ? "Object" : "Relation"} ${row + 1}`);
}

/** @param {string} label @param {() => void} onclick */
function remover(label, onclick) {
  return make("button", { type: "button", class: "remove", "aria-label": label, title: label, onclick }, "×");
}

export class GraphInput {
  /** @param {(text: string) => void} say */
  constructor(say) {
    this.say = say;
    this.typed = byId("graph");
    /** @type {GraphObject[]} */
    this.objects = [{ name: "" }];
    /** @type {Relation[]} */
    this.relations = [];
    /** @type {number[]} */
    this.rows = [];
    /** @type {string[]} */
    this.words = [];
    byId("graph-built").addEventListener("change", () => this.choose(false));
    byId("graph-typed").addEventListener("change", () => this.choose(true));
    byId("add-object").addEventListener("click", () => this.addObject());
    byId("add-relation").addEventListener("click", () => this.addRelation());
    this.render();
  }

  get isTyped() {
    return byId("graph-typed").checked;
  }

  /** The names that can be picked. @param {{objects: string[], relations: string[]} | null | undefined} words */
  know(words) {
    this.words = words?.relations ?? [];
    byId("object-names").replaceChildren(...(words?.objects ?? []).map((name) => make("option", { value: name })));
    this.render();
  }

  /** What is sent as `graph`. */
  value() {
    if (this.isTyped) return this.typed.value.trim();
    const { graph, rows } = graphOf(this.objects, this.relations);
    this.rows = rows;
    return graph;
  }

  /** Puts a graph in place of what is there. @param {any} given words, or as it is sent */
  fill(given) {
    const isTyped = typeof given === "string";
    byId(isTyped ? "graph-typed" : "graph-built").checked = true;
    this.typed.value = isTyped ? given : "";
    const objects = !isTyped && Array.isArray(given?.objects) ? given.objects : [];
    this.objects = objects.map((/** @type {any} */ object) => ({ ...object, name: String(object?.name ?? "") }));
    if (!this.objects.length) this.objects = [{ name: "" }];
    const there = (/** @type {any} */ place) => Number.isInteger(place) && objects[place] !== undefined;
    this.relations = (!isTyped && Array.isArray(given?.relations) ? given.relations : [])
      .filter((/** @type {any} */ one) => Array.isArray(one) && one.length === 3 && there(one[0]) && there(one[2]))
      .map((/** @type {any} */ [from, word, to]) => [from, String(word), to]);
    this.choose(isTyped);
  }

  /** @param {import("./fields.js").Where} where @param {string} message */
  blame(where, message) {
    if (this.isTyped) return blame(this.typed, byId("graph-error"), message);
    const list = where.list ?? "objects";
    const row = list === "objects" ? (this.rows[where.place ?? 0] ?? where.place ?? 0) : (where.place ?? 0);
    const control = document.querySelector(`[data-key="${list}-${row}"]`) ?? byId("add-object");
    const told = where.list ? asRow(list, row, message) : message;
    blame(/** @type {HTMLElement} */ (control), byId(`${list}-error`), told);
  }

  /** @param {boolean} typed */
  choose(typed) {
    byId("graph-builder").hidden = typed;
    byId("graph-writer").hidden = !typed;
    if (typed && !this.typed.value.trim()) this.typed.value = typedGraph(this.objects, this.relations);
    this.render();
  }

  addObject() {
    this.objects.push({ name: "" });
    this.render();
    this.focus(`objects-${this.objects.length - 1}`);
  }

  addRelation() {
    if (this.objects.length < 2) this.objects.push({ name: "" });
    const last = this.relations.at(-1);
    const to = this.objects.length - 1;
    this.relations.push([last ? Math.min(last[2], to - 1) : 0, this.words[0] ?? "", to]);
    this.render();
    this.focus(`relations-${this.relations.length - 1}`);
  }

  /** @param {number} place */
  removeObject(place) {
    const moved = (/** @type {number} */ at) => (at > place ? at - 1 : at);
    this.objects.splice(place, 1);
    this.relations = this.relations
      .filter(([from, , to]) => from !== place && to !== place)
      .map(([from, word, to]) => [moved(from), word, moved(to)]);
    if (!this.objects.length) this.objects.push({ name: "" });
    this.render();
    this.focus(`objects-${Math.min(place, this.objects.length - 1)}`);
    this.say("Object removed, and its relations");
  }

  /** @param {number} place */
  removeRelation(place) {
    this.relations.splice(place, 1);
    this.render();
    if (this.relations.length) this.focus(`relations-${Math.min(place, this.relations.length - 1)}`);
    else byId("add-relation").focus();
    this.say("Relation removed");
  }

  /** @param {string} key */
  focus(key) {
    /** @type {HTMLElement | null} */ (document.querySelector(`[data-key="${key}"]`))?.focus();
  }

  get labels() {
    return numbered(this.objects.map((object) => object.name.trim()));
  }

  render() {
    refill(byId("objects"), this.objects.map((object, place) => this.objectRow(object, place)));
    refill(byId("relations"), this.relations.map((relation, place) => this.relationRow(relation, place)));
    this.sketch();
  }

  /** What shows the names: the drawing, and the choices of the relations. */
  sketch() {
    const { labels } = this;
    for (const option of document.querySelectorAll("#relations option[data-object]")) {
      const place = Number(/** @type {HTMLElement} */ (option).dataset.object);
      option.textContent = labels[place] || `object ${place + 1}`;
    }
    const some = labels.some(Boolean);
    byId("graph-sketch").replaceChildren(...(some ? [graphView(labels, this.relations)] : []));
  }

  /** @param {GraphObject} object @param {number} place */
  objectRow(object, place) {
    const name = make("input", {
      type: "text", list: "object-names", "data-key": `objects-${place}`, "aria-label": `Object ${place + 1}`,
      autocomplete: "off", spellcheck: "false", placeholder: place === 0 ? "such as sheep" : "",
      oninput: (/** @type {any} */ event) => {
        this.objects[place].name = event.target.value;
        this.sketch();
      },
      onkeydown: (/** @type {KeyboardEvent} */ event) => {
        if (event.key !== "Enter" || event.ctrlKey || event.metaKey) return;
        event.preventDefault();
        this.addObject();
      },
    });
    name.value = object.name;
    return make("li", {}, name, remover(`Remove object ${place + 1}`, () => this.removeObject(place)));
  }

  /** @param {Relation} relation @param {number} place */
  relationRow(relation, place) {
    const known = this.words.includes(relation[1]) || relation[1] === "" ? this.words : [relation[1], ...this.words];
    const choice = (/** @type {0 | 1 | 2} */ part, /** @type {string} */ what, /** @type {Node[]} */ options) => {
      const onchange = (/** @type {any} */ event) => {
        const { value } = event.target;
        /** @type {any} */ (this.relations[place])[part] = part === 1 ? value : Number(value);
        this.sketch();
      };
      const key = part === 0 ? `relations-${place}` : `relations-${place}-${part}`;
      const label = `Relation ${place + 1}: ${what}`;
      const select = make("select", { "data-key": key, "aria-label": label, onchange }, ...options);
      select.value = String(relation[part]);
      return select;
    };
    const word = make("input", {
      type: "text", "data-key": `relations-${place}-1`, "aria-label": `Relation ${place + 1}: relation`,
      autocomplete: "off",
      oninput: (/** @type {any} */ event) => {
        this.relations[place][1] = event.target.value;
        this.sketch();
      },
    });
    word.value = relation[1];
    const objects = () => this.objects.map((_, at) => make("option", { value: at, "data-object": at }));
    return make(
      "li", {},
      choice(0, "subject", objects()),
      known.length ? choice(1, "relation", known.map((name) => make("option", { value: name }, name))) : word,
      choice(2, "object", objects()),
      remover(`Remove relation ${place + 1}`, () => this.removeRelation(place)),
    );
  }
}
