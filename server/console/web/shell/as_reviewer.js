/** Whether an admin looks at conversations as reviewers see them: with personal data masked. */

const KEPT = "turnwise.console.as-reviewer";

const listeners = new Set();
let on = kept();

export function asReviewer() {
  return on;
}

export function setAsReviewer(value) {
  on = value;
  try {
    if (on) window.localStorage.setItem(KEPT, "on");
    else window.localStorage.removeItem(KEPT);
  } catch {
    // Blocked storage: it then lasts until the page is closed.
  }
  for (const listener of listeners) listener();
}

/** Calls `listener` after each change, until the function that comes back is called. */
export function onLook(listener) {
  listeners.add(listener);
  return () => listeners.delete(listener);
}

/** What a request for texts says of it. */
export function look() {
  return on ? { mask: "true" } : {};
}

function kept() {
  try {
    return window.localStorage.getItem(KEPT) === "on";
  } catch {
    return false;
  }
}
