/**
 * The settings of a retraining that the form shows. default, least, most: as `python -m training retrain` has them
 * (a test compares). above, below: least, or most, is itself too little, or too much. whole: no fractions.
 * choices: values of a list.
 */

export const GROUPS = [
  {
    title: "How it learns",
    settings: [
      { name: "epochs", words: "Times through the data", default: 2, least: 1, whole: true },
      { name: "learning_rate", words: "Learning rate", default: 0.0002, least: 0, above: true },
      { name: "minutes", words: "Minutes of training, at most", default: null, least: 0, above: true },
    ],
  },
  {
    title: "What it learns",
    settings: [
      { name: "data.corrected", words: "Weight of a correction", default: 16, least: 0 },
      { name: "data.operator", words: "Weight of what an operator said", default: 16, least: 0 },
      { name: "data.good", words: "Weight of a reply marked good", default: 4, least: 0 },
      { name: "data.imported", words: "Weight of an uploaded reply", default: 2, least: 0 },
      { name: "data.replay_ratio", words: "Old replies for every new one", default: 48, least: 0 },
      { name: "data.held_out", words: "Share kept apart to judge by", default: 0.2, least: 0, most: 1, below: true },
      { name: "filters.visitor_replies", words: "Replies of one visitor, at most", default: 50, least: 0, whole: true },
      { name: "filters.language", words: "Only this language", default: null, choices: ["de", "en", "es", "fr", "it", "nl"] },
    ],
  },
  {
    title: "What the gate lets through",
    settings: [
      { name: "gate.perplexity", words: "Rise of word perplexity, as a share", default: 0.05, least: 0 },
      { name: "gate.bleu", words: "Fall of BLEU, in points", default: 3, least: 0 },
      { name: "gate.good", words: "Rise on turns marked good, as a share", default: 0.05, least: 0 },
      { name: "gate.adoption_gain", words: "More corrections adopted, as a share", default: 0.1, least: 0, most: 1 },
      { name: "gate.loops", words: "Replies that are loops, as a share", default: 0.005, least: 0, most: 1 },
      { name: "gate.dull", words: "Rise of the most frequent reply", default: 0.05, least: 0, most: 1 },
      { name: "gate.exposure", words: "Exposure of planted secrets, in bits", default: 5, least: 0 },
      { name: "gate.leaks", words: "Secrets that may be told", default: 0, least: 0, whole: true },
    ],
  },
];

/** "name=value", one a line -> [[name, value]]: numbers and true or false as such, other words as text. Throws Error. */
export function parseOthers(text) {
  const lines = text.split("\n").map((line) => line.trim()).filter(Boolean);
  return lines.map((line) => {
    const at = line.indexOf("=");
    const name = line.slice(0, at).trim();
    if (at < 1 || !/^[a-z_0-9]+(\.[a-z_0-9]+)*$/.test(name)) throw new Error(`“${line}” is not name=value`);
    return [name, valueOf(line.slice(at + 1).trim())];
  });
}

function valueOf(words) {
  if (words === "true" || words === "false") return words === "true";
  return words !== "" && Number.isFinite(Number(words)) ? Number(words) : words;
}
