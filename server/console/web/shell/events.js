/**
 * Server-sent events that come back by themselves.
 *
 *   connecting ──open──▶ live ──lost──▶ waiting ──▶ connecting …       paused: the tab is not being looked at
 *
 * A browser lets a page hold few connections to one server, so a tab in the background gives its own up.
 */

const FIRST_WAIT = 1_000;
const LONGEST_WAIT = 30_000;
const HIDDEN_FOR = 30_000;

export class EventStream {
  #url;
  #handlers;
  #options;
  #source = null;
  #timer = null;
  #silence = null;
  #hidden = null;
  #wait = FIRST_WAIT;
  #phase = "";
  #closed = true;
  #looked = () => this.#look();

  /**
   * handlers: {event name: action(data)}; `opened` is called each time the stream (re)opens: fetch what was missed.
   * options: {onPhase(phase), onRefused(): the server answered with an error, silence: ms without any event that
   * mean the connection is dead}
   */
  constructor(url, handlers, options = {}) {
    this.#url = url;
    this.#handlers = handlers;
    this.#options = options;
  }

  open() {
    this.#closed = false;
    document.addEventListener("visibilitychange", this.#looked);
    this.#connect();
    return this;
  }

  close() {
    this.#closed = true;
    document.removeEventListener("visibilitychange", this.#looked);
    clearTimeout(this.#hidden);
    this.#drop();
  }

  #connect() {
    this.#drop();
    this.#tell("connecting");
    const source = new EventSource(this.#url);
    this.#source = source;
    source.onopen = () => {
      this.#wait = FIRST_WAIT;
      this.#tell("live");
      this.#heard();
      this.#handlers.opened?.();
    };
    source.onerror = () => this.#failed(source);
    for (const [name, action] of Object.entries(this.#handlers)) {
      if (name !== "opened") source.addEventListener(name, (event) => this.#deliver(action, event));
    }
    source.addEventListener("ping", () => this.#heard());
  }

  #deliver(action, event) {
    this.#heard();
    let data;
    try {
      data = JSON.parse(event.data);
    } catch {
      return; // Not for us.
    }
    action(data);
  }

  #failed(source) {
    const refused = source.readyState === EventSource.CLOSED;
    this.#drop();
    this.#tell("waiting");
    if (refused) this.#options.onRefused?.();
    this.#timer = setTimeout(() => this.#connect(), this.#wait);
    this.#wait = Math.min(LONGEST_WAIT, this.#wait * 2);
  }

  #heard() {
    clearTimeout(this.#silence);
    if (this.#options.silence) this.#silence = setTimeout(() => this.#connect(), this.#options.silence);
  }

  #drop() {
    clearTimeout(this.#timer);
    clearTimeout(this.#silence);
    this.#source?.close();
    this.#source = null;
  }

  #look() {
    clearTimeout(this.#hidden);
    if (document.hidden) {
      this.#hidden = setTimeout(() => {
        this.#drop();
        this.#tell("paused");
      }, HIDDEN_FOR);
    } else if (!this.#closed && this.#phase !== "live") {
      this.#connect();
    }
  }

  #tell(phase) {
    if (phase === this.#phase) return;
    this.#phase = phase;
    this.#options.onPhase?.(phase);
  }
}

/** Gathers values until nothing came for `pause` ms, but no longer than `longest`; then gives them all at once. */
export function gather(action, pause, longest) {
  let values = new Set();
  let timer = null;
  let since = 0;
  const flush = () => {
    timer = null;
    const gathered = values;
    values = new Set();
    action(gathered);
  };
  const add = (value) => {
    if (values.size === 0) since = Date.now();
    values.add(value);
    clearTimeout(timer);
    timer = setTimeout(flush, Math.max(0, Math.min(pause, since + longest - Date.now())));
  };
  add.cancel = () => clearTimeout(timer);
  return add;
}
