/**
 * The message box of the operator who has the conversation: what the model suggests while typing, canned replies
 * after a slash, places to fill in, and what is on its way.
 */

import { newId } from "/static/protocol.js";
import { sentence } from "../shell/api.js";
import { draftOf, keepDraft } from "../shell/drafts.js";
import { button, element, icon, iconButton, setHidden, setText, speech } from "../shell/elements.js";
import { CannedReplies } from "./canned.js";
import { Menu } from "./menu.js";
import { nextPlace, placesIn } from "./placeholders.js";
import { Suggestions } from "./suggestions.js";
import { forgetUnsent, keepUnsent, unsentOf } from "./unsent.js";

const MOST = 4000;
const TALLEST = 200;
/** Whether a finger chooses, and nobody has a Tab key. */
const TOUCH = window.matchMedia("(pointer: coarse)").matches;

export class Composer {
  #context;
  #model;
  #onSent;
  #field;
  #send;
  #menu;
  #suggestions;
  #canned;
  #found = [];
  #pending = [];
  #queue = element("div", { class: "pending" });
  #hint = element("p", { class: "composer-hint" });
  #ready = false;
  #heard = 0;

  /** sent(): something of ours goes out. */
  constructor(context, model, { sent }) {
    this.#context = context;
    this.#model = model;
    this.#onSent = sent;
    this.#canned = new CannedReplies(context.api);
    this.#field = element("textarea", {
      rows: "1",
      dir: "auto",
      maxlength: String(MOST),
      autocomplete: "off",
      placeholder: TOUCH ? "Write to the visitor" : "Write to the visitor, or / for canned replies",
      "aria-label": "Your message to the visitor",
      input: () => this.#typed(),
      keydown: (event) => this.#key(event),
      blur: () => this.#left(),
      focus: () => this.#focused(),
    });
    this.#menu = new Menu(this.#field, (index) => this.#choose(index));
    this.#suggestions = new Suggestions(context.api, model.path, () => this.#offer());
    this.#send = element("button", { type: "submit", class: "send", "aria-label": "Send message", disabled: true }, icon("send"));
    const slash = iconButton("canned", "Canned replies", () => this.#slash(), { pointerdown: (event) => event.preventDefault() });
    const submit = (event) => {
      event.preventDefault();
      this.#submit();
    };
    const form = element("form", { class: "composer", submit }, slash, this.#field, this.#send);
    this.node = element("div", { class: "composer-place", hidden: true }, this.#queue, this.#menu.node, form, this.#hint);
    this.#write(draftOf(this.#draft), false);
    for (const message of unsentOf(model.id)) this.#queued(message).view.failed("The page was left before the server confirmed it.");
  }

  get #draft() {
    return `reply.${this.#model.id}`;
  }

  render() {
    const mine = this.#model.open && this.#model.mine(this.#context.me);
    setHidden(this.node, !mine);
    this.#forgetSent();
    if (!mine) {
      if (this.#ready) this.#suggestions.forget();
      this.#ready = false;
      return;
    }
    if (!this.#ready) this.#fit(); // what is hidden has no height
    if (!this.#ready) this.#canned.load().catch(() => {}); // asked for again when a slash is typed
    const heard = this.#model.standing.filter(({ author }) => author === "visitor").length;
    // What the visitor has just said changes what could be answered.
    if ((!this.#ready || heard !== this.#heard) && this.#listening) this.#suggestions.typedNow(this.#field.value);
    this.#ready = true;
    this.#heard = heard;
  }

  focus() {
    if (this.node.hidden) return false;
    this.#field.focus();
    return true;
  }

  stop() {
    this.#suggestions.forget();
  }

  get #listening() {
    return document.activeElement === this.#field;
  }

  #focused() {
    if (this.#ready && this.#field.value === "") this.#suggestions.typedNow("");
  }

  /** What is offered goes away with the focus, but not under a pointer that is just pressing something else. */
  #left() {
    const hide = () => this.#listening || this.#menu.hide();
    if (!document.documentElement.matches(":active")) return hide();
    window.addEventListener("pointerup", () => setTimeout(hide), { once: true });
  }

  // Writing

  #typed() {
    keepDraft(this.#draft, this.#field.value);
    this.#fit();
    this.#hint.textContent = "";
    if (this.#field.value.startsWith("/")) {
      this.#suggestions.dismiss();
      this.#offerCanned();
    } else {
      if (this.#menu.kind === "canned") this.#menu.hide();
      this.#suggestions.typedNow(this.#field.value);
    }
  }

  #write(text, ask = true) {
    this.#field.value = text;
    keepDraft(this.#draft, text);
    this.#fit();
    if (ask && text !== "") this.#suggestions.typedNow(text);
  }

  /** As tall as its text, up to a bound; and sending is possible when there is something to send. */
  #fit() {
    this.#field.style.setProperty("height", "auto");
    this.#field.style.setProperty("height", `${Math.min(TALLEST, this.#field.scrollHeight)}px`);
    this.#send.disabled = this.#field.value.trim() === "";
  }

  #key(event) {
    if (event.isComposing) return;
    const handled = this.#menu.open ? this.#menuKey(event) : this.#plainKey(event);
    if (!handled) return;
    event.preventDefault();
    event.stopPropagation();
  }

  #menuKey(event) {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (step !== undefined) this.#menu.move(step);
    else if (event.key === "Escape") this.#dismiss();
    else if (event.key === "Tab" && !event.shiftKey) this.#choose(this.#menu.active);
    else if (event.key === "Enter" && this.#menu.kind === "canned" && !event.shiftKey) this.#choose(this.#menu.active);
    else return this.#plainKey(event);
    return true;
  }

  #plainKey(event) {
    if (event.key === "Enter" && !event.shiftKey) {
      this.#submit();
      return true;
    }
    if (event.key === "Tab" && !event.shiftKey) return this.#jump();
    if (event.key === "Escape") {
      this.#field.blur();
      return true;
    }
    return false;
  }

  /** Selects the next place to fill in; false where there is none, so that Tab goes on. */
  #jump(from = this.#field.selectionEnd) {
    const place = nextPlace(this.#field.value, from);
    if (place === null) return false;
    this.#field.focus();
    this.#field.setSelectionRange(place.start, place.end);
    setText(this.#hint, TOUCH ? `Fill in: ${place.name}` : `Fill in: ${place.name}. Tab goes to the next place.`);
    return true;
  }

  // What is offered

  #offer() {
    if (this.#field.value.startsWith("/") || !this.#listening) {
      if (this.#menu.kind === "suggestions") this.#menu.hide();
      return;
    }
    const { texts, typed } = this.#suggestions;
    if (texts.length === 0) {
      if (this.#menu.kind === "suggestions") this.#menu.hide();
      return;
    }
    const rows = texts.map((text) => {
      const row = speech("", "div", "text");
      row.append(element("span", { class: "typed" }, text.slice(0, typed)), text.slice(typed));
      return row;
    });
    const fresh = !this.#menu.open;
    this.#menu.show("suggestions", "Suggestions", rows, `s${typed}${JSON.stringify(texts)}`);
    setText(this.#hint, TOUCH ? "Tap a suggestion to take it." : "Tab takes a suggestion, arrows choose, Esc ignores them.");
    if (fresh) this.#context.announce(`${texts.length} suggestions. Tab takes the first.`);
  }

  async #offerCanned() {
    try {
      await this.#canned.load();
    } catch (error) {
      return this.#context.failed(error);
    }
    const { value } = this.#field;
    if (!value.startsWith("/")) return;
    this.#found = this.#canned.find(value.slice(1));
    const rows = this.#found.map(({ title, text }) =>
      element("div", { class: "canned-row" }, speech(title, "div", "canned-title"), speech(text, "div", "text")),
    );
    this.#menu.show("canned", "Canned replies", rows, `c${value}${JSON.stringify(this.#found)}`);
    setText(this.#hint, this.#found.length === 0 ? "No canned reply has these words." : TOUCH ? "Tap a canned reply to take it." : "Enter takes a canned reply, Esc goes back.");
  }

  /** The button does what a slash does. */
  #slash() {
    this.#field.focus();
    if (this.#field.value.startsWith("/")) return this.#write("");
    if (this.#field.value.trim() !== "") return this.#context.notice("Canned replies can be put into an empty message.");
    this.#write("/", false);
    this.#offerCanned();
  }

  #choose(index) {
    if (this.#menu.kind === "canned") return this.#fillIn(this.#found[index]);
    const text = this.#suggestions.texts[index];
    if (text === undefined) return;
    this.#write(this.#suggestions.choose(text), false);
    this.#menu.hide();
    this.#hint.textContent = "";
    this.#field.focus();
    this.#field.setSelectionRange(text.length, text.length);
  }

  #fillIn(reply) {
    if (reply === undefined) return;
    this.#menu.hide();
    this.#write(reply.text, false);
    this.#hint.textContent = "";
    this.#field.focus();
    if (!this.#jump(0)) this.#field.setSelectionRange(reply.text.length, reply.text.length);
  }

  #dismiss() {
    if (this.#menu.kind === "canned") this.#write("");
    this.#suggestions.dismiss();
    this.#menu.hide();
    this.#hint.textContent = "";
  }

  // Sending

  #submit() {
    const text = this.#field.value.trim();
    if (text === "" || text.startsWith("/") && this.#found.length > 0 && this.#menu.kind === "canned") return;
    const [open] = placesIn(text);
    if (open !== undefined) {
      this.#jump(0);
      this.#context.announce(`Not sent: ${open.name} is to be filled in.`);
      return;
    }
    const entry = this.#queued({ id: newId(), text });
    keepUnsent(this.#model.id, entry);
    entry.tell = this.#suggestions.conclude(text);
    this.#write("", false);
    this.#menu.hide();
    this.#hint.textContent = "";
    this.#onSent();
    this.#transmit(entry);
  }

  /** A message of ours that the server has not confirmed, shown below the others. */
  #queued({ id, text }) {
    const entry = { id, text, message: null, tell: null };
    entry.view = new PendingView(entry, { retry: () => this.#transmit(entry), edit: () => this.#takeBack(entry) });
    this.#pending.push(entry);
    this.#queue.append(entry.view.node);
    return entry;
  }

  /** The same id each time: what arrived already is not said twice. */
  async #transmit(entry) {
    entry.view.sending();
    try {
      const { message } = await this.#context.api.post(`${this.#model.path}/messages`, { id: entry.id, text: entry.text });
      entry.message = typeof message === "string" ? message : message.id;
      forgetUnsent(this.#model.id, entry.id);
      entry.tell?.(entry.message);
      await this.#model.load();
      this.#forgetSent();
    } catch (error) {
      entry.view.failed(sentence(error));
      this.#context.announce(`Not sent. ${sentence(error)}`);
      if (error.status === 409) this.#model.refresh();
    }
  }

  /** Into the box, before what is being written there. */
  #takeBack(entry) {
    forgetUnsent(this.#model.id, entry.id);
    this.#remove(entry);
    this.#write([entry.text, this.#field.value].filter((text) => text.trim() !== "").join("\n"));
    this.#field.focus();
  }

  #forgetSent() {
    const known = new Set(this.#model.messages.map(({ id }) => id));
    for (const entry of this.#pending.filter(({ message }) => message !== null && known.has(message))) this.#remove(entry);
  }

  #remove(entry) {
    entry.view.node.remove();
    this.#pending = this.#pending.filter((other) => other !== entry);
  }
}

/** A message of ours that the server has not confirmed. */
class PendingView {
  #words = element("p", { class: "pending-words" });
  #buttons;

  constructor(entry, { retry, edit }) {
    this.#buttons = element("div", { class: "pending-buttons", hidden: true }, button("Try again", retry, { kind: "text" }), button("Edit", edit, { kind: "text" }));
    const bubble = element("div", { class: "bubble" }, speech(entry.text));
    this.node = element("article", { class: "turn operator waiting" }, bubble, this.#words, this.#buttons);
  }

  sending() {
    setText(this.#words, "Sending…");
    setHidden(this.#buttons, true);
    this.node.classList.remove("failed");
  }

  failed(words) {
    setText(this.#words, `Not sent. ${words}`);
    setHidden(this.#buttons, false);
    this.node.classList.add("failed");
  }
}
