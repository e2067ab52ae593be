/**
 * The chat itself: what happens when the visitor speaks and when the server does.
 *
 * Owns the connection, the outbox and the conversation, and tells the page about changes through
 * `onChange` (anything but streamed text), `onStream` (streamed text only) and `onNotice`
 * (something to say once). Holds no element of the page.
 */

import { Connection } from "./connection.js";
import { Outbox } from "./outbox.js";
import { cleanText, countCharacters, frameSize } from "./protocol.js";
import { shared, tab } from "./storage.js";
import { Conversation } from "./store.js";
import { explain } from "./words.js";

const TOKEN = "turnwise.token";
const LATEST = "turnwise.conversation";
const BUSY_PAUSE = 2_000;
const BUSY_PAUSE_MAX = 30_000;
const PASSING = new Set(["busy", "internal", "bad_state"]);
/** A say that met this many internal errors in a row is put before its writer. */
const TRIES = 4;
/** Closes that a frame of ours caused: saying it again would only repeat them. */
const CLOSES_BLAMED = new Set([1008, 1009]);
/** Until `ready` names the real ones. */
const LIMITS = { max_text: 2000, max_frame: 64 * 1024 };

export class Chat {
  #environment;
  #events;
  #connection;
  #cancelPump = () => {};
  #refusals = 0;
  #stopWanted = false;
  #ratings = new Map();
  #resumedFrom = -1;
  #newcomer = false;

  conversation = new Conversation();
  outbox = new Outbox();
  limits = LIMITS;
  token = shared.get(TOKEN);

