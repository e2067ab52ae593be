/** A change of words to look at: what went is struck through, what came is underlined. */

import { element, speech } from "../shell/elements.js";
import { diff } from "./diff.js";

const TAGS = { same: "span", removed: "del", added: "ins" };

export function diffView(before, after) {
  const node = speech("", "div", "text diff");
  node.append(...diff(before, after).map(({ kind, text }) => element(TAGS[kind], {}, text)));
  return node;
}
