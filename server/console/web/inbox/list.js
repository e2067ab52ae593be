/** The list of conversations: rows that stay in place while what they say changes, and the way to more of them. */

import { sentence } from "../shell/api.js";
import { arrange, button, element, setHidden, setText } from "../shell/elements.js";
import { Row } from "./row.js";

/** Next page when its end is so near (CSS pixels). */
const NEAR = 600;
const TICK = 30_000;

export class ConversationList {
  #rows;
  #hrefFor;
  #views = new Map();
  #current = null;
  #list = element("ul", { class: "rows", role: "list", "aria-label": "Conversations" });
  #state = element("p", { class: "list-state" });
  #again;
  #more;
  #timer;

  /** rows: Rows; hrefFor(id): the address of a conversation, with the filters that hold now. */
  constructor(rows, hrefFor) {
    this.#rows = rows;
    this.#hrefFor = hrefFor;
    this.#again = button("Try again", () => this.onAgain(), { class: "list-again", hidden: true });
    this.#more = button("Show more", () => this.#rows.nextPage(), { class: "list-more", hidden: true });
    const scroll = () => this.#scrolled();
    this.node = element("div", { class: "list-scroller", tabindex: "-1" }, this.#list, this.#state, this.#again, this.#more);
    this.node.addEventListener("scroll", scroll, { passive: true });
    this.#timer = setInterval(() => this.#views.forEach((view) => view.tick()), TICK);
  }

  onAgain = () => {};

  render(current = this.#current) {
    this.#current = current;
    const { rows, loading, loaded, error, more } = this.#rows;
    const keep = new Set(rows.map(({ id }) => id));
    const focused = this.#focusedIndex();
    for (const id of this.#views.keys()) if (!keep.has(id)) this.#views.delete(id);
    const nodes = rows.map((summary) => {
      const view = this.#view(summary.id);
      view.show(summary, { current: summary.id === current });
      return view.node;
    });
    arrange(this.#list, nodes);
    // The row that had the focus may have gone: its neighbor takes the focus.
    if (focused !== -1 && this.#focusedIndex() === -1) this.#links()[Math.min(focused, rows.length - 1)]?.focus();
    setHidden(this.#list, rows.length === 0);
    this.node.setAttribute("aria-busy", String(loading));
    setText(this.#state, stateWords(rows, loading, loaded, error));
    setHidden(this.#again, error === null);
    setHidden(this.#more, !more || loading);
    this.#scrolled();
  }

  #view(id) {
    if (!this.#views.has(id)) this.#views.set(id, new Row(id, this.#hrefFor));
    return this.#views.get(id);
  }

  #scrolled() {
    const { scrollTop, scrollHeight, clientHeight } = this.node;
    if (clientHeight > 0 && scrollHeight - scrollTop - clientHeight < NEAR && this.#rows.error === null) this.#rows.nextPage();
  }

  #links() {
    return [...this.#list.querySelectorAll("a.inbox-row")];
  }

  #focusedIndex() {
    return this.#links().indexOf(document.activeElement);
  }

  /** The id `step` rows from the focused one, else from the open one; it gets the focus. */
  move(step) {
    const links = this.#links();
    if (links.length === 0) return null;
    const focused = this.#focusedIndex();
    const from = focused === -1 ? links.findIndex((link) => link.hasAttribute("aria-current")) : focused;
    const index = from === -1 ? (step > 0 ? 0 : links.length - 1) : Math.min(links.length - 1, Math.max(0, from + step));
    links[index].focus();
    links[index].scrollIntoView({ block: "nearest" });
    return this.#rows.rows[index].id;
  }

  focusRow(id) {
    this.#views.get(id)?.link.focus();
  }

  top() {
    this.node.scrollTop = 0;
  }

  stop() {
    clearInterval(this.#timer);
  }
}

function stateWords(rows, loading, loaded, error) {
  if (error !== null) return sentence(error);
  if (loading) return rows.length === 0 || !loaded ? "Loading…" : "Loading more…";
  return rows.length === 0 ? "No conversation fits these filters." : "";
}
