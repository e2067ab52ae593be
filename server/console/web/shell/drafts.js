/** What is being written, kept in the tab until it is sent: a lost session or a reload takes nothing away. */

const PREFIX = "turnwise.console.draft.";

export function draftOf(name) {
  try {
    return window.sessionStorage.getItem(PREFIX + name) ?? "";
  } catch {
    return "";
  }
}

export function keepDraft(name, text) {
  try {
    if (text === "") window.sessionStorage.removeItem(PREFIX + name);
    else window.sessionStorage.setItem(PREFIX + name, text);
  } catch {
    // Blocked or full storage: it then lasts until the page is left.
  }
}
