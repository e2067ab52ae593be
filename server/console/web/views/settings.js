/** What the team decides: labels, canned replies, operators; your password; who did what. */

import { field, form, section, sure, table } from "../desk/pieces.js";
import { button, element, heading, mark, name, speech } from "../shell/elements.js";
import { count, wholeTime } from "../shell/format.js";

export function mount(root, context) {
  root.classList.add("page");
  const parts = [new Labels(context), new Canned(context)];
  if (context.admin) parts.push(new Operators(context), new Audit(context));
  const body = element("div", { class: "page-body" }, ...parts.map(({ node }) => node), password(context));
  root.append(element("header", { class: "page-head" }, heading(1, "Settings")), body);
  for (const part of parts) part.show();
  return () => {};
}

/** A list that is fetched, and asked for again after each change. */
class Part {
  constructor(context, title, words) {
    this.context = context;
    this.list = element("div", {});
    this.node = section(title, [element("p", { class: "soft" }, words), this.list]);
  }

  async show() {
    await this.tried(async () => this.list.replaceChildren(await this.listed()));
  }

  async change(action) {
    const done = await this.tried(action);
    if (done) await this.show();
    return done;
  }

  async tried(action) {
    try {
      await action();
      return true;
    } catch (error) {
      this.context.failed(error);
      return false;
    }
  }
}

class Labels extends Part {
  constructor(context) {
    super(context, "Labels", "Reasons that reviewers can give for a verdict, by the digits 1 to 9.");
    if (!context.admin) return;
    const add = async ({ name: given }, node) => {
      if (await this.change(() => context.api.post("/labels", { name: given }))) node.reset();
    };
    this.node.append(form("Add a label", [field("Label", element("input", { type: "text", name: "name", required: true, maxlength: "60" }))], add, { kind: "quiet" }));
  }

  async listed() {
    const { labels } = await this.context.api.get("/labels");
    const archive = ({ name: label, archived }) =>
      button(archived ? "Offer again" : "Archive", () => this.change(() => this.context.api.patch(`/labels/${encodeURIComponent(label)}`, { archived: !archived })), { kind: "text", "aria-label": `${archived ? "Offer again" : "Archive"}: ${label}` });
    return table("Labels", [{ title: "Label" }, { title: "Used", number: true }, { title: "", action: true }], labels.map((label) => [
      element("span", { class: "flow" }, name(label.name), label.archived ? mark("archived") : null),
      count(label.uses),
      this.context.admin ? archive(label) : "",
    ]), "There is no label yet.");
  }
}

class Canned extends Part {
  constructor(context) {
    super(context, "Canned replies", "Offered by / in the box of a conversation that you have taken over. {name} is a place to be filled in.");
    const add = async (values, node) => {
      if (await this.change(() => context.api.post("/canned", values))) node.reset();
    };
    const title = element("input", { type: "text", name: "title", required: true, maxlength: "80" });
    const text = element("textarea", { name: "text", required: true, rows: "3", maxlength: "4000" });
    this.node.append(form("Keep this reply", [field("Title", title), field("Text", text)], add, { kind: "quiet" }));
  }

  async listed() {
    const { canned } = await this.context.api.get("/canned");
    const remove = (each) => async () => {
      if (await sure(`Remove the canned reply “${each.title}”?`, "Remove")) await this.change(() => this.context.api.delete(`/canned/${encodeURIComponent(each.id)}`));
    };
    return table("Canned replies", [{ title: "Title" }, { title: "Text" }, { title: "", action: true }], canned.map((each) => [
      element("strong", {}, name(each.title)),
      speech(each.text),
      button("Remove", remove(each), { kind: "text", "aria-label": `Remove ${each.title}` }),
    ]), "There is no canned reply yet.");
  }
}

