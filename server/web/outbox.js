/**
 * What the visitor has said and the server has not yet confirmed.
 *
 * Every entry is one key of its own in localStorage: two tabs on one conversation never
 * overwrite each other's entries, and both may send the same entry, because its id makes the
 * repetition harmless. Until the conversation has an id the entry belongs to this tab alone;
 * shared, it would be sent into the new conversations of other tabs as well.
 *
 * entry: {id, text, options, at, state: "queued" | "sent" | "failed", reason, code, retryAt, tries}
 */

import { newId } from "./protocol.js";
import { shared, tab } from "./storage.js";

const PREFIX = "turnwise.say.";
const UNASSIGNED = "unassigned";

export class Outbox {
  #conversation = null;
  #entries = [];

  /** Oldest first. */
  get entries() {
    return this.#entries;
  }

  /** Takes up what was left over for a conversation; null for one that has no id yet. */
  open(conversation) {
    this.#conversation = conversation;
    const { storage, prefix } = this.#place();
    this.#entries = storage
      .keys(prefix)
      .map((key) => storage.read(key, null))
      .filter((entry) => typeof entry?.id === "string" && typeof entry.text === "string")
      .map((entry) => ({ ...entry, state: entry.state === "failed" ? "failed" : "queued", retryAt: 0, tries: 0 }))
      .sort((one, other) => one.at - other.at);
  }

  /** The conversation got its id: its entries move along. */
  assign(conversation) {
    if (this.#conversation === conversation) return;
    for (const entry of this.#entries) this.#forget(entry);
    this.#conversation = conversation;
    for (const entry of this.#entries) this.#keep(entry);
  }

  add(text, options) {
    const last = this.#entries.at(-1)?.at ?? 0;
    const at = Math.max(Date.now(), last + 1); // Entries typed in one millisecond keep their order.
    const entry = { id: newId(), text, options, at, state: "queued", reason: null, retryAt: 0, tries: 0 };
    this.#entries.push(entry);
    this.#keep(entry);
    return entry;
  }

  find(id) {
    return this.#entries.find((entry) => entry.id === id) ?? null;
  }

  remove(id) {
    const entry = this.find(id);
    if (entry === null) return null;
    this.#entries = this.#entries.filter((other) => other !== entry);
    this.#forget(entry);
    return entry;
  }

  fail(entry, code, reason) {
    Object.assign(entry, { state: "failed", code, reason });
    this.#keep(entry);
  }

  /** Queued again, by the visitor's wish, with today's options. */
  revive(entry, options) {
    // After a conflict the old id names another text on the server; only a fresh one can pass.
    if (entry.code === "conflict") {
      this.#forget(entry);
      entry.id = newId();
    }
    Object.assign(entry, { state: "queued", code: null, reason: null, retryAt: 0, tries: 0, options });
    this.#keep(entry);
  }

  /** The connection went: whatever was on its way has to be said again. */
  requeue() {
    for (const entry of this.#entries) if (entry.state === "sent") entry.state = "queued";
  }

  #place() {
    return this.#conversation === null
      ? { storage: tab, prefix: `${PREFIX}${UNASSIGNED}.` }
      : { storage: shared, prefix: `${PREFIX}${this.#conversation}.` };
  }

  #keep(entry) {
    const { storage, prefix } = this.#place();
    storage.write(prefix + entry.id, entry);
  }

  #forget(entry) {
    const { storage, prefix } = this.#place();
    storage.remove(prefix + entry.id);
  }
}
