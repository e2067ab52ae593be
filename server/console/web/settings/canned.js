/** Canned replies: kept, changed, removed. */

import { ask, field, form, sure, table } from "../desk/pieces.js";
import { button, element, name, speech } from "../shell/elements.js";
import { Part } from "./part.js";

/** As the server has them. */
const LONGEST_TITLE = 100;
const LONGEST_TEXT = 4000;

export class Canned extends Part {
  #edits = new Map();

  constructor(context) {
    super(context, "Canned replies", "Offered by / in the box of a conversation that you have taken over. {name} is a place to be filled in.");
    const add = async (values, node) => {
      if (await this.change(() => context.api.post("/canned", values))) node.reset();
    };
    this.node.append(form("Keep this reply", fields(), add, { kind: "quiet" }));
  }

  async listed() {
    const { canned } = await this.context.api.get("/canned");
    this.#edits = new Map(canned.map((each) => [each.id, this.#editButton(each)]));
    return table("Canned replies", [{ title: "Title" }, { title: "Text" }, { title: "", action: true }], canned.map((each) => [
      element("strong", {}, name(each.title)),
      speech(each.text),
      element("span", { class: "flow actions" },
        this.#edits.get(each.id),
        button("Remove", () => this.#remove(each), { kind: "text", "aria-label": `Remove ${each.title}` })),
    ]), "There is no canned reply yet.");
  }

  #editButton(each) {
    return button("Edit", () => this.#edit(each), { kind: "text", "aria-label": `Edit ${each.title}` });
  }

  async #edit(each) {
    const save = (values) => this.context.api.put(path(each), values);
    if (!(await ask("Edit a canned reply", fields(each), "Save", save))) return;
    await this.change(() => {});
    this.#edits.get(each.id)?.focus(); // its name may be another one now
  }

  async #remove(each) {
    if (await sure(`Remove the canned reply “${each.title}”?`, "Remove")) await this.change(() => this.context.api.delete(path(each)));
  }
}

function path({ id }) {
  return `/canned/${encodeURIComponent(id)}`;
}

function fields({ title = "", text = "" } = {}) {
  const area = element("textarea", { name: "text", required: true, rows: "4", maxlength: LONGEST_TEXT, dir: "auto" });
  area.value = text;
  return [
    field("Title", element("input", { type: "text", name: "title", required: true, maxlength: LONGEST_TITLE, value: title, dir: "auto" })),
    field("Text", area),
  ];
}
