/** A map of what people talk about: conversations that the model takes for alike lie near each other. */

import { svg } from "../desk/chart.js";
import { section, table } from "../desk/pieces.js";
import { button, element, heading, mark, name, setAttribute } from "../shell/elements.js";
import { count, counted, percent, wholeTime } from "../shell/format.js";
import { hrefOf } from "../shell/router.js";

const TONES = 8;
const AGAIN = 2_000;
/** Of a name on the map, in its units: the width of a letter and the height of a line, at most. */
const WIDE = 4;
const TALL = 8;

export function mount(root, context) {
  const body = element("div", { class: "page-body" });
  const make = button("Make a new map", build, { picture: "retraining" });
  root.classList.add("page");
  root.append(element("header", { class: "page-head" }, heading(1, "Topics"), make), body);
  let timer = null;
  let ended = false;
  let shown = null;
  let asked = false;

  async function build() {
    if (make.getAttribute("aria-disabled") === "true") return; // disabled, it would lose the focus
    setAttribute(make, "aria-disabled", "true");
    try {
      await context.api.post("/topics");
      context.announce("A new map is being made");
    } catch (error) {
      context.failed(error);
    }
    look();
  }

  async function look() {
    clearTimeout(timer);
    try {
      const { map, building } = await context.api.get("/topics");
      if (ended) return;
      setAttribute(make, "aria-disabled", String(building));
      make.lastChild.textContent = building ? "Making a new map…" : "Make a new map";
      if (!building && asked) context.announce("The new map is there");
      asked = building;
      if (map === null) {
        body.replaceChildren(element("p", { class: "empty-page", role: "status" }, building ? "The map is being made. This takes a minute or two." : "There is no map yet. It needs some conversations."));
      } else if (map.id !== shown) {
        shown = map.id;
        body.replaceChildren(...parts(map, context));
      }
      if (building) timer = setTimeout(look, AGAIN);
    } catch (error) {
      context.failed(error);
      if (!ended && asked) timer = setTimeout(look, AGAIN);
    }
  }

  look();
  return () => {
    ended = true;
    clearTimeout(timer);
  };
}

function parts(map, context) {
  const inbox = (number) => hrefOf("inbox", [], { cluster: number, state: "all" });
  const by = new Map(map.clusters.map((cluster) => [cluster.number, cluster]));
  const opened = (href) => () => context.go(href);
  const words = (cluster) => cluster.words.join(", ") || "…";
  const points = map.points.map(({ conversation, x, y, cluster }) =>
    svg("circle", { class: `point tone-${cluster % TONES}`, cx: (x * 100).toFixed(2), cy: (-y * 100).toFixed(2), r: 1.4, click: opened(hrefOf("inbox", [conversation], { state: "all" })) },
      svg("title", {}, by.has(cluster) ? words(by.get(cluster)) : "")));
  const names = apart(map.clusters).map(({ cluster, x, y }) =>
    svg("text", { class: "topic-name", x, y, "text-anchor": "middle", click: opened(inbox(cluster.number)) }, short(cluster)));
  const picture = svg("svg", { class: "topic-map", viewBox: "-108 -108 216 216", role: "img", "aria-label": "Map of topics; the table says the same in words" }, ...points, ...names);
  const rows = map.clusters.map((cluster) => [
    element("span", { class: "topic" }, element("span", { class: `swatch ground-${cluster.number % TONES}`, "aria-hidden": "true" }), element("a", { href: inbox(cluster.number) }, name(words(cluster)))),
    count(cluster.size),
    shareOf(cluster.thumbs_down, "danger"),
    shareOf(cluster.waiting, "warn"),
    shareOf(cluster.low_confidence, "warn"),
  ]);
  const columns = [{ title: "Topic" }, ...["Talks", "Disliked", "Waiting", "Not sure"].map((title) => ({ title, number: true }))];
  return [
    element("p", { class: "soft page-words" }, `${counted(map.points.length, "conversation", "conversations")}, a dot for each; what the model takes for alike lies together. Made ${wholeTime(new Date(map.created_at))} with `, element("code", {}, map.model), "."),
    element("div", { class: "topics" },
      element("figure", { class: "figure topic-figure" }, picture),
      section("Topics", [table("Topics", columns, rows)])),
  ];
}

function short(cluster) {
  return cluster.words.slice(0, 2).join(" · ") || "…";
}

/** Places of the names on the map, the largest first, moved down where they would stand on another. */
function apart(clusters) {
  const placed = [];
  for (const cluster of [...clusters].sort((one, other) => other.size - one.size)) {
    const half = Math.min(50, short(cluster).length * WIDE * 0.5);
    const x = Math.max(half - 106, Math.min(106 - half, cluster.x * 100));
    let y = 2 - cluster.y * 100;
    const meets = (other) => Math.abs(other.x - x) < other.half + half && Math.abs(other.y - y) < TALL;
    while (placed.some(meets)) y += 1;
    placed.push({ cluster, x, y, half });
  }
  return placed;
}

/** Marked where it is more than a few. */
function shareOf(share, tone) {
  return share >= 0.2 ? mark(percent(share), tone) : percent(share);
}
