/** What the team decides: labels, canned replies, operators; your password; who did what. */

import { element, heading } from "../shell/elements.js";
import { Audit } from "../settings/audit.js";
import { Canned } from "../settings/canned.js";
import { Labels } from "../settings/labels.js";
import { Operators } from "../settings/operators.js";
import { password } from "../settings/password.js";

export function mount(root, context) {
  root.classList.add("page");
  const parts = [new Labels(context), new Canned(context)];
  if (context.admin) {
    const audit = new Audit(context);
    parts.push(new Operators(context), audit);
    for (const part of parts) part.changed = () => audit.show(); // every change is in it
  }
  const body = element("div", { class: "page-body" }, ...parts.map(({ node }) => node), password(context));
  root.append(element("header", { class: "page-head" }, heading(1, "Settings")), body);
  for (const part of parts) part.show();
  return () => {};
}
