/** Figures by day and by model. */

import { chart } from "../desk/chart.js";
import { field, section, table, tile, tiles } from "../desk/pieces.js";
import { sentence } from "../shell/api.js";
import { element, heading, name } from "../shell/elements.js";
import { count, milliseconds, percent } from "../shell/format.js";
import { hrefOf } from "../shell/router.js";

const RANGES = [7, 30, 90, 365];
const DAY = 86_400_000;
const dayOfYear = new Intl.DateTimeFormat("en", { day: "numeric", month: "short", timeZone: "UTC" });

export function mount(root, context) {
  const body = element("div", { class: "page-body" });
  const choice = element("select", { change: () => context.go(hrefOf("dashboard", [], { days: choice.value })) },
    ...RANGES.map((days) => element("option", { value: days }, `The last ${days} days`)));
  root.classList.add("page");
  root.append(element("header", { class: "page-head" }, heading(1, "Dashboard"), field("Days", choice)), body);
  let asked = 0;
  const show = async (route) => {
    const days = RANGES.includes(Number(route.query.get("days"))) ? Number(route.query.get("days")) : 30;
    choice.value = String(days);
    const mine = ++asked;
    const today = new Date();
    const day = (date) => date.toISOString().slice(0, 10);
    try {
      const told = await context.api.get("/statistics", { from: day(new Date(today - (days - 1) * DAY)), to: day(today) });
      if (mine === asked) body.replaceChildren(...parts(told));
    } catch (error) {
      if (mine === asked) body.replaceChildren(element("p", { class: "bad-words", role: "status" }, sentence(error)));
    }
  };
  context.onRoute(show);
  show(context.route);
  return () => { asked = -1; };
}

function share(part, whole) {
  return whole > 0 ? percent(part / whole) : "–";
}

function optional(value, words) {
  return value === null ? "–" : words(value);
}

function parts({ days, models, total }) {
  const labels = days.map(({ day }) => dayOfYear.format(new Date(day)));
  const values = (take) => days.map(take);
  return [
    tiles(
      tile("Conversations", count(total.conversations), `${count(total.messages)} messages`),
      tile("Handled without a person", share(total.handled_alone, total.conversations), `${count(total.handled_alone)} of ${count(total.conversations)}`),
      tile("Thumbs up", share(total.thumbs_up, total.thumbs_up + total.thumbs_down), `${count(total.thumbs_up)} up, ${count(total.thumbs_down)} down`),
      tile("Abstained", share(total.abstained, total.replies), `${count(total.abstained)} of ${count(total.replies)} replies`),
      tile("Suggestions taken", optional(total.acceptance, percent), `of ${count(total.suggestions.shown)} shown`),
      tile("Operators' messages from suggestions", optional(total.coverage, percent), `of ${count(total.operator_messages)} messages`),
      tile("First word, median", optional(total.first_token_ms.p50, milliseconds), `95 % within ${optional(total.first_token_ms.p95, milliseconds)}`),
      tile("Whole reply, median", optional(total.total_ms.p50, milliseconds), `95 % within ${optional(total.total_ms.p95, milliseconds)}`),
    ),
    element("div", { class: "figures" },
      chart("Conversations a day", labels, [
        { title: "without a person", tone: "one", values: values((day) => day.handled_alone) },
        { title: "with a person", tone: "two", values: values((day) => day.conversations - day.handled_alone) },
      ], { words: rounded }),
      chart("Thumbs a day", labels, [
        { title: "up", tone: "one", values: values((day) => day.thumbs_up) },
        { title: "down", tone: "three", values: values((day) => day.thumbs_down) },
      ], { words: rounded }),
      chart("Suggestions a day", labels, [
        { title: "accepted", tone: "one", values: values((day) => day.suggestions.accepted) },
        { title: "edited", tone: "two", values: values((day) => day.suggestions.edited) },
        { title: "ignored", tone: "three", values: values((day) => day.suggestions.ignored) },
      ], { words: rounded }),
      chart("Milliseconds until the first word", labels, [
        { title: "median", tone: "one", values: values((day) => day.first_token_ms.p50) },
        { title: "95 of 100", tone: "two", values: values((day) => day.first_token_ms.p95) },
      ], { words: rounded, lines: true }),
    ),
    section("By model", [
      table("Figures by model", [
        { title: "Model" },
        ...["Conversations", "Without a person", "Replies", "Thumbs up", "Abstained", "First word", "Whole reply"].map((title) => ({ title, number: true })),
      ], models.map((each) => [
        element("a", { href: hrefOf("inbox", [], { model: each.model, state: "all" }) }, name(each.model)),
        count(each.conversations),
        share(each.handled_alone, each.conversations),
        count(each.replies),
        share(each.thumbs_up, each.thumbs_up + each.thumbs_down),
        share(each.abstained, each.replies),
        optional(each.first_token_ms.p50, milliseconds),
        optional(each.total_ms.p50, milliseconds),
      ])),
    ]),
  ];
}

function rounded(value) {
  return value >= 10 || Number.isInteger(value) ? count(Math.round(value)) : value.toFixed(1);
}
