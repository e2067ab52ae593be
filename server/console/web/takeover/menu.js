/** The list above the message box: suggestions of the model, or canned replies. The box keeps the focus. */

import { element, setAttribute, setHidden } from "../shell/elements.js";

let lists = 0;

export class Menu {
  #list;
  #options = [];
  #active = 0;
  #onChoose;
  #field;
  #signature = "";
  kind = null;

  /** field: the text field that it belongs to. onChoose(index). */
  constructor(field, onChoose) {
    this.#field = field;
    this.#onChoose = onChoose;
    lists += 1;
    this.#list = element("ul", { class: "menu-options", role: "listbox", id: `menu-${lists}` });
    this.node = element("div", { class: "menu", hidden: true }, this.#list);
    field.setAttribute("aria-autocomplete", "list");
    field.setAttribute("aria-controls", this.#list.id);
  }

  get open() {
    return !this.node.hidden;
  }

  get active() {
    return this.#active;
  }

  /** kind: names what is offered; label: for those who do not see it; rows: nodes, one an option. */
  show(kind, label, rows, signature) {
    if (signature !== this.#signature) {
      this.#signature = signature;
      this.#active = 0;
      this.#list.setAttribute("aria-label", label);
      this.#options = rows.map((row, index) => this.#option(row, index));
      this.#list.replaceChildren(...this.#options);
    }
    this.kind = kind;
    setHidden(this.node, rows.length === 0);
    this.#mark();
  }

  hide() {
    this.kind = null;
    this.#signature = "";
    setHidden(this.node, true);
    this.#field.removeAttribute("aria-activedescendant");
  }

  move(step) {
    const { length } = this.#options;
    this.#active = (this.#active + step + length) % length;
    this.#mark();
  }

  #option(row, index) {
    // The pointer must not take the focus away from the box.
    const pointerdown = (event) => event.preventDefault();
    const click = () => this.#onChoose(index);
    return element("li", { role: "option", id: `${this.#list.id}-${index}`, pointerdown, mousedown: pointerdown, click }, row);
  }

  #mark() {
    this.#options.forEach((option, index) => setAttribute(option, "aria-selected", String(index === this.#active)));
    this.#options[this.#active]?.scrollIntoView?.({ block: "nearest" });
    if (this.open && this.#options.length > 0) setAttribute(this.#field, "aria-activedescendant", this.#options[this.#active].id);
  }
}
