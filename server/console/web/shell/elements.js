/** Pieces that all views are built of. Text only ever goes in as text, as in the visitor's page. */

import { element } from "/static/dom.js";

export { byId, coalesce, element, setAttribute, setHidden, setText, speech } from "/static/dom.js";

const SVG = "http://www.w3.org/2000/svg";

/** A decorative icon of the console's icons.svg. */
export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS(SVG, "use");
  use.setAttribute("href", `/operator/static/icons.svg#${name}`);
  svg.append(use);
  return svg;
}

/** kind: quiet, solid or text. picture: an icon before the words. More properties go to the element. */
export function button(words, click, { kind = "quiet", picture = null, ...properties } = {}) {
  const { class: extra = "", ...others } = properties;
  const classes = `${kind}-button ${extra}`.trim();
  const parts = [picture && icon(picture), element("span", {}, words)];
  return element("button", { type: "button", class: classes, click, ...others }, ...parts);
}

/** A button that shows a picture only; the label is what is read and what the pointer sees. */
export function iconButton(picture, label, click, properties = {}) {
  const { class: extra = "", ...others } = properties;
  const named = { class: `icon-button ${extra}`.trim(), "aria-label": label, title: label };
  return element("button", { type: "button", ...named, click, ...others }, icon(picture));
}

/** A small mark: tone is plain, warn, danger, good or accent. */
export function mark(words, tone = "plain", picture = null) {
  return element("span", { class: `mark ${tone}` }, picture && icon(picture), element("span", { dir: "auto" }, words));
}

/** Text of other people within a sentence: its direction stays its own. */
export function name(text) {
  return element("bdi", {}, text);
}

export function heading(level, words, properties = {}) {
  return element(`h${level}`, properties, words);
}

/** Facts as pairs; those without a value are left out. */
export function facts(pairs) {
  const kept = pairs.filter(([, value]) => value !== null && value !== undefined && value !== "");
  const rows = kept.map(([term, value]) => element("div", {}, element("dt", {}, term), element("dd", {}, value)));
  return element("dl", { class: "facts" }, ...rows);
}

/** Brings the children of `parent` into the order of `nodes`, and touches only what is out of place. */
export function arrange(parent, nodes) {
  let place = parent.firstChild;
  for (const node of nodes) {
    if (node === place) place = place.nextSibling;
    else parent.insertBefore(node, place);
  }
  while (place !== null) {
    const next = place.nextSibling;
    place.remove();
    place = next;
  }
}

/** Listens to several events of a target until the function that comes back is called. */
export function listen(target, listeners, options) {
  for (const [type, listener] of Object.entries(listeners)) target.addEventListener(type, listener, options);
  return () => {
    for (const [type, listener] of Object.entries(listeners)) target.removeEventListener(type, listener, options);
  };
}
