/** One retraining: how far it is, its loss, what the gate says, what it printed. */

import { chart } from "../desk/chart.js";
import { Place, section, sure, table } from "../desk/pieces.js";
import { button, element, facts, heading, mark, name } from "../shell/elements.js";
import { wholeTime } from "../shell/format.js";
import { hrefOf } from "../shell/router.js";
import { STATES } from "./states.js";

const AGAIN = 1_000;
const PHASES = 60;

export class JobView {
  #context;
  #id;
  #timer = null;
  #ended = false;

  constructor(context, id) {
    this.#context = context;
    this.#id = id;
    this.state = new Place("span", { role: "status" });
    this.buttons = new Place("span", { class: "flow" });
    this.parts = [new Place(), new Place(), new Place(), new Place(), new Place()];
    this.head = [element("a", { class: "back-link", href: hrefOf("retraining") }, "All retrainings"), heading(1, "Retraining"), this.state.node, this.buttons.node];
    this.node = element("div", {}, ...this.parts.map(({ node }) => node));
    this.#look();
  }

  stop() {
    this.#ended = true;
    clearTimeout(this.#timer);
  }

  async #look() {
    try {
      const job = await this.#context.api.get(`/jobs/${encodeURIComponent(this.#id)}`);
      if (this.#ended) return;
      this.#show(job);
      if (job.state === "queued" || job.state === "running") this.#timer = setTimeout(() => this.#look(), AGAIN);
    } catch (error) {
      if (error.status === 404) this.node.replaceChildren(element("p", { class: "empty-page" }, "There is no such retraining."));
      else {
        this.#context.failed(error);
        if (!this.#ended) this.#timer = setTimeout(() => this.#look(), 5 * AGAIN);
      }
    }
  }

  #show(job) {
    this.state.show([job.state, job.cancelling], () => [mark(job.cancelling ? "being called off" : job.state, STATES[job.state])]);
    this.buttons.show([job.state, job.cancelling, job.result?.compared], () => this.#actions(job));
    const { progress: _, curve: points, log, ...rest } = job;
    const [about, at, verdict, loss, printed] = this.parts;
    about.show(rest, () => [this.#about(job), job.error && element("p", { class: "callout bad-words" }, name(job.error))].filter(Boolean));
    at.show(job.progress, () => (job.progress ? [progress(job.progress)] : []));
    verdict.show(job.result, () => (job.result ? [gate(job.result)] : []));
    loss.show(points, () => (points.length ? [curve(points)] : []));
    printed.show(log, () => (log.length ? [section("Log", [element("pre", { class: "log", tabindex: "0", role: "region", "aria-label": "What the processes printed" }, log.join("\n"))])] : []));
  }

  #actions(job) {
    const actions = [];
    if (job.result?.compared?.changed) actions.push(element("a", { class: "quiet-button", href: hrefOf("retraining", [job.id, "changes"]) }, "What would change"));
    const going = job.state === "queued" || job.state === "running";
    if (this.#context.admin && going && !job.cancelling) actions.push(button("Call off", () => this.#cancel()));
    return actions;
  }

  async #cancel() {
    if (!(await sure("Call this retraining off?", "Call off"))) return;
    try {
      await this.#context.api.post(`/jobs/${encodeURIComponent(this.#id)}/cancel`);
    } catch (error) {
      this.#context.failed(error);
    }
    clearTimeout(this.#timer);
    this.#look();
  }

  #about(job) {
    const settings = Object.entries(job.settings);
    const pairs = [
      ["From", element("code", {}, job.base)],
      ["To", job.candidate && element("code", {}, job.candidate)],
      ["Asked for by", name(job.operator ?? "command line")],
      ["Began", job.started_at && wholeTime(new Date(job.started_at))],
      ["Ended", job.ended_at && wholeTime(new Date(job.ended_at))],
      ["Uploads", job.use_imports ? "learned too" : null],
      ["Settings", settings.length && element("code", {}, settings.map(([key, value]) => `${key}=${value}`).join(" "))],
      ["Model", job.result?.model && name(job.result.model)],
      ["Not installed", job.result?.not_installed && name(job.result.not_installed)],
      ["No comparison", job.result?.changes_error && name(job.result.changes_error)],
    ].filter(([, value]) => value);
    return section("About", [facts(pairs)]);
  }
}

function progress({ phase, step, steps, loss, seconds_left: left }) {
  const words = [phase ?? "at work", steps ? `${step} of ${steps}` : null, loss === null ? null : `loss ${loss.toFixed(3)}`, left === null ? null : left < PHASES ? `${Math.ceil(left)} s left` : `${Math.ceil(left / 60)} min left`];
  const bar = steps ? element("progress", { max: steps, value: step ?? 0, "aria-label": "Progress" }) : null;
  return element("p", { class: "job-progress" }, bar, element("span", {}, words.filter(Boolean).join(" · ")));
}

function gate(result) {
  const rows = result.reasons.map((reason) => [mark(reason.passed ? "passed" : "refused", reason.passed ? "good" : "danger"), reason.name, name(reason.text)]);
  const words = result.passed ? "The gate lets it through." : "The gate refuses it.";
  const more = result.compared ? ` Of ${result.compared.questions} logged turns it answers ${result.compared.changed} differently.` : "";
  return section("The gate", [
    element("p", { class: result.passed ? "good-words" : "bad-words" }, words + more),
    table("What the gate looked at", [{ title: "" }, { title: "What" }, { title: "Figures" }], rows),
  ]);
}

/** At most a hundred points: the mean of those that fall together. */
function curve(points) {
  const size = Math.ceil(points.length / 100);
  const groups = Array.from({ length: Math.ceil(points.length / size) }, (_, at) => points.slice(at * size, (at + 1) * size));
  const labels = groups.map((group) => String(group[0].step));
  const values = groups.map((group) => group.reduce((sum, { loss }) => sum + loss, 0) / group.length);
  return section("Loss", [chart("Nats a token, by update", labels, [{ title: "training loss", tone: "one", values }], { words: (value) => value.toFixed(2), lines: true })]);
}
