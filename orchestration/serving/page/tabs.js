/** Tabs as WAI-ARIA describes them: one stop of the Tab key, arrow keys choose. */

import { byId, show } from "./dom.js";

export class Tabs {
  /**
   * @param {HTMLElement} list its tabs name their panels and, as data-kind, what they are for
   * @param {() => void} changed
   */
  constructor(list, changed) {
    /** @type {HTMLElement[]} */
    this.tabs = [...list.querySelectorAll('[role="tab"]')].map((tab) => /** @type {HTMLElement} */ (tab));
    this.changed = changed;
    /** @type {any} */
    this.chosen = null;
    for (const tab of this.tabs) tab.addEventListener("click", () => this.choose(tab.dataset.kind));
    list.addEventListener("keydown", (event) => this.steer(event));
  }

  get offered() {
    return this.tabs.filter((tab) => !tab.hidden);
  }

  /** Offers tabs, the first of `kinds` chosen where the chosen one is not among them. @param {string[]} kinds */
  offer(kinds) {
    for (const tab of this.tabs) show(tab, kinds.includes(tab.dataset.kind ?? ""));
    this.choose(kinds.includes(this.chosen) ? this.chosen : (kinds[0] ?? null));
  }

  /** @param {string | undefined | null} kind @param {boolean} [offering] whether it is offered from now on */
  choose(kind, offering = false) {
    this.chosen = kind ?? null;
    for (const tab of this.tabs) {
      const on = tab.dataset.kind === kind;
      if (on && offering) show(tab, true);
      tab.setAttribute("aria-selected", String(on));
      tab.tabIndex = on ? 0 : -1;
      show(byId(/** @type {string} */ (tab.getAttribute("aria-controls"))), on);
    }
    this.changed();
  }

  /** @param {KeyboardEvent} event */
  steer(event) {
    const { offered } = this;
    const at = offered.findIndex((tab) => tab.dataset.kind === this.chosen);
    const to = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: offered.length - 1 }[event.key];
    if (to === undefined || !offered.length) return;
    event.preventDefault();
    const tab = offered[(to + offered.length) % offered.length];
    this.choose(tab.dataset.kind);
    tab.focus();
  }
}
