/**
 * Keyboard shortcuts. Views and their parts put groups of them to use and take them away again; of two for the
 * same key, the later one has it. Single letters can be switched off, for those who speak to their computer.
 */

import { byId, element } from "./elements.js";

const KEPT = "turnwise.console.single-keys";

/** "Ctrl+Enter", "?", "j": the name of what was pressed. */
export function keyName(event) {
  const held = [
    (event.ctrlKey || event.metaKey) && "Ctrl",
    event.altKey && "Alt",
    event.shiftKey && event.key.length > 1 && "Shift",
  ];
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  return [...held.filter(Boolean), key].join("+");
}

/** Whether what is typed there is text. */
export function takesText(node) {
  if (!(node instanceof HTMLElement)) return false;
  const plain = ["checkbox", "radio", "button", "submit", "reset", "range"];
  return node.isContentEditable || node.matches("textarea, select") || (node.matches("input") && !plain.includes(node.type));
}

export class Keyboard {
  #groups = [];
  #single = true;

  constructor() {
    try {
      this.#single = window.localStorage.getItem(KEPT) !== "off";
    } catch {
      // Blocked storage: they are on.
    }
    document.addEventListener("keydown", (event) => this.#pressed(event));
  }

  /**
   * title: the group's heading in the help. shortcuts: [{keys: ["j"], label, run(event), typing, repeats}]; `typing`
   * ones also work while a text field has the focus. `run` may return false: not for me, ask the next one. A key that
   * is held down acts once, unless it `repeats`: nobody means to judge a reply that they have not seen.
   */
  use(title, shortcuts) {
    const group = { title, shortcuts };
    this.#groups.unshift(group);
    return () => {
      this.#groups = this.#groups.filter((other) => other !== group);
    };
  }

  #pressed(event) {
    if (event.isComposing || event.defaultPrevented || document.querySelector("dialog[open]")) return;
    const pressed = keyName(event);
    const typing = takesText(event.target);
    if (pressed.length === 1 && !this.#single) return;
    // Enter and Space belong to the control that has the focus.
    if ([" ", "Enter"].includes(pressed) && event.target.closest?.("button, a, summary, input, select, textarea")) return;
    for (const { shortcuts } of this.#groups) {
      for (const { keys, run, typing: whileTyping = false, repeats = false } of shortcuts) {
        if (!keys.includes(pressed) || (typing && !whileTyping)) continue;
        if ((!event.repeat || repeats) && run(event) === false) continue;
        event.preventDefault();
        return;
      }
    }
  }

  openHelp() {
    const groups = [...this.#groups].reverse().map(({ title, shortcuts }) => {
      const rows = shortcuts
        .filter(({ label }) => label)
        .map(({ keys, label }) => element("div", {}, element("dt", {}, label), element("dd", {}, ...keycaps(keys[0]))));
      return element("section", { class: "key-group" }, element("h3", {}, title), element("dl", { class: "keys" }, ...rows));
    });
    byId("help-keys").replaceChildren(...groups);
    const box = byId("single-keys");
    box.checked = this.#single;
    box.onchange = () => this.#switch(box.checked);
    byId("help").showModal();
  }

  #switch(on) {
    this.#single = on;
    try {
      window.localStorage.setItem(KEPT, on ? "on" : "off");
    } catch {
      // It then lasts until the page is closed.
    }
  }
}

function keycaps(keys) {
  return keys.split("+").flatMap((key, index) => [index > 0 ? " " : null, element("kbd", {}, key)]);
}
