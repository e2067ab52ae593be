/** Asking for a retraining: its settings with their defaults, and what the server has against them. */

import { field, form } from "../desk/pieces.js";
import { sentence } from "../shell/api.js";
import { element, name, setHidden } from "../shell/elements.js";
import { hrefOf } from "../shell/router.js";
import { GROUPS, parseOthers } from "./settings.js";

export class BeginForm {
  #context;
  #inputs = new Map();
  #others = element("textarea", { rows: "2", placeholder: "name=value, one a line", dir: "auto", spellcheck: "false", autocapitalize: "off" });
  #uploads = element("input", { type: "checkbox" });
  #problem = element("div", { class: "callout bad-words", role: "alert", hidden: true });
  #fold;
  #go;

  constructor(context) {
    this.#context = context;
    const groups = GROUPS.map(({ title, settings }) =>
      element("fieldset", { class: "setting-group" }, element("legend", {}, title), element("div", { class: "settings-grid" }, ...settings.map((each) => this.#field(each)))));
    const others = field("Other settings", this.#others, "All that retraining knows can be set here, as its documentation names it.");
    this.#fold = element("details", { class: "fold" }, element("summary", {}, "Settings of this retraining"), ...groups, others);
    // What is wrong can only be shown where it can be seen.
    this.#fold.addEventListener("invalid", () => { this.#fold.open = true; }, true);
    this.node = form("Retrain now", [
      element("label", { class: "check" }, this.#uploads, "with the uploaded transcripts"),
      this.#fold,
      this.#problem,
    ], () => this.#send());
    this.#go = this.node.lastChild;
    this.allow(false);
  }

  /** Whether there is anything to retrain with. */
  allow(possible) {
    this.#go.disabled = !possible;
  }

  #field(setting) {
    const input = setting.choices ? list(setting) : number(setting);
    this.#inputs.set(setting.name, { setting, input });
    const usual = setting.default === null ? "none" : String(setting.default);
    return field(setting.words, input, `${setting.name}, usually ${usual}`);
  }

  async #send() {
    this.#refuse(null);
    try {
      const body = { settings: this.#settings(), use_imports: this.#uploads.checked };
      const job = await this.#context.api.post("/jobs", body);
      this.#context.go(hrefOf("retraining", [job.id]));
    } catch (error) {
      this.#refuse(error);
    }
  }

  /** What differs from the defaults. Throws Error. */
  #settings() {
    const chosen = [...this.#inputs.values()].map(({ setting, input }) => [setting, input.value.trim()]);
    const changed = chosen.filter(([setting, value]) => value !== "" && value !== String(setting.default ?? ""));
    const own = changed.map(([setting, value]) => [setting.name, setting.choices ? value : Number(value)]);
    return Object.fromEntries([...own, ...parseOthers(this.#others.value)]);
  }

  /** error: what is wrong, or null for nothing. The fields that the server names are marked. */
  #refuse(error) {
    const wrong = new Map((error?.fields ?? []).map(({ field: key, message }) => [key, message]));
    const lines = [...wrong].map(([key, message]) => element("li", {}, element("code", {}, key), ": ", name(message)));
    const words = error === null ? "" : wrong.size > 0 ? "Some settings cannot be taken." : sentence(error);
    this.#problem.replaceChildren(element("p", {}, name(words)), ...(lines.length > 0 ? [element("ul", {}, ...lines)] : []));
    setHidden(this.#problem, error === null);
    const marked = [...this.#inputs].filter(([key, { input }]) => {
      if (wrong.has(key)) input.setAttribute("aria-invalid", "true");
      else input.removeAttribute("aria-invalid");
      return wrong.has(key);
    });
    if (wrong.size > 0) this.#fold.open = true;
    if (wrong.size > 0) (marked[0]?.[1].input ?? this.#others).focus();
  }
}

function number({ default: usual, least, most, above, below, whole }) {
  const input = element("input", { type: "number", min: least, max: most, step: whole ? "1" : "any", value: usual, inputmode: whole ? "numeric" : "decimal", input: check });
  function check() {
    const value = input.value === "" ? null : Number(input.value);
    const words = above && value === least ? `More than ${least}` : below && value === most ? `Less than ${most}` : "";
    input.setCustomValidity(words);
  }
  return input;
}

function list({ choices }) {
  const options = [["", "All languages"], ...choices.map((each) => [each, each])];
  return element("select", {}, ...options.map(([value, words]) => element("option", { value }, words)));
}
