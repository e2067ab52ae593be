/**
 * Decoding settings: which options exist, what the visitor changed, and what goes into a `say`.
 *
 * Only changes are kept and sent. An untouched setting follows the model's own default, which
 * comes with `ready.defaults` and may be another one after a better model was promoted.
 */

import { shared } from "./storage.js";

const KEY = "turnwise.settings";

export const MODES = ["sample", "beam", "greedy"];

/**
 * Bounds are narrower than the protocol's where the rest is of no use to a visitor.
 * `fallback` stands in for a default the server did not name.
 */
export const FIELDS = [
  { name: "temperature", modes: ["sample"], min: 0.1, max: 2, step: 0.05, fallback: 0.8 },
  { name: "top_p", modes: ["sample"], min: 0.05, max: 1, step: 0.05, fallback: 1 },
  { name: "top_k", modes: ["sample"], min: 0, max: 200, step: 1, fallback: 0 },
  { name: "beam_size", modes: ["beam"], min: 2, max: 16, step: 1, fallback: 4, least: 4 },
  { name: "n_best", modes: ["beam"], min: 1, max: 16, step: 1, fallback: 3, least: 3 },
  { name: "length_penalty", modes: ["beam"], min: 0, max: 2, step: 0.1, fallback: 1 },
  { name: "max_tokens", modes: MODES, min: 8, max: 256, step: 1, fallback: 96 },
  { name: "repetition_penalty", modes: MODES, min: 1, max: 2, step: 0.05, fallback: 1 },
  { name: "seed", modes: ["sample"], min: 0, max: Number.MAX_SAFE_INTEGER, step: 1, fallback: null },
];

/** Options whose default for a single reply (1) would make the chosen mode pointless. */
const EXPLICIT = { beam: ["beam_size", "n_best"] };

export class Settings {
  #defaults = {};
  #changes;

  constructor() {
    this.#changes = this.#load();
  }

  /** `ready.defaults`. */
  learn(defaults) {
    this.#defaults = defaults ?? {};
  }

  get mode() {
    const mode = this.#changes.decoding ?? this.#defaults.decoding;
    return MODES.includes(mode) ? mode : "sample";
  }

  set mode(mode) {
    this.#changes.decoding = mode;
    this.#save();
  }

  get changed() {
    return Object.keys(this.#changes).length > 0;
  }

  /** What is in force for a field, null for a seed that is drawn anew each time. */
  value(field) {
    return this.#changes[field.name] ?? this.standard(field);
  }

  /** What is in force when the visitor changes nothing. */
  standard(field) {
    const value = this.#defaults[field.name] ?? field.fallback;
    return field.least === undefined ? value : Math.max(value, field.least);
  }

  /** Out of range or unreadable is brought back into range; null returns to the default. */
  change(field, value) {
    if (value === null || value === this.standard(field)) {
      delete this.#changes[field.name];
    } else {
      const whole = Number.isInteger(field.step) ? Math.round(value) : value;
      this.#changes[field.name] = Math.min(field.max, Math.max(field.min, whole));
    }
    this.#save();
  }

  reset() {
    this.#changes = {};
    this.#save();
  }

  /** The `options` of a say: changes that mean something in the mode in force, nothing else. */
  options() {
    const mode = this.mode;
    const options = "decoding" in this.#changes ? { decoding: mode } : {};
    for (const field of FIELDS.filter(({ modes }) => modes.includes(mode))) {
      const explicit = EXPLICIT[mode]?.includes(field.name) && this.value(field) !== this.#defaults[field.name];
      if (field.name in this.#changes || explicit) options[field.name] = this.value(field);
    }
    if ("n_best" in options) {
      const beams = options.beam_size ?? this.#defaults.beam_size ?? options.n_best;
      options.n_best = Math.min(options.n_best, beams);
    }
    return options;
  }

  #load() {
    const kept = shared.read(KEY, {});
    const changes = {};
    if (MODES.includes(kept.decoding)) changes.decoding = kept.decoding;
    for (const { name, min, max } of FIELDS) {
      if (typeof kept[name] === "number" && kept[name] >= min && kept[name] <= max) changes[name] = kept[name];
    }
    return changes;
  }

  #save() {
    if (this.changed) shared.write(KEY, this.#changes);
    else shared.remove(KEY);
  }
}
