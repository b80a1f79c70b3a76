/** The sentence: plain words that say what the picture shows. */

import { byId } from "./dom.js";
import { blame } from "./fields.js";

export class SentenceInput {
  /** What is sent as `prompt`. */
  value() {
    return byId("prompt").value.trim();
  }

  /** Puts words in place of what is there. @param {unknown} given */
  fill(given) {
    byId("prompt").value = String(given);
  }

  /** Says what is wrong with the words. @param {{field: string}} _where @param {string} message */
  blame(_where, message) {
    blame(byId("prompt"), byId("prompt-error"), message);
  }
}
