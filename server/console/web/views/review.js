/** The review queue: one conversation after another, the most useful first. Whoever is given one has it alone. */

import { ConversationView } from "../conversation/view.js";
import { sentence } from "../shell/api.js";
import { button, element, heading, mark, setHidden } from "../shell/elements.js";
import { gather } from "../shell/events.js";
import { count, counted } from "../shell/format.js";

const REASONS = {
  low_confidence: ["The bot was not sure", "warn"],
  thumbs_down: ["The visitor disliked a reply", "danger"],
  escalated: ["A person was asked for", "warn"],
  random: ["A random sample", "plain"],
};

/** As many as the server passes over; of more, the first may come again. */
const MOST_SKIPPED = 500;
/** Milliseconds after which the claim on an open conversation is renewed: it holds for ten minutes. */
const KEEP = 180_000;
/** Milliseconds after which an empty queue is looked at again: talks come into it once they are quiet. */
const IDLE = 20_000;

export function mount(root, context) {
  const review = new Review(root, context);
  return () => review.unmount();
}

class Review {
  #context;
  #view = null;
  #current = null;
  #skipped = [];
  #offs = [];
  #busy = false;
  #ended = false;
  #idle = null;
  #keeping = null;
  #done;
  #skip;
  #reason = element("span", { class: "review-reason" });
  #progress = element("dl", { class: "progress" });
  #bar = element("progress", { class: "review-bar", max: "1", value: "0", "aria-label": "Reviewed today" });
  #place = element("div", { class: "conversation-place" });
  #left = () => this.#release();
  #countAgain = gather(() => this.#count(), 400, 2_000);

