/** The team's labels that are offered, asked for once in a minute at most. */

const FRESH = 60_000;

let known = null;

/** They have just been changed here. */
export function forgetLabels() {
  known = null;
}

/** Names of labels that are not archived; none when they cannot be had now. */
export async function labelsOf(api) {
  if (known !== null && Date.now() - known.at < FRESH) return known.names;
  try {
    const { labels } = await api.get("/labels");
    known = { at: Date.now(), names: labels.filter(({ archived }) => !archived).map(({ name }) => name) };
  } catch {
    return known?.names ?? [];
  }
  return known.names;
}
