/**
 * The conversations that a set of filters gives: page after page, kept fresh as events come in.
 */

import { aborted } from "../shell/api.js";
import { look } from "../shell/as_reviewer.js";
import { mayStay } from "./filters.js";

const PAGE = 50;
/** More changed rows than these outside of the first page are not fetched one by one. */
const SINGLY = 5;

export class Rows {
  #api;
  #me;
  #onChange;
  #filters = {};
  #rows = [];
  #next = null;
  #abort = new AbortController();
  #loading = false;
  error = null;
  loaded = false;

  /** onChange(): something of what is shown has changed. */
  constructor(api, me, onChange) {
    this.#api = api;
    this.#me = me;
    this.#onChange = onChange;
  }

  get rows() {
    return this.#rows;
  }

  get loading() {
    return this.#loading;
  }

  get more() {
    return this.#next !== null;
  }

  /** From the start, with other filters. What was asked for before is not awaited any more. */
  async begin(filters) {
    this.#filters = filters;
    this.#abort.abort();
    this.#abort = new AbortController();
    this.#next = null;
    this.loaded = false;
    await this.#load(null, (page) => page);
  }

  async nextPage() {
    if (this.#loading || this.#next === null) return;
    await this.#load(this.#next, (page) => {
      const have = new Set(this.#rows.map(({ id }) => id));
      return [...this.#rows, ...page.filter(({ id }) => !have.has(id))];
    });
  }

  async #load(cursor, merged) {
    const { signal } = this.#abort;
    this.#loading = true;
    this.error = null;
    this.#onChange();
    try {
      const { conversations, next } = await this.#page(cursor, signal);
      this.#rows = merged(conversations);
      this.#next = next;
      this.loaded = true;
    } catch (error) {
      if (aborted(error)) return;
      this.error = error;
    }
    this.#loading = false;
    this.#onChange();
  }

  #page(cursor, signal) {
    return this.#api.get("/conversations", { ...this.#filters, ...look(), cursor, limit: PAGE }, { signal });
  }

  /** These have changed: what was said since stands on the first page; other changed rows are asked for. */
  async refresh(changed) {
    if (!this.loaded || this.#loading) return;
    const { signal } = this.#abort;
    try {
      const { conversations, next } = await this.#page(null, signal);
      const first = new Set(conversations.map(({ id }) => id));
      const singles = this.#rows.filter(({ id }) => changed.has(id) && !first.has(id));
      const fresh = await this.#singly(singles.slice(0, SINGLY), signal);
      if (signal.aborted) return;
      this.#merge(conversations, next, fresh);
    } catch (error) {
      if (aborted(error)) return; // otherwise the rows stay as they are; the next event tries again
    }
    this.#onChange();
  }

  /** id -> its summary now, or null when it is gone. */
  async #singly(rows, signal) {
    const one = async ({ id }) => {
      try {
        return [id, (await this.#api.get(`/conversations/${encodeURIComponent(id)}`, look(), { signal })).conversation];
      } catch (error) {
        if (error.status === 404) return [id, null];
        throw error;
      }
    };
    return new Map(await Promise.all(rows.map(one)));
  }

  #merge(page, next, fresh) {
    const first = new Set(page.map(({ id }) => id));
    const last = page.at(-1);
    const beyond = (row) => next !== null && last !== undefined && older(row, last);
    const later = this.#rows
      .filter((row) => !first.has(row.id) && beyond(row))
      .map((row) => (fresh.has(row.id) ? fresh.get(row.id) : row))
      .filter((row) => row !== null && mayStay(row, this.#filters, this.#me));
    this.#rows = [...page, ...later];
    if (later.length === 0) this.#next = next;
  }

  stop() {
    this.#abort.abort();
  }
}

/** Whether `row` comes after `other` in the order of the inbox: newest first, then by id. */
function older(row, other) {
  const [mine, its] = [Date.parse(row.updated_at), Date.parse(other.updated_at)];
  return mine < its || (mine === its && row.id < other.id);
}