  constructor(root, context) {
    this.#context = context;
    this.#skip = button("Skip", () => this.#next("skip"), { picture: "skip", "aria-keyshortcuts": "s", title: "s" });
    this.#done = button("Done, next", () => this.#next("done"), { kind: "solid", picture: "good", "aria-keyshortcuts": "d", title: "d" });
    const buttons = element("div", { class: "review-buttons" }, this.#skip, this.#done);
    const title = heading(1, "Review");
    const head = element("header", { class: "review-head" }, title, this.#reason, this.#progress, buttons, this.#bar);
    root.classList.add("review");
    root.append(head, this.#place);
    this.#offs = [
      context.events.on("changed", ({ what }) => what === "reviewed" && this.#countAgain(0)), // colleagues are at it too
      context.events.on("opened", () => this.#countAgain(0)),
      context.shortcuts("Review", [
        { keys: ["d"], label: "Done, next conversation", run: () => this.#next("done") },
        { keys: ["s"], label: "Skip this one", run: () => this.#next("skip") },
      ]),
    ];
    window.addEventListener("pagehide", this.#left);
    context.onRoute(() => {});
    this.#keeping = setInterval(() => this.#keep(), KEEP);
    this.#show(null);
    this.#begin();
    this.#count();
  }

  unmount() {
    this.#ended = true;
    clearTimeout(this.#idle);
    clearInterval(this.#keeping);
    this.#countAgain.cancel();
    window.removeEventListener("pagehide", this.#left);
    for (const off of this.#offs) off();
    this.#view?.stop();
    this.#release();
  }

  /** Whoever reads for long keeps the conversation; one that was left open in another tab comes free. */
  async #keep() {
    const id = this.#current;
    if (id === null || document.hidden) return;
    try {
      await this.#context.api.post(`/conversations/${encodeURIComponent(id)}/review/keep`);
    } catch (error) {
      if (error.status !== 409 || id !== this.#current) return; // tried again in a while
      this.#context.notice("Somebody else reviews this conversation by now. Your next verdict still counts; skip it to go on.");
    }
  }

  /** Somebody else may have the conversation. */
  #release() {
    if (this.#current === null) return;
    const path = `/conversations/${encodeURIComponent(this.#current)}/review/release`;
    this.#current = null;
    this.#context.api.post(path, undefined, { keepalive: true }).catch(() => {}); // it ends by itself in ten minutes
  }

  async #begin() {
    clearTimeout(this.#idle);
    this.#busy = true;
    this.#buttons();
    try {
      this.#show(await this.#ask([]));
    } catch (error) {
      this.#failed(error);
    }
    this.#busy = false;
    this.#buttons();
  }

  #ask(more) {
    return this.#context.api.post("/review/next", { skip: [...this.#skipped, ...more].slice(-MOST_SKIPPED) });
  }

  /** how: done or skip. The next one is asked for while this one is put away. */
  async #next(how) {
    if (this.#busy || this.#current === null) return;
    if (this.#view.showUnsaved()) return this.#context.notice("What you are writing is not saved yet. Save it, or cancel it, first.");
    this.#busy = true;
    this.#buttons();
    const id = this.#current;
    const path = `/conversations/${encodeURIComponent(id)}/review`;
    try {
      if (how === "done" && !(await this.#view.settled())) throw new Error("A verdict was not saved, so this one stays open");
      if (how === "skip") this.#skipped.push(id);
      const [next] = await Promise.all([this.#ask([id]), this.#put(`${path}/${how === "done" ? "done" : "release"}`)]);
      this.#current = null;
      if (this.#ended) return;
      this.#show(next);
      this.#count();
    } catch (error) {
      this.#context.failed(error);
    }
    this.#busy = false;
    this.#buttons();
  }

  /** What was erased meanwhile is put away as it is. */
  async #put(path) {
    try {
      await this.#context.api.post(path);
    } catch (error) {
      if (error.status !== 404) throw error;
    }
  }

  #buttons() {
    this.#skip.disabled = this.#done.disabled = this.#busy || this.#current === null;
  }

  /** told: what POST /review/next says; null before it has said anything. */
  #show(told) {
    this.#view?.stop();
    this.#view = null;
    this.#current = told?.conversation ?? null;
    if (this.#ended) return this.#release();
    this.#reason.replaceChildren();
    if (this.#current === null) {
      clearTimeout(this.#idle);
      this.#idle = setTimeout(() => this.#lookAgain(), IDLE);
      this.#place.replaceChildren(told === null ? message("Looking for the next conversation…") : this.#nothingLeft());
      if (told !== null) this.#context.announce("Nothing is left to review");
      return;
    }
    const [words, tone] = REASONS[told.reason] ?? [String(told.reason), "plain"];
    this.#reason.replaceChildren(mark(words, tone));
    this.#view = new ConversationView(this.#context, this.#current, {
      review: { next: () => this.#next("done"), judged: () => this.#context.announce("All replies are judged. D for the next conversation.") },
    });
    this.#place.replaceChildren(this.#view.node);
    this.#view.focus();
    this.#context.announce(words);
  }

  #nothingLeft() {
    const again = button("Look again", () => {
      this.#skipped = [];
      this.#begin();
    });
    const skipped = this.#skipped.length;
    const words = "Nothing is left to review right now. Conversations come here when they have been quiet for a while.";
    const passed = `Nothing is left to review right now but what you have skipped: ${counted(skipped, "conversation", "conversations")}.`;
    return message(skipped > 0 ? passed : words, again);
  }

  /** By itself, and without a word as long as there is nothing. */
  async #lookAgain() {
    if (this.#busy || this.#current !== null || this.#ended) return;
    this.#idle = setTimeout(() => this.#lookAgain(), IDLE);
    if (document.hidden) return;
    try {
      const told = await this.#ask([]);
      if (told.conversation === null) return;
      if (this.#busy || this.#current !== null) this.#skipped.push(told.conversation);
      else this.#show(told);
      this.#buttons();
    } catch {
      // Asked again next time.
    }
  }

  #failed(error) {
    const again = button("Try again", () => this.#begin());
    this.#place.replaceChildren(message(sentence(error), again));
  }

  async #count() {
    try {
      const told = await this.#context.api.get("/review/progress");
      if (!this.#ended) this.#showProgress(told);
    } catch {
      // Asked for again after the next conversation.
    }
  }

  #showProgress({ waiting, reviewed_today: today, by, corrections }) {
    const mine = by.find(({ operator }) => operator === this.#context.me.name)?.today ?? 0;
    const fact = (words, value) => element("div", {}, element("dt", {}, words), element("dd", {}, count(value)));
    this.#progress.replaceChildren(
      fact("Yours today", mine),
      fact("Team today", today),
      fact("Waiting", waiting),
      fact("Corrections", corrections),
    );
    this.#bar.max = Math.max(1, today + waiting);
    this.#bar.value = today;
    setHidden(this.#bar, false);
  }
}

function message(words, ...more) {
  return element("div", { class: "no-conversation", role: "status" }, element("p", {}, words), ...more);
}
