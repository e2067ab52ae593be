/** Who is signed in, and the way out. */

import { notice } from "/static/announce.js";
import { sentence } from "./api.js";
import { byId } from "./elements.js";
import { goToSignIn } from "./signed_out.js";

const ROLES = { admin: "Administrator", reviewer: "Reviewer" };

export function wireAccount(me, api) {
  byId("account-initial").textContent = [...me.name][0]?.toUpperCase() ?? "";
  byId("account").title = me.name;
  byId("account-name").textContent = me.name;
  byId("account-role").textContent = ROLES[me.role] ?? me.role;
  byId("account").addEventListener("click", () => byId("account-dialog").showModal());
  byId("sign-out").addEventListener("click", async () => {
    byId("account-dialog").close();
    try {
      await api.post("/logout");
    } catch (error) {
      if (error.status !== 401) return notice(sentence(error));
    }
    goToSignIn({ asked: true });
  });
}
