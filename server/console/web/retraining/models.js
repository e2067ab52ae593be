/** The models of this server: which answers, which did before, which may; canary and shadow. */

import { Place, field, form, section, sure, table, tile, tiles } from "../desk/pieces.js";
import { button, element, mark, name } from "../shell/elements.js";
import { count, percent, wholeTime } from "../shell/format.js";
import { hrefOf } from "../shell/router.js";

const AGAIN = 5_000;

export class ModelsPart {
  #context;
  #ended = false;
  #timer = null;
  #models = new Place();
  #rollouts = new Place();
  #choice = element("select", { name: "model", required: true });
  #choices = "";
  #previous = null;

  constructor(context) {
    this.#context = context;
    this.back = button("Roll back", () => this.#rollback(), { picture: "undo", disabled: true });
    this.node = element("div", {}, section("Models", [this.#models.node], context.admin ? [this.back] : []), section("Beside the model in use", [
      element("p", { class: "soft" }, "A canary answers a share of new conversations; a shadow answers silently, to be compared."),
      this.#rollouts.node,
    ]));
    if (context.admin) this.node.lastChild.append(this.#begin());
    this.#look();
  }

  stop() {
    this.#ended = true;
    clearTimeout(this.#timer);
  }

  async #look() {
    clearTimeout(this.#timer);
    try {
      const [{ models, in_use: inUse, previous }, rollouts] = await Promise.all([this.#context.api.get("/models"), this.#context.api.get("/rollouts")]);
      if (this.#ended) return;
      this.#previous = previous;
      this.back.disabled = previous === null;
      this.#models.show({ models, inUse, previous }, () => [this.#table(models, inUse, previous)]);
      this.#offer(models.filter(({ fingerprint }) => fingerprint !== inUse));
      await this.#compare(rollouts);
    } catch (error) {
      this.#context.failed(error);
    }
    if (!this.#ended) this.#timer = setTimeout(() => this.#look(), AGAIN);
  }

  #table(models, inUse, previous) {
    // A calibrated copy has the fingerprint of its original: of the two, the one that is meant answers.
    const meant = models.some((model) => model.in_use && model.fingerprint === inUse);
    const answers = (model) => model.fingerprint === inUse && (model.in_use || !meant);
    const columns = [{ title: "Model" }, { title: "State" }, { title: "Gate" }, { title: "Promoted" }, { title: "", action: true }];
    return table("Models", columns, models.map((model) => [
      element("span", { class: "model" }, element("strong", {}, name(model.name)), " ", element("code", { class: "soft" }, model.fingerprint)),
      answers(model) ? mark("answers", "good") : model.in_use ? mark("being loaded", "accent") : model.name === previous ? mark("before", "plain") : "",
      model.gate === null ? "–" : element("span", { class: "flow" }, mark(model.gate.passed ? "passed" : "refused", model.gate.passed ? "good" : "danger"), ...against(model)),
      model.promoted_at ? wholeTime(new Date(model.promoted_at)) : "–",
      this.#context.admin && !answers(model) ? button("Promote", () => this.#promote(model), { kind: "text", "aria-label": `Promote ${model.name}` }) : "",
    ]), "No model is in the server's directory.");
  }

  /** The models to choose of; a choice that was made stays. */
  #offer(models) {
    const seen = JSON.stringify(models.map((each) => [each.fingerprint, each.name]));
    if (seen === this.#choices) return;
    this.#choices = seen;
    const before = this.#choice.value;
    this.#choice.replaceChildren(...models.map((each) => element("option", { value: each.fingerprint }, `${each.name} (${each.fingerprint})`)));
    if (models.some(({ fingerprint }) => fingerprint === before)) this.#choice.value = before;
  }

  async #promote(model) {
    const refused = model.gate !== null && !model.gate.passed;
    const reasons = refused ? model.gate.reasons.filter(({ passed }) => !passed).map((each) => each.name).join("; ") : "";
    const question = refused ? `The gate refuses ${model.name} (${reasons}). Let it answer everybody all the same?` : `Let ${model.name} answer everybody from now on?`;
    if (!(await sure(question, refused ? "Promote against the gate" : "Promote", { danger: refused }))) return;
    await this.#tried(() => this.#context.api.post("/models/promote", { model: model.name, force: refused }), `${model.name} is promoted`);
  }

  async #rollback() {
    if (!(await sure(`Let ${this.#previous}, the model before, answer again?`, "Roll back", { danger: false }))) return;
    await this.#tried(() => this.#context.api.post("/models/rollback"), "Rolled back");
  }

  async #tried(action, said) {
    try {
      await action();
      this.#context.notice(said);
    } catch (error) {
      this.#context.failed(error);
    }
    await this.#look();
  }

  #begin() {
    const fields = [
      field("Kind", element("select", { name: "kind" }, element("option", { value: "canary" }, "Canary: a share of conversations"), element("option", { value: "shadow" }, "Shadow: a share of replies, silently"))),
      field("Model", this.#choice),
      field("Share, in percent", element("input", { type: "number", name: "share", min: "1", max: "100", value: "10", required: true })),
    ];
    return form("Begin", fields, async ({ kind, model: fingerprint, share }) => {
      await this.#tried(() => this.#context.api.post("/rollouts", { kind, model: fingerprint, share: Number(share) / 100 }), `The ${kind} begins`);
    }, { kind: "quiet" });
  }

  async #compare(rollouts) {
    const going = ["canary", "shadow"].filter((kind) => rollouts[kind]);
    const told = await Promise.all(going.map((kind) => this.#context.api.get(`/rollouts/${kind}/comparison`)));
    if (this.#ended) return;
    this.#rollouts.show([rollouts, told], () => (going.length ? going.map((kind, at) => this.#going(kind, rollouts[kind], told[at])) : [element("p", { class: "soft" }, "There is none at present.")]));
  }

  #going(kind, plan, { live, candidate, changed }) {
    const shares = ({ thumbs_up: up, thumbs_down: down }) => (up + down > 0 ? percent(up / (up + down)) : "–");
    const sure = ({ confidence }) => (confidence === null ? "–" : confidence.toFixed(2));
    const both = (take) => [take(candidate), `the model in use: ${take(live)}`];
    const facts = kind === "canary"
      ? [tile("Conversations", ...both(({ conversations }) => count(conversations))), tile("Replies", ...both(({ replies }) => count(replies))), tile("Thumbs up", ...both(shares)), tile("Abstained", ...both(({ abstained }) => count(abstained))), tile("Confidence", ...both(sure))]
      : [tile("Replies", count(candidate.replies)), tile("Answered differently", candidate.replies ? percent(candidate.different / candidate.replies) : "–"), tile("Confidence", ...both(sure))];
    const end = this.#context.admin ? button("End", () => this.#tried(() => this.#context.api.delete(`/rollouts/${kind}`), `The ${kind} has ended`)) : null;
    const rows = changed.map((each) => [
      element("a", { href: hrefOf("inbox", [each.conversation], { state: "all" }) }, "conversation"),
      name(each.live),
      name(each.candidate),
    ]);
    return element("div", { class: "rollout" },
      element("p", { class: "flow" }, mark(kind, "accent"), element("code", {}, plan.model), element("span", { class: "soft" }, `${percent(plan.share)}, since ${wholeTime(new Date(plan.began_at))}`), end),
      tiles(...facts),
      ...(rows.length ? [table("Replies that differ", [{ title: "" }, { title: "Live" }, { title: "Shadow" }], rows)] : []));
  }
}

/** What a model was refused for. */
function against({ gate }) {
  const words = gate.reasons.filter(({ passed }) => !passed).map((each) => each.name).join("; ");
  return words ? [element("span", { class: "soft", dir: "auto" }, words)] : [];
}
