/** How sure the model was of each piece of a reply: as a shade, and as a number. */

import { element, speech } from "../shell/elements.js";
import { percent } from "../shell/format.js";

/** Probabilities under which a piece is shaded, from the strongest shade to the weakest. */
const BOUNDS = [0.05, 0.2, 0.45, 0.75];

/** 0 (hardly likely) to 4 (sure, not shaded). */
export function shade(probability) {
  const index = BOUNDS.findIndex((bound) => probability < bound);
  return index === -1 ? BOUNDS.length : index;
}

/**
 * [{text, probability}] of a reply, cut so that they make up its text; null when they do not (a masked text, for
 * example, has words that no model said).
 */
export function piecesOf(text, tokens) {
  if (!tokens || tokens.length === 0) return null;
  const pieces = [];
  let at = 0;
  for (const { text: said, logprob } of tokens) {
    let words = said;
    if (at === 0) words = words.trimStart();
    if (words === "") continue;
    const left = text.slice(at);
    if (!left.startsWith(words)) {
      words = words.trimEnd();
      if (words === "" || !left.startsWith(words)) {
        if (left === "") break;
        return null;
      }
    }
    pieces.push({ text: words, probability: Math.exp(logprob) });
    at += words.length;
  }
  return text.slice(at).trim() === "" ? pieces : null;
}

/** The reply's text, each piece shaded; as plain text where its pieces are not known. */
export function shadedText(text, tokens, shaded) {
  const pieces = shaded ? piecesOf(text, tokens) : null;
  if (pieces === null) return speech(text);
  const node = speech("", "div", "text");
  for (const piece of pieces) {
    const level = shade(piece.probability);
    const properties = level === BOUNDS.length ? {} : { class: `shade-${level}`, title: `${percent(piece.probability)} likely` };
    const [, before, word, after] = /^(\s*)(.*?)(\s*)$/s.exec(piece.text);
    node.append(before, element("span", properties, word), after);
  }
  return node;
}

/** The same as a list with its numbers, for those who do not see or hover: least likely first. */
export function numbersOf(text, tokens) {
  const pieces = piecesOf(text, tokens) ?? tokens.map(({ text: said, logprob }) => ({ text: said, probability: Math.exp(logprob) }));
  const rows = pieces.map((piece) =>
    element(
      "li",
      { class: `shade-${shade(piece.probability)}` },
      element("bdi", {}, piece.text.trim() || "␣"),
      element("span", { class: "number" }, percent(piece.probability)),
    ),
  );
  return element("ol", { class: "likelihoods" }, ...rows);
}
