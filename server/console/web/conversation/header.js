/** Whose conversation it is, how it stands, and what can be done with it as a whole. */

import { arrange, button, element, heading, iconButton, mark, name, setAttribute, setHidden, setText } from "../shell/elements.js";
import { lasted, wholeTime } from "../shell/format.js";

export class ConversationHeader {
  #actions;
  #me;
  #marks = element("div", { class: "marks" });
  #buttons = element("div", { class: "conversation-actions" });
  #signature = "";
  #busy = false;
  title = heading(2, "Conversation", { tabindex: "-1", dir: "auto" });

  /** actions: {back(), take(), handBack(), close(), reopen(), panel()} */
  constructor(me, actions) {
    this.#me = me;
    this.#actions = actions;
    const back = iconButton("back", "Back to the list", () => actions.back(), { class: "back" });
    const words = element("div", { class: "conversation-title" }, this.title, this.#marks);
    this.node = element("header", { class: "conversation-head" }, back, words, this.#buttons);
    setHidden(back, actions.back === null);
  }

  render(model) {
    const { summary } = model;
    if (summary === null) return;
    setText(this.title, summary.title || "(no words)");
    const signature = JSON.stringify([summary, model.masked]);
    if (signature === this.#signature) return;
    this.#signature = signature;
    this.#marks.replaceChildren(...this.#stand(summary, model.masked));
    this.#showButtons(model);
  }

  /** There is nothing to be done with it any more. */
  vanished() {
    setText(this.title, "Conversation");
    this.#signature = "";
    this.#marks.replaceChildren();
    this.#buttons.replaceChildren();
  }

  #stand(summary, masked) {
    const waiting = summary.waiting_since && `Waiting for a person, ${lasted(new Date(summary.waiting_since))}`;
    const byMe = summary.operator === this.#me.name;
    return [
      element("span", { class: "visitor", title: `Conversation ${summary.id}` }, "Visitor ", element("code", {}, summary.visitor)),
      element("time", { datetime: summary.created_at }, wholeTime(new Date(summary.created_at))),
      waiting && mark(waiting, "warn", "clock"),
      summary.owner === "operator" && byMe && mark("Yours", "accent", "person"),
      summary.owner === "operator" && !byMe && element("span", { class: "mark accent" }, "With ", name(summary.operator ?? "a person")),
      summary.closed_at && mark("Closed"),
      summary.reviewed_at && mark("Reviewed", "good", "review"),
      masked && mark("Personal data masked"),
    ].filter(Boolean);
  }

  /** Buttons that stay keep their place and the focus. */
  #showButtons(model) {
    const { summary } = model;
    const mine = model.mine(this.#me);
    const taken = summary.owner === "operator";
    const wanted = [];
    if (!model.open) wanted.push("reopen");
    else if (mine) wanted.push("handBack", "close");
    else wanted.push("take");
    const words = {
      take: taken ? "Take it from them" : "Take over",
      handBack: "Hand back",
      close: "Close",
      reopen: "Reopen",
    };
    const had = new Map([...this.#buttons.children].map((node) => [node.dataset.action, node]));
    const focused = this.#buttons.contains(document.activeElement);
    const nodes = wanted.map((action) => {
      const node = had.get(action) ?? this.#button(action);
      setText(node.lastChild, words[action]);
      return node;
    });
    arrange(this.#buttons, nodes);
    if (focused && !this.#buttons.contains(document.activeElement)) nodes[0]?.focus();
  }

  #button(action) {
    const kind = action === "take" ? "solid" : "quiet";
    const click = () => this.#busy || this.#actions[action]();
    const node = button("", click, { kind, picture: action === "take" ? "hand" : null });
    node.dataset.action = action;
    return node;
  }

  /** While a request is under way, a second click does nothing. A disabled button would lose the focus. */
  busy(busy) {
    this.#busy = busy;
    for (const node of this.#buttons.children) setAttribute(node, "aria-disabled", String(busy));
  }
}
