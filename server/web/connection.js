/**
 * Keeps one chat connection alive.
 *
 *   stopped ─start─▶ connecting ─open─▶ greeting ─ready─▶ ready ─going_away─▶ leaving
 *                        ▲                  │               │                   │
 *                        └─────timer──── waiting ◀──────────┴───── closed ──────┘
 *
 *   a close with 4409 ends in `replaced` (another tab took over) and waits for reconnectNow().
 *
 * Sockets, time and chance come in through `environment`, so every path can be driven by hand:
 *
 *   environment.open({opened, received, closed}) -> {send(text), close()}
 *   environment.after(milliseconds, action) -> cancel()
 *   environment.now() -> milliseconds          environment.random() -> [0, 1)
 */

import { SUBPROTOCOL, decode, socketAddress } from "./protocol.js";

export const GREETING_LIMIT = 10_000;
export const PING_EVERY = 20_000;
export const PONG_LIMIT = 10_000;
/** A connection that lived this long was a good one: the next failure starts counting anew. */
export const STEADY_AFTER = 5_000;
const DELAY_BASE = 500;
const DELAY_CAP = 20_000;
const DELAY_WHEN_CROWDED = 5_000;

const CLOSE_REPLACED = 4409;
const CLOSES_REFUSED = new Set([4401, 4403]);
const CLOSES_CROWDED = new Set([1013, 4429]);
/** Errors before `ready` that only ask for patience; any other one refuses the greeting itself. */
const ERRORS_PASSING = new Set(["busy", "internal"]);

/** Exponential backoff whose upper half is random, so that a restart is not met by a stampede. */
export function backoff(attempt, random) {
  const full = Math.min(DELAY_CAP, DELAY_BASE * 2 ** Math.min(attempt, 10));
  return full / 2 + (full / 2) * random;
}

export class Connection {
  #environment;
  #hello;
  #onFrame;
  #onPhase;
  #onRefused;
  #socket = null;
  #generation = 0;
  #attempt = 0;
  #floor = 0;
  #readySince = 0;
  #refused = false;
  #cancelTimer = () => {};

  phase = "stopped";
  /** When the next attempt is due, on the environment's clock; null unless waiting. */
  retryAt = null;
  /** The code the last socket closed with, for messages to people. */
  lastClose = null;

  /**
   * @param environment see above
   * @param hello      () => the hello frame to greet with, asked anew for each socket
   * @param onFrame    (frame) for every frame but pong, `ready` included
   * @param onPhase    (phase) after every change
   * @param onRefused  (reason) when the greeting itself was refused, before the next attempt
   */
  constructor(environment, { hello, onFrame, onPhase, onRefused }) {
    this.#environment = environment;
    this.#hello = hello;
    this.#onFrame = onFrame;
    this.#onPhase = onPhase;
    this.#onRefused = onRefused;
  }

  start() {
    this.#attempt = 0;
    this.#connect();
  }

  stop() {
    this.#drop();
    this.#enter("stopped");
  }

  /** Leaves the present socket, if any, and greets again at once. */
  restart() {
    this.#drop();
    this.#connect();
  }

  /** Does not wait for the timer; without effect while a connection stands. */
  reconnectNow() {
    if (this.phase === "waiting" || this.phase === "replaced") this.#connect();
  }

  /** Asks the server for a sign of life now, for example when the computer woke up. */
  probe() {
    if (this.phase === "ready" || this.phase === "leaving") this.#ping();
  }

  /** Closes from our side and comes back later, as after any other close. */
  leave() {
    if (this.phase === "leaving") this.#lose();
  }

  /** False when the connection is not ready; nothing is kept here. */
  send(frame) {
    if (this.phase !== "ready" && this.phase !== "leaving") return false;
    this.#socket.send(JSON.stringify(frame));
    return true;
  }

  #connect() {
    this.#cancelTimer();
    const generation = ++this.#generation;
    const current = (action) => (value) => {
      if (generation === this.#generation) action(value);
    };
    this.retryAt = null;
    this.#floor = 0;
    this.#refused = false;
    this.#enter("connecting");
    this.#socket = this.#environment.open({
      opened: current(() => this.#opened()),
      received: current((data) => this.#received(data)),
      closed: current((code) => this.#closed(code)),
    });
    this.#later(GREETING_LIMIT, () => this.#lose());
  }

  #opened() {
    this.#enter("greeting");
    this.#socket.send(JSON.stringify(this.#hello()));
  }

  #received(data) {
    const frame = decode(data);
    if (frame === null) return;
    if (this.phase === "greeting" && frame.type === "error") return this.#refuse(frame);
    if (frame.type === "ready") {
      this.#readySince = this.#environment.now();
      this.#enter("ready");
    }
    if (frame.type === "going_away") {
      this.#floor = Math.max(0, Number(frame.reconnect_after) || 0) * 1000;
      this.#attempt = 0;
      this.#enter("leaving");
    }
    // Any frame proves that the peer lives, so the next question is due a full interval later.
    if (this.phase === "ready" || this.phase === "leaving") this.#later(PING_EVERY, () => this.#ping());
    if (frame.type !== "pong") this.#onFrame(frame);
  }

  #refuse(frame) {
    this.#floor = Math.max(0, Number(frame.retry_after) || 0) * 1000;
    if (!ERRORS_PASSING.has(frame.code)) {
      this.#refused = true;
      this.#onRefused(frame.code);
    }
    this.#lose();
  }

  #ping() {
    this.#socket.send(JSON.stringify({ type: "ping" }));
    this.#later(PONG_LIMIT, () => this.#lose());
  }

  /** Gives a silent or refusing peer up, without waiting for its goodbye. */
  #lose() {
    this.#drop();
    this.#closed(null);
  }

  #drop() {
    this.#cancelTimer();
    this.#generation += 1;
    this.#socket?.close();
    this.#socket = null;
  }

  #closed(code) {
    this.#cancelTimer();
    this.#socket = null;
    this.lastClose = code;
    const now = this.#environment.now();
    const stood = this.phase === "ready" || this.phase === "leaving";
    if (stood && now - this.#readySince >= STEADY_AFTER) this.#attempt = 0;
    if (code === CLOSE_REPLACED) return this.#enter("replaced");
    if (CLOSES_REFUSED.has(code) && !this.#refused) this.#onRefused(String(code));
    if (CLOSES_CROWDED.has(code)) this.#floor = Math.max(this.#floor, DELAY_WHEN_CROWDED);
    const delay = this.#floor + backoff(this.#attempt, this.#environment.random());
    this.#attempt += 1;
    this.retryAt = now + delay;
    this.#later(delay, () => this.#connect());
    this.#enter("waiting");
  }

  #later(milliseconds, action) {
    this.#cancelTimer();
    this.#cancelTimer = this.#environment.after(milliseconds, action);
  }

  #enter(phase) {
    this.phase = phase;
    this.#onPhase(phase);
  }
}

/** The real world: a WebSocket to the serving host, and the browser's timers. */
export function browserEnvironment() {
  return {
    open({ opened, received, closed }) {
      const socket = new WebSocket(socketAddress(window.location), SUBPROTOCOL);
      socket.addEventListener("open", () => opened());
      socket.addEventListener("message", (event) => received(event.data));
      socket.addEventListener("close", (event) => closed(event.code));
      return { send: (text) => socket.send(text), close: () => socket.close() };
    },
    after(milliseconds, action) {
      const timer = setTimeout(action, milliseconds);
      return () => clearTimeout(timer);
    },
    now: () => Date.now(),
    random: () => Math.random(),
  };
}
