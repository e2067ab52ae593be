/** The audit log, all of it or what its filters leave. */

import { field, form, redraw, row, table } from "../desk/pieces.js";
import { dayBegins, dayEnds } from "../shell/days.js";
import { button, element, name, setHidden } from "../shell/elements.js";
import { counted, wholeTime } from "../shell/format.js";
import { Part } from "./part.js";

const PAGE = 25;
/** In the place of a name, here and in the server's filter. */
const COMMAND_LINE = "command line";
const COLUMNS = [{ title: "When" }, { title: "Who" }, { title: "What" }, { title: "To" }, { title: "Details" }];

export class Audit extends Part {
  #filters = {};
  #rows = [];
  #next = null;
  #asked = 0;
  #known = { account: new Set(), action: new Set() };
  #offered = { account: element("datalist", { id: "audit-account" }), action: element("datalist", { id: "audit-action" }) };
  #more = button("Earlier", () => this.tried(() => this.#fetch(this.#next)), { hidden: true });

  constructor(context) {
    super(context, "Audit log", "Who did what. What anybody said is never in it. Days are yours, from midnight to midnight.");
    this.list.before(this.#form(), ...Object.values(this.#offered));
    this.node.append(this.#more);
  }

  #form() {
    const text = (key) => element("input", { type: "text", name: key, list: `audit-${key}`, maxlength: "100", autocomplete: "off", spellcheck: "false" });
    const day = (key) => element("input", { type: "date", name: key });
    const fields = [field("Account", text("account")), field("Action", text("action")), field("From", day("from")), field("Until", day("to"))];
    const all = button("Show all", () => {
      node.reset();
      this.#filter({});
    }, { kind: "text" });
    const node = form("Filter", fields, (values) => this.#filter(values), { kind: "quiet", place: (go) => row(go, all) });
    return node;
  }

  async #filter({ account = "", action = "", from = "", to = "" }) {
    this.#filters = { account: account.trim(), action: action.trim(), from: dayBegins(from), to: dayEnds(to) };
    await this.show();
    this.context.announce(`${counted(this.#rows.length, "entry", "entries")}${this.#next === null ? "" : " or more"}`);
  }

  async show() {
    await this.tried(() => this.#fetch(null));
  }

  /** before: the `next` of the page before; null for the first page. */
  async #fetch(before) {
    const mine = ++this.#asked;
    const { entries, next } = await this.context.api.get("/audit", { ...this.#filters, before, limit: PAGE });
    if (mine !== this.#asked) return; // another filter was asked for meanwhile
    this.#rows = before === null ? entries : [...this.#rows, ...entries];
    this.#next = next;
    setHidden(this.#more, next === null);
    redraw(this.list, [table("Audit log", COLUMNS, this.#rows.map(cells), "Nothing fits these filters.")]);
    this.#offer(entries);
  }

  /** Names that have been seen are offered in the fields of the filter. */
  #offer(entries) {
    for (const { operator, action } of entries) {
      this.#known.account.add(operator ?? COMMAND_LINE);
      this.#known.action.add(action);
    }
    for (const [key, list] of Object.entries(this.#offered)) {
      list.replaceChildren(...[...this.#known[key]].sort().map((value) => element("option", { value })));
    }
  }
}

function cells({ at, operator, action, subject, details }) {
  const told = Object.entries(details ?? {}).map(([key, value]) => `${key}: ${typeof value === "object" ? JSON.stringify(value) : value}`);
  return [
    wholeTime(new Date(at)),
    name(operator ?? COMMAND_LINE),
    element("code", {}, action),
    element("code", {}, subject ?? ""),
    name(told.join(", ")),
  ];
}
