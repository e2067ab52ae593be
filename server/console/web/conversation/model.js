/**
 * One conversation as the server tells it: its summary, its messages, the reply being made, verdicts.
 */

import { aborted, address } from "../shell/api.js";
import { look } from "../shell/as_reviewer.js";
import { EventStream, gather } from "../shell/events.js";
import { LiveReply } from "./live_reply.js";
import { Verdicts } from "./verdicts.js";

export class ConversationModel {
  #api;
  #hooks;
  #stream = null;
  #abort = new AbortController();
  #again;
  #asked = 0;
  summary = null;
  messages = [];
  masked = false;
  error = null;
  live = new LiveReply();
  verdicts;

  /** hooks: onChange(), onStream() for pieces of a reply, onError(error, message id, verdict) of one that was not saved. */
  constructor(api, id, hooks) {
    this.#api = api;
    this.id = id;
    this.path = `/conversations/${encodeURIComponent(id)}`;
    this.#hooks = hooks;
    this.verdicts = new Verdicts(api, {
      onChange: () => hooks.onChange(),
      onError: (...lost) => hooks.onError(...lost),
    });
    this.#again = gather(() => this.load(), 60, 500);
  }

  start() {
    this.load();
    this.#listen();
  }

  /** What is shown is asked for anew: as reviewers see it, or not so any more. */
  lookAgain() {
    this.live.end();
    this.#listen();
    this.load();
  }

  #listen() {
    const refresh = () => this.#again(0);
    this.#stream?.close();
    this.#stream = new EventStream(address(`${this.path}/events`, look()), {
      opened: refresh,
      message: refresh,
      owner: refresh,
      rated: refresh,
      delta: (piece) => {
        this.live.add(piece);
        this.#hooks.onStream();
      },
    }).open();
  }

  stop() {
    this.#abort.abort();
    this.#again.cancel();
    this.#stream?.close();
  }

  refresh() {
    this.#again(0);
  }

  async load() {
    this.#asked += 1;
    const number = this.#asked;
    try {
      const told = await this.#api.get(this.path, look(), { signal: this.#abort.signal });
      if (number === this.#asked) this.#learn(told);
    } catch (error) {
      if (aborted(error) || number !== this.#asked) return;
      this.error = error;
      if (error.status === 404) this.#forget();
      this.#hooks.onChange();
    }
  }

  #forget() {
    this.#stream.close();
    this.summary = null;
    this.messages = [];
    this.live.end();
  }

  #learn({ conversation, messages, masked }) {
    const grown = messages.length > this.messages.length;
    this.error = null;
    this.summary = this.#newest(conversation);
    this.messages = messages;
    this.masked = masked;
    if (grown && messages.at(-1).role === "agent") this.live.end();
    for (const message of messages) if (message.author === "bot") this.verdicts.learn(message.id, message.verdict);
    this.#hooks.onChange();
  }

  /** An answer that was under way when the owner changed tells of the owner before: what we know holds. */
  #newest(summary) {
    if (this.summary === null || summary.owner_version >= this.summary.owner_version) return summary;
    const { owner, operator, owner_version } = this.summary;
    this.refresh();
    return { ...summary, owner, operator, owner_version };
  }

  /** What stands: superseded replies left out. */
  get standing() {
    return this.messages.filter(({ superseded }) => !superseded);
  }

  /** Superseded replies to the same turn as `message`, oldest first. */
  earlier(message) {
    if (!message.answers) return [];
    return this.messages.filter(({ superseded, answers }) => superseded && answers === message.answers);
  }

  /** Replies that a model made: what verdicts are given on. */
  get replies() {
    return this.standing.filter(({ author }) => author === "bot");
  }

  get open() {
    return this.summary !== null && this.summary.closed_at === null;
  }

  /** Whether `me` is the one who answers. */
  mine(me) {
    return this.summary?.owner === "operator" && this.summary.operator === me.name;
  }

  /** Changes the owner by compare-and-set; what comes back holds at once. Throws ApiError. */
  async changeOwner(action) {
    const told = await this.#api.post(`${this.path}/${action}`, { version: this.summary.owner_version });
    this.summary = { ...this.summary, ...told };
    this.live.end();
    this.#hooks.onChange();
    this.refresh();
  }

  /** action: close or reopen. */
  async act(action) {
    await this.#api.post(`${this.path}/${action}`);
    await this.load();
  }
}
