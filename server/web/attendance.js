/** Who answers, the bot or a person; and the way to ask for one. */

import { byId, setHidden, setText } from "./dom.js";

const WORDS = {
  bot: "",
  waiting: "A person has been asked for. Until somebody comes, Turnwise goes on.",
  operator: "A person has joined and answers from here on.",
  left: "The person has left. Turnwise answers again.",
};

export class Attendance {
  #chat;
  #onAsked;
  #words = byId("attendance");
  #ask = byId("ask-person");
  #conversation = null;
  #state = "bot";

  /** @param onAsked when a person was asked for: the button goes, so the focus needs another place */
  constructor(chat, onAsked) {
    this.#chat = chat;
    this.#onAsked = onAsked;
    this.#ask.addEventListener("click", () => this.#asked());
  }

  render() {
    const { conversation, ready } = this.#chat;
    if (this.#conversation !== conversation) this.#state = "bot";
    this.#conversation = conversation;
    this.#state = this.#next(conversation);
    setText(this.#words, WORDS[this.#state]);
    this.#words.dataset.state = this.#state;
    setHidden(byId("caution"), this.#state === "operator");
    setHidden(this.#ask, conversation.waiting || conversation.owner === "operator");
    this.#ask.disabled = !ready;
  }

  /** That a person has left is worth saying until something else is. */
  #next({ owner, waiting, messages }) {
    if (owner === "operator") return "operator";
    if (waiting) return "waiting";
    const left = this.#state === "operator" || this.#state === "left";
    return left && messages.at(-1)?.model === undefined ? "left" : "bot";
  }

  #asked() {
    if (this.#chat.askForPerson()) this.#onAsked();
  }
}
