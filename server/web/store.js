/**
 * One conversation as this page knows it: committed messages, and the reply being made.
 *
 * Committed messages are keyed by `seq`, so a frame that comes twice changes nothing, and a frame
 * that skips one is noticed (`gap`). Streamed text is provisional: the final message replaces it.
 *
 * message: {seq, message, role, author, text, reply, finish_reason, model, seed, alternatives, rating,
 *           comment, client_id, replaces, at}
 */

import { countCharacters, firstCharacters } from "./protocol.js";

/** Who said a message: "user", "bot" or "operator". */
export function speakerOf({ role, author }) {
  if (role === "user") return "user";
  return author === "operator" ? "operator" : "bot";
}

export class Conversation {
  #bySeq = new Map();
  #bySeqSorted = null;

  /** Null until the server opened it. */
  id = null;
  model = null;
  owner = "bot";
  /** A person has been asked for, and none has come yet. */
  waiting = false;
  /** {id, text, length} of the reply being streamed, once a frame has named it. */
  streaming = null;
  /** A user turn is committed and its reply has neither come nor failed. */
  awaiting = false;
  /** The bot message that a running regeneration will replace. */
  regenerating = null;
  /** Why the last reply did not come, in words; cleared by the next one. */
  failure = null;

  /** Forgets everything but the id: the next `ready` brings it again. */
  reset() {
    this.#bySeq.clear();
    this.#bySeqSorted = null;
    this.endReply();
    this.failure = null;
  }

  get messages() {
    this.#bySeqSorted ??= [...this.#bySeq.values()].sort((one, other) => one.seq - other.seq);
    return this.#bySeqSorted;
  }

  /** Those that stand: replies that a later one replaced are left out. */
  get standing() {
    const replaced = new Set(this.messages.map((message) => message.replaces).filter(Boolean));
    return this.messages.filter((message) => !replaced.has(message.message) && !message.superseded);
  }

  /** Replies that `message` replaced, directly or through others, oldest first. */
  earlier(message) {
    const found = [];
    for (let id = message.replaces; id; ) {
      const older = this.messages.find((other) => other.message === id);
      if (!older) break;
      found.unshift(older);
      id = older.replaces;
    }
    return found;
  }

  /** The highest seq up to which nothing is missing. */
  get lastSeq() {
    let last = 0;
    for (const { seq } of this.messages) {
      if (seq > last + 1) break;
      last = Math.max(last, seq);
    }
    return last;
  }

  /** Something newer is known than what would follow on gap-free. */
  get gap() {
    return this.messages.length > 0 && this.messages.at(-1).seq > this.lastSeq;
  }

  find(id) {
    return this.messages.find((message) => message.message === id) ?? null;
  }

  get lastReply() {
    const last = this.standing.at(-1);
    return last && speakerOf(last) === "bot" ? last : null;
  }

  /** The connection's snapshot: what happened after the seq we greeted with, and what runs now. */
  ready(frame) {
    this.id = frame.conversation;
    this.model = frame.model ?? null;
    this.owner = frame.owner ?? "bot";
    this.waiting = frame.waiting === true;
    for (const message of frame.messages ?? []) this.#insert(message);
    const last = this.standing.at(-1);
    if (frame.replying) {
      const text = frame.replying.text ?? "";
      this.streaming = { id: frame.replying.reply, text, length: countCharacters(text) };
      this.awaiting = true;
    } else {
      this.streaming = null;
      this.regenerating = null;
      this.awaiting = last?.role === "user" && this.owner === "bot";
    }
    if (this.awaiting) this.failure = null;
  }

  /** A say became a message. */
  accepted(frame, text) {
    const known = this.#bySeq.get(frame.seq);
    if (known === undefined) {
      this.#insert({ seq: frame.seq, message: frame.message, role: "user", text, client_id: frame.id });
    } else {
      known.client_id ??= frame.id;
    }
    const answered = this.messages.some((message) => message.seq > frame.seq && message.role !== "user");
    if (!answered && this.owner === "bot") this.expect();
  }

  /** Somebody else answers from now on. A person ends the bot's reply; the bot answers a last turn that nobody did. */
  owned(frame) {
    const before = this.owner;
    this.owner = frame.owner;
    this.waiting = frame.waiting === true;
    if (this.owner === "operator") {
      this.endReply();
      this.failure = null;
    } else if (before === "operator" && this.standing.at(-1)?.role === "user") {
      this.expect();
    }
  }

  /** From now on a reply is under way. */
  expect() {
    this.awaiting = true;
    this.failure = null;
  }

  /**
   * True when the reply began or its text grew. Repeated and overlapping pieces are harmless, and
   * so are those of a reply that is already whole.
   */
  delta(frame) {
    if (this.owner === "operator") return false;
    if (this.streaming === null) {
      if (this.messages.some((message) => message.reply === frame.reply)) return false;
      this.streaming = { id: frame.reply, text: frame.text, length: countCharacters(frame.text) };
      this.expect();
      return true;
    }
    const reply = this.streaming;
    if (reply.id !== frame.reply) return false;
    const length = countCharacters(frame.text);
    // A piece from beyond our end means that some were missed; the final message mends it.
    if (frame.offset > reply.length || frame.offset + length <= reply.length) return false;
    if (frame.offset < reply.length) reply.text = firstCharacters(reply.text, frame.offset);
    reply.text += frame.text;
    reply.length = frame.offset + length;
    return true;
  }

  /** A committed message; true when it was not known yet. */
  message(frame) {
    const fresh = this.#insert(frame);
    if (frame.role === "user") return fresh;
    if (this.streaming === null || this.streaming.id === frame.reply) this.endReply();
    this.failure = null;
    return fresh;
  }

  /** The reply will not come. */
  fail(reason) {
    this.endReply();
    this.failure = reason;
  }

  endReply() {
    this.streaming = null;
    this.awaiting = false;
    this.regenerating = null;
  }

  rated(id, rating, comment) {
    const message = this.find(id);
    if (message === null) return;
    message.rating = rating;
    if (comment !== undefined) message.comment = comment;
  }

  #insert(message) {
    const known = this.#bySeq.get(message.seq);
    this.#bySeq.set(message.seq, { ...known, ...message });
    this.#bySeqSorted = null;
    return known === undefined;
  }
}
