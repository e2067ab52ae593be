/**
 * An open conversation: its turns, the reply that is looked at, verdicts by keyboard, the explanation beside it,
 * and the message box of whoever has taken it over.
 */

import { sentence } from "../shell/api.js";
import { asReviewer, onLook, setAsReviewer } from "../shell/as_reviewer.js";
import { keepDraft } from "../shell/drafts.js";
import { button, coalesce, element, setHidden, setText } from "../shell/elements.js";
import { Composer } from "../takeover/composer.js";
import { ExplanationPanel } from "./explanation.js";
import { ConversationHeader } from "./header.js";
import { labelsOf } from "./labels.js";
import { ConversationModel } from "./model.js";
import { LiveView, ReplyView, SaidView, arrangeTurns } from "./turn.js";
import { draftsOf } from "./verdict_bar.js";

/** So near its end (CSS pixels), the reader is following what comes. */
const FOLLOWING = 80;
const SHADES_KEPT = "turnwise.console.shades";
/** What stands in the place of personal data. */
const MASK = /\[(card|email|name|phone)\]/;

export class ConversationView {
  #context;
  #options;
  #model;
  #header;
  #panel;
  #composer;
  #views = new Map();
  #live = new LiveView();
  #log = element("div", { class: "turns", role: "log", "aria-live": "off", "aria-label": "Turns" });
  #scroller;
  #state = element("p", { class: "conversation-state", role: "status" }, "Loading…");
  #again;
  #selected = null;
  #labels = [];
  #shaded = true;
  #following = true;
  #said = 0;
  #offs = [];
  #stopped = false;

