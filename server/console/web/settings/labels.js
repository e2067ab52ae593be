/** The team's labels. */

import { forgetLabels } from "../conversation/labels.js";
import { field, form, table } from "../desk/pieces.js";
import { button, element, mark, name } from "../shell/elements.js";
import { count } from "../shell/format.js";
import { Part } from "./part.js";

export class Labels extends Part {
  constructor(context) {
    super(context, "Labels", "Reasons that reviewers can give for a verdict, by the digits 1 to 9.");
    if (!context.admin) return;
    const add = async ({ name: given }, node) => {
      if (await this.change(() => context.api.post("/labels", { name: given }))) node.reset();
    };
    this.node.append(form("Add a label", [field("Label", element("input", { type: "text", name: "name", required: true, maxlength: "60" }))], add, { kind: "quiet" }));
  }

  async listed() {
    forgetLabels();
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
