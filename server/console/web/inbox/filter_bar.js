/** Search, ready-made filters with their counts, and the finer ones behind a button. */

import { button, element, setAttribute, setHidden, setText } from "../shell/elements.js";
import { count } from "../shell/format.js";
import { CHIPS, REVIEWED, STATES, THUMBS, VERDICTS, chipOf, fieldValue, filterValue, writeField } from "./filters.js";

/** Milliseconds after the last key before a search begins. */
const PAUSE = 250;
const OWN_CHIPS = ["state", "mine", "rating", "confidence_below", "reviewed"];
const REFINED = ["state", "reviewed", "rating", "verdict", "label", "model", "confidence_below", "cluster", "from", "to"];

export class FilterBar {
  #filters = {};
  #onChange;
  #chips = new Map();
  #timer = null;
  #search;
  #toggle;
  #panel;
  #fields = {};
  #clear;

  /** onChange(filters, {typing}): typing: one more letter of a search, not worth an entry in the history. */
  constructor(onChange) {
    this.#onChange = onChange;
    this.#search = element("input", {
      type: "search",
      id: "search",
      dir: "auto",
      placeholder: "Search what was said",
      "aria-label": "Search what was said",
      "aria-keyshortcuts": "/",
      autocomplete: "off",
      spellcheck: "false",
      maxlength: "200",
      input: () => this.#typed(),
      keydown: (event) => this.#searchKey(event),
    });
    this.#panel = this.#refinements();
    this.#toggle = button("Filters", () => this.#unfold(), {
      picture: "filter",
      class: "refine",
      "aria-expanded": "false",
      "aria-controls": "refinements",
    });
    const top = element("div", { class: "search-row" }, element("div", { class: "search" }, this.#search), this.#toggle);
    const chips = element("div", { class: "inbox-chips", role: "group", "aria-label": "Show" }, ...CHIPS.map((chip) => this.#chip(chip)));
    this.node = element("div", { class: "filter-bar", role: "search" }, top, chips, this.#panel);
  }

  /** Shows what is filtered by. */
  show(filters) {
    this.#filters = filters;
    if (document.activeElement !== this.#search || this.#timer === null) writeField(this.#search, filters.q ?? "");
    const chosen = chipOf(filters);
    for (const [id, { node }] of this.#chips) setAttribute(node, "aria-pressed", String(id === chosen));
    for (const [name, field] of Object.entries(this.#fields)) writeField(field, fieldValue(name, filters[name] ?? ""));
    const refined = this.#refined();
    setText(this.#toggle.lastChild, refined.length > 0 ? `Filters (${refined.length})` : "Filters");
    this.#clear.disabled = refined.length === 0;
  }

  /** Names of filters that hold beyond those of the chip that is chosen. */
  #refined() {
    const own = CHIPS.find(({ id }) => id === chipOf(this.#filters))?.filters ?? {};
    return REFINED.filter((name) => this.#filters[name] && own[name] === undefined);
  }

  counts(counts) {
    for (const { chip, number } of this.#chips.values()) {
      const value = chip.count === undefined ? undefined : counts?.[chip.count];
      setHidden(number, value === undefined);
      if (value !== undefined) setText(number, count(value));
    }
  }

  /** What can be chosen: names of labels, fingerprints of models ({value, words}). */
  offer(name, choices) {
    const field = this.#fields[name];
    const chosen = this.#filters[name] ?? "";
    const options = choices.map(({ value, words }) => element("option", { value }, words));
    field.replaceChildren(element("option", { value: "" }, "Any"), ...options);
    writeField(field, chosen);
  }

  focusSearch() {
    this.#search.focus();
    this.#search.select();
  }

  stop() {
    clearTimeout(this.#timer);
  }

  #chip(chip) {
    const number = element("span", { class: "chip-count", hidden: true });
    const click = () => this.#choose(chip.filters);
    const node = element("button", { type: "button", class: "chip", "aria-pressed": "false", click }, element("span", {}, chip.words), number);
    this.#chips.set(chip.id, { chip, node, number });
    return node;
  }

  /** Another chip keeps what was searched for and refined. */
  #choose(wanted) {
    const kept = Object.entries(this.#filters).filter(([name]) => !OWN_CHIPS.includes(name));
    this.#change({ ...Object.fromEntries(kept), ...wanted });
  }

  #typed() {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#searchNow(), PAUSE);
  }

  #searchNow() {
    clearTimeout(this.#timer);
    this.#timer = null;
    const words = this.#search.value.trim();
    if (words === (this.#filters.q ?? "")) return;
    const { q: _, ...others } = this.#filters;
    this.#change(words === "" ? others : { ...others, q: words }, { typing: true });
  }

  #searchKey(event) {
    if (event.key === "Enter") this.#searchNow();
    if (event.key !== "Escape") return;
    event.preventDefault();
    if (this.#search.value === "") return this.#search.blur();
    this.#search.value = "";
    this.#searchNow();
  }

  #change(filters, { typing = false } = {}) {
    this.#filters = filters;
    this.#onChange(filters, { typing });
  }

  #unfold() {
    const open = this.#panel.hidden;
    setHidden(this.#panel, !open);
    setAttribute(this.#toggle, "aria-expanded", String(open));
    if (open) this.#fields.state.focus();
  }

  #refinements() {
    const change = (event) => this.#refine(event.target);
    const select = (name, choices, usual = [["", "Any"]]) => {
      const options = [...usual, ...choices].map(([value, words]) => element("option", { value }, words));
      this.#fields[name] = element("select", { name, id: `filter-${name}`, change }, ...options);
      return this.#fields[name];
    };
    const input = (name, properties) => {
      this.#fields[name] = element("input", { name, id: `filter-${name}`, change, ...properties });
      return this.#fields[name];
    };
    const field = (words, control) => element("label", { class: "filter-field" }, element("span", {}, words), control);
    this.#clear = button("Clear", () => this.#forget(), { kind: "text", disabled: true });
    return element(
      "div",
      { class: "refinements", id: "refinements", hidden: true },
      field("State", select("state", STATES.filter(([value]) => value !== "open"), [["", "Open"]])),
      field("Reviewed", select("reviewed", REVIEWED)),
      field("The visitor's thumb", select("rating", THUMBS)),
      field("Verdict", select("verdict", VERDICTS)),
      field("Label", select("label", [])),
      field("Model", select("model", [])),
      field("Less sure than (%)", input("confidence_below", { type: "number", min: "1", max: "100", inputmode: "numeric" })),
      field("Topic, by its number", input("cluster", { type: "number", min: "0", inputmode: "numeric" })),
      field("From", input("from", { type: "date" })),
      field("Until", input("to", { type: "date" })),
      this.#clear,
    );
  }

  #refine(field) {
    const { [field.name]: _, ...others } = this.#filters;
    const value = filterValue(field.name, field.value);
    this.#change(value === "" ? others : { ...others, [field.name]: value });
  }

  #forget() {
    const refined = this.#refined();
    const kept = Object.entries(this.#filters).filter(([name]) => !refined.includes(name));
    this.#change(Object.fromEntries(kept));
    this.#fields.state.focus();
  }
}
