/** Replies that are kept ready. A slash at the beginning of the message box finds them. */

const FRESH = 60_000;
const MOST = 8;

export class CannedReplies {
  #api;
  #known = null;
  #asked = 0;

  constructor(api) {
    this.#api = api;
  }

  /** Asks for them, unless they are known well enough. */
  async load() {
    if (this.#known !== null && Date.now() - this.#asked < FRESH) return;
    const { canned } = await this.#api.get("/canned");
    this.#known = canned;
    this.#asked = Date.now();
  }

  /** [{id, title, text}] whose title or text has all these words; titles that begin with them come first. */
  find(wanted) {
    const words = wanted.toLocaleLowerCase().split(/\s+/).filter(Boolean);
    const has = (text) => words.every((word) => text.toLocaleLowerCase().includes(word));
    const rank = ({ title }) => (title.toLocaleLowerCase().startsWith(wanted.trim().toLocaleLowerCase()) ? 0 : has(title) ? 1 : 2);
    const fitting = (this.#known ?? []).filter(({ title, text }) => has(`${title} ${text}`));
    return fitting.sort((one, other) => rank(one) - rank(other)).slice(0, MOST);
  }
}
