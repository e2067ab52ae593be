/**
 * What the inbox shows, as it stands in the address. The names and values are those of GET /conversations.
 */

import { dayBegins, dayEnds, dayOf } from "../shell/days.js";

export const NAMES = [
  "state", "mine", "reviewed", "rating", "confidence_below", "model", "label", "verdict", "cluster", "from", "to", "q",
];

/** What can be chosen of filters: [[value, words]]. */
export const STATES = [["open", "Open"], ["waiting", "Waiting for a person"], ["taken", "Taken over"], ["closed", "Closed"], ["all", "All"]];
export const REVIEWED = [["true", "Yes"], ["false", "Not yet"]];
export const THUMBS = [["up", "Up"], ["down", "Down"]];
export const VERDICTS = [["good", "Good"], ["bad", "Bad"]];

/** Under it a reply counts as unsure, where the address does not say otherwise. */
export const UNSURE = "0.5";

/**
 * Ready-made filters, one of which is chosen at a time. count: the number of GET /counts that belongs to it.
 */
export const CHIPS = [
  { id: "waiting", words: "Waiting", filters: { state: "waiting" }, count: "waiting" },
  { id: "open", words: "All open", filters: {}, count: "open" },
  { id: "mine", words: "Mine", filters: { mine: "true" }, count: "mine" },
  { id: "taken", words: "Taken over", filters: { state: "taken" }, count: "taken" },
  { id: "down", words: "Thumbs down", filters: { state: "all", rating: "down" }, count: "thumbs_down" },
  { id: "unsure", words: "Unsure", filters: { state: "all", confidence_below: UNSURE }, count: "low_confidence" },
  { id: "unreviewed", words: "Unreviewed", filters: { state: "all", reviewed: "false" }, count: "unreviewed" },
  { id: "all", words: "Everything", filters: { state: "all" } },
];

/** Those of a URLSearchParams that the inbox knows. */
export function filtersOf(query) {
  const pairs = NAMES.map((name) => [name, query.get(name)]).filter(([, value]) => value !== null && value !== "");
  return Object.fromEntries(pairs);
}

/** The chip whose filters these are, whatever is searched for and refined beyond it; null where none fits. */
export function chipOf(filters) {
  const own = ["state", "mine", "rating", "confidence_below", "reviewed"];
  const chosen = own.filter((name) => filters[name] !== undefined);
  const fits = ({ filters: wanted }) =>
    chosen.length === Object.keys(wanted).length && chosen.every((name) => wanted[name] === filters[name]);
  return CHIPS.find(fits)?.id ?? null;
}

/**
 * Whether a conversation belongs here still, as far as it says itself: false is certain, true may be wrong (what
 * was searched for, labels and times are the server's to judge).
 */
export function mayStay(summary, filters, me) {
  const taken = summary.owner === "operator";
  const closed = summary.closed_at !== null;
  const states = {
    all: true,
    open: !closed,
    closed,
    waiting: summary.waiting_since !== null && !closed,
    taken: taken && !closed,
  };
  if (!(states[filters.state ?? "open"] ?? true)) return false;
  if (filters.mine === "true" && !(taken && summary.operator === me.name)) return false;
  if (filters.reviewed && (filters.reviewed === "true") !== (summary.reviewed_at !== null)) return false;
  if (filters.rating === "down" && !summary.thumbs_down) return false;
  const bound = Number(filters.confidence_below);
  if (filters.confidence_below && (summary.confidence === null || summary.confidence >= bound)) return false;
  if (filters.verdict && summary.verdicts[filters.verdict] === 0) return false;
  return true;
}

/** What a field holds -> what the API is asked: percents as shares, days as the moments they begin or end. */
export function filterValue(name, value) {
  if (value === "") return "";
  if (name === "confidence_below") return String(Math.min(100, Math.max(0, Number(value))) / 100);
  if (name === "from") return dayBegins(value);
  return name === "to" ? dayEnds(value) : value;
}

/** What a filter is -> what its field holds. */
export function fieldValue(name, value) {
  if (value === "") return "";
  if (name === "confidence_below") return String(Math.round(Number(value) * 100));
  return name === "from" || name === "to" ? dayOf(value, { end: name === "to" }) : value;
}

/** Labels and models to choose from, as [{value, words}]; calls offer(filter's name, choices) for each that can be told. */
export async function offerChoices(api, offer) {
  const labels = api.get("/labels").then(({ labels: all }) => offer("label", all.map(({ name }) => ({ value: name, words: name }))));
  const models = api.get("/models").then(({ models: all }) => offer("model", all.map(({ fingerprint, name }) => ({ value: fingerprint, words: name ?? fingerprint }))));
  await Promise.allSettled([labels, models]);
}

/** Shows a value in a field; one that a list does not offer (any more) is shown all the same. */
export function writeField(field, value) {
  const known = field.tagName !== "SELECT" || [...field.options].some((option) => option.value === value);
  if (!known) field.append(new Option(value, value));
  if (field.value !== value) field.value = value;
}
