/** One's own password. */

import { field, form, section } from "../desk/pieces.js";
import { element } from "../shell/elements.js";

export function password(context) {
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
