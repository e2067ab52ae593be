/** Plots as SVG: bars by day and lines. Each has a table of the same numbers for those who do not see it. */

import { element } from "../shell/elements.js";

const SVG = "http://www.w3.org/2000/svg";
const NARROW = 240;
const HEIGHT = 190;
const LEFT = 36;
const FOOT = 22;
const HEAD = 8;
/** Pixels that a label below the plot takes, with the gap to the next. */
const ROOM = 62;
const STEPS = [1, 1.2, 1.6, 2, 3, 4, 5, 6, 8, 10];

export function svg(tag, properties = {}, ...children) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(properties)) {
    if (typeof value === "function") node.addEventListener(name, value);
    else if (value !== null && value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

/** A round number at or above the largest value, not far above it. */
export function roundTop(largest) {
  if (!(largest > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(largest));
  return STEPS.map((step) => step * power).find((top) => top >= largest * 0.9999);
}

/**
 * series: [{title, tone, values: [number or null]}], all as long as `labels`; bars are stacked.
 * words(value): how a value is written. It is drawn anew whenever its room changes, so that text keeps its size.
 */
export function chart(title, labels, series, { words = String, lines = false } = {}) {
  const frame = element("div", { class: "chart-frame" });
  const plot = plotted(labels, series, { words, lines });
  const draw = (width) => {
    const wide = Math.max(NARROW, Math.floor(width));
    const box = { class: "chart", viewBox: `0 0 ${wide} ${HEIGHT}`, role: "img", "aria-label": title };
    frame.replaceChildren(svg("svg", box, ...plot(wide)));
  };
  draw(560);
  new ResizeObserver(([{ contentRect }]) => {
    if (contentRect.width > 0) draw(contentRect.width);
  }).observe(frame);
  const legend = element("ul", { class: "legend" }, ...series.map((each) => element("li", { class: each.tone }, each.title)));
  return element("figure", { class: "figure" }, element("figcaption", {}, title), legend, frame, numbers(title, labels, series, words));
}

/** A function of the width that gives what is in the plot. */
function plotted(labels, series, { words, lines }) {
  const every = series.flatMap(({ values }) => values).filter((value) => value !== null && value !== undefined);
  const heights = lines ? every : labels.map((_, at) => series.reduce((sum, { values }) => sum + (values[at] ?? 0), 0));
  const top = roundTop(Math.max(0, ...heights));
  const whole = every.every(Number.isInteger);
  const ticks = [0, top / 2, top].filter((value) => !whole || Number.isInteger(value));
  const place = (value) => HEIGHT - FOOT - (value / top) * (HEIGHT - FOOT - HEAD);
  return (width) => {
    const step = (width - LEFT) / Math.max(1, labels.length);
    const marks = ticks.flatMap((value) => [
      svg("line", { class: "grid", x1: LEFT, x2: width, y1: place(value), y2: place(value) }),
      text(LEFT - 7, place(value) + 4, words(value), "end"),
    ]);
    const drawn = lines ? series.flatMap((each) => line(each, step, place)) : bars(labels, series, step, place);
    const nth = Math.max(1, Math.ceil((labels.length * ROOM) / (width - LEFT)));
    const below = labels.flatMap((label, at) => (at % nth === 0 ? [text(LEFT + Math.max((at + 0.5) * step, 16), HEIGHT - 5, label, "middle")] : []));
    return [...marks, ...drawn, ...below, ...hovered(labels, series, step, words)];
  };
}

function bars(labels, series, step, place) {
  return labels.flatMap((_, at) => {
    let height = 0;
    return series.flatMap(({ tone, values }) => {
      const value = values[at] ?? 0;
      if (value === 0) return [];
      const [from, to] = [place(height), place(height + value)];
      height += value;
      const box = { x: LEFT + (at + 0.15) * step, width: step * 0.7, y: to, height: Math.max(0.5, from - to) };
      return [svg("rect", { class: `bar ${tone}`, ...box })];
    });
  });
}

function line({ tone, values }, step, place) {
  const points = values.flatMap((value, at) => (value === null ? [] : [[LEFT + (at + 0.5) * step, place(value)]]));
  if (points.length === 1) return [svg("circle", { class: `dot ${tone}`, cx: points[0][0], cy: points[0][1], r: 3 })];
  const corners = points.map((point) => point.map((each) => each.toFixed(1)).join(","));
  return [svg("polyline", { class: `stroke ${tone}`, points: corners.join(" ") })];
}

/** What the pointer sees of a day: all its numbers. */
function hovered(labels, series, step, words) {
  return labels.map((label, at) => {
    const told = series.filter(({ values }) => typeof values[at] === "number").map(({ title, values }) => `${title} ${words(values[at])}`);
    const box = { class: "hover", x: LEFT + at * step, width: step, y: HEAD, height: HEIGHT - FOOT - HEAD };
    return svg("rect", box, svg("title", {}, [label, ...told].join("\n")));
  });
}

function text(x, y, words, anchor) {
  return svg("text", { x, y, "text-anchor": anchor }, words);
}

function numbers(title, labels, series, words) {
  const head = element("tr", {}, element("th", { scope: "col" }, ""), ...series.map((each) => element("th", { scope: "col" }, each.title)));
  const rows = labels.map((label, at) =>
    element("tr", {}, element("th", { scope: "row" }, label), ...series.map(({ values }) => element("td", {}, values[at] === null || values[at] === undefined ? "–" : words(values[at])))));
  const whole = element("table", {}, element("caption", {}, title), element("thead", {}, head), element("tbody", {}, ...rows));
  return element("details", { class: "numbers" }, element("summary", {}, "As a table"), element("div", { class: "table-frame", tabindex: "0", role: "region", "aria-label": title }, whole));
}
