/**
 * What the model would have the operator say, completed from what is typed so far; and what became of it.
 *
 * Asked for after a pause in typing. The latest question wins: an answer that comes late is not shown, and neither
 * is one to words that have changed since.
 */

import { aborted } from "../shell/api.js";

const PAUSE = 150;
const COUNT = 3;

export class Suggestions {
  #api;
  #path;
  #onChange;
  #timer = null;
  #abort = null;
  #shown = null;
  #chosen = null;
  #latest = null;

  /** onChange(): what is offered has changed. */
  constructor(api, path, onChange) {
    this.#api = api;
    this.#path = path;
    this.#onChange = onChange;
  }

  /** Texts offered now, each beginning with what is typed. */
  get texts() {
    return this.#shown?.texts ?? [];
  }

  /** How much of each text is typed already, in UTF-16 units. */
  get typed() {
    return this.#shown?.typed.length ?? 0;
  }

  /** The words in the box have changed. */
  typedNow(text) {
    this.#stop();
    this.#narrow(text);
    this.#timer = setTimeout(() => this.#ask(text), PAUSE);
  }

  /** Until the next answer, those stay that still begin with what is typed. */
  #narrow(text) {
    if (this.#shown === null) return;
    const texts = this.#shown.texts.filter((one) => one.startsWith(text) && one !== text);
    this.#show(texts.length === 0 ? null : { ...this.#shown, typed: text, texts });
  }

  async #ask(typed) {
    this.#abort = new AbortController();
    const { signal } = this.#abort;
    try {
      const told = await this.#api.post(`${this.#path}/suggestions`, { typed, count: COUNT }, { signal });
      if (signal.aborted) return;
      const texts = told.suggestions.map(({ text }) => text).filter((text) => text !== typed && text.startsWith(typed));
      if (texts.length === 0) return this.#show(null);
      this.#latest = told.id;
      this.#show({ id: told.id, typed, texts });
    } catch (error) {
      if (!aborted(error)) this.#show(null); // without suggestions one can write as well
    }
  }

  /** One of `texts` is taken. */
  choose(text) {
    this.#chosen = { id: this.#shown.id, text };
    this.#stop();
    this.#show(null);
    return text;
  }

  /** Not these; the next pause asks again. */
  dismiss() {
    this.#stop();
    this.#show(null);
  }

  /**
   * `text` goes out, and what comes next is about other words. Answers tell(message): call it with the message's id
   * once that is known, to say what became of what was offered; null where nothing was.
   */
  conclude(text) {
    const chosen = this.#chosen;
    const id = chosen?.id ?? this.#latest;
    this.forget();
    if (id === null) return null;
    const outcome = chosen === null ? "ignored" : chosen.text === text ? "accepted" : "edited";
    const told = { outcome, chosen: chosen?.text ?? null, sent: text };
    // A figure for the dashboard, not worth a word to somebody who is talking with a visitor.
    return (message) => this.#api.post(`/suggestions/${encodeURIComponent(id)}/outcome`, { ...told, message }).catch(() => {});
  }

  forget() {
    this.#chosen = null;
    this.#latest = null;
    this.dismiss();
  }

  #show(shown) {
    if (shown === null && this.#shown === null) return;
    this.#shown = shown;
    this.#onChange();
  }

  #stop() {
    clearTimeout(this.#timer);
    this.#abort?.abort();
  }
}
