/** One turn of a conversation: who said it, what was said, and for a bot's reply what reviewers say of it. */

import { arrange, element, icon, mark, name, setHidden, setText, speech } from "../shell/elements.js";
import { counted, percent, timeOfDay, wholeTime } from "../shell/format.js";
import { shadedText } from "./sureness.js";
import { VerdictBar } from "./verdict_bar.js";

const AUTHORS = { visitor: "Visitor", bot: "Bot", operator: "Operator" };

const ENDS = {
  length: "Cut off at the length limit",
  cancelled: "Stopped by the visitor",
  abstained: "Was not sure, so it did not answer",
};

function authorLine(message) {
  const who = message.author === "operator" && message.operator ? name(message.operator) : AUTHORS[message.author];
  const at = new Date(message.at);
  const time = element("time", { datetime: message.at, title: wholeTime(at) }, timeOfDay(at));
  const picture = message.author === "bot" ? "spark" : "person";
  return element("p", { class: "author" }, icon(picture), element("span", { class: "who" }, who), time);
}

/** What the visitor thinks of a reply. */
function ratingNode({ rating, comment }) {
  if (!rating) return null;
  const words = rating === "up" ? "Visitor liked it" : "Visitor disliked it";
  const node = element("div", { class: "rating" }, mark(words, rating === "up" ? "good" : "danger", `${rating}-thumb`));
  if (comment) node.append(element("q", { class: "comment", dir: "auto" }, comment));
  return node;
}

/** A visitor's or an operator's turn. */
export class SaidView {
  #text;

  constructor(message) {
    this.id = message.id;
    this.#text = message.text === "" ? element("p", { class: "empty" }, "(no words)") : speech(message.text);
    const bubble = element("div", { class: "bubble" }, this.#text);
    this.node = element("article", { class: `turn ${message.author}`, "data-message": message.id }, authorLine(message), bubble);
  }

  /** What was said stays, but it may be masked now, or not any more. */
  update({ text }) {
    if (text !== "") setText(this.#text, text);
  }
}

/**
 * A bot's reply.
 *
 * actions: {select(id), set(id, verdict), advance(), labels(), panel(id)}
 */
export class ReplyView {
  #actions;
  #line;
  #bubble = element("div", { class: "bubble" });
  #about = element("div", { class: "about" });
  #earlier = element("div", { class: "earlier-place" });
  #editor = null;
  #signature = "";
  #earlierSignature = "[]";

  constructor(message, actions) {
    this.id = message.id;
    this.#actions = actions;
    this.#line = authorLine(message);
    this.verdict = new VerdictBar(message, {
      select: () => actions.select(this.id),
      set: (verdict) => actions.set(this.id, verdict),
      advance: () => actions.advance(),
      labels: () => actions.labels(),
      panel: () => actions.panel(this.id),
    });
    this.verdict.onEdit = (node) => this.#edit(node);
    this.node = element(
      "article",
      { class: "turn bot", tabindex: "-1", "data-message": message.id, click: (event) => this.#clicked(event) },
      this.#line,
      this.#earlier,
      this.#bubble,
      this.#about,
      this.verdict.node,
    );
    this.verdict.restore();
  }

  update(message, { verdict, saving, selected, shaded, earlier }) {
    this.node.classList.toggle("selected", selected);
    if (selected) this.node.setAttribute("aria-current", "true");
    else this.node.removeAttribute("aria-current");
    this.verdict.show(message, verdict, { saving, selected });
    const signature = JSON.stringify([message.text, message.rating, message.comment, message.generation, shaded]);
    if (signature !== this.#signature) this.#show(message, shaded);
    this.#signature = signature;
    const earlierSignature = JSON.stringify(earlier.map(({ id, text }) => [id, text]));
    if (earlierSignature !== this.#earlierSignature) this.#showEarlier(earlier);
    this.#earlierSignature = earlierSignature;
  }

  #show(message, shaded) {
    const { text, generation } = message;
    const tokens = generation?.withheld ? null : generation?.tokens;
    const said = text === "" ? element("p", { class: "empty" }, "(no words)") : shadedText(text, tokens, shaded);
    this.#bubble.replaceChildren(said);
    this.#confidence(generation?.confidence);
    const parts = [];
    const end = ENDS[generation?.finish_reason];
    if (end) parts.push(element("p", { class: "remark" }, end));
    if (generation?.withheld) {
      const title = element("p", { class: "small-title" }, "It would have said");
      const words = shadedText(generation.withheld, generation.tokens, shaded);
      parts.push(element("div", { class: "withheld" }, title, words));
    }
    const rating = ratingNode(message);
    if (rating) parts.push(rating);
    this.#about.replaceChildren(...parts);
    setHidden(this.#about, parts.length === 0);
  }

  #confidence(confidence) {
    this.#line.querySelector(".mark")?.remove();
    if (confidence === null || confidence === undefined) return;
    const tone = confidence < 0.5 ? "warn" : "plain";
    this.#line.append(mark(`${percent(confidence)} sure`, tone));
  }

  #showEarlier(earlier) {
    if (earlier.length === 0) return this.#earlier.replaceChildren();
    const replies = earlier.map((message) => element("li", {}, authorLine(message), speech(message.text), ratingNode(message)));
    const summary = element("summary", {}, counted(earlier.length, "replaced reply", "replaced replies"));
    this.#earlier.replaceChildren(element("details", { class: "earlier" }, summary, element("ol", {}, ...replies)));
  }

  /** The editor stands where the reply stands. */
  #edit(node) {
    this.#editor?.remove();
    this.#editor = node;
    this.node.classList.toggle("editing", node !== null);
    setHidden(this.#bubble, node !== null);
    if (node !== null) this.#bubble.after(node);
  }

  /** A click anywhere on the reply selects it, unless it is meant for something within or marks text. */
  #clicked(event) {
    if (event.target.closest("button, a, summary, textarea, input")) return;
    if (String(window.getSelection()) !== "") return;
    this.#actions.select(this.id);
  }
}

/** The reply that is being made right now. */
export class LiveView {
  #text = speech("");
  node = element(
    "article",
    { class: "turn bot live-reply", "aria-live": "off", hidden: true },
    element("p", { class: "author" }, icon("spark"), element("span", { class: "who" }, "Bot is replying")),
    element("div", { class: "bubble" }, this.#text),
  );

  show(text) {
    setHidden(this.node, text === "");
    const shown = this.#text.textContent;
    if (shown !== "" && text.startsWith(shown)) this.#text.firstChild.appendData(text.slice(shown.length));
    else this.#text.textContent = text;
  }
}

/** Keeps the views of a log in the order of its messages. */
export function arrangeTurns(log, views) {
  arrange(log, views.map(({ node }) => node));
}
