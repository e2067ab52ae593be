/** The operators' accounts: added, given another role or password, disabled. */

import { ask, field, form, sure, table } from "../desk/pieces.js";
import { button, element, mark, name } from "../shell/elements.js";
import { wholeTime } from "../shell/format.js";
import { Part } from "./part.js";

export class Operators extends Part {
  constructor(context) {
    super(context, "Operators", "Reviewers see masked texts; admins decide what goes live. Who gets another role or password is signed out everywhere.");
    const add = async (values, node) => {
      if (await this.change(() => context.api.post("/operators", values))) node.reset();
    };
    const role = element("select", { name: "role" }, element("option", { value: "reviewer" }, "Reviewer"), element("option", { value: "admin" }, "Admin"));
    const fields = [
      field("Name", element("input", { type: "text", name: "name", required: true, maxlength: "64", autocomplete: "off" })),
      field("Role", role),
      newPassword("Password", "password"),
    ];
    this.node.append(form("Add an operator", fields, add, { kind: "quiet" }));
  }

  async listed() {
    const { operators } = await this.context.api.get("/operators");
    const columns = [{ title: "Name" }, { title: "Role" }, { title: "Last seen" }, { title: "", action: true }];
    return table("Operators", columns, operators.map((each) => [
      name(each.name),
      element("span", { class: "flow" }, each.role, each.disabled_at === null ? null : mark("disabled", "warn")),
      each.last_seen_at === null ? "–" : wholeTime(new Date(each.last_seen_at)),
      element("span", { class: "flow actions" }, ...this.#actions(each)),
    ]));
  }

  #actions(each) {
    const disabled = each.disabled_at !== null;
    const other = each.role === "admin" ? "reviewer" : "admin";
    const action = (words, label, click) => button(words, click, { kind: "text", "aria-label": label });
    return [
      action("Set password", `Set a password for ${each.name}`, () => this.#setPassword(each)),
      action(`Make ${other}`, `Make ${each.name} ${other}`, () => this.#change(each, { role: other })),
      action(disabled ? "Enable" : "Disable", `${disabled ? "Enable" : "Disable"} ${each.name}`, () => this.#change(each, { disabled: !disabled })),
    ];
  }

  async #change(each, what) {
    if (!this.#own(each) || (await sure("This is your own account. Change it and be signed out?", "Change it"))) {
      await this.change(() => this.#patch(each, what));
    }
  }

  async #setPassword(each) {
    const words = this.#own(each) ? "This is your own account: you will be signed out as well." : "They are signed out everywhere, and need the new password to come back.";
    const fields = [
      element("p", { class: "soft" }, "For ", name(each.name), ". ", words),
      newPassword("New password", "fresh"),
      newPassword("Once more", "again"),
    ];
    const save = ({ fresh, again }) => {
      if (fresh !== again) throw new Error("The two passwords differ");
      return this.#patch(each, { password: fresh });
    };
    if (!(await ask("Set a password", fields, "Set the password", save))) return;
    this.context.notice(`${each.name} has a new password, and was signed out.`);
    await this.show();
    this.changed();
  }

  #own({ id }) {
    return id === this.context.me.id;
  }

  #patch({ id }, what) {
    return this.context.api.patch(`/operators/${encodeURIComponent(id)}`, what);
  }
}

function newPassword(words, key) {
  return field(words, element("input", { type: "password", name: key, required: true, autocomplete: "new-password" }));
}
