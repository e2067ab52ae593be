/**
 * Verdicts on replies: shown at once, saved behind, taken back when the server refuses.
 *
 * Of one reply at most one request is under way; what is decided meanwhile waits, and only the last of it is sent.
 */

/** {verdict, labels, corrected, note} without what the server adds. */
export function plain(verdict) {
  if (verdict === null) return null;
  const { verdict: word, labels = [], corrected = null, note = null } = verdict;
  return { verdict: word, labels: [...labels], corrected, note };
}

function same(one, other) {
  return JSON.stringify(plain(one)) === JSON.stringify(plain(other));
}

export class Verdicts {
  #api;
  #onChange;
  #onError;
  #entries = new Map();
  #undo = [];
  #waiting = [];

  /** onChange(message id): what is shown has changed. onError(error, message id, verdict): this was not saved. */
  constructor(api, { onChange, onError }) {
    this.#api = api;
    this.#onChange = onChange;
    this.#onError = onError;
  }

  /** What the server says. While one of ours is on its way, ours stays. */
  learn(id, verdict) {
    const entry = this.#entries.get(id);
    if (entry === undefined) this.#entries.set(id, { saved: verdict, wanted: verdict, sending: false });
    else if (!entry.sending) entry.saved = entry.wanted = verdict;
  }

  of(id) {
    return this.#entries.get(id)?.wanted ?? null;
  }

  /** Whether it is on its way to the server. */
  saving(id) {
    return this.#entries.get(id)?.sending ?? false;
  }

  /** verdict: {verdict, labels, corrected, note}, or null to take it back. */
  set(id, verdict) {
    const entry = this.#entry(id);
    if (same(entry.wanted, verdict)) return;
    this.#undo.push({ id, before: plain(entry.wanted) });
    this.#want(id, verdict);
  }

  /** Takes the last decision back; the id of its message, or null when there was none. */
  undo() {
    const last = this.#undo.pop();
    if (last === undefined) return null;
    this.#want(last.id, last.before);
    return last.id;
  }

  get undoable() {
    return this.#undo.length > 0;
  }

  /** Resolves when nothing is on its way any more: true if all of it was saved. */
  async settled() {
    if (![...this.#entries.values()].some(({ sending }) => sending)) return true;
    return new Promise((resolve) => this.#waiting.push(resolve));
  }

  #entry(id) {
    if (!this.#entries.has(id)) this.#entries.set(id, { saved: null, wanted: null, sending: false });
    return this.#entries.get(id);
  }

  #want(id, verdict) {
    const entry = this.#entry(id);
    entry.wanted = plain(verdict);
    if (!entry.sending) this.#send(id, entry);
    this.#onChange(id);
  }

  async #send(id, entry) {
    entry.sending = true;
    let failed = false;
    while (!same(entry.saved, entry.wanted)) {
      const sent = plain(entry.wanted);
      try {
        entry.saved = await this.#save(id, sent);
      } catch (error) {
        failed = true;
        entry.wanted = entry.saved;
        this.#undo = this.#undo.filter((one) => one.id !== id);
        this.#onError(error, id, sent);
      }
    }
    entry.wanted = entry.saved;
    entry.sending = false;
    this.#onChange(id);
    this.#settle(!failed);
  }

  async #save(id, verdict) {
    const path = `/messages/${encodeURIComponent(id)}/verdict`;
    const options = { keepalive: true }; // also when the page is left meanwhile
    if (verdict !== null) return { ...verdict, ...(await this.#api.put(path, verdict, options)) };
    await this.#api.delete(path, options);
    return null;
  }

  #settle(well) {
    if ([...this.#entries.values()].some(({ sending }) => sending)) {
      if (!well) this.#waiting.splice(0).forEach((resolve) => resolve(false));
      return;
    }
    this.#waiting.splice(0).forEach((resolve) => resolve(well));
  }
}
