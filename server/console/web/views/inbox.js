/** The inbox: the list of conversations, and the one that is open. /operator/inbox/<conversation>?<filters> */

import { ConversationView } from "../conversation/view.js";
import { FilterBar } from "../inbox/filter_bar.js";
import { filtersOf, offerChoices } from "../inbox/filters.js";
import { ConversationList } from "../inbox/list.js";
import { Rows } from "../inbox/rows.js";
import { onLook } from "../shell/as_reviewer.js";
import { element, heading, setAttribute } from "../shell/elements.js";
import { gather } from "../shell/events.js";
import { counted } from "../shell/format.js";
import { hrefOf } from "../shell/router.js";

export function mount(root, context) {
  const inbox = new Inbox(root, context);
  return () => inbox.unmount();
}

class Inbox {
  #root;
  #context;
  #filters = null;
  #rows;
  #list;
  #bar;
  #open = null;
  #shown;
  #place = element("div", { class: "conversation-place" });
  #export = element("a", { class: "export-link", title: "Export these conversations" }, "Export");
  #offs = [];
  #fresh;
  #byKey = false;

  constructor(root, context) {
    this.#root = root;
    this.#context = context;
    this.#rows = new Rows(context.api, context.me, () => this.#rendered());
    this.#list = new ConversationList(this.#rows, (id) => hrefOf("inbox", [id], this.#filters));
    this.#list.onAgain = () => this.#rows.begin(this.#filters);
    this.#bar = new FilterBar((filters, { typing }) => this.#filter(filters, typing));
    const side = element("section", { class: "inbox-side", "aria-label": "Inbox" }, element("div", { class: "inbox-head" }, heading(1, "Inbox"), this.#export), this.#bar.node, this.#list.node);
    root.classList.add("inbox");
    root.append(side, this.#place);
    this.#fresh = gather((changed) => this.#rows.refresh(changed), 400, 2_000);
    this.#offs = [
      context.events.on("changed", ({ conversation }) => this.#fresh(conversation)),
      context.events.on("opened", () => this.#fresh("")),
      context.events.on("counts", (counts) => this.#bar.counts(counts)),
      context.shortcuts("Inbox", this.#shortcuts()),
      onLook(() => this.#rows.begin(this.#filters)),
    ];
    this.#bar.counts(context.counts());
    context.onRoute((route) => this.#route(route));
    this.#route(context.route);
    offerChoices(context.api, (name, choices) => this.#bar.offer(name, choices)); // without it those choices stay empty
  }

  unmount() {
    for (const off of this.#offs) off();
    this.#fresh.cancel();
    this.#rows.stop();
    this.#list.stop();
    this.#bar.stop();
    this.#open?.stop();
  }

  #shortcuts() {
    return [
      { keys: ["j", "ArrowDown"], label: "Next conversation", repeats: true, run: (event) => this.#move(event, 1) },
      { keys: ["k", "ArrowUp"], label: "Previous conversation", repeats: true, run: (event) => this.#move(event, -1) },
      { keys: ["Enter"], label: "Open it", run: () => this.#list.move(0) !== null },
      { keys: ["/"], label: "Search", run: () => this.#bar.focusSearch() },
      { keys: ["Escape"], label: "Back to the list", run: () => this.#back() },
    ];
  }

  /** Arrows move within the list only: elsewhere they scroll. Where a conversation is open, the next one opens. */
  #move(event, step) {
    if (event.key.startsWith("Arrow") && !event.target.closest?.(".list-scroller")) return false;
    const id = this.#list.move(step);
    if (id === null || this.#open === null) return true;
    this.#byKey = true;
    this.#context.go(hrefOf("inbox", [id], this.#filters), { replace: true });
    this.#byKey = false;
    return true;
  }

  #back() {
    if (this.#open === null) return false;
    this.#context.go(hrefOf("inbox", [], this.#filters));
    return true;
  }

  #filter(filters, typing) {
    const rest = this.#open === null ? [] : [this.#open.id];
    const again = typing && this.#filters.q !== undefined && filters.q !== undefined;
    this.#context.go(hrefOf("inbox", rest, filters), { replace: again });
  }

  #route({ rest, query }) {
    const filters = filtersOf(query);
    const [id = null] = rest;
    if (this.#filters === null || !sameFilters(filters, this.#filters)) {
      this.#filters = filters;
      this.#bar.show(filters);
      setAttribute(this.#export, "href", hrefOf("data", [], { state: "open", ...filters }));
      this.#list.top();
      this.#rows.begin(filters);
    }
    if (id !== this.#shown) this.#show(id);
    this.#list.render(id);
  }

  #show(id) {
    const left = this.#shown ?? null;
    this.#shown = id;
    this.#open?.stop();
    this.#open = null;
    this.#root.classList.toggle("reading", id !== null);
    if (id === null) {
      this.#place.replaceChildren(welcome());
      this.#context.title("Inbox");
      if (left !== null) this.#list.focusRow(left);
      return;
    }
    this.#open = new ConversationView(this.#context, id, {
      back: () => this.#back(),
      gone: () => this.#fresh(id),
    });
    this.#place.replaceChildren(this.#open.node);
    if (!this.#byKey && this.#list.node.contains(document.activeElement)) this.#open.focus();
  }

  #words = "";

  /** How much was found is announced once a search or a filter has brought its answer. */
  #rendered() {
    this.#list.render();
    if (this.#rows.loading || !this.#rows.loaded) return;
    const words = `${JSON.stringify(this.#filters)}`;
    if (words === this.#words) return;
    const first = this.#words === "";
    this.#words = words;
    const found = this.#rows.rows.length;
    if (!first) this.#context.announce(`${counted(found, "conversation", "conversations")}${this.#rows.more ? " or more" : ""}`);
  }
}

function sameFilters(one, other) {
  const names = new Set([...Object.keys(one), ...Object.keys(other)]);
  return [...names].every((name) => one[name] === other[name]);
}

function welcome() {
  const keys = [["j", "k"], ["Enter"], ["/"], ["?"]];
  const words = ["next and previous", "open", "search", "all shortcuts"];
  const rows = keys.map((caps, index) =>
    element("div", {}, element("dt", {}, ...caps.flatMap((cap) => [element("kbd", {}, cap), " "])), element("dd", {}, words[index])),
  );
  return element(
    "div",
    { class: "no-conversation" },
    element("img", { src: "/static/icon.svg", alt: "", width: "56", height: "56" }),
    element("p", {}, "Choose a conversation to read it, review it or take it over."),
    element("dl", { class: "hints" }, ...rows),
  );
}
