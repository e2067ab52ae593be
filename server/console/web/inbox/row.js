/** One conversation in the list. */

import { element, icon, mark, name, setAttribute, setHidden, setText } from "../shell/elements.js";
import { lasted, percent, shortTime, wholeTime } from "../shell/format.js";
import { UNSURE } from "./filters.js";

export class Row {
  #summary = null;
  #title = element("span", { class: "row-title", dir: "auto" });
  #time = element("time", { class: "row-time" });
  #preview = element("span", { class: "row-preview", dir: "auto" });
  #marks = element("span", { class: "row-marks" });
  #signature = "";

  constructor(id, hrefFor) {
    this.id = id;
    this.hrefFor = hrefFor;
    const head = element("span", { class: "row-head" }, this.#title, this.#time);
    this.link = element("a", { class: "inbox-row" }, head, this.#preview, this.#marks);
    this.node = element("li", {}, this.link);
  }

  show(summary, { current }) {
    setAttribute(this.link, "href", this.hrefFor(this.id));
    if (current) this.link.setAttribute("aria-current", "true");
    else this.link.removeAttribute("aria-current");
    this.tick(summary);
    if (summary === this.#summary) return;
    this.#summary = summary;
    setText(this.#title, summary.title || "(no words)");
    setText(this.#preview, summary.match ?? summary.preview ?? "");
    setHidden(this.#preview, this.#preview.textContent === "" || this.#preview.textContent === summary.title);
    this.link.classList.toggle("waiting", summary.waiting_since !== null);
  }

  /** Brings what depends on the clock up to date. */
  tick(summary = this.#summary) {
    if (summary === null) return;
    const updated = new Date(summary.updated_at);
    setText(this.#time, shortTime(updated));
    setAttribute(this.#time, "datetime", summary.updated_at);
    setAttribute(this.#time, "title", wholeTime(updated));
    const marks = marksOf(summary);
    const signature = JSON.stringify(marks);
    if (signature === this.#signature) return;
    this.#signature = signature;
    this.#marks.replaceChildren(...marks.map(markNode));
  }
}

/** [{words, who, tone, picture}] */
function marksOf(summary) {
  const { verdicts } = summary;
  const unsure = summary.confidence !== null && summary.confidence < Number(UNSURE);
  return [
    summary.waiting_since && { words: `Waiting ${lasted(new Date(summary.waiting_since))}`, tone: "warn", picture: "clock" },
    summary.owner === "operator" && { who: summary.operator ?? "A person", tone: "accent", picture: "person" },
    summary.thumbs_down && { words: "Thumbs down", tone: "danger", picture: "down-thumb" },
    unsure && { words: `${percent(summary.confidence)} sure`, tone: "warn", picture: "spark" },
    verdicts.good > 0 && { words: `${verdicts.good} good`, tone: "good", picture: "good" },
    verdicts.bad > 0 && { words: `${verdicts.bad} bad`, tone: "danger", picture: "bad" },
    summary.reviewed_at && { words: "Reviewed", tone: "plain", picture: "review" },
    summary.closed_at && { words: "Closed", tone: "plain" },
  ].filter(Boolean);
}

function markNode({ words, who, tone, picture }) {
  if (who === undefined) return mark(words, tone, picture ?? null);
  return element("span", { class: `mark ${tone}` }, icon(picture), name(who));
}
