"use strict";
// Reads values out: the pointer, or the arrow keys on a focused plot, choose a step; all plots mark it.
const plots = [...document.querySelectorAll("figure.plot")].map((figure) => ({
  svg: figure.querySelector(":scope > svg"),
  cursor: figure.querySelector(".cursor"),
  readout: figure.querySelector(".readout"),
  data: JSON.parse(figure.querySelector("script").textContent),
}));

function nearest(steps, step) {
  let low = 0, high = steps.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (steps[middle] <= step) low = middle; else high = middle;
  }
  return Math.abs(steps[low] - step) <= Math.abs(steps[high] - step) ? low : high;
}

const number = (value) => String(Number(value.toPrecision(6)));

function told(line, step) {
  const [label, steps, mean, lowest, highest] = line, at = nearest(steps, step);
  const range = lowest && lowest[at] !== highest[at] ? ` (${number(lowest[at])} to ${number(highest[at])})` : "";
  return `${label} ${number(mean[at])}${range}`;
}

function longest(plot) {
  return plot.data.lines.reduce((most, line) => (line[1].length > most.length ? line[1] : most), []);
}

function show(plot, index) {
  const steps = longest(plot);
  plot.index = Math.max(0, Math.min(steps.length - 1, index));
  const step = steps[plot.index], gap = steps.length > 1 ? (steps[steps.length - 1] - steps[0]) / (steps.length - 1) : 1;
  const near = plot.data.flags.filter(([at]) => Math.abs(at - step) <= gap / 2).slice(0, 3).map(([, text]) => text);
  plot.readout.textContent = [`step ${number(step)}`, ...plot.data.lines.map((line) => told(line, step)), ...near].join(" · ");
  for (const other of plots) {
    const [low, high, start, end] = other.data.x, x = start + (step - low) / (high - low) * (end - start);
    const inside = step >= low && step <= high ? x : -9;
    other.cursor.setAttribute("x1", inside);
    other.cursor.setAttribute("x2", inside);
  }
}

function leave(plot) {
  plot.readout.textContent = "";
  for (const other of plots) for (const name of ["x1", "x2"]) other.cursor.setAttribute(name, -9);
}

// What is folded up on a screen cannot be unfolded on paper.
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((one) => { one.open = true; }));

for (const plot of plots) {
  plot.svg.addEventListener("pointermove", (event) => {
    const box = plot.svg.getBoundingClientRect(), [low, high, start, end] = plot.data.x;
    const place = (event.clientX - box.left) / box.width * plot.svg.viewBox.baseVal.width;
    show(plot, nearest(longest(plot), low + (place - start) / (end - start) * (high - low)));
  });
  plot.svg.addEventListener("pointerleave", () => leave(plot));
  plot.svg.addEventListener("blur", () => leave(plot));
  plot.svg.addEventListener("focus", () => show(plot, plot.index ?? 0));
  plot.svg.addEventListener("keydown", (event) => {
    const moves = {ArrowLeft: -1, ArrowRight: 1, PageUp: 20, PageDown: -20, Home: -Infinity, End: Infinity};
    if (!(event.key in moves)) return;
    event.preventDefault();
    const to = event.key === "End" ? longest(plot).length : event.key === "Home" ? 0 : (plot.index ?? 0) + moves[event.key];
    show(plot, to);
  });
}
