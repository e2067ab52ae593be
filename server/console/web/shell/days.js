/** Days of the reader's calendar, as date fields hold them, and the moments at which they begin and end. */

/** "2026-01-05" -> the moment it begins, as the API takes it; "" for what is no day. */
export function dayBegins(day) {
  return moment(day, 0);
}

/** "2026-01-05" -> the moment the next day begins. */
export function dayEnds(day) {
  return moment(day, 1);
}

/** The day of a moment; `end`: of one at which a day ends. "" for what is no moment. */
export function dayOf(words, { end = false } = {}) {
  const at = new Date(words);
  if (words === "" || Number.isNaN(at.getTime())) return "";
  if (end) at.setMilliseconds(at.getMilliseconds() - 1);
  const two = (number) => String(number).padStart(2, "0");
  return `${String(at.getFullYear()).padStart(4, "0")}-${two(at.getMonth() + 1)}-${two(at.getDate())}`;
}

function moment(day, later) {
  const at = new Date(`${day}T00:00:00`);
  if (Number.isNaN(at.getTime())) return "";
  at.setDate(at.getDate() + later);
  return at.toISOString();
}
