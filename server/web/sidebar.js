/** Earlier conversations: a column beside the chat, a drawer over it on a narrow screen. */

import { byId, coalesce, element, setAttribute, setHidden } from "./dom.js";
import { dayWords } from "./words.js";

const NARROW = window.matchMedia("(max-width: 52rem)");

/** How many conversations are listed at first, and how many more the server gives at a time. */
const LISTED = 50;
const MORE = 200;

/** The address that opens a conversation; plain links, so that they open in new tabs as well. */
export const addressOf = (conversation) => `#c/${conversation}`;

export class Sidebar {
  #chat;
  #known = [];
  #signature = "";
  #open = false;
  #asked = 0;
  #wanted = LISTED;
  #nav = byId("sidebar");
  #opener = byId("open-drawer");
  #backdrop = byId("backdrop");
  #more = byId("more-conversations");

  /** Asks the server for the list, once for any number of calls in a row. */
  refresh = coalesce(() => this.#fetch());

  constructor(chat) {
    this.#chat = chat;
    this.#opener.addEventListener("click", () => this.toggle(!this.#open));
    this.#backdrop.addEventListener("click", () => this.toggle(false));
    byId("close-drawer").addEventListener("click", () => this.toggle(false));
    this.#nav.addEventListener("click", (event) => {
      if (event.target.closest("a")) this.toggle(false);
    });
    this.#more.addEventListener("click", () => this.#showMore());
    NARROW.addEventListener("change", () => this.toggle(false));
    this.toggle(false);
  }

  get open() {
    return this.#open;
  }

  /** Opens or closes the drawer; as a column it is always there. */
  toggle(open) {
    const was = this.#open;
    this.#open = open && NARROW.matches;
    this.#nav.classList.toggle("open", this.#open);
    this.#nav.inert = NARROW.matches && !this.#open;
    this.#backdrop.hidden = !this.#open;
    byId("main").inert = this.#open;
    byId("bar").inert = this.#open;
    setAttribute(this.#opener, "aria-expanded", String(this.#open));
    if (this.#open) byId("new-chat").focus();
    else if (was) this.#opener.focus();
  }

  /** Marks the conversation in view, and shows the list as last fetched. */
  render() {
    const current = this.#chat.conversation.id;
    const signature = JSON.stringify([current, this.#known]);
    if (signature === this.#signature) return;
    this.#signature = signature;
    setHidden(byId("no-conversations"), this.#known.length > 0);
    const groups = Map.groupBy
      ? Map.groupBy(this.#known, ({ updated_at: at }) => dayWords(new Date(at)))
      : new Map([["Conversations", this.#known]]);
    const focused = this.#nav.contains(document.activeElement) ? document.activeElement.getAttribute("href") : null;
    byId("conversations").replaceChildren(...Array.from(groups, ([title, list]) => this.#group(title, list, current)));
    if (focused) this.#nav.querySelector(`a[href="${CSS.escape(focused)}"]`)?.focus();
  }

  #group(title, list, current) {
    const links = list.map(({ id, title: words }) => {
      const here = id === current ? "page" : null;
      const link = element("a", { href: addressOf(id), "aria-current": here, dir: "auto" }, words || "Conversation");
      return element("li", {}, link);
    });
    return element("section", {}, element("h2", {}, title), element("ul", {}, ...links));
  }

  async #fetch() {
    const { token } = this.#chat;
    if (token === null) return;
    const asked = ++this.#asked;
    try {
      const found = await listed(token, this.#wanted);
      // A slow answer must not overwrite that of a later question.
      if (asked !== this.#asked) return;
      this.#known = found;
      this.render();
      setHidden(this.#more, found.length < this.#wanted);
    } catch {
      // Without a connection the list stays as it was; the banner tells why.
    }
  }

  /** The focus goes to the first of those that were not listed before: the button may be gone. */
  async #showMore() {
    const before = this.#known.length;
    this.#wanted += MORE;
    await this.#fetch();
    this.#nav.querySelectorAll(".conversations a")[before]?.focus();
  }
}

/** The latest `count` conversations, fewer if there are no more. */
async function listed(token, count) {
  const headers = { Authorization: `Bearer ${token}` };
  const found = new Map(); // One that moves up between two answers is in both.
  for (let offset = 0; offset < count; offset += MORE) {
    const limit = Math.min(MORE, count - offset);
    const address = `/api/conversations?limit=${limit}&offset=${offset}`;
    const response = await fetch(address, { headers, cache: "no-store" });
    if (!response.ok) throw new Error(`no list: ${response.status}`);
    const { conversations } = await response.json();
    for (const one of conversations) found.set(one.id, one);
    if (conversations.length < limit) break;
  }
  return [...found.values()];
}
