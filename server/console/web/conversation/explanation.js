/**
 * Why the bot said this: how sure it was, what else it considered, what it looked at, which training turns are
 * nearest, and how the reply was made. What has to be computed is asked for when it is looked at.
 */

import { aborted, sentence } from "../shell/api.js";
import { asReviewer, look } from "../shell/as_reviewer.js";
import { button, element, facts, heading, iconButton, mark, speech } from "../shell/elements.js";
import { milliseconds, percent } from "../shell/format.js";
import { hrefOf } from "../shell/router.js";
import { AttentionView } from "./attention.js";
import { numbersOf } from "./sureness.js";

/** Milliseconds that a reply stays selected before its explanation is asked for. */
const PAUSE = 200;

const OUTCOMES = {
  exact: ["Verified: made again exactly as it was logged.", "good"],
  within: ["Verified: the same within rounding.", "good"],
  mismatch: ["Does not match: this model scores the reply otherwise.", "danger"],
  unknown: ["Could not be verified.", "plain"],
};

const ENDS = {
  stop: "By itself",
  length: "At the length limit",
  cancelled: "Stopped by the visitor",
  abstained: "It abstained",
};

export class ExplanationPanel {
  #api;
  #cache = new Map();
  #shown = null;
  #timer = null;
  #abort = null;
  #body = element("div", { class: "explanation-body", tabindex: "0", role: "region", "aria-label": "Why this reply" });
  #computed = null;

