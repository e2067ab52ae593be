/** Things said once: aloud by a screen reader, and as a note that goes away by itself. */

import { byId, element, icon } from "./dom.js";

const NOTICE_LASTS = 8_000;

/** Said politely by a screen reader, not shown. */
export function announce(text) {
  const announcer = byId("announcer");
  // A live region speaks when it changes; the same words twice need a change in between.
  announcer.textContent = "";
  requestAnimationFrame(() => {
    announcer.textContent = text;
  });
}

/** Shown for a while, longer while it is pointed at or holds the focus, and announced. The same words again take the place of those that are still shown. */
export function notice(text) {
  for (const old of [...byId("notices").children]) if (old.firstChild.textContent === text) old.remove();
  const close = element("button", { type: "button", class: "icon-button", "aria-label": "Dismiss" }, icon("close"));
  const node = element("div", { class: "notice" }, element("p", {}, text), close);
  const leave = () => (node.matches(":hover, :focus-within") ? wait() : node.remove());
  const wait = () => setTimeout(leave, NOTICE_LASTS);
  close.addEventListener("click", () => node.remove());
  wait();
  byId("notices").append(node);
  announce(text);
}
