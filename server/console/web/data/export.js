/** Conversations as a file: chosen by the filters of the inbox, with personal data masked unless an admin says otherwise. */

import { field, form, row, section } from "../desk/pieces.js";
import { NAMES, REVIEWED, STATES, THUMBS, VERDICTS, fieldValue, filterValue, filtersOf, offerChoices, writeField } from "../inbox/filters.js";
import { address, sentence } from "../shell/api.js";
import { element, mark, setHidden } from "../shell/elements.js";

const FORMATS = [
  ["jsonl", "Transcripts (JSON lines)"],
  ["reviewed", "Transcripts for retraining: what was reviewed"],
  ["csv", "Table of messages (CSV)"],
];
const ANY = ["", "Any"];
/** What is exported where the address says nothing. */
const ALL = { state: "all" };

/**
 * query: of the address; with filters in it, the export is of what the inbox shows under them. A browser does not say why the
 * server refuses a download, so the inbox is asked first whether it takes the filters and finds anything.
 */
export function exporting(context, query) {
  const asked = filtersOf(query);
  const fromInbox = Object.keys(asked).length > 0;
  const began = fromInbox ? { state: "open", ...asked } : ALL;
  const format = select("format", FORMATS);
  const inputs = filterInputs();
  const unmasked = element("input", { type: "checkbox", name: "unmasked", change: () => showMasking() });
  const masking = element("span", { role: "status" });
  const showMasking = () => masking.replaceChildren(unmasked.checked ? mark("With personal data", "danger") : mark("Personal data masked", "good"));
  const parts = [field("What", format), ...Object.values(inputs).map(({ words, input }) => field(words, input))];
  if (context.admin) parts.push(element("label", { class: "check" }, unmasked, "With personal data (the audit log says so)"));
  const show = () => Object.entries(inputs).forEach(([name, { input }]) => writeField(input, fieldValue(name, began[name] ?? "")));
  show();
  showMasking();
  offerChoices(context.api, (name, choices) => {
    const { input } = inputs[name];
    const chosen = input.value;
    input.replaceChildren(...options([ANY, ...choices.map(({ value, words }) => [value, words])]));
    writeField(input, chosen);
  });
  const problem = element("p", { class: "bad-words", role: "alert", hidden: true });
  const refuse = (words) => {
    problem.textContent = words;
    setHidden(problem, words === "");
  };
  const send = async () => {
    refuse("");
    const filters = chosenFilters(inputs, began);
    try {
      const { conversations } = await context.api.get("/conversations", { ...filters, limit: 1 });
      if (conversations.length === 0) refuse("No conversation fits these filters: the file is empty.");
    } catch (error) {
      return refuse(sentence(error));
    }
    download({ format: format.value, ...filters, mask: unmasked.checked ? "false" : "" });
    context.announce("The download begins");
  };
  const node = form("Download", parts, send, { place: (go) => row(go, masking) });
  node.classList.add("dense");
  const words = "E-mail addresses, phone and card numbers and the names below are masked. Days are of the newest message, from midnight to midnight here.";
  return section("Export", [
    fromInbox ? element("p", { class: "callout plain" }, "These are the filters of the inbox as you left it.") : null,
    element("p", { class: "soft" }, words),
    node,
    problem,
  ].filter(Boolean));
}

/** {name of a filter: {words, input}} for all that the inbox knows. */
function filterInputs() {
  const list = (name, words, pairs) => [name, { words, input: select(name, pairs) }];
  const input = (name, words, properties) => [name, { words, input: element("input", { name, ...properties }) }];
  const found = Object.fromEntries([
    list("state", "Which conversations", STATES),
    list("mine", "Whose", [["", "Anybody's"], ["true", "Mine: taken over by me"]]),
    list("reviewed", "Reviewed", [ANY, ...REVIEWED]),
    list("rating", "The visitor's thumb", [ANY, ...THUMBS]),
    list("verdict", "Verdict", [ANY, ...VERDICTS]),
    list("label", "Label", [ANY]),
    list("model", "Model", [ANY]),
    input("confidence_below", "Less sure than (%)", { type: "number", min: "0", max: "100", inputmode: "numeric" }),
    input("cluster", "Topic, by its number", { type: "number", min: "0", inputmode: "numeric" }),
    input("from", "From", { type: "date" }),
    input("to", "Until", { type: "date" }),
    input("q", "That say", { type: "text", maxlength: "200", dir: "auto" }),
  ]);
  return Object.fromEntries(NAMES.map((name) => [name, found[name]]));
}

/** What the fields ask for. One that was left alone means exactly what the address said, which may be finer than it shows. */
function chosenFilters(inputs, began) {
  const value = (name) => {
    const before = began[name] ?? "";
    const shown = inputs[name].input.value.trim();
    return shown === fieldValue(name, before).trim() ? before : filterValue(name, shown);
  };
  return Object.fromEntries(NAMES.map((name) => [name, value(name)]));
}

function download(query) {
  const link = element("a", { href: address("/export", query), download: "" });
  document.body.append(link);
  link.click();
  link.remove();
}

function select(name, pairs) {
  return element("select", { name }, ...options(pairs));
}

function options(pairs) {
  return pairs.map(([value, words]) => element("option", { value }, words));
}