  /** close(): puts the panel away where it lies over the conversation. */
  constructor(api, { close }) {
    this.#api = api;
    const closing = iconButton("close", "Close", close, { class: "close-panel" });
    const head = element("header", { class: "explanation-head" }, heading(3, "Why this reply"), closing);
    this.node = element("aside", { class: "explanation", "aria-label": "About the selected reply" }, head, this.#body);
    this.show(null);
  }

  /** message: a bot's reply, or null. */
  show(message) {
    const signature = message === null ? "" : JSON.stringify([message.id, message.text, message.generation, asReviewer()]);
    if (signature === this.#shown) return;
    this.#shown = signature;
    clearTimeout(this.#timer);
    this.#abort?.abort();
    if (message === null) {
      this.#body.replaceChildren(element("p", { class: "soft" }, "Select a reply of the bot to see how it came about."));
      return;
    }
    this.#computed = element("div", { class: "computed" });
    const { generation } = message;
    const first = generation === null ? [element("p", { class: "soft" }, "How this reply was made was not recorded.")] : knownOf(message);
    this.#body.replaceChildren(...first, this.#computed, ...(generation === null ? [] : [madeSection(generation)]));
    this.#body.scrollTop = 0;
    const known = this.#cache.get(cacheKey(message.id));
    if (known !== undefined) return this.#fill(known);
    this.#computed.replaceChildren(element("p", { class: "soft" }, "Looking into the model…"));
    this.#timer = setTimeout(() => this.#ask(message.id), PAUSE);
  }

  stop() {
    clearTimeout(this.#timer);
    this.#abort?.abort();
  }

  async #ask(id) {
    this.#abort = new AbortController();
    const { signal } = this.#abort;
    const place = this.#computed;
    const key = cacheKey(id);
    try {
      const told = await this.#api.get(`/messages/${encodeURIComponent(id)}/explanation`, look(), { signal });
      this.#cache.set(key, told);
      if (place === this.#computed) this.#fill(told);
    } catch (error) {
      if (aborted(error) || place !== this.#computed) return;
      const again = button("Try again", () => this.#ask(id), { kind: "text" });
      place.replaceChildren(element("p", { class: "soft" }, sentence(error)), again);
    }
  }

  #fill({ attention, nearest, verify }) {
    const parts = [];
    if (attention) parts.push(section("What it looked at", new AttentionView(attention).node));
    if (nearest?.length > 0) parts.push(section("Nearest turns", nearestList(nearest)));
    if (verify) parts.push(section("Check", verifyLine(verify)));
    this.#computed.replaceChildren(...parts);
  }
}

/** An explanation that was seen unmasked is not shown to who looks as reviewers do. */
function cacheKey(id) {
  return `${asReviewer() ? "masked " : ""}${id}`;
}

/** What the conversation itself tells. */
function knownOf({ text, generation }) {
  return [sureSection(text, generation), alternativesSection(text, generation)].filter(Boolean);
}

function section(title, ...content) {
  return element("section", {}, heading(4, title), ...content);
}

function sureSection(text, { confidence, tokens, withheld }) {
  const parts = [];
  if (confidence !== null && confidence !== undefined) {
    const value = Math.round(confidence * 100);
    const meter = element("meter", { min: "0", max: "100", low: "50", high: "75", optimum: "100", value: String(value), "aria-label": "Confidence" });
    parts.push(element("p", { class: "confidence" }, element("strong", {}, percent(confidence)), " sure that this will do", meter));
  }
  if (tokens?.length > 0) {
    const words = element("details", { class: "fold" }, element("summary", {}, "Word by word"), numbersOf(withheld ?? text, tokens));
    parts.push(words);
  }
  return parts.length > 0 ? section("How sure it was", ...parts) : null;
}

function alternativesSection(text, { alternatives }) {
  const others = (alternatives ?? []).filter((other) => other.text !== text);
  if (others.length === 0) return null;
  const rows = others.map(({ text: words, score, logprob }) => {
    const number = score ?? logprob;
    const told = typeof number === "number" ? element("span", { class: "number", title: "Score" }, number.toFixed(2)) : null;
    return element("li", {}, speech(words), told);
  });
  return section("What else it considered", element("ol", { class: "alternatives" }, ...rows));
}

function madeSection({ model, finish_reason: finish, options, seed, queued_ms: queued, first_token_ms: first, total_ms: total }) {
  const code = (value) => element("code", {}, String(value));
  const chosen = Object.entries(options ?? {}).filter(([key, value]) => key !== "seed" && value !== null);
  const list = chosen.map(([key, value]) => element("div", {}, element("dt", {}, key), element("dd", {}, code(typeof value === "string" ? value : JSON.stringify(value)))));
  const made = facts([
    ["Model", model && code(model)],
    ["Seed", seed !== null && seed !== undefined ? code(seed) : null],
    ["Ended", ENDS[finish] ?? finish],
    ["First word", typeof first === "number" ? milliseconds(first) : null],
    ["In all", typeof total === "number" ? milliseconds(total) : null],
    ["Waited", typeof queued === "number" ? milliseconds(queued) : null],
  ]);
  const all = list.length > 0 ? element("details", { class: "fold" }, element("summary", {}, "Decoding options"), element("dl", { class: "facts" }, ...list)) : null;
  return section("How it was made", made, all);
}

function nearestList(nearest) {
  const rows = nearest.map(({ text, reply, similarity, corrected, source, conversation, file, transcript }) => {
    const head = element("p", { class: "near-head" }, element("span", { class: "number" }, `${percent(Math.max(0, similarity))} alike`));
    if (corrected) head.append(mark("From a correction", "good"));
    if (file) head.append(mark(`${source === "training" ? "Learned from" : "Imported from"} ${file}, ${transcript}`));
    if (conversation) head.append(element("a", { href: hrefOf("inbox", [conversation]) }, "Open it"));
    return element("li", {}, head, speech(text, "p", "text asked"), speech(reply, "p", "text"));
  });
  return element("ol", { class: "nearest" }, ...rows);
}

function verifyLine({ outcome, difference, reason }) {
  const [words, tone] = OUTCOMES[outcome] ?? [String(outcome), "plain"];
  const parts = [words];
  if (outcome === "unknown" && reason) parts.push(`${reason.charAt(0).toUpperCase()}${reason.slice(1)}.`);
  if (typeof difference === "number" && difference > 0) parts.push(`Largest difference ${difference.toExponential(1)}.`);
  return element("p", { class: `verified ${tone}` }, parts.join(" "));
}
