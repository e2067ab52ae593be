/** Places in a canned reply that are to be filled in: `{name}`. */

const PLACE = /\{[^{}\n]{1,60}\}/g;

/** [{start, end, name}] in the order of the text, in UTF-16 units as text fields count. */
export function placesIn(text) {
  return Array.from(text.matchAll(PLACE), (found) => ({
    start: found.index,
    end: found.index + found[0].length,
    name: found[0].slice(1, -1),
  }));
}

/** The first place that begins at or after `from`, else the first of all; null where there is none. */
export function nextPlace(text, from) {
  const places = placesIn(text);
  return places.find(({ start }) => start >= from) ?? places[0] ?? null;
}