  /**
   * options: back() or null, gone(): the conversation is not there (any more), review: null or
   * {next(): nothing is left to judge here} for the review queue.
   */
  constructor(context, id, { back = null, gone = () => {}, review = null } = {}) {
    this.#context = context;
    this.#options = { back, gone, review };
    this.id = id;
    this.#shaded = kept(SHADES_KEPT) !== "off";
    const redraw = coalesce(() => this.#stopped || this.#render());
    this.#model = new ConversationModel(context.api, id, {
      onChange: redraw,
      onStream: coalesce(() => this.#stopped || this.#stream(), requestAnimationFrame),
      onError: (error, message, verdict) => this.#lost(error, message, verdict),
    });
    this.#header = new ConversationHeader(context.me, {
      back,
      take: () => this.#own("take"),
      handBack: () => this.#own("hand_back"),
      close: () => this.#act("close", "Closed. It opens again when the visitor writes."),
      reopen: () => this.#act("reopen", "Reopened."),
    });
    this.#panel = new ExplanationPanel(context.api, { close: () => this.#togglePanel(false) });
    this.#composer = new Composer(context, this.#model, { sent: () => this.#follow() });
    this.node = this.#build();
    this.#offs = [
      context.events.on("changed", (event) => event.conversation === id && this.#model.refresh()),
      context.events.on("opened", () => this.#model.refresh()),
      context.shortcuts("Conversation", this.#shortcuts()),
      onLook(() => this.#model.lookAgain()),
    ];
    labelsOf(context.api).then((labels) => {
      this.#labels = labels;
      if (!this.#stopped) this.#render();
    });
    this.#model.start();
  }

  get model() {
    return this.#model;
  }

  #build() {
    this.#again = button("Try again", () => this.#model.load(), { hidden: true });
    const tools = element("div", { class: "looks" }, switchOf("Shade words by how sure the bot was", this.#shaded, (on) => this.#shade(on)));
    if (this.#context.admin) tools.prepend(switchOf("As reviewers see it", asReviewer(), setAsReviewer));
    const column = element("div", { class: "turns-column" }, tools, this.#state, this.#again, this.#log, this.#live.node);
    this.#scroller = element("section", { class: "turns-scroller", tabindex: "0", "aria-label": "Messages" }, column);
    this.#scroller.addEventListener("scroll", () => this.#scrolled(), { passive: true });
    this.#observer = new ResizeObserver(() => this.#stick());
    this.#observer.observe(this.#scroller);
    this.#observer.observe(column);
    const main = element("div", { class: "conversation-main" }, this.#header.node, this.#scroller, this.#composer.node);
    return element("section", { class: "conversation", "aria-label": "Conversation" }, main, this.#panel.node);
  }

  #observer;

  stop() {
    this.#stopped = true;
    for (const off of this.#offs) off();
    this.#observer.disconnect();
    this.#model.stop();
    this.#panel.stop();
    this.#composer.stop();
  }

  focus() {
    this.#header.title.focus({ preventScroll: true });
  }

  /** Resolves when all verdicts are saved: true if all of them could be. */
  settled() {
    return this.#model.verdicts.settled();
  }

  /** Leads to a correction or a note that is still being written; false where there is none. */
  showUnsaved() {
    return this.#model.replies.some(({ id }) => this.#views.get(id)?.verdict.showUnsaved());
  }

  /** What a verdict that was not saved said in words is there again, to be saved once more. */
  #lost(error, id, verdict) {
    this.#context.failed(error);
    if (error.status === 404) return; // the reply is gone
    const stands = this.#model.verdicts.of(id);
    const { correction, note } = draftsOf(id);
    if (verdict?.corrected && verdict.corrected !== stands?.corrected) keepDraft(correction, verdict.corrected);
    if (verdict?.note && verdict.note !== stands?.note) keepDraft(note, verdict.note);
    if (this.#stopped) return;
    this.#render();
    this.#views.get(id)?.verdict.restore();
  }

  // What is shown

  #render() {
    const model = this.#model;
    const failed = model.error !== null;
    const gone = failed && model.error.status === 404;
    setHidden(this.#state, !failed && model.summary !== null);
    setHidden(this.#again, !failed || gone);
    if (failed) setText(this.#state, gone ? "This conversation is not there (any more)." : sentence(model.error));
    setHidden(this.#log, gone);
    if (gone) this.#vanished();
    if (model.summary === null || gone) return;
    this.#header.render(model);
    this.#context.title(model.summary.title || "Conversation");
    this.#choose();
    const views = model.standing.map((message) => this.#view(message));
    arrangeTurns(this.#log, views);
    for (const id of this.#views.keys()) if (!views.some((view) => view.id === id)) this.#views.delete(id);
    this.#panel.show(model.replies.find(({ id }) => id === this.#selected) ?? null);
    this.#composer.render();
    this.#tellNews();
    this.#stream();
  }

  /** It was erased: nothing of it stays on the screen. */
  #vanished() {
    if (this.#views.size > 0) this.#context.announce("This conversation is not there any more");
    this.#views.clear();
    this.#log.replaceChildren();
    this.#live.show("");
    this.#header.vanished();
    this.#panel.show(null);
    this.#composer.render();
    this.#context.title("Conversation");
    this.#options.gone();
  }

  #view(message) {
    if (!this.#views.has(message.id)) {
      this.#views.set(message.id, message.author === "bot" ? new ReplyView(message, this.#turnActions()) : new SaidView(message));
    }
    const view = this.#views.get(message.id);
    view.update(message, {
      verdict: this.#model.verdicts.of(message.id),
      saving: this.#model.verdicts.saving(message.id),
      selected: message.id === this.#selected,
      shaded: this.#shaded,
      earlier: this.#model.earlier(message),
    });
    return view;
  }

  #turnActions() {
    return {
      select: (id) => this.#select(id),
      set: (id, verdict) => this.#judge(id, verdict),
      advance: () => this.#advance(),
      labels: () => this.#labels,
      panel: (id) => {
        this.#select(id);
        this.#togglePanel(true);
      },
    };
  }

  /** At first: in review the first reply without a verdict, else the last one. */
  #choose() {
    const { replies, verdicts } = this.#model;
    if (replies.some(({ id }) => id === this.#selected)) return;
    const first = replies.find(({ id }) => verdicts.of(id) === null) ?? replies[0];
    const chosen = this.#options.review === null ? replies.at(-1) : first;
    this.#selected = chosen?.id ?? null;
    if (this.#options.review !== null && this.#selected !== null) {
      this.#following = false;
      requestAnimationFrame(() => this.#reveal());
    }
  }

  /** What comes while the conversation is open is announced once; what stood there already is not. */
  #tellNews() {
    const { standing } = this.#model;
    const last = standing.at(-1);
    if (this.#said > 0 && standing.length > this.#said && last.author !== "operator") {
      this.#context.announce(`${last.author === "visitor" ? "Visitor" : "Bot"} said: ${last.text}`);
    }
    this.#said = standing.length;
  }

  #stream() {
    this.#live.show(this.#model.live.text);
    this.#stick();
  }

  #scrolled() {
    const { scrollTop, scrollHeight, clientHeight } = this.#scroller;
    this.#following = scrollHeight - scrollTop - clientHeight < FOLLOWING;
  }

  #stick() {
    if (this.#following) this.#scroller.scrollTop = this.#scroller.scrollHeight;
  }

  #follow() {
    this.#following = true;
    this.#stick();
  }

  #reveal() {
    this.#views.get(this.#selected)?.node.scrollIntoView({ block: "nearest" });
  }

  #shade(on) {
    this.#shaded = on;
    keep(SHADES_KEPT, on ? "on" : "off");
    this.#render();
  }

  #togglePanel(open) {
    this.node.classList.toggle("explaining", open);
    if (open && getComputedStyle(this.#panel.node).position === "absolute") this.#panel.node.querySelector("button")?.focus();
    if (!open) this.#views.get(this.#selected)?.node.querySelector(".why")?.focus();
  }

  /** Of a verdict that an admin sees masked, the masked words would be kept: it is not changed. */
  #judge(id, verdict) {
    const { verdicts, masked } = this.#model;
    const { corrected, note } = verdicts.of(id) ?? {};
    if (!(this.#context.admin && masked && MASK.test(`${corrected} ${note}`))) return verdicts.set(id, verdict);
    return this.#context.notice("Personal data in this verdict is masked. Switch “As reviewers see it” off to change it.");
  }

  // Verdicts by keyboard

  #select(id) {
    if (id === this.#selected) return;
    this.#selected = id;
    this.#render();
  }

  get #current() {
    return this.#views.get(this.#selected)?.verdict ?? null;
  }

  #shortcuts() {
    const judge = (word) => () => this.#onCurrent((bar) => bar.judge(word), word === "good");
    const digits = Array.from({ length: 9 }, (_, index) => String(index + 1));
    return [
      { keys: ["n"], label: "Next reply of the bot", repeats: true, run: (event) => this.#step(1, event) },
      { keys: ["p"], label: "Previous reply", repeats: true, run: (event) => this.#step(-1, event) },
      { keys: ["g"], label: "Good", run: judge("good") },
      { keys: ["b"], label: "Bad", run: judge("bad") },
      { keys: ["c"], label: "Correct it", run: () => this.#onCurrent((bar) => bar.correct()) },
      { keys: ["m"], label: "Write a note", run: () => this.#onCurrent((bar) => bar.note()) },
      { keys: ["1 … 9", ...digits], label: "Bad, for the reason of this number", run: (event) => this.#onCurrent((bar) => bar.toggleLabel(Number(event.key))) },
      { keys: ["Ctrl+Enter"], label: "Save what is written", run: () => false },
      { keys: ["u"], label: "Undo the last verdict", run: () => this.#undo() },
      { keys: ["e"], label: "Why this reply", run: () => this.#togglePanel(!this.node.classList.contains("explaining")) },
      { keys: ["Escape"], run: () => this.node.classList.contains("explaining") && this.#togglePanel(false) !== null },
      { keys: ["t"], label: "Take over", run: () => this.#model.summary !== null && !this.#model.mine(this.#context.me) && this.#own("take") },
      { keys: ["r"], label: "Write to the visitor", run: () => this.#composer.focus() },
    ];
  }

  /** done: nothing more is to be said about it, so the next one is shown. */
  #onCurrent(action, done = false) {
    const bar = this.#current;
    if (bar === null) return false;
    const good = () => this.#model.verdicts.of(this.#selected)?.verdict === "good";
    const before = good();
    this.#reveal();
    action(bar);
    if (done && !before && good()) this.#advance();
    return true;
  }

  /** Held down, the key stops at the last reply: what comes after it in review is another conversation. */
  #step(step, event) {
    const { replies } = this.#model;
    const index = replies.findIndex(({ id }) => id === this.#selected);
    const next = replies[index + step];
    if (next === undefined) {
      if (step > 0 && this.#options.review !== null && !event.repeat) this.#options.review.next();
      return replies.length > 0;
    }
    this.#select(next.id);
    const { node } = this.#views.get(next.id);
    node.focus({ preventScroll: true });
    node.scrollIntoView({ block: "nearest" });
    return true;
  }

  /** To the next reply that has no verdict, if there is one. */
  #advance() {
    const { replies, verdicts } = this.#model;
    const index = replies.findIndex(({ id }) => id === this.#selected);
    const next = replies.slice(index + 1).find(({ id }) => verdicts.of(id) === null);
    if (next === undefined) {
      this.#options.review?.judged?.();
      return;
    }
    this.#select(next.id);
    this.#reveal();
  }

  #undo() {
    const id = this.#model.verdicts.undo();
    if (id === null) return this.#context.announce("Nothing to undo");
    this.#select(id);
    this.#reveal();
    return this.#context.announce("Undone");
  }

  // Who answers

  async #own(action) {
    this.#header.busy(true);
    try {
      await this.#model.changeOwner(action);
      if (action === "take") this.#composer.focus();
      this.#context.announce(action === "take" ? "You have taken this conversation over" : "The bot answers again");
    } catch (error) {
      if (error.status === 409) await this.#explainConflict();
      else this.#context.failed(error);
    }
    this.#header.busy(false);
  }

  /** Somebody was faster: what has become of it, in words. */
  async #explainConflict() {
    await this.#model.load();
    const { summary } = this.#model;
    if (summary === null) return;
    const { operator, owner } = summary;
    const other = owner === "operator" && operator !== this.#context.me.name;
    const words = other
      ? `${operator ?? "A colleague"} was a moment faster and has this conversation now.`
      : "This conversation has changed a moment ago. Have a look and try again.";
    this.#context.notice(words);
  }

  async #act(action, words) {
    this.#header.busy(true);
    try {
      await this.#model.act(action);
      this.#context.announce(words);
    } catch (error) {
      this.#context.failed(error);
    }
    this.#header.busy(false);
  }
}

function switchOf(words, on, change) {
  const box = element("input", { type: "checkbox", change: () => change(box.checked) });
  box.checked = on;
  return element("label", { class: "look" }, box, words);
}

function kept(key) {
  try {
    return window.localStorage.getItem(key);
  } catch {
    return null;
  }
}

function keep(key, value) {
  try {
    window.localStorage.setItem(key, value);
  } catch {
    // It then lasts until the conversation is left.
  }
}
