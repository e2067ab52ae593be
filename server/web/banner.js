/** Tells how the connection stands: a word in the header, a banner when something is wrong. */

import { byId, setHidden, setText } from "./dom.js";

const CROWDED = new Set([1013, 4429]);

/** Phases that raise the banner; it then stays until the connection stands again. */
const TROUBLES = new Set(["waiting", "leaving", "replaced"]);
const PRESENCE = { ready: "Online", leaving: "Restarting", replaced: "Paused", waiting: "Offline" };

export class Banner {
  #chat;
  #troubled = false;
  #ticking = null;
  #banner = byId("banner");
  #action = byId("banner-action");

  /** @param onAction when the button was used: it goes while the page tries, so the focus needs another place */
  constructor(chat, onAction) {
    this.#chat = chat;
    this.#action.addEventListener("click", () => {
      chat.reconnectNow();
      onAction();
    });
  }

  render() {
    const { phase } = this.#chat;
    if (phase === "ready") this.#troubled = false;
    else if (TROUBLES.has(phase)) this.#troubled = true;
    byId("presence").dataset.phase = phase;
    setText(byId("presence-words"), this.#presence(phase));
    setHidden(this.#banner, !this.#troubled);
    if (this.#troubled) this.#explain(phase);
    else setText(byId("banner-words"), "");
    this.#tick(phase === "waiting");
  }

  #presence(phase) {
    if (phase === "ready" && this.#chat.conversation.owner === "operator") return "A person is here";
    return PRESENCE[phase] ?? "Connecting";
  }

  #explain(phase) {
    setText(byId("banner-words"), this.#words(phase));
    setHidden(this.#action, phase !== "waiting" && phase !== "replaced");
    setText(this.#action, phase === "replaced" ? "Use it here" : "Try now");
  }

  #words(phase) {
    if (phase === "replaced") return "This chat was opened in another tab.";
    if (phase === "leaving") return "The server is restarting. The chat goes on by itself.";
    if (!navigator.onLine) return "You are offline. What you write is kept, and sent when you are back.";
    if (CROWDED.has(this.#chat.lastClose)) return "Turnwise is very busy. Waiting for a free place…";
    return "Reconnecting…";
  }

  /** Counts down to the next attempt, for the eye only. */
  #tick(waiting) {
    if (waiting && this.#ticking === null) this.#ticking = setInterval(() => this.#countdown(), 500);
    if (!waiting && this.#ticking !== null) {
      clearInterval(this.#ticking);
      this.#ticking = null;
    }
    this.#countdown();
  }

  #countdown() {
    const { phase, retryAt } = this.#chat;
    const seconds = Math.ceil(((retryAt ?? 0) - Date.now()) / 1000);
    setText(byId("banner-countdown"), phase === "waiting" && seconds > 1 ? `Next try in ${seconds} s.` : "");
  }
}
