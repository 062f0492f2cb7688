/** Shows what the colors mean. Each entry is a switch that hides or shows its points. */
import { OTHER, VIRIDIS, cssOf } from "./colors.js";
import { el, plural } from "./dom.js";

const MOST_ENTRIES = 200;

/** Fill `box` with the legend of the coloring's column. */
export function drawLegend(box, coloring) {
  const column = coloring.column;
  const focused = box.contains(document.activeElement) ? document.activeElement.dataset.code : undefined;
  const chips = coloring.filtered.filter((name) => name !== coloring.name).map((name) => chip(coloring, name));
  if (column === null) box.replaceChildren(...chips);
  else if (column.kind === "category") box.replaceChildren(...chips, ...categories(coloring, column));
  else box.replaceChildren(...chips, ...numbers(coloring, column));
  box.hidden = box.childElementCount === 0;
  const entries = [...box.querySelectorAll(".entry")];
  for (const entry of entries) {
    entry.tabIndex = entry === (entries.find(({ dataset }) => dataset.code === focused) ?? entries[0]) ? 0 : -1;
    entry.addEventListener("keydown", (event) => step(event, entries));
  }
  // The entries are new elements; whoever switched one by keyboard stays on it.
  if (focused !== undefined) box.querySelector(`[data-code="${focused}"]`)?.focus();
}

/** Move among the entries with the arrow keys, so that Tab passes a long legend in one step. */
function step(event, entries) {
  const by = { ArrowUp: -1, ArrowDown: 1 }[event.key];
  if (!by) return;
  const next = entries[(entries.indexOf(event.currentTarget) + by + entries.length) % entries.length];
  for (const entry of entries) entry.tabIndex = entry === next ? 0 : -1;
  next.focus();
  event.preventDefault();
}

/** A filter by another column than the one that gives the colors: say so, and offer to lift it. */
function chip(coloring, name) {
  const off = () => coloring.filter(name, null);
  return el("button", { class: "chip", text: `Filtered by ${name} ✕`, title: "Remove this filter", on: { click: off } });
}

function categories(coloring, column) {
  const hidden = coloring.filterOf(coloring.name) ?? new Set();
  const set = (codes) => coloring.filter(coloring.name, codes);
  const all = [...column.order, ...(column.absent > 0 ? [-1] : [])];
  const entry = (code) => {
    const text = code < 0 ? "(none)" : column.categories[code] || "(empty)";
    const count = code < 0 ? column.absent : column.counts[code];
    const dot = el("span", { class: "dot" });
    dot.style.background = cssOf(code < 0 ? OTHER : column.palette[code]);
    const toggle = (event) => {
      // With Shift, only this category stays; again, and all come back.
      const others = new Set(all.filter((other) => other !== code));
      const only = hidden.size === others.size && !hidden.has(code);
      if (event.shiftKey || event.detail === 2) return set(only ? new Set() : others);
      const next = new Set(hidden);
      if (!next.delete(code)) next.add(code);
      return set(next);
    };
    const shown = !hidden.has(code);
    return el(
      "button",
      { class: "entry", "aria-pressed": String(shown), "data-code": code, title: `${text}: click hides, Shift+click shows only this`, on: { click: toggle } },
      dot,
      el("span", { class: "text", text }),
      el("span", { class: "count", text: count.toLocaleString("en") }),
    );
  };
  const made = all.slice(0, MOST_ENTRIES).map(entry);
  if (hidden.size > 0) made.unshift(el("button", { class: "chip", text: "Show all ✕", on: { click: () => set(null) } }));
  if (all.length > MOST_ENTRIES) made.push(el("p", { class: "muted", text: `and ${plural(all.length - MOST_ENTRIES, "rarer one")}` }));
  return made;
}

function numbers(coloring, column) {
  const show = column.kind === "time" ? (x) => new Date(x * 1000).toISOString().slice(0, 16).replace("T", " ") : short;
  const bar = el("canvas", { class: "ramp", width: 256, height: 1, "aria-hidden": "true" });
  const context = bar.getContext("2d");
  const image = context.createImageData(256, 1);
  for (let i = 0; i < 256; i += 1) image.data.set([...VIRIDIS.subarray(3 * i, 3 * i + 3), 255], 4 * i);
  context.putImageData(image, 0, 0);
  const [lowest, highest] = [column.first > column.low ? "≤ " : "", column.last < column.high ? "≥ " : ""];
  const [low, high] = coloring.filterOf(coloring.name) ?? [column.low, column.high];
  const slider = (name, value) =>
    el("input", {
      type: "range", min: 0, max: 1000, "aria-label": `${name} value shown`,
      value: Math.round((1000 * (value - column.low)) / (column.high - column.low || 1)),
      on: { change: () => take() },
    });
  const [from, to] = [slider("Lowest", low), slider("Highest", high)];
  const valueOf = (input) => column.low + (Number(input.value) / 1000) * (column.high - column.low);
  const take = () => {
    const whole = from.value === "0" && to.value === "1000";
    coloring.filter(coloring.name, whole ? null : [valueOf(from), valueOf(to)]);
  };
  return [
    bar,
    el("div", { class: "ends" }, el("span", { text: `${lowest}${show(column.first)}` }), el("span", { text: `${highest}${show(column.last)}` })),
    el("label", { class: "range" }, el("span", { text: "from" }), from, el("output", { text: show(low) })),
    el("label", { class: "range" }, el("span", { text: "to" }), to, el("output", { text: show(high) })),
  ];
}

function short(x) {
  return Math.abs(x) >= 1e5 || (x !== 0 && Math.abs(x) < 1e-3) ? x.toExponential(1) : String(Number(x.toPrecision(3)));
}
