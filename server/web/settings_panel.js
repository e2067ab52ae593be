/** The settings dialog: draws the fields of settings.js and writes changes back at once. */

import { announce } from "./announce.js";
import { byId, element, setHidden, setText } from "./dom.js";
import { FIELDS } from "./settings.js";

/** What each field is called, explained, and drawn as. */
const LOOKS = {
  temperature: ["Temperature", "Low keeps to the likeliest words, high is more daring.", "range"],
  top_p: ["Top-p", "Draws only among the likeliest words that together have this share.", "range"],
  top_k: ["Top-k", "Draws only among this many words. 0 sets no limit.", "number"],
  beam_size: ["Beams", "Sentences followed side by side.", "range"],
  n_best: ["Alternatives", "How many of the best sentences come with a reply.", "range"],
  length_penalty: ["Length", "Higher favors longer replies.", "range"],
  max_tokens: ["Longest reply", "In tokens: words and parts of words.", "range"],
  repetition_penalty: ["Against repetition", "Above 1, words already used get less likely.", "range"],
  seed: ["Seed", "The same seed gives the same reply. Empty draws a new one.", "number"],
};

const words = (field, value) => (value === null ? "" : String(Number(value.toFixed(field.step < 1 ? 2 : 0))));

export class SettingsPanel {
  #settings;
  #dialog = byId("settings");
  #form = byId("settings-form");
  #rows = new Map();

  constructor(settings) {
    this.#settings = settings;
    byId("settings-fields").append(...FIELDS.map((field) => this.#row(field)));
    for (const radio of this.#form.elements.decoding) {
      radio.addEventListener("change", () => {
        settings.mode = radio.value;
        this.#render();
      });
    }
    byId("settings-reset").addEventListener("click", () => {
      settings.reset();
      byId("settings-done").focus(); // This button is switched off now, and would keep the focus from keys.
      this.#render();
      announce("Settings are back to their defaults.");
    });
    byId("open-settings").addEventListener("click", () => this.open());
    // A click on the dialog itself, not on what is in it, is one beside the panel.
    this.#dialog.addEventListener("click", (event) => {
      if (event.target === this.#dialog) this.#dialog.close();
    });
  }

  open() {
    this.#render();
    if (!this.#dialog.open) this.#dialog.showModal();
  }

  #row(field) {
    const [title, help, kind] = LOOKS[field.name];
    const id = `setting-${field.name}`;
    const { min, max, step } = field;
    const input = element("input", { id, type: kind, min, max, step, name: field.name, "aria-describedby": `${id}-help` });
    const output = element("output", { for: id });
    input.addEventListener("input", () => {
      this.#take(field, input);
      setText(output, words(field, this.#settings.value(field)));
    });
    input.addEventListener("change", () => this.#render());
    const head = element("div", { class: "setting-head" }, element("label", { for: id }, title));
    head.append(kind === "range" ? output : input);
    const row = element("div", { class: `setting ${kind}` }, head);
    row.append(element("p", { id: `${id}-help` }, help));
    if (kind === "range") row.append(input);
    this.#rows.set(field, { row, input, output });
    return row;
  }

  #take(field, input) {
    if (input.value === "") this.#settings.change(field, null);
    else if (Number.isFinite(input.valueAsNumber)) this.#settings.change(field, input.valueAsNumber);
  }

  #render() {
    const { mode } = this.#settings;
    this.#form.elements.decoding.value = mode;
    for (const [field, { row, input, output }] of this.#rows) {
      const text = words(field, this.#settings.value(field));
      setHidden(row, !field.modes.includes(mode));
      input.value = text;
      setText(output, text);
    }
    byId("settings-reset").disabled = !this.#settings.changed;
  }
}
