/** What a candidate would answer otherwise: in groups, best and worst first, and as blind pairs. */

import { section, tile, tiles } from "../desk/pieces.js";
import { sentence } from "../shell/api.js";
import { button, element, heading, mark, setHidden, speech } from "../shell/elements.js";
import { count } from "../shell/format.js";
import { hrefOf } from "../shell/router.js";

const JUDGED = { base: ["the old one is better", "warn"], candidate: ["the new one is better", "good"], neither: ["no difference", "plain"] };

export class ChangesView {
  #context;
  #path;
  #ended = false;
  #order = "worst";
  #group = null;
  #next = null;
  #asked = 0;
  #counts = element("div", {});
  #list = element("ul", { class: "changes" });
  #groups = element("select", { change: () => this.#choose({ group: this.#groups.value || null }) });
  #orders = element("select", { change: () => this.#choose({ order: this.#orders.value }) }, element("option", { value: "worst" }, "Worst first"), element("option", { value: "best" }, "Best first"));
  #none = element("p", { class: "soft", hidden: true }, "No reply would change.");
  #more = button("More", () => this.#page());
  #pair = element("div", { class: "pair" });
  #judged = element("span", { id: "judged" }, "0");

  constructor(context, job) {
    this.#context = context;
    this.#path = `/jobs/${encodeURIComponent(job)}`;
    this.head = [element("a", { class: "back-link", href: hrefOf("retraining", [job]) }, "The retraining"), heading(1, "What would change")];
    const orders = element("label", { class: "field" }, element("span", { class: "field-words" }, "Order"), this.#orders);
    const groups = element("label", { class: "field" }, element("span", { class: "field-words" }, "Replies like"), this.#groups);
    this.node = element("div", {},
      this.#counts,
      section("Which is better?", [
        element("p", { class: "soft" }, "You are not told which reply is whose. Keys: ", element("kbd", {}, "1"), " ", element("kbd", {}, "2"), " and ", element("kbd", {}, "0"), " for no difference. Judged so far: ", this.#judged, "."),
        this.#pair,
      ]),
      section("Side by side", [element("div", { class: "flow" }, orders, groups), this.#none, this.#list, this.#more]));
    this.off = context.shortcuts("Blind pairs", [
      { keys: ["1"], label: "The first is better", run: () => this.#judge("first") },
      { keys: ["2"], label: "The second is better", run: () => this.#judge("second") },
      { keys: ["0"], label: "No difference", run: () => this.#judge("neither") },
    ]);
    this.#page();
    this.#ask();
  }

  stop() {
    this.#ended = true;
    this.off();
  }

  #choose({ order = this.#order, group = this.#group }) {
    this.#order = order;
    this.#group = group;
    this.#next = null;
    this.#list.replaceChildren();
    this.#page();
  }

  async #page() {
    const mine = (this.#asked += 1);
    try {
      const told = await this.#context.api.get(`${this.#path}/changes`, { order: this.#order, group: this.#group, cursor: this.#next });
      if (this.#ended || mine !== this.#asked) return; // another order or group was chosen meanwhile
      this.#next = told.next;
      setHidden(this.#more, told.next === null);
      this.#count(told);
      if (this.#groups.childElementCount === 0) {
        const options = told.groups.map(({ group, count: size, example }) => element("option", { value: group }, `${example.slice(0, 60)} (${count(size)})`));
        this.#groups.replaceChildren(element("option", { value: "" }, "All"), ...options);
      }
      this.#list.append(...told.changes.map(change));
      setHidden(this.#none, this.#list.childElementCount > 0);
    } catch (error) {
      this.#context.failed(error);
    }
  }

  #count({ wins, losses, ties }) {
    this.#judged.textContent = count(wins + losses + ties);
    this.#counts.replaceChildren(tiles(tile("The new one is better", count(wins)), tile("The old one is better", count(losses)), tile("No difference", count(ties))));
  }

  async #ask() {
    this.pair = null;
    try {
      const told = await this.#context.api.post(`${this.#path}/pairs/next`);
      if (!this.#ended) this.#showPair(told);
    } catch (error) {
      const again = button("Try again", () => this.#ask());
      this.#pair.replaceChildren(element("p", { class: "soft", role: "status" }, sentence(error)), again);
    }
  }

  /** Whose focus was on the pair before finds it on this one. */
  #showPair(told) {
    const label = this.#pair.contains(document.activeElement) ? document.activeElement.textContent : null;
    this.pair = told.pair;
    this.#drawPair(told);
    if (label !== null) [...this.#pair.querySelectorAll("button")].find((each) => each.textContent === label)?.focus();
  }

  #drawPair(told) {
    if (told.pair === null) {
      this.#pair.replaceChildren(element("p", { class: "soft", role: "status" }, "All pairs are judged."));
      return;
    }
    const reply = (words, text, choice) => element("div", { class: "pair-reply" }, heading(3, words), speech(text), button(`${words} is better`, () => this.#judge(choice)));
    this.#pair.replaceChildren(
      turns(told.turns),
      element("div", { class: "pair-replies" }, reply("The first", told.first, "first"), reply("The second", told.second, "second")),
      button("No difference", () => this.#judge("neither")),
    );
  }

  async #judge(preferred) {
    const { pair } = this;
    if (!pair) return;
    this.pair = null;
    try {
      await this.#context.api.post(`/pairs/${encodeURIComponent(pair)}`, { preferred });
    } catch (error) {
      if (error.status !== 409) this.#context.failed(error); // somebody else was faster
    }
    await this.#ask();
    try {
      this.#count(await this.#context.api.get(`${this.#path}/changes`, { limit: 1 }));
    } catch (error) {
      this.#context.failed(error);
    }
  }
}

function turns(list) {
  return element("ol", { class: "pair-turns" }, ...list.slice(-4).map(({ role, text }) => element("li", { class: role }, element("span", { class: "soft" }, role === "user" ? "Visitor" : "Agent"), speech(text))));
}

function change(each) {
  const judged = each.preferred && mark(...JUDGED[each.preferred]);
  return element("li", {},
    turns(each.before.slice(-1)),
    element("div", { class: "pair-replies" },
      element("div", { class: "pair-reply" }, heading(3, "Now"), speech(each.base_text)),
      element("div", { class: "pair-reply" }, heading(3, "Then"), speech(each.candidate_text))),
    element("p", { class: "flow soft" }, `${each.gain >= 0 ? "+" : ""}${each.gain.toFixed(2)} nats a token`, judged, element("a", { href: hrefOf("inbox", [each.conversation], { state: "all" }) }, "The conversation")));
}
