/** Conversations in and out: exports, uploads, names that are masked, erasing a visitor. */

import { exporting } from "../data/export.js";
import { field, form, redraw, section, sure, table } from "../desk/pieces.js";
import { sentence } from "../shell/api.js";
import { button, element, heading, iconButton, name } from "../shell/elements.js";
import { count, counted, wholeTime } from "../shell/format.js";

/** What the counts of an erasure are of, where their names do not say it. */
const ERASED = { generations: "records of how replies were made", topic_points: "places on the map of topics", topic_words: "words on the map of topics", imported: "uploaded conversations", datasets: "files of retrainings", jobs_cancelled: "retrainings that were ended" };

export function mount(root, context) {
  root.classList.add("page");
  const imports = element("div", {});
  const names = element("div", {});
  const parts = [exporting(context, context.route.query), importing(context, imports), masking(context, names)];
  if (context.admin) parts.push(erasing(context));
  root.append(element("header", { class: "page-head" }, heading(1, "Data")), element("div", { class: "page-body" }, ...parts));
  listImports(context, imports);
  listNames(context, names);
  return () => {};
}

function select(key, pairs) {
  return element("select", { name: key }, ...pairs.map(([value, words]) => element("option", { value }, words)));
}

function importing(context, list) {
  const report = element("div", { role: "status", class: "report" });
  const file = element("input", { type: "file", name: "file", required: true, accept: ".jsonl,.gz,.json" });
  const send = async () => {
    const chosen = file.files[0];
    report.replaceChildren(element("p", {}, `Reading ${counted(chosen.size, "byte", "bytes")}…`));
    const response = await upload(context, chosen);
    report.replaceChildren(...response);
    file.value = "";
    listImports(context, list);
  };
  return section("Import transcripts", [
    element("p", { class: "soft" }, "JSON lines, plain or packed with gzip. All of a file is taken in, or nothing. Retraining can learn from it."),
    form("Upload", [field("File", file)], send),
    report,
    list,
  ]);
}

async function upload(context, file) {
  try {
    const told = await context.api.post(`/imports?name=${encodeURIComponent(file.name)}`, file);
    return [element("p", { class: "good-words" }, `${counted(told.conversations, "conversation", "conversations")} taken in.`)];
  } catch (error) {
    const problems = error.problems ?? [];
    const rows = problems.map(({ line, reason }) => [line === 0 ? "–" : count(line), name(reason)]);
    const words = element("p", { class: "bad-words" }, sentence(error));
    return rows.length === 0 ? [words] : [words, table("Problems", [{ title: "Line", number: true }, { title: "Problem" }], rows)];
  }
}

async function listImports(context, place) {
  try {
    const { imports } = await context.api.get("/imports");
    const columns = [{ title: "File" }, { title: "Conversations", number: true }, { title: "By" }, { title: "At" }, { title: "", action: true }];
    redraw(place, [table("Uploaded files", columns, imports.map((each) => [
      name(each.name),
      count(each.conversations),
      name(each.operator ?? "–"),
      wholeTime(new Date(each.created_at)),
      context.admin ? button("Forget", () => forget(context, place, each), { kind: "text", "aria-label": `Forget ${each.name}` }) : "",
    ]), "No file was uploaded yet.")]);
  } catch (error) {
    context.failed(error);
  }
}

async function forget(context, place, each) {
  if (!(await sure(`Forget ${each.name} and its ${counted(each.conversations, "conversation", "conversations")}?`, "Forget"))) return;
  try {
    await context.api.delete(`/imports/${encodeURIComponent(each.id)}`);
    listImports(context, place);
  } catch (error) {
    context.failed(error);
  }
}

function masking(context, list) {
  const parts = [element("p", { class: "soft" }, "A list of your own, of customers or staff. Wherever personal data is masked, these names are too."), list];
  if (context.admin) {
    const add = async ({ name: given }, node) => {
      try {
        await context.api.post("/masked_names", { name: given });
        node.reset();
        await listNames(context, list);
      } catch (error) {
        context.failed(error);
      }
    };
    parts.push(form("Mask this name", [field("Name", element("input", { type: "text", name: "name", required: true, maxlength: "100" }))], add, { kind: "quiet" }));
  }
  return section("Masked names", parts);
}

async function listNames(context, place) {
  try {
    const { names } = await context.api.get("/masked_names");
    const remove = (given) => async () => {
      try {
        await context.api.delete("/masked_names", undefined, { name: given });
        listNames(context, place);
      } catch (error) {
        context.failed(error);
      }
    };
    const one = (given) => element("li", {}, name(given), context.admin ? iconButton("close", `Remove ${given}`, remove(given)) : null);
    redraw(place, [names.length ? element("ul", { class: "chips" }, ...names.map(one)) : element("p", { class: "soft" }, "The list is empty.")]);
  } catch (error) {
    context.failed(error);
  }
}

function erasing(context) {
  const report = element("div", { role: "status", class: "report" });
  const send = async ({ kind, id }, node) => {
    const whom = { [kind]: id.trim() };
    if (!(await sure("Erase this visitor with all they said, everywhere? Nothing brings it back.", "Erase"))) return;
    try {
      const told = await context.api.post("/erase", whom);
      node.reset();
      const gone = Object.entries(told).filter(([key, value]) => typeof value === "number" && value > 0 && key !== "exports");
      report.replaceChildren(
        element("p", { class: "good-words" }, "Erased."),
        table("What was erased", [{ title: "What" }, { title: "Count", number: true }], gone.map(([key, value]) => [ERASED[key] ?? key.replaceAll("_", " "), count(value)])),
        ...remaining(told).map((words) => element("p", { class: "callout" }, words)),
      );
    } catch (error) {
      context.failed(error);
    }
  };
  const kinds = select("kind", [["conversation", "One of their conversations"], ["visitor", "The visitor"]]);
  const input = element("input", { type: "text", name: "id", required: true, maxlength: "128", autocomplete: "off", spellcheck: "false" });
  return section("Erase a visitor", [
    element("p", { class: "soft" }, "All that the visitor ever said goes, in all their conversations. The id of a conversation is the last part of its address in the inbox."),
    form("Erase…", [field("Known by", kinds), field("Id", input)], send, { kind: "quiet" }),
    report,
  ]);
}

/** What erasing could not reach, in sentences. */
function remaining({ visitor, models, files_left: files = [], exports, log_emptied: emptied }) {
  return [
    models.length > 0 && `Models that have learned from the conversations: ${models.join(", ")}.`,
    files.length > 0 && `Texts may be left in files of retrainings, which could not be removed: ${files.join(", ")}.`,
    exports > 0 && `${counted(exports, "export was", "exports were")} made since the visitor came; the files may hold what they said.`,
    emptied === false && `Traces may be left in the database's files, because something was reading. Erase the visitor ${visitor} again later.`,
  ].filter(Boolean);
}