  /**
   * @param environment of the connection
   * @param settings    whose options go with each say
   * @param events      {onChange, onStream, onReply, onNotice, onOpened}
   */
  constructor(environment, settings, events) {
    this.#environment = environment;
    this.settings = settings;
    this.#events = events;
    shared.onOther(TOKEN, (kept) => this.#otherTabKept(kept));
    this.#connection = new Connection(environment, {
      hello: () => this.#hello(),
      onFrame: (frame) => this.#receive(frame),
      onPhase: (phase) => this.#phase(phase),
      onRefused: (reason) => this.#refused(reason),
    });
  }

  get phase() {
    return this.#connection.phase;
  }

  get lastClose() {
    return this.#connection.lastClose;
  }

  get retryAt() {
    return this.#connection.retryAt;
  }

  get ready() {
    return this.phase === "ready";
  }

  /** The conversation to go on with when the address names none. */
  get latest() {
    return shared.get(LATEST);
  }

  /** Turns to a conversation; null begins a new one. */
  open(id) {
    this.conversation = new Conversation();
    this.conversation.id = id;
    this.outbox = new Outbox();
    this.outbox.open(id);
    this.#stopWanted = false;
    this.#ratings.clear();
    this.#refusals = 0;
    this.#resumedFrom = -1;
    this.#cancelPump();
    this.#connection.restart();
    this.#changed();
  }

  /** Nothing was said in this conversation yet. */
  get unused() {
    return this.conversation.messages.length === 0 && this.outbox.entries.length === 0;
  }

  /** By the visitor's wish; also takes the chat back from another tab. */
  reconnectNow() {
    this.#connection.reconnectNow();
  }

  /** The computer or the network woke up: find out at once how the connection is. */
  wake() {
    if (this.phase === "waiting") this.#connection.reconnectNow();
    else this.#connection.probe();
  }

  /** Why `text` cannot be sent, or null. */
  objection(text) {
    const length = countCharacters(text);
    const frame = { type: "say", id: "0".repeat(32), text, options: this.settings.options() };
    const fits = length <= this.limits.max_text && frameSize(frame) <= this.limits.max_frame;
    return fits ? null : explain("too_long", { field: "text", limit: this.limits.max_text });
  }

  /** Takes a message on; it is kept until the server confirms it. False when there is nothing to say. */
  say(raw) {
    const text = cleanText(raw);
    if (text === "" || this.objection(text) !== null) return false;
    this.outbox.add(text, this.settings.options());
    this.#changed();
    this.#pump();
    return true;
  }

  retry(id) {
    const entry = this.outbox.find(id);
    if (entry === null) return;
    this.outbox.revive(entry, this.settings.options());
    this.#changed();
    this.#pump();
  }

  /** Takes an unsent message back and returns its text. */
  withdraw(id) {
    const text = this.outbox.remove(id)?.text ?? "";
    this.#changed();
    this.#pump();
    return text;
  }

  /** Stops the running reply, as soon as it has a name and there is a connection. */
  stop() {
    if (!this.conversation.awaiting) return;
    this.#stopWanted = true;
    this.#stopIfWanted();
    this.#changed();
  }

  #stopIfWanted() {
    const reply = this.conversation.streaming?.id;
    if (!this.#stopWanted || reply === undefined) return;
    if (this.#connection.send({ type: "cancel", reply })) this.#stopWanted = false;
  }

  get stopping() {
    return this.#stopWanted;
  }

  /** Asks for another reply in place of the last one. */
  regenerate() {
    const { conversation } = this;
    const last = conversation.lastReply;
    if (last === null || conversation.awaiting || !last.reply) return;
    const frame = { type: "regenerate", reply: last.reply, options: this.settings.options() };
    if (!this.#connection.send(frame)) return;
    conversation.regenerating = last.message;
    conversation.expect();
    this.#changed();
  }

  /** Says the unanswered turn once more: under its old id it is not doubled, but answered. */
  askAgain() {
    const { id, text } = this.#unanswered() ?? {};
    if (id === undefined || !this.#connection.send({ type: "say", id, text, options: this.settings.options() })) return;
    this.conversation.expect();
    this.#changed();
  }

  #unanswered() {
    const last = this.conversation.standing.at(-1);
    return last?.role === "user" && last.client_id ? { id: last.client_id, text: last.text } : null;
  }

  /** Asks for a person to answer; how it stands comes back as `owner`. */
  askForPerson() {
    return this.#connection.send({ type: "human" });
  }

  /** Rates a reply; kept and said again after a reconnect until the server has it. */
  rate(message, rating, comment) {
    const frame = { type: "rate", message, rating };
    if (comment) frame.comment = comment;
    this.#ratings.set(message, frame);
    this.conversation.rated(message, rating, comment);
    this.#connection.send(frame);
    this.#changed();
  }

  #hello() {
    const conversation = this.conversation.id;
    return { type: "hello", token: this.token, conversation, last_seq: this.conversation.lastSeq };
  }

  #phase(phase) {
    if (phase === "waiting" || phase === "replaced") this.#interrupted();
    if (phase === "leaving" && !this.conversation.awaiting) this.#connection.leave();
    else this.#changed();
  }

  #interrupted() {
    const sent = this.outbox.entries.find((entry) => entry.state === "sent");
    if (sent && CLOSES_BLAMED.has(this.#connection.lastClose)) {
      const code = this.#connection.lastClose === 1009 ? "too_long" : "refused";
      this.outbox.fail(sent, code, explain(code, { field: "text", limit: this.limits.max_text }));
    }
    this.outbox.requeue();
    this.#cancelPump();
  }

  /**
   * The greeting was refused: give up as little as possible, and one thing more each time.
   * Unsent messages are not sent into a conversation they were not meant for, but shown.
   */
  #refused(reason) {
    this.#refusals += 1;
    const { conversation } = this;
    const unknownVisitor = reason === "4401" || reason === "unauthenticated";
    if (this.#refusals === 1 && conversation.lastSeq > 0 && !unknownVisitor) return conversation.reset();
    if (unknownVisitor || conversation.id === null) this.#forgetToken();
    if (conversation.id !== null) this.#forgetConversation();
  }

  #forgetToken() {
    this.token = null;
    shared.remove(TOKEN);
  }

  #forgetConversation() {
    const unsent = this.outbox.entries;
    this.conversation = new Conversation();
    const fresh = new Outbox();
    fresh.open(null);
    for (const entry of unsent) {
      fresh.fail(fresh.add(entry.text, entry.options), "not_found", explain("moved"));
    }
    for (const entry of unsent) this.outbox.remove(entry.id);
    this.outbox = fresh;
    shared.remove(LATEST);
    this.#events.onNotice(explain("lost"));
    this.#changed();
  }

  #receive(frame) {
    const handlers = {
      ready: () => this.#ready(frame),
      accepted: () => this.#accepted(frame),
      delta: () => this.#delta(frame),
      message: () => this.#message(frame),
      rated: () => this.#rated(frame),
      owner: () => this.#owner(frame),
      error: () => this.#error(frame),
    };
    handlers[frame.type]?.();
  }

  #ready(frame) {
    if (this.#otherTabWasFirst(frame)) return;
    this.#refusals = 0;
    this.#newcomer ||= this.token === null;
    this.token = frame.token ?? this.token;
    shared.set(TOKEN, this.token);
    shared.set(LATEST, frame.conversation);
    this.limits = { ...LIMITS, ...frame.limits };
    this.settings.learn(frame.defaults);
    this.conversation.ready(frame);
    if (!this.conversation.awaiting) this.#stopWanted = false;
    this.#stopIfWanted();
    this.outbox.assign(frame.conversation);
    for (const message of frame.messages ?? []) this.#confirm(message);
    for (const rating of this.#ratings.values()) this.#connection.send(rating);
    this.#events.onOpened(frame.conversation);
    this.#changed();
    this.#afterChange();
  }

  /** Two tabs that came as new visitors at once become one: the first to keep its token wins. */
  #otherTabWasFirst(frame) {
    const kept = shared.get(TOKEN);
    if (this.token !== null || kept === null || kept === frame.token) return false;
    this.token = kept;
    this.#connection.restart();
    return true;
  }

  /**
   * The same, where both kept theirs before either could see it: both then take the lesser, unless this one
   * has been used.
   */
  #otherTabKept(kept) {
    const used = this.conversation.lastSeq > 0 || this.outbox.entries.length > 0;
    if (!this.#newcomer || used || kept === this.token) return;
    if (kept > this.token) return shared.set(TOKEN, this.token);
    this.token = kept;
    this.conversation = new Conversation();
    this.#connection.restart();
  }

  /** Something is missing: greet again, which brings it. False when the last try brought nothing. */
  #resync() {
    const { lastSeq } = this.conversation;
    if (lastSeq === this.#resumedFrom) return false;
    this.#resumedFrom = lastSeq;
    this.#interrupted();
    this.#connection.restart();
    return true;
  }

  #accepted(frame) {
    const entry = this.outbox.remove(frame.id);
    if (entry === null) return;
    this.conversation.accepted(frame, entry.text);
    this.#changed();
    if (!this.conversation.gap || !this.#resync()) this.#afterChange();
  }

  #delta(frame) {
    const begun = this.conversation.streaming === null;
    if (!this.conversation.delta(frame)) return;
    this.#stopIfWanted();
    if (begun) this.#changed();
    this.#events.onStream();
  }

  #message(frame) {
    const fresh = this.conversation.message(frame);
    this.#confirm(frame);
    if (frame.role !== "user") this.#stopWanted = false;
    this.#changed();
    if (fresh) this.#events.onReply(frame);
    if (!this.conversation.gap || !this.#resync()) this.#afterChange();
  }

  /** A user turn of ours that came back as a message needs no saying any more. */
  #confirm(message) {
    if (message.role === "user" && message.client_id) this.outbox.remove(message.client_id);
  }

  #rated(frame) {
    const { comment } = this.#ratings.get(frame.message) ?? {};
    this.#ratings.delete(frame.message);
    if (frame.rating !== undefined) this.conversation.rated(frame.message, frame.rating, comment);
    this.#changed();
  }

  #owner(frame) {
    this.conversation.owned(frame);
    if (frame.owner === "operator") this.#stopWanted = false;
    this.#changed();
    this.#afterChange();
  }

  #error(frame) {
    const entry = frame.id === undefined ? null : this.outbox.find(frame.id);
    if (entry !== null) this.#sayRefused(entry, frame);
    else if (frame.id !== undefined && this.#ratings.has(frame.id)) this.#ratingRefused(frame);
    else if (this.conversation.awaiting && this.conversation.regenerating !== null) this.#regenerationRefused(frame);
    else if (this.conversation.awaiting && frame.code !== "bad_state") this.#replyRefused(frame);
    else if (frame.code !== "bad_state") this.#events.onNotice(explain(frame.code, frame));
    this.#changed();
    this.#afterChange();
  }

  #sayRefused(entry, frame) {
    entry.tries += 1;
    if (frame.code === "busy") entry.tries = 0; // Being busy is no fault of the message.
    if (PASSING.has(frame.code) && entry.tries < TRIES) {
      const retryAt = this.#environment.now() + pauseOf(frame);
      Object.assign(entry, { state: "queued", code: frame.code, retryAt });
    } else {
      this.outbox.fail(entry, frame.code, explain(frame.code, { ...frame, limit: this.limits.max_text }));
    }
  }

  /** The turn is committed, its reply failed or could not begin. */
  #replyRefused(frame) {
    this.#stopWanted = false;
    if (frame.code !== "busy") {
      return this.conversation.fail(explain(frame.code === "bad_option" ? frame.code : "no_reply", frame));
    }
    this.#cancelPump();
    this.#cancelPump = this.#environment.after(pauseOf(frame), () => this.askAgain());
  }

  #ratingRefused(frame) {
    this.#ratings.delete(frame.id);
    this.conversation.rated(frame.id, null, null);
    this.#events.onNotice(explain("rating"));
  }

  #regenerationRefused(frame) {
    this.conversation.endReply();
    this.#events.onNotice(explain(frame.code === "internal" ? "no_reply" : frame.code, frame));
  }

  /** A reply may have ended: leave if the server wants to go, else say what waits. */
  #afterChange() {
    if (this.conversation.awaiting) return;
    if (this.phase === "leaving") this.#connection.leave();
    else this.#pump();
  }

  /** Says the oldest waiting message, one at a time: the next follows when it was answered. */
  #pump() {
    // While a reply is awaited, the timer may be the one that asks a busy server for it again.
    if (!this.ready || this.conversation.awaiting) return;
    this.#cancelPump();
    if (this.outbox.entries.some((entry) => entry.state === "sent")) return;
    const entry = this.outbox.entries.find((one) => one.state === "queued");
    if (entry === undefined) return;
    const wait = entry.retryAt - this.#environment.now();
    if (wait > 0) {
      this.#cancelPump = this.#environment.after(wait, () => this.#pump());
      return;
    }
    entry.state = "sent";
    entry.code = null;
    this.#connection.send({ type: "say", id: entry.id, text: entry.text, options: entry.options });
    this.#changed();
  }

  #changed() {
    this.#events.onChange();
  }
}

/** Milliseconds to wait before asking a busy server again. */
function pauseOf(frame) {
  return Math.min(BUSY_PAUSE_MAX, Number(frame.retry_after) * 1000 || BUSY_PAUSE);
}

/** The draft of a message that was typed and not sent, kept over a reload of this tab. */
export const draft = {
  get: () => tab.get("turnwise.draft") ?? "",
  set: (text) => (text === "" ? tab.remove("turnwise.draft") : tab.set("turnwise.draft", text)),
};
