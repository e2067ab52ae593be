/** A list of the settings that is fetched, and asked for again after each change; `changed` is then called. */

import { redraw, section } from "../desk/pieces.js";
import { element } from "../shell/elements.js";

export class Part {
  changed = () => {};

  constructor(context, title, words) {
    this.context = context;
    this.list = element("div", {});
    this.node = section(title, [element("p", { class: "soft" }, words), this.list]);
  }

  async show() {
    await this.tried(async () => redraw(this.list, [await this.listed()]));
  }

  async change(action) {
    const done = await this.tried(action);
    if (done) {
      await this.show();
      this.context.announce("Saved");
      this.changed();
    }
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
