/**
 * Small helpers for building the page. Text only ever goes in as text: there is no way to pass
 * markup through here, and no other module writes any.
 */

const SVG = "http://www.w3.org/2000/svg";

/** The element of index.html with this id. */
export function byId(id) {
  return document.getElementById(id);
}

/**
 * element("p", {class: "note", hidden: true, click: act}, "text", child)
 *
 * Functions become listeners, true an empty attribute; false, null and undefined leave the attribute out.
 */
export function element(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (typeof value === "function") node.addEventListener(name, value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

/** Text from people and models: isolated, in its own direction, with its line breaks. */
export function speech(text, tag = "div", className = "text") {
  return element(tag, { class: className, dir: "auto" }, text);
}

/** A decorative icon of icons.svg. */
export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS(SVG, "use");
  use.setAttribute("href", `/static/icons.svg#${name}`);
  svg.append(use);
  return svg;
}

/** Text for screen readers alone. */
export function unseen(text) {
  return element("p", { class: "visually-hidden" }, text);
}

/** Writes only what differs: an equal value would still wake mutation observers and live regions. */
export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

export function setHidden(node, hidden) {
  if (node.hidden !== hidden) node.hidden = hidden;
}

export function setAttribute(node, name, value) {
  if (node.getAttribute(name) !== value) node.setAttribute(name, value);
}

/** Runs `action` once per microtask, however often the result is called before. */
export function coalesce(action, schedule = queueMicrotask) {
  let due = false;
  return () => {
    if (due) return;
    due = true;
    schedule(() => {
      due = false;
      action();
    });
  };
}