class Operators extends Part {
  constructor(context) {
    super(context, "Operators", "Reviewers see masked texts; admins decide what goes live.");
    const add = async (values, node) => {
      if (await this.change(() => context.api.post("/operators", values))) node.reset();
    };
    const role = element("select", { name: "role" }, element("option", { value: "reviewer" }, "Reviewer"), element("option", { value: "admin" }, "Admin"));
    const fields = [
      field("Name", element("input", { type: "text", name: "name", required: true, maxlength: "64", autocomplete: "off" })),
      field("Role", role),
      field("Password", element("input", { type: "password", name: "password", required: true, autocomplete: "new-password" })),
    ];
    this.node.append(form("Add an operator", fields, add, { kind: "quiet" }));
  }

  async listed() {
    const { operators } = await this.context.api.get("/operators");
    const patch = (each, what) => this.change(() => this.context.api.patch(`/operators/${encodeURIComponent(each.id)}`, what));
    const change = async (each, what) => {
      const own = each.id === this.context.me.id; // they are signed out by it
      if (!own || (await sure("This is your own account. Change it and be signed out?", "Change it"))) await patch(each, what);
    };
    return table("Operators", [{ title: "Name" }, { title: "Role" }, { title: "Last seen" }, { title: "", action: true }], operators.map((each) => {
      const disabled = each.disabled_at !== null;
      const other = each.role === "admin" ? "reviewer" : "admin";
      return [
        name(each.name),
        element("span", { class: "flow" }, each.role, disabled ? mark("disabled", "warn") : null),
        each.last_seen_at === null ? "–" : wholeTime(new Date(each.last_seen_at)),
        element("span", { class: "flow actions" },
          button(`Make ${other}`, () => change(each, { role: other }), { kind: "text", "aria-label": `Make ${each.name} ${other}` }),
          button(disabled ? "Enable" : "Disable", () => change(each, { disabled: !disabled }), { kind: "text", "aria-label": `${disabled ? "Enable" : "Disable"} ${each.name}` })),
      ];
    }));
  }
}

class Audit extends Part {
  constructor(context) {
    super(context, "Audit log", "Who did what. What anybody said is never in it.");
    this.rows = [];
    this.next = null;
    this.more = button("Earlier", () => this.#earlier());
    this.node.append(this.more);
  }

  async #earlier() {
    await this.tried(async () => {
      await this.#fetch(this.next);
      this.list.replaceChildren(this.#table());
    });
  }

  async listed() {
    this.rows = [];
    await this.#fetch(null);
    return this.#table();
  }

  async #fetch(cursor) {
    const { entries, next } = await this.context.api.get("/audit", { cursor, limit: 25 });
    this.rows.push(...entries);
    this.next = next;
    this.more.hidden = next === null;
  }

  #table() {
    const details = (each) => (each.details ? Object.entries(each.details).map(([key, value]) => `${key}: ${typeof value === "object" ? JSON.stringify(value) : value}`).join(", ") : "");
    return table("Audit log", [{ title: "When" }, { title: "Who" }, { title: "What" }, { title: "To" }, { title: "Details" }], this.rows.map((each) => [
      wholeTime(new Date(each.at)),
      name(each.operator ?? "command line"),
      element("code", {}, each.action),
      element("code", {}, each.subject ?? ""),
      name(details(each)),
    ]));
  }
}

function password(context) {
  const change = async ({ old, fresh, again }, node) => {
    if (fresh !== again) return context.notice("The two new passwords differ.");
    try {
      await context.api.post("/password", { old, new: fresh });
      node.reset();
      context.notice("Your password is changed. Your other sessions have ended.");
    } catch (error) {
      context.failed(error);
    }
  };
  const input = (key, complete) => element("input", { type: "password", name: key, required: true, autocomplete: complete });
  return section("Your password", [
    form("Change the password", [
      field("The present one", input("old", "current-password")),
      field("A new one", input("fresh", "new-password")),
      field("Once more", input("again", "new-password")),
    ], change, { kind: "quiet" }),
  ]);
}
