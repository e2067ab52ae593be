/**
 * What changed between two texts, word by word.
 *
 * `diff(before, after)` gives pieces {kind: "same" | "removed" | "added", text}: without the added ones they are
 * `before` again, without the removed ones `after`.
 */

/** Cells of the table of the longest common part; beyond it the differing middle counts as changed as a whole. */
const MOST_CELLS = 1_000_000;

/** Words, spaces and marks, each by itself; joined they are the text. */
export function words(text) {
  const segments = new Intl.Segmenter("en", { granularity: "word" }).segment(text);
  return Array.from(segments, ({ segment }) => segment);
}

export function diff(before, after) {
  const [old, fresh] = [words(before), words(after)];
  let start = 0;
  while (start < old.length && start < fresh.length && old[start] === fresh[start]) start += 1;
  let end = 0;
  const room = Math.min(old.length, fresh.length) - start;
  while (end < room && old.at(-1 - end) === fresh.at(-1 - end)) end += 1;
  const pieces = [
    ...old.slice(0, start).map((text) => ({ kind: "same", text })),
    ...middle(old.slice(start, old.length - end), fresh.slice(start, fresh.length - end)),
    ...old.slice(old.length - end).map((text) => ({ kind: "same", text })),
  ];
  return joined(bridged(pieces));
}

/** The longest common subsequence, as a table of lengths walked from its start. */
function middle(old, fresh) {
  const width = fresh.length + 1;
  if ((old.length + 1) * width > MOST_CELLS) {
    return [...old.map((text) => ({ kind: "removed", text })), ...fresh.map((text) => ({ kind: "added", text }))];
  }
  const lengths = new Uint32Array((old.length + 1) * width);
  for (let i = old.length - 1; i >= 0; i -= 1) {
    for (let j = fresh.length - 1; j >= 0; j -= 1) {
      lengths[i * width + j] =
        old[i] === fresh[j]
          ? lengths[(i + 1) * width + j + 1] + 1
          : Math.max(lengths[(i + 1) * width + j], lengths[i * width + j + 1]);
    }
  }
  const pieces = [];
  let [i, j] = [0, 0];
  while (i < old.length || j < fresh.length) {
    if (i < old.length && j < fresh.length && old[i] === fresh[j]) {
      pieces.push({ kind: "same", text: old[i] });
      i += 1;
      j += 1;
    } else if (i < old.length && (j === fresh.length || lengths[(i + 1) * width + j] >= lengths[i * width + j + 1])) {
      pieces.push({ kind: "removed", text: old[i] });
      i += 1;
    } else {
      pieces.push({ kind: "added", text: fresh[j] });
      j += 1;
    }
  }
  return pieces;
}

/** A space alone between two changes is changed with them: "[two words]" reads better than "[two] [words]". */
function bridged(pieces) {
  return pieces.flatMap((piece, index) => {
    const between = piece.kind === "same" && /^\s+$/.test(piece.text);
    const [before, after] = [pieces[index - 1], pieces[index + 1]];
    if (!between || !before || !after || before.kind === "same" || after.kind === "same") return [piece];
    return [{ kind: "removed", text: piece.text }, { kind: "added", text: piece.text }];
  });
}

/** Neighbors of one kind become one piece; within a change, what went stands before what came. */
function joined(pieces) {
  const result = [];
  let change = { removed: "", added: "" };
  const flush = () => {
    for (const kind of ["removed", "added"]) if (change[kind] !== "") result.push({ kind, text: change[kind] });
    change = { removed: "", added: "" };
  };
  for (const { kind, text } of pieces) {
    if (kind !== "same") {
      change[kind] += text;
      continue;
    }
    flush();
    if (result.at(-1)?.kind === "same") result.at(-1).text += text;
    else result.push({ kind, text });
  }
  flush();
  return result;
}
