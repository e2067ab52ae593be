/** Messages that went out and were not confirmed, by conversation: they outlive the page, as drafts do. */

import { draftOf, keepDraft } from "../shell/drafts.js";

const name = (conversation) => `unsent.${conversation}`;

/** [{id, text}], oldest first. */
export function unsentOf(conversation) {
  try {
    return JSON.parse(draftOf(name(conversation)) || "[]");
  } catch {
    return []; // Not ours.
  }
}

export function keepUnsent(conversation, { id, text }) {
  keep(conversation, [...unsentOf(conversation), { id, text }]);
}

export function forgetUnsent(conversation, id) {
  keep(conversation, unsentOf(conversation).filter((other) => other.id !== id));
}

function keep(conversation, messages) {
  keepDraft(name(conversation), messages.length > 0 ? JSON.stringify(messages) : "");
}
