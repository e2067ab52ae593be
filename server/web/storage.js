/**
 * The browser's storage, or a stand-in where it is switched off or full.
 *
 * A page must still chat when cookies and site data are blocked; it then forgets on reload.
 */

class SafeStorage {
  #real;
  #kept = new Map();

  constructor(open) {
    try {
      this.#real = open();
    } catch {
      this.#real = null;
    }
  }

  get(key) {
    try {
      return this.#kept.get(key) ?? this.#real?.getItem(key) ?? null;
    } catch {
      return null;
    }
  }

  set(key, value) {
    try {
      if (this.#real === null) throw new Error("no storage");
      this.#real.setItem(key, value);
      this.#kept.delete(key);
    } catch {
      this.#kept.set(key, value);
    }
  }

  remove(key) {
    this.#kept.delete(key);
    try {
      this.#real?.removeItem(key);
    } catch {
      // Blocked storage holds nothing to remove.
    }
  }

  /** Call `heard` with what another tab writes under `key`. */
  onOther(key, heard) {
    globalThis.addEventListener?.("storage", (event) => {
      if (event.storageArea === this.#real && event.key === key && event.newValue !== null) {
        heard(event.newValue);
      }
    });
  }

  keys(prefix) {
    let found = [...this.#kept.keys()];
    try {
      found = found.concat(Object.keys(this.#real ?? {}));
    } catch {
      // As above.
    }
    return [...new Set(found)].filter((key) => key.startsWith(prefix));
  }

  /** Parsed JSON under `key`, or `fallback` when it is missing or was tampered with. */
  read(key, fallback) {
    try {
      return JSON.parse(this.get(key) ?? "null") ?? fallback;
    } catch {
      return fallback;
    }
  }

  write(key, value) {
    this.set(key, JSON.stringify(value));
  }
}

/** Shared by all tabs, kept when the browser closes. */
export const shared = new SafeStorage(() => window.localStorage);
/** This tab only, kept over a reload. */
export const tab = new SafeStorage(() => window.sessionStorage);
