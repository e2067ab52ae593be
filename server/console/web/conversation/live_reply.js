/** The reply that the bot is making right now, put together from its pieces. Offsets count code points. */

export class LiveReply {
  id = null;
  text = "";

  /**
   * {reply, offset, text}: what stands from `offset` on is now `text`. Masked replies are told anew each time, and
   * may change before their end. A piece beyond a gap is passed over: the whole reply follows.
   */
  add({ reply, offset, text }) {
    if (reply !== this.id) {
      this.id = reply;
      this.text = "";
    }
    const have = [...this.text];
    if (offset > have.length) return;
    this.text = have.slice(0, offset).join("") + text;
  }

  end() {
    this.id = null;
    this.text = "";
  }
}
