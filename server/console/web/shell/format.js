/** Numbers and times in words. */

const numbers = new Intl.NumberFormat("en");
const clock = new Intl.DateTimeFormat("en", { hour: "2-digit", minute: "2-digit", hourCycle: "h23" });
const weekday = new Intl.DateTimeFormat("en", { weekday: "short" });
const day = new Intl.DateTimeFormat("en", { day: "numeric", month: "short" });
const dayOfYear = new Intl.DateTimeFormat("en", { day: "numeric", month: "short", year: "numeric" });
const whole = new Intl.DateTimeFormat("en", { dateStyle: "medium", timeStyle: "medium", hourCycle: "h23" });

const MINUTE = 60_000;
const DAY = 86_400_000;

/** 12345 -> "12,345" */
export function count(value) {
  return numbers.format(value);
}

/** 1 -> "1 reply", 2 -> "2 replies" */
export function counted(value, one, many) {
  return `${count(value)} ${value === 1 ? one : many}`;
}

/** 0.314 -> "31 %"; what is not nothing is at least "<1 %" */
export function percent(share) {
  if (share > 0 && share < 0.005) return "<1 %";
  return `${Math.round(share * 100)} %`;
}

/** Milliseconds: 84.2 -> "84 ms", 1240 -> "1.24 s" */
export function milliseconds(value) {
  return value < 1000 ? `${Math.round(value)} ms` : `${(value / 1000).toFixed(2)} s`;
}

/** "now", "5 min", "14:03", "Mon", "3 Mar", "3 Mar 2024": as exact as it has to be. */
export function shortTime(date, now = new Date()) {
  const age = now - date;
  if (age < MINUTE) return "now";
  if (age < 60 * MINUTE) return `${Math.floor(age / MINUTE)} min`;
  const midnight = new Date(now.getFullYear(), now.getMonth(), now.getDate());
  if (date >= midnight) return clock.format(date);
  if (midnight - date < 6 * DAY) return weekday.format(date);
  return (date.getFullYear() === now.getFullYear() ? day : dayOfYear).format(date);
}

/** How long something has lasted: "now", "5 min", "3 h", "2 d" */
export function lasted(since, now = new Date()) {
  const minutes = Math.floor((now - since) / MINUTE);
  if (minutes < 1) return "now";
  if (minutes < 60) return `${minutes} min`;
  return minutes < 1440 ? `${Math.floor(minutes / 60)} h` : `${Math.floor(minutes / 1440)} d`;
}

export function wholeTime(date) {
  return whole.format(date);
}

export function timeOfDay(date) {
  return clock.format(date);
}
