/** The navigation: at the side of a wide screen, at the foot of a phone. */

import { byId, element, icon, setText } from "./elements.js";
import { count } from "./format.js";
import { hrefOf } from "./router.js";

export class Rail {
  #views;
  #links = new Map();
  #badges = new Map();

  constructor(views) {
    this.#views = views;
    for (const { name, title, icon: picture } of views) {
      const badge = element("span", { class: "badge", hidden: true });
      const words = element("span", { class: "rail-words" }, title);
      const link = element("a", { href: hrefOf(name) }, icon(picture), words, badge);
      this.#links.set(name, link);
      this.#badges.set(name, badge);
    }
    byId("rail").replaceChildren(element("ul", {}, ...[...this.#links.values()].map((link) => element("li", {}, link))));
  }

  current(name) {
    for (const [other, link] of this.#links) {
      if (other === name) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    }
  }

  badges(counts) {
    for (const { name, badge: number } of this.#views) {
      const value = number?.(counts) ?? 0;
      const badge = this.#badges.get(name);
      badge.hidden = value === 0;
      setText(badge, value > 99 ? "99+" : count(value));
    }
  }

  /** Alt and a digit: the views in their order. */
  shortcuts(go) {
    return this.#views.map(({ name, title }, index) => ({
      keys: [`Alt+${index + 1}`],
      label: title,
      typing: true,
      run: () => go(hrefOf(name)),
    }));
  }
}
