/**
 * The conversation on the page.
 *
 *   log        committed messages only; a live region, each message is announced once
 *   streaming  the reply being made; not live, replaced by a message in the log when it is whole
 *   queue      what waits to be sent; not live, moves into the log when the server confirms it
 */

import { announce } from "./announce.js";
import { byId, element, setHidden } from "./dom.js";
import { ReplyView, StreamingView, WaitingView, userMessage } from "./message_view.js";

/** So near the end (CSS pixels), a reader is following and wants to stay there. */
const FOLLOWING = 80;

const LOG = {
  class: "log",
  role: "log",
  "aria-live": "polite",
  "aria-relevant": "additions",
  "aria-label": "Conversation",
};

export class TranscriptView {
  #chat;
  #actions;
  #log = null;
  #shown = null;
  #messages = new Map();
  #waiting = new Map();
  #streaming = new StreamingView(byId("streaming"));
  #scroller = byId("scroller");
  #jump = byId("jump");
  #failure = element("div", { class: "failure", hidden: true });
  #following = true;

  constructor(chat, actions) {
    this.#chat = chat;
    this.#actions = actions;
    byId("streaming").after(this.#failure);
    this.#scroller.addEventListener("scroll", () => this.#scrolled(), { passive: true });
    this.#jump.addEventListener("click", () => {
      this.follow();
      actions.jumped();
    });
    // The end also moves when the window, the composer or an opened detail changes the height.
    const observer = new ResizeObserver(() => this.#stick());
    observer.observe(this.#scroller);
    observer.observe(this.#scroller.firstElementChild);
  }

  /** Everything but streamed text. */
  render() {
    const { conversation } = this.#chat;
    if (this.#shown !== conversation) this.#begin(conversation);
    this.#renderLog(conversation);
    this.#renderQueue(conversation);
    this.#renderFailure(conversation);
    // What an old conversation holds is not known before `ready`: no greeting that would flash by.
    const unknown = conversation.id !== null && !this.#chat.ready;
    setHidden(byId("welcome"), !this.#chat.unused || unknown);
    this.renderStream();
  }

  renderStream() {
    const { conversation } = this.#chat;
    this.#streaming.show(conversation.awaiting ? (conversation.streaming?.text ?? "") : null);
    this.#stick();
  }

  /** Goes to the end and stays there. */
  follow() {
    this.#following = true;
    this.#stick();
  }

  /** A fresh log element: what it holds when it appears is not announced, what comes later is. */
  #begin(conversation) {
    this.#shown = conversation;
    this.#messages.clear();
    this.#waiting.clear();
    byId("queue").replaceChildren();
    this.#log = null;
    byId("log-place").replaceChildren();
    this.#following = true;
  }

  #renderLog(conversation) {
    if (conversation.messages.length === 0 && !this.#chat.ready) return;
    const log = this.#log ?? element("div", LOG);
    const standing = conversation.standing;
    const keep = new Set(standing.map((message) => message.seq));
    for (const [seq, view] of this.#messages) {
      if (keep.has(seq)) continue;
      view.node.remove();
      this.#messages.delete(seq);
    }
    const last = conversation.lastReply;
    let before = log.firstElementChild;
    for (const message of standing) {
      const view = this.#view(message);
      if (view.node === before) before = before.nextElementSibling;
      else log.insertBefore(view.node, before);
      this.#refresh(view, message, conversation, last);
    }
    if (this.#log === null) byId("log-place").replaceChildren(log);
    this.#log = log;
  }

  #view(message) {
    if (!this.#messages.has(message.seq)) {
      const view = message.role === "user" ? { node: userMessage(message) } : new ReplyView(message, this.#actions);
      this.#messages.set(message.seq, view);
    }
    return this.#messages.get(message.seq);
  }

  #refresh(view, message, conversation, last) {
    // A reply that is being replaced makes room for the new one.
    setHidden(view.node, message.message === conversation.regenerating);
    view.update?.(message, {
      last: message === last,
      busy: conversation.awaiting || !this.#chat.ready,
      earlier: conversation.earlier(message),
    });
  }

  #renderQueue(conversation) {
    const queue = byId("queue");
    const entries = this.#chat.outbox.entries;
    const present = new Set(entries.map((entry) => entry.id));
    for (const [id, view] of this.#waiting) {
      if (present.has(id)) continue;
      view.node.remove();
      this.#waiting.delete(id);
    }
    const situation = { ready: this.#chat.ready, awaiting: conversation.awaiting, now: Date.now() };
    for (const entry of entries) {
      if (!this.#waiting.has(entry.id)) {
        const view = new WaitingView(entry, this.#actions);
        this.#waiting.set(entry.id, view);
        queue.append(view.node);
      }
      this.#waiting.get(entry.id).update(entry, situation);
    }
  }

  #renderFailure({ failure }) {
    const hidden = failure === null;
    if (this.#failure.hidden === hidden) return;
    this.#failure.hidden = hidden;
    if (hidden) return;
    const again = element("button", { type: "button", class: "text-button", click: this.#actions.askAgain }, "Ask again");
    this.#failure.replaceChildren(element("p", {}, failure), again);
    announce(failure);
  }

  #scrolled() {
    const { scrollTop, scrollHeight, clientHeight } = this.#scroller;
    // A greeting that is higher than the window is read from its beginning, and has no end to go to.
    this.#following = this.#chat.unused || scrollHeight - scrollTop - clientHeight < FOLLOWING;
    setHidden(this.#jump, this.#following);
  }

  #stick() {
    if (!this.#following) setHidden(this.#jump, false);
    else if (!this.#chat.unused) this.#scroller.scrollTop = this.#scroller.scrollHeight;
  }
}
