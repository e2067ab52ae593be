/**
 * What the inbox shows, as it stands in the address. The names and values are those of GET /conversations.
 */

export const NAMES = [
  "state", "mine", "reviewed", "rating", "confidence_below", "model", "label", "verdict", "cluster", "from", "to", "q",
];

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
