/** What the page says to people, where it is not fixed in index.html. */

const REASONS = {
  busy: () => "Turnwise has its hands full right now.",
  too_long: ({ limit, field }) =>
    field === "text"
      ? `That is longer than the ${formatNumber(limit)} characters a message may have.`
      : "This conversation is full. Please begin a new chat.",
  bad_option: ({ field, message }) =>
    field
      ? `The setting “${field.replace(/^options\./, "")}” was not accepted. Change it or reset the settings.`
      : `A setting was not accepted${message ? ` (${message})` : ""}. Change it or reset the settings.`,
  conflict: () => "This message clashed with an earlier one. Sending it again will fix that.",
  bad_message: () => "The server could not read this message.",
  refused: () => "The server would not take this message.",
  not_found: () => "That is not there any more.",
  not_available: () => "That is not available here.",
  bad_state: () => "That is not possible right now.",
  internal: () => "Something went wrong on the server.",
  no_reply: () => "The reply could not be finished.",
  rating: () => "Your rating could not be saved.",
  lost: () => "That conversation is no longer available, so this is a fresh one.",
  moved: () => "Not sent: the conversation it was meant for is no longer available.",
};

/** A sentence for an error code; the frame may carry details worth naming. */
export function explain(code, details = {}) {
  return (REASONS[code] ?? (() => details.message || "Something went wrong."))(details);
}

const FINISH = {
  stop: "Finished by itself",
  length: "Reached the length limit",
  cancelled: "Stopped by you",
  abstained: "Turnwise preferred not to answer",
};

/** The finish reason of a reply, in words. */
export function finishWords(reason) {
  return FINISH[reason] ?? String(reason);
}

const numbers = new Intl.NumberFormat("en");

/** 12345 -> "12,345" */
export function formatNumber(value) {
  return numbers.format(value);
}

/** "Today", "Yesterday", "This week", "Earlier": the heading a conversation is listed under. */
export function dayWords(date, now = new Date()) {
  const midnight = new Date(now.getFullYear(), now.getMonth(), now.getDate());
  const days = (midnight - date) / 86_400_000;
  if (days <= 0) return "Today";
  if (days <= 1) return "Yesterday";
  return days <= 7 ? "This week" : "Earlier";
}
