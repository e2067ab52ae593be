/** A text that is written in place: Ctrl+Enter saves, Escape leaves it as it was. Unsaved words are kept in the tab. */

import { button, element } from "../shell/elements.js";
import { draftOf, keepDraft } from "../shell/drafts.js";
import { diffView } from "./diff_view.js";

const PAUSE = 120;

export class TextEditor {
  #field;
  #name;
  #before;
  #began;
  #difference;
  #timer = null;

  /** name: of its draft. compare: what it is shown as a change of, if given. save(text), cancel(): the end of it. */
  constructor({ label, name, text, compare = null, save, cancel }) {
    this.#name = name;
    this.#before = compare;
    this.#began = text;
    this.#field = element("textarea", { rows: "2", dir: "auto", maxlength: "4000", "aria-label": label });
    this.#field.value = draftOf(name) || text;
    this.#difference = element("div", { class: "difference", "aria-live": "off" });
    const end = (action) => () => {
      clearTimeout(this.#timer);
      keepDraft(name, "");
      action(this.#field.value.trim());
    };
    const [saved, cancelled] = [end(save), end(cancel)];
    this.#field.addEventListener("input", () => this.#changed());
    this.node = element(
      "div",
      {
        class: "text-editor",
        keydown: (event) => {
          if (event.isComposing) return;
          if (event.key === "Escape") this.#handled(event, cancelled);
          else if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) this.#handled(event, saved);
        },
      },
      this.#field,
      this.#difference,
      element(
        "div",
        { class: "editor-buttons" },
        button("Save", saved, { kind: "solid", title: "Ctrl+Enter" }),
        button("Cancel", cancelled, { title: "Esc" }),
        element("span", { class: "hint", "aria-hidden": "true" }, element("kbd", {}, "Ctrl"), " ", element("kbd", {}, "Enter")),
      ),
    );
    this.#render();
  }

  /** Whether there are words that would be missed. */
  get unsaved() {
    return this.#field.value.trim() !== this.#began.trim();
  }

  #handled(event, action) {
    event.preventDefault();
    event.stopPropagation();
    action();
  }

  focus() {
    this.#field.focus();
    this.#field.setSelectionRange(this.#field.value.length, this.#field.value.length);
  }

  #changed() {
    keepDraft(this.#name, this.#field.value);
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#render(), PAUSE);
  }

  #render() {
    if (this.#before === null) return;
    const text = this.#field.value.trim();
    this.#difference.replaceChildren(...(text === this.#before ? [] : [diffView(this.#before, text)]));
  }
}
