/**
 * What a reviewer says of a reply: good, bad and why, what should have been said, a note.
 *
 * actions: {set(verdict), select(), advance(), labels(): [names], panel()}
 */

import { arrange, button, element, setAttribute, setHidden } from "../shell/elements.js";
import { diffView } from "./diff_view.js";
import { draftOf } from "../shell/drafts.js";
import { TextEditor } from "./text_editor.js";

const NOTHING = { verdict: null, labels: [], corrected: null, note: null };

/** Under which names the words about a message are kept while they are written. */
export function draftsOf(message) {
  return { correction: `correction.${message}`, note: `note.${message}` };
}

export class VerdictBar {
  #message;
  #actions;
  #verdict = null;
  #editor = null;
  #note = null;
  #offered = "";
  #good;
  #bad;
  #correct;
  #addNote;
  #labels = element("div", { class: "labels", role: "group", "aria-label": "What is bad about it", hidden: true });
  #shown = element("div", { class: "decided" });
  #saved = element("span", { class: "saving", hidden: true }, "Saving…");
  #signature = "";

  constructor(message, actions) {
    this.#message = message;
    this.#actions = actions;
    const judge = (word) => () => {
      actions.select();
      this.judge(word);
    };
    const pick = (words, picture, click, extra = {}) =>
      button(words, click, { kind: "quiet", picture, class: `pick ${extra.tone ?? ""}`, ...extra.properties });
    const pressed = { "aria-pressed": "false" };
    this.#good = pick("Good", "good", judge("good"), { tone: "good", properties: pressed });
    this.#bad = pick("Bad", "bad", judge("bad"), { tone: "bad", properties: pressed });
    this.#correct = pick("Correct", "correct", () => this.#do("correct"));
    this.#addNote = pick("Note", "note", () => this.#do("note"));
    const why = pick("Why", "explain", () => actions.panel(), { tone: "why" });
    const buttons = element("div", { class: "picks" }, this.#good, this.#bad, this.#correct, this.#addNote, why, this.#saved);
    this.node = element("div", { class: "verdict" }, buttons, this.#labels, this.#shown);
  }

  #do(action) {
    this.#actions.select();
    this[action]();
  }

  show(message, verdict, { saving, selected }) {
    this.#message = message;
    this.#verdict = verdict;
    setAttribute(this.#good, "aria-pressed", String(verdict?.verdict === "good"));
    setAttribute(this.#bad, "aria-pressed", String(verdict?.verdict === "bad"));
    setHidden(this.#saved, !saving);
    setHidden(this.#labels, !(verdict?.verdict === "bad" && selected));
    if (!this.#labels.hidden) this.#showLabels();
    const signature = JSON.stringify([verdict, message.text, selected]);
    if (signature === this.#signature) return;
    this.#signature = signature;
    this.#shown.replaceChildren(...this.#decided(verdict, selected));
  }

  /** word: good or bad; the one that stands already is taken back. */
  judge(word) {
    const { labels, note, corrected } = this.#verdict ?? NOTHING;
    if (this.#verdict?.verdict === word) {
      this.#actions.set(null);
    } else if (word === "good") {
      this.#actions.set({ verdict: "good", labels: [], corrected: null, note });
    } else {
      this.#actions.set({ verdict: "bad", labels, corrected, note });
    }
  }

  /** number: from 1, as the labels are numbered. */
  toggleLabel(number) {
    const name = this.#actions.labels()[number - 1];
    if (name === undefined) return;
    const { labels, corrected, note } = this.#verdict ?? NOTHING;
    const kept = labels.includes(name) ? labels.filter((other) => other !== name) : [...labels, name];
    this.#actions.set({ verdict: "bad", labels: kept, corrected, note });
  }

  /** The reply becomes a text to be mended in its place. */
  correct() {
    this.#openCorrection();
    this.#editor.focus();
  }

  /** What was being written when the page was left, or could not be saved, is there to go on with. */
  restore() {
    if (draftOf(this.#drafts.correction) !== "") this.#openCorrection();
    if (draftOf(this.#drafts.note) !== "") this.#openNote();
  }

  /** Leads to words that are not saved; false where there are none. */
  showUnsaved() {
    const open = [this.#editor, this.#note].find((editor) => editor?.unsaved);
    open?.focus();
    return open !== undefined;
  }

  get #drafts() {
    return draftsOf(this.#message.id);
  }

  #openCorrection() {
    if (this.#editor !== null) return;
    const { text } = this.#message;
    this.#editor = new TextEditor({
      label: "What should have been said",
      name: this.#drafts.correction,
      text: this.#verdict?.corrected ?? text,
      compare: text,
      save: (corrected) => this.#saveCorrection(corrected, text),
      cancel: () => this.#closeEditor(),
    });
    this.onEdit(this.#editor.node);
  }

  #saveCorrection(corrected, text) {
    const { labels, note } = this.#verdict ?? NOTHING;
    this.#closeEditor();
    if (corrected === text || corrected === "") {
      if (this.#verdict?.corrected) this.#actions.set({ verdict: "bad", labels, corrected: null, note });
      return;
    }
    this.#actions.set({ verdict: "bad", labels, corrected, note });
    this.#actions.advance();
  }

  #closeEditor() {
    this.#editor = null;
    this.onEdit(null);
    this.#correct.focus();
  }

  /** Where the editor takes the place of the reply: node, or null when it is done. */
  onEdit = () => {};

  note() {
    this.#openNote();
    this.#note.focus();
  }

  #openNote() {
    if (this.#note !== null) return;
    const close = () => {
      this.#note.node.remove();
      this.#note = null;
      this.#addNote.focus();
    };
    this.#note = new TextEditor({
      label: "Note for the team",
      name: this.#drafts.note,
      text: this.#verdict?.note ?? "",
      save: (words) => {
        close();
        const { verdict, labels, corrected } = this.#verdict ?? { ...NOTHING, verdict: "bad" };
        this.#actions.set({ verdict: verdict ?? "bad", labels, corrected, note: words === "" ? null : words });
      },
      cancel: close,
    });
    this.node.append(this.#note.node);
  }

  #showLabels() {
    const names = [...new Set([...this.#actions.labels(), ...(this.#verdict?.labels ?? [])])];
    const offered = JSON.stringify(names);
    if (offered !== this.#offered) {
      this.#offered = offered;
      arrange(this.#labels, names.map((name, index) => this.#label(name, index)));
    }
    for (const node of this.#labels.children) {
      setAttribute(node, "aria-pressed", String(this.#verdict.labels.includes(node.dataset.label)));
    }
  }

  #label(name, index) {
    const digit = index < 9 ? element("kbd", { "aria-hidden": "true" }, String(index + 1)) : null;
    const click = () => {
      this.#actions.select();
      const { labels, corrected, note } = this.#verdict;
      const kept = labels.includes(name) ? labels.filter((other) => other !== name) : [...labels, name];
      this.#actions.set({ verdict: "bad", labels: kept, corrected, note });
    };
    const node = element("button", { type: "button", class: "label", "aria-pressed": "false", click }, digit, element("bdi", {}, name));
    node.dataset.label = name;
    return node;
  }

  /** What was decided, to be read: labels where they are not offered, the correction as a diff, the note. */
  #decided(verdict, selected) {
    if (verdict === null) return [];
    const parts = [];
    if (!selected && verdict.labels.length > 0) {
      parts.push(element("p", { class: "label-list" }, ...verdict.labels.map((name) => element("bdi", { class: "mark danger" }, name))));
    }
    if (verdict.corrected !== null) {
      const title = element("p", { class: "small-title" }, "Corrected");
      parts.push(element("div", { class: "correction" }, title, diffView(this.#message.text, verdict.corrected)));
    }
    if (verdict.note) {
      const title = element("p", { class: "small-title" }, "Note");
      parts.push(element("div", { class: "note" }, title, element("div", { class: "text", dir: "auto" }, verdict.note)));
    }
    return parts;
  }
}
