// Plots over time as SVG, which answer the pointer and the arrow keys.

import { h, show } from "./dom.js";

const HEIGHT = 208;
const LEFT = 62;
const RIGHT = 14;
const BOTTOM = 22;
const TOP = 8;

// times: Unix seconds; lines: [{name, values}]; format(value) in words.
export function plot({ times, lines, format, label, isNamed = lines.length > 1 }) {
  const box = h("div", { class: "plot", tabindex: 0, role: "img", "aria-label": label });
  const tip = h("div", { class: "tip left", hidden: true });
  const totals = times.map((_, i) => lines.reduce((sum, line) => sum + (line.values[i] ?? 0), 0));
  const top = nice(Math.max(1e-9, ...totals));
  let frame = null;
  let place = -1;
  const point = (i) => {
    place = Math.max(0, Math.min(times.length - 1, i));
    frame.mark(place);
    tip.hidden = false;
    tip.className = place > times.length / 2 ? "tip left" : "tip right";
    const rows = lines.map((line, n) => [line, n]).filter(([line]) => line.values[place]);
    show(tip, h("strong", {}, new Date(times[place] * 1000).toLocaleString()),
      rows.length ? rows.map(([line, n]) => h("div", { class: color(n) }, `${line.name}: ${format(line.values[place])}`)) : h("div", {}, "nothing"));
  };
  const leave = () => {
    tip.hidden = true;
    frame?.mark(-1);
  };
  const draw = (width) => {
    frame = drawFrame({ times, lines, format, top, width });
    box.replaceChildren(frame.svg, tip);
    leave();
  };
  new ResizeObserver(([entry]) => {
    const width = Math.round(entry.contentRect.width);
    if (width > 0 && width !== frame?.width) draw(width);
  }).observe(box);
  box.addEventListener("pointermove", (event) => frame && point(frame.find(event.clientX)));
  box.addEventListener("pointerleave", leave);
  box.addEventListener("blur", leave);
  box.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step || !times.length || !frame) return;
    event.preventDefault();
    point(place + step);
  });
  const legend = isNamed && h("div", { class: "legend" },
    lines.map((line, n) => h("span", { class: color(n) }, h("i", {}), h("span", {}, line.name))));
  return h("div", {}, box, legend);
}

function drawFrame({ times, lines, format, top, width }) {
  const inner = width - LEFT - RIGHT;
  const x = (i) => LEFT + (inner * (i + 0.5)) / Math.max(1, times.length);
  const y = (value) => TOP + (HEIGHT - TOP - BOTTOM) * (1 - value / top);
  const svg = h("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, "aria-hidden": true });
  for (const part of [0, 0.5, 1]) {
    svg.append(h("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: y(top * part), y2: y(top * part) }));
    svg.append(h("text", { x: LEFT - 6, y: y(top * part) + 4, "text-anchor": "end" }, format(top * part)));
  }
  for (const i of ticks(times.length, Math.max(2, Math.floor(width / 130)))) {
    const anchor = x(i) > width - 40 ? "end" : "middle";
    svg.append(h("text", { x: Math.min(x(i), width - RIGHT), y: HEIGHT - 6, "text-anchor": anchor }, when(times, i)));
  }
  bars(svg, lines, times, { x, y, width: Math.max(1, Math.min(26, (inner / Math.max(1, times.length)) * 0.72)) });
  const cursor = h("line", { class: "cursor", y1: TOP, y2: HEIGHT - BOTTOM, visibility: "hidden" });
  svg.append(cursor);
  return {
    svg,
    width,
    mark: (i) => {
      cursor.setAttribute("visibility", i < 0 ? "hidden" : "visible");
      cursor.setAttribute("x1", x(i));
      cursor.setAttribute("x2", x(i));
    },
    find: (clientX) => Math.floor(((clientX - svg.getBoundingClientRect().left - LEFT) / inner) * times.length),
  };
}

function bars(svg, lines, times, { x, y, width }) {
  const bases = times.map(() => 0);
  lines.forEach((line, n) => {
    const group = h("g", { class: color(n) });
    line.values.forEach((value, i) => {
      if (!value) return;
      const from = y(bases[i]);
      bases[i] += value;
      const to = y(bases[i]);
      group.append(h("rect", { class: "fill", x: x(i) - width / 2, width, y: to, height: Math.max(0.5, from - to) }));
    });
    svg.append(group);
  });
}

const color = (n) => `c${Math.min(5, n)}`;

function nice(value) {
  const unit = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 2.5, 5, 10].map((part) => part * unit).find((part) => part >= value) ?? value;
}

function ticks(length, most) {
  if (length <= most) return [...Array(length).keys()];
  return [...Array(most).keys()].map((part) => Math.round(((length - 1) * part) / (most - 1)));
}

function when(times, i) {
  const at = new Date(times[i] * 1000);
  const isLong = times.at(-1) - times[0] > 2 * 86400;
  return isLong ? at.toLocaleDateString([], { month: "short", day: "numeric" }) : at.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
}

// Spent, reserved and free of one limit.
export function meterBar(amount, spent, reserved) {
  const part = (value) => (amount > 0 ? Math.min(100, (100 * value) / amount) : 0);
  const isFull = spent >= amount;
  return h("svg", { class: isFull ? "meter full" : "meter", viewBox: "0 0 100 10", preserveAspectRatio: "none", role: "img",
    "aria-label": `${Math.round(part(spent))} % spent, ${Math.round(part(reserved))} % reserved` },
  h("rect", { class: "spent", x: 0, y: 0, height: 10, width: part(spent) }),
  h("rect", { class: "reserved", x: part(spent), y: 0, height: 10, width: Math.min(100 - part(spent), part(reserved)) }));
}
