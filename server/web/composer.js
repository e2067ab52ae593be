/** The message box: grows with its text, counts near the limit, sends and stops. */

import { announce, notice } from "./announce.js";
import { draft } from "./chat.js";
import { byId, setHidden, setText } from "./dom.js";
import { cleanText, countCharacters } from "./protocol.js";
import { formatNumber } from "./words.js";

/** Share of the limit from which the count is shown. */
const NEAR = 0.8;

/** On a touch screen, focus would raise the keyboard over what the visitor wants to read. */
const TOUCH = window.matchMedia("(pointer: coarse)");

export class Composer {
  #chat;
  #onSent;
  #form = byId("composer");
  #text = byId("text");
  #count = byId("count");
  #send = byId("send");
  #stop = byId("stop");
  #zone = "far";
  #width = 0;

  constructor(chat, onSent) {
    this.#chat = chat;
    this.#onSent = onSent;
    // What was typed before this script came over a slow network is worth more than an older draft.
    if (this.#text.value === "") this.#text.value = draft.get();
    this.#text.addEventListener("input", () => this.#edited());
    this.#text.addEventListener("keydown", (event) => this.#key(event));
    this.#form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#submit();
    });
    this.#stop.addEventListener("click", () => this.stop());
    this.#edited();
    // A window of another width, or a phone that is turned, breaks the lines elsewhere.
    new ResizeObserver(() => this.#fitWidth()).observe(this.#text);
  }

  focus() {
    this.#text.focus();
  }

  /** Focus where it is of use at once, that is, not on a touch screen. */
  focusUnlessTouch() {
    if (!TOUCH.matches) this.focus();
  }

  /** Puts text back to be edited, before whatever was typed meanwhile. */
  putBack(text) {
    this.#text.value = [text, this.#text.value].filter(Boolean).join("\n");
    this.#edited();
    this.focus();
  }

  stop() {
    if (!this.#chat.conversation.awaiting) return;
    this.#chat.stop();
    this.focusUnlessTouch();
  }

  /** The chat changed. */
  render() {
    const { awaiting } = this.#chat.conversation;
    setHidden(this.#stop, !awaiting);
    this.#stop.disabled = !this.#chat.ready || this.#chat.stopping;
    setText(this.#stop.lastElementChild, this.#chat.stopping ? "Stopping" : "Stop");
    this.#measure();
  }

  #submit() {
    const text = cleanText(this.#text.value);
    if (text === "") return;
    const objection = this.#chat.objection(text);
    if (objection !== null) {
      notice(objection);
      return;
    }
    this.#chat.say(text);
    this.#text.value = "";
    this.#edited();
    this.focus();
    this.#onSent();
  }

  #key(event) {
    // While an input method composes a character, Enter chooses one and must not send.
    if (event.key !== "Enter" || event.isComposing || event.keyCode === 229) return;
    if (event.shiftKey || event.altKey) return;
    event.preventDefault();
    this.#submit();
  }

  #edited() {
    draft.set(this.#text.value);
    this.#fit();
    this.#measure();
  }

  #fit() {
    this.#text.style.height = "auto";
    this.#text.style.height = `${this.#text.scrollHeight}px`;
  }

  #fitWidth() {
    if (this.#text.clientWidth === this.#width) return;
    this.#width = this.#text.clientWidth;
    this.#fit();
  }

  #measure() {
    const limit = this.#chat.limits.max_text;
    const length = countCharacters(cleanText(this.#text.value));
    const zone = length > limit ? "over" : length >= limit * NEAR ? "near" : "far";
    setText(this.#count, zone === "far" ? "" : `${formatNumber(length)} of ${formatNumber(limit)} characters`);
    this.#form.dataset.zone = zone;
    this.#send.disabled = length === 0 || zone === "over";
    if (zone !== this.#zone && zone !== "far") announce(this.#count.textContent);
    this.#zone = zone;
  }
}
