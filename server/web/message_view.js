/** How one message looks: a committed one, one that waits to be sent, the reply being made. */

import { announce, notice } from "./announce.js";
import { element, icon, setAttribute, setHidden, setText, speech, unseen } from "./dom.js";
import { speakerOf } from "./store.js";
import { finishWords } from "./words.js";

const SPEAKERS = { user: "You said:", operator: "A person said:" };
/** Finish reasons that a reader should see without asking. */
const REMARKS = { cancelled: "Stopped", length: "Cut off at the length limit" };

/** A committed message of the visitor. */
export function userMessage(message) {
  return element("article", { class: "message user" }, unseen(SPEAKERS.user), speech(message.text));
}

/**
 * A committed message of the bot or of an operator.
 *
 * actions: {rate(id, rating, comment), regenerate()}
 */
export class ReplyView {
  #message;
  #actions;
  #thumbs = {};
  #again = null;
  #switches = null;
  #extra = null;
  #comment = null;
  #signature = "";

  constructor(message, actions) {
    this.#message = message;
    this.#actions = actions;
    const person = speakerOf(message) === "operator";
    this.node = element(
      "article",
      { class: person ? "message operator" : "message bot" },
      unseen(person ? SPEAKERS.operator : "Turnwise said:"),
      person ? element("p", { class: "speaker", "aria-hidden": "true" }, "A person") : null,
      message.text === "" ? element("p", { class: "empty" }, "(no words)") : speech(message.text),
    );
    if (person) return;
    const remark = REMARKS[message.finish_reason];
    if (remark) this.node.append(element("p", { class: "remark" }, remark));
    this.node.append(this.#footer());
  }

  /** Brings ratings, the regenerate button and the details up to date; touches nothing else. */
  update(message, { last, busy, earlier }) {
    this.#message = message;
    if (this.#extra === null) return;
    for (const [rating, button] of Object.entries(this.#thumbs)) {
      setAttribute(button, "aria-pressed", String(message.rating === rating));
    }
    setHidden(this.#again, !last);
    this.#again.disabled = busy;
    const signature = `${earlier.length}/${message.alternatives?.length ?? 0}`;
    if (signature !== this.#signature) this.#disclose(earlier);
    this.#signature = signature;
  }

  /** Live announcements end here: what can be done with a message is not part of the message. */
  #footer() {
    this.#thumbs = {
      up: this.#thumb("up", "Good reply"),
      down: this.#thumb("down", "Bad reply"),
    };
    this.#again = this.#button("again", "Another reply", () => this.#actions.regenerate());
    const copy = navigator.clipboard ? this.#button("copy", "Copy", () => this.#copy()) : null;
    this.#switches = element("div", { class: "switches" });
    this.#extra = element("div", { class: "extra" });
    this.#comment = element("div", { class: "comment-place" });
    const icons = element("div", { class: "icons" }, this.#thumbs.up, this.#thumbs.down, copy, this.#again);
    const buttons = element("div", { class: "buttons" }, icons, this.#switches);
    return element("footer", { class: "actions", "aria-live": "off" }, buttons, this.#comment, this.#extra);
  }

  #button(name, label, click) {
    return element("button", { type: "button", class: "icon-button", "aria-label": label, title: label, click }, icon(name));
  }

  #thumb(rating, label) {
    const button = this.#button(`${rating}-thumb`, label, () => {
      const again = this.#message.rating === rating;
      this.#actions.rate(this.#message.message, again ? null : rating, null);
      if (again) this.#comment.replaceChildren();
      else this.#askWhy(rating);
    });
    button.setAttribute("aria-pressed", "false");
    return button;
  }

  async #copy() {
    try {
      await navigator.clipboard.writeText(this.#message.text);
      notice("Copied");
    } catch {
      notice("Your browser did not allow copying.");
    }
  }

  #askWhy(rating) {
    const question = rating === "up" ? "Thanks! What was good about it?" : "Thanks for telling us. What was wrong?";
    const field = element("input", { type: "text", maxlength: "1000", dir: "auto", autocomplete: "off" });
    const done = () => {
      this.#comment.replaceChildren();
      this.#thumbs[rating].focus();
    };
    const submit = (event) => {
      event.preventDefault();
      const comment = field.value.trim();
      if (comment !== "") {
        this.#actions.rate(this.#message.message, rating, comment);
        announce("Thank you for your comment.");
      }
      done();
    };
    const keydown = (event) => {
      if (event.key !== "Escape" || event.isComposing) return;
      event.stopPropagation(); // Here Esc puts the question away; it must not stop a reply as well.
      done();
    };
    this.#comment.replaceChildren(
      element(
        "form",
        { class: "comment", submit, keydown },
        element("label", {}, element("span", {}, question, element("small", {}, " (optional)")), field),
        element("button", { type: "submit", class: "solid-button" }, "Send"),
        element("button", { type: "button", class: "quiet-button", click: done }, "No, thanks"),
      ),
    );
  }

