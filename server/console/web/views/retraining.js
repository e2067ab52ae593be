/** Models, retraining and what it would change; which model answers, and to whom. */

import { BeginForm } from "../retraining/begin.js";
import { ChangesView } from "../retraining/changes.js";
import { JobView } from "../retraining/job.js";
import { ModelsPart } from "../retraining/models.js";
import { STATES } from "../retraining/states.js";
import { Place, section } from "../desk/pieces.js";
import { sentence } from "../shell/api.js";
import { element, heading, mark, name } from "../shell/elements.js";
import { count, wholeTime } from "../shell/format.js";
import { hrefOf } from "../shell/router.js";

const AGAIN = 2_000;

export function mount(root, context) {
  root.classList.add("page");
  const head = element("header", { class: "page-head" });
  const body = element("div", { class: "page-body" });
  root.append(head, body);
  let part = null;
  const show = (route) => {
    part?.stop();
    const [job, what] = route.rest;
    if (job && what === "changes") part = new ChangesView(context, job);
    else if (job) part = new JobView(context, job);
    else part = new Overview(context);
    head.replaceChildren(...part.head);
    body.replaceChildren(part.node);
  };
  context.onRoute(show);
  show(context.route);
  return () => part?.stop();
}

class Overview {
  #context;
  #timer = null;
  #ended = false;
  #list = new Place();
  #models;
  #begin = null;

  constructor(context) {
    this.#context = context;
    this.head = [heading(1, "Retraining")];
    this.#models = new ModelsPart(context);
    if (context.admin) this.#begin = new BeginForm(context);
    const parts = [this.#begin?.node, this.#list.node].filter(Boolean);
    this.node = element("div", {}, section("Retrainings", parts), this.#models.node);
    this.#look();
  }

  stop() {
    this.#ended = true;
    clearTimeout(this.#timer);
    this.#models.stop();
  }

  async #look() {
    try {
      const { jobs, missing } = await this.#context.api.get("/jobs");
      if (this.#ended) return;
      this.#begin?.allow(missing === null);
      this.#list.show({ jobs, missing }, () => [
        missing && element("p", { class: "callout" }, name(sentence({ message: missing }))),
        jobs.length ? element("ul", { class: "jobs" }, ...jobs.map((job) => row(job))) : element("p", { class: "soft" }, "Nothing was retrained yet."),
      ].filter(Boolean));
      if (jobs.some(({ state }) => state === "queued" || state === "running")) this.#timer = setTimeout(() => this.#look(), AGAIN);
    } catch (error) {
      this.#context.failed(error);
      if (!this.#ended) this.#timer = setTimeout(() => this.#look(), 5 * AGAIN);
    }
  }
}

function row(job) {
  const verdict = job.result && mark(job.result.passed ? "gate passed" : "gate refuses", job.result.passed ? "good" : "danger");
  const { step, steps, phase } = job.progress ?? {};
  const progress = steps ? element("progress", { max: steps, value: step ?? 0, "aria-label": phase ?? "Progress" }) : null;
  const compared = job.result?.compared;
  const changed = compared ? `${count(compared.changed)} of ${count(compared.questions)} replies change` : job.error || phase || "";
  return element("li", {},
    element("a", { href: hrefOf("retraining", [job.id]) }, wholeTime(new Date(job.created_at))),
    element("span", { class: "soft" }, "by ", name(job.operator ?? "command line")),
    mark(job.cancelling ? "being called off" : job.state, STATES[job.state]), verdict, progress,
    element("span", { class: "soft job-words", dir: "auto" }, changed));
}
