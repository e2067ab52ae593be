/** Pieces of the views that show and keep figures and lists. */

import { sentence } from "../shell/api.js";
import { button, element, heading } from "../shell/elements.js";

/** A part of a page with a heading; `more` stands beside the heading. */
export function section(title, nodes, more = []) {
  const head = element("div", { class: "section-head" }, heading(2, title), ...more);
  return element("section", { class: "section", "aria-label": title }, head, ...nodes);
}

/**
 * A table. columns: [{title, number, action}]; rows: lists of nodes or strings, one for each column.
 *
 * It scrolls by itself when it is too wide, so it can be focused.
 */
export function table(caption, columns, rows, empty = "Nothing yet.") {
  if (rows.length === 0) return element("p", { class: "soft" }, empty);
  const kind = ({ number, action }) => (number || action ? { class: number ? "number" : "action" } : {});
  const head = element("tr", {}, ...columns.map((column) => element("th", { scope: "col", ...kind(column) }, column.title)));
  const body = rows.map((cells) => element("tr", {}, ...cells.map((cell, at) => element("td", kind(columns[at]), cell))));
  const whole = element("table", {}, element("caption", { class: "visually-hidden" }, caption), element("thead", {}, head), element("tbody", {}, ...body));
  return element("div", { class: "table-frame", tabindex: "0", role: "region", "aria-label": caption }, whole);
}

/** A number with what it is; tone as of a mark. */
export function tile(words, value, note = null) {
  return element("div", { class: "tile" }, element("dt", {}, words), element("dd", {}, value, note && element("small", {}, note)));
}

export function tiles(...children) {
  return element("dl", { class: "tiles" }, ...children);
}

/** A field with its label. */
export function field(words, input, hint = null) {
  return element("label", { class: "field" }, element("span", { class: "field-words" }, words), input, hint && element("small", { class: "soft" }, hint));
}

/**
 * A form: `submit` is called with its values by name and may return a promise; while that lasts, it is off (a button
 * that is disabled would lose the focus). place(button): the button with what stands beside it.
 */
export function form(words, fields, submit, { kind = "solid", place = (go) => go } = {}) {
  const go = button(words, () => {}, { kind, type: "submit" });
  const node = element("form", { class: "plain-form", submit: send }, ...fields, place(go));
  let busy = false;
  async function send(event) {
    event.preventDefault();
    if (busy) return;
    busy = true;
    go.setAttribute("aria-disabled", "true");
    try {
      await submit(Object.fromEntries(new FormData(node)), node);
    } finally {
      busy = false;
      go.removeAttribute("aria-disabled");
    }
  }
  return node;
}

/**
 * Asks for values in a dialog: `save` is called with them by name. It stays open while that fails, and says why.
 * Answers true when they are saved, false when nothing was changed.
 */
export function ask(title, fields, yes, save) {
  return new Promise((resolve) => {
    const problem = element("p", { class: "bad-words", role: "alert" });
    const place = (go) => element("div", { class: "flow answers" }, button("Cancel", () => dialog.close()), go);
    const body = form(yes, [...fields, problem], send, { place });
    const dialog = element("dialog", { class: "panel small", "aria-label": title, close: () => done() },
      element("div", { class: "panel-body" }, heading(2, title), body));
    let saved = false;
    async function send(values) {
      problem.textContent = "";
      try {
        await save(values);
        saved = true;
        dialog.close();
      } catch (error) {
        problem.textContent = sentence(error);
      }
    }
    function done() {
      dialog.remove();
      resolve(saved);
    }
    document.body.append(dialog);
    dialog.showModal();
  });
}

/** Nodes in a row: a form's button with others beside it. */
export function row(...nodes) {
  return element("div", { class: "flow form-end" }, ...nodes);
}

/** Asks before what cannot be undone. Answers true or false. */
export function sure(question, yes, { danger = true } = {}) {
  return new Promise((resolve) => {
    const go = button(yes, () => close(true), { kind: "solid", class: danger ? "danger-button" : "" });
    const dialog = element("dialog", { class: "panel small", role: "alertdialog", "aria-label": question, close: () => done() },
      element("div", { class: "panel-body" }, element("p", { class: "question", dir: "auto" }, question), element("div", { class: "flow answers" }, button("Cancel", () => close(false)), go)));
    let answer = false;
    function close(value) {
      answer = value;
      dialog.close();
    }
    function done() {
      dialog.remove();
      resolve(answer);
    }
    document.body.append(dialog);
    dialog.showModal();
  });
}

/**
 * Draws what is in `node` anew. The focus goes to the control of the same name, else to the one that has come to its
 * place: whoever works by keyboard stays where they are.
 */
export function redraw(node, nodes) {
  const controls = () => [...node.querySelectorAll("a[href], button:not(:disabled), summary")];
  const before = controls();
  const at = before.indexOf(document.activeElement);
  const named = (one) => one.getAttribute("aria-label") ?? one.textContent;
  node.replaceChildren(...nodes);
  if (at === -1) return;
  const after = controls();
  const next = after.find((one) => named(one) === named(before[at])) ?? after[Math.min(at, after.length - 1)];
  if (next) return next.focus();
  node.tabIndex = -1;
  node.focus();
}

/** A place that is drawn anew only when what it shows has changed: focus, scrolling and what is open stay. */
export class Place {
  #seen = null;

  constructor(tag = "div", properties = {}) {
    this.node = element(tag, properties);
  }

  /** make(): the nodes in it. */
  show(value, make) {
    const seen = JSON.stringify(value);
    if (seen === this.#seen) return;
    this.#seen = seen;
    const open = [...this.node.querySelectorAll("details")].map((one) => one.open);
    const down = [...this.node.querySelectorAll(".log")].map((one) => one.scrollHeight - one.scrollTop - one.clientHeight < 4);
    redraw(this.node, make());
    this.node.querySelectorAll("details").forEach((one, at) => { one.open = open[at] ?? false; });
    this.node.querySelectorAll(".log").forEach((one, at) => { if (down[at] ?? true) one.scrollTop = one.scrollHeight; });
  }
}