  /** Buttons that show more about the reply, and what they show. */
  #disclose(earlier) {
    this.#switches.replaceChildren();
    this.#extra.replaceChildren();
    const others = (this.#message.alternatives ?? []).filter((other) => other.text !== this.#message.text);
    const count = (number, one, many) => `${number} ${number === 1 ? one : many}`;
    if (others.length > 0) {
      this.#discloses(count(others.length, "alternative", "alternatives"), textList(others, "alternatives"));
    }
    if (earlier.length > 0) {
      this.#discloses(count(earlier.length, "earlier reply", "earlier replies"), textList(earlier, "earlier"));
    }
    this.#discloses("Details", this.#details());
  }

  #discloses(title, content) {
    const button = element("button", { type: "button", class: "switch", "aria-expanded": "false" }, title);
    content.hidden = true;
    button.addEventListener("click", () => {
      content.hidden = !content.hidden;
      setAttribute(button, "aria-expanded", String(!content.hidden));
    });
    this.#switches.append(button);
    this.#extra.append(content);
  }

  #details() {
    const { model, seed, finish_reason: finish, at } = this.#message;
    const facts = [
      ["Model", model && element("code", {}, String(model))],
      ["Seed", seed !== null && seed !== undefined && element("code", {}, String(seed))],
      ["Ended", finish && finishWords(finish)],
      ["Time", at && new Date(at).toLocaleString()],
    ].filter(([, value]) => value);
    return element(
      "dl",
      { class: "facts" },
      ...facts.map(([name, value]) => element("div", {}, element("dt", {}, name), element("dd", {}, value))),
    );
  }
}

function textList(items, className) {
  return element("ol", { class: className }, ...items.map(({ text }) => speech(text, "li", "text")));
}

/** Where a waiting message stands, in words; `failed` ones carry their own reason. */
function waitingWords(entry, { ready, awaiting, now }) {
  if (entry.state === "sent") return "Sending";
  if (!ready) return "Waiting for the connection";
  if (entry.retryAt > now) return "Turnwise has its hands full. Trying again shortly";
  return awaiting ? "Waiting for the reply to end" : "Sending";
}

/**
 * A message that the server has not confirmed.
 *
 * actions: {retry(id), edit(id), discard(id)}
 */
export class WaitingView {
  #status = element("p", { class: "status" });
  #failed = false;

  constructor(entry, actions) {
    const { id } = entry;
    const button = (label, click) => element("button", { type: "button", class: "text-button", click }, label);
    this.buttons = element(
      "div",
      { class: "rescue", hidden: true },
      button("Try again", () => actions.retry(id)),
      button("Edit", () => actions.edit(id)),
      button("Discard", () => actions.discard(id)),
    );
    this.node = element(
      "article",
      { class: "message user waiting" },
      unseen(SPEAKERS.user),
      speech(entry.text),
      this.#status,
      this.buttons,
    );
  }

  update(entry, situation) {
    const failed = entry.state === "failed";
    const words = failed ? `Not sent. ${entry.reason}` : waitingWords(entry, situation);
    setText(this.#status, words);
    this.node.classList.toggle("failed", failed);
    // A message on its way shows its status only when that takes longer than a blink.
    this.node.classList.toggle("brief", !failed && words === "Sending");
    setHidden(this.buttons, !failed);
    if (failed && !this.#failed) announce(words);
    this.#failed = failed;
  }
}

/** The reply being made, outside of the log: a screen reader hears it once, when it is whole. */
export class StreamingView {
  #text = speech("");
  #node;
  #shown = "";

  constructor(node) {
    this.#node = node;
    const dots = element("div", { class: "dots", "aria-hidden": "true" }, ...[1, 2, 3].map(() => element("span")));
    node.append(element("div", { class: "message bot" }, unseen("Turnwise is replying:"), dots, this.#text));
  }

  /** `text` null hides it; "" shows that a reply is on its way. */
  show(text) {
    setHidden(this.#node, text === null);
    setAttribute(this.#node, "aria-busy", String(text !== null));
    this.#node.classList.toggle("begun", Boolean(text));
    this.#write(text ?? "");
  }

  #write(text) {
    if (text === this.#shown) return;
    // Appending keeps a selection that the reader made in what is already there.
    if (this.#shown !== "" && text.startsWith(this.#shown)) {
      this.#text.firstChild.appendData(text.slice(this.#shown.length));
    } else {
      this.#text.textContent = text;
    }
    this.#shown = text;
  }
}
