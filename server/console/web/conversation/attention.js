/**
 * Where the model looked: choose a word of the reply, and the words before it are shaded by how much it was
 * looked at when that word was chosen.
 */

import { element, setAttribute, setText, speech } from "../shell/elements.js";
import { percent } from "../shell/format.js";

const SHADES = 5;
const ROLES = { user: "Visitor", agent: "Bot" };
const TOP = 3;

export class AttentionView {
  #attention;
  #words;
  #source = [];
  #told = element("p", { class: "attention-told", role: "status" });
  #chosen = null;

  /** attention: {words, source: [{role, words}], weights: [[…] per reply word, over all source words in order]} */
  constructor(attention) {
    this.#attention = attention;
    this.#words = attention.words.map((word, index) => this.#word(word, index));
    const reply = element("div", { class: "attention-reply", role: "group", "aria-label": "Words of the reply", dir: "auto" }, ...this.#words);
    reply.addEventListener("pointerleave", () => this.#show(this.#chosen));
    const turns = attention.source.map(({ role, words }) => {
      const spans = words.map((word) => element("span", {}, word));
      this.#source.push(...spans);
      const line = speech("", "p", "text");
      spans.forEach((span, index) => line.append(...(index > 0 ? [" ", span] : [span])));
      return element("div", { class: "attention-turn" }, element("span", { class: "small-title" }, ROLES[role] ?? role), line);
    });
    const hint = element("p", { class: "soft" }, "Choose a word of the reply to see what it was made from.");
    this.node = element("div", { class: "attention" }, hint, reply, this.#told, ...turns);
  }

  #word(word, index) {
    const choose = () => {
      this.#chosen = this.#chosen === index ? null : index;
      this.#show(this.#chosen);
    };
    const node = element("button", { type: "button", class: "attention-word", "aria-pressed": "false", click: choose }, word);
    node.addEventListener("pointerenter", (event) => event.pointerType !== "touch" && this.#show(index));
    node.addEventListener("focus", () => this.#show(index));
    node.addEventListener("keydown", (event) => this.#walk(event, index));
    return node;
  }

  /** Left and right go from word to word. */
  #walk(event, index) {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (step === undefined) return;
    event.preventDefault();
    this.#words[index + step]?.focus();
  }

  #show(index) {
    this.#words.forEach((node, number) => {
      setAttribute(node, "aria-pressed", String(number === this.#chosen));
      node.classList.toggle("shown", number === index);
    });
    const weights = index === null ? [] : this.#attention.weights[index];
    const most = Math.max(1e-9, ...weights);
    this.#source.forEach((span, number) => {
      const weight = weights[number] ?? 0;
      const level = weight < 0.02 ? 0 : Math.ceil((weight / most) * SHADES);
      span.className = level === 0 ? "" : `look-${level}`;
      span.title = weight > 0 ? percent(weight) : "";
    });
    setText(this.#told, index === null ? "" : this.#sentence(weights));
  }

  #sentence(weights) {
    const order = weights.map((weight, number) => ({ weight, word: this.#source[number]?.textContent ?? "" }));
    const top = order.sort((one, other) => other.weight - one.weight).slice(0, TOP).filter(({ weight }) => weight >= 0.02);
    return top.length === 0 ? "Nothing in particular" : `Most of all: ${top.map(({ word, weight }) => `${word} ${percent(weight)}`).join(", ")}`;
  }
}
