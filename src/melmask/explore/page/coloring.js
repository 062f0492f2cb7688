/** Says what color each point has, and which points the filters let through. */
import { CATEGORIES, OTHER, VIRIDIS } from "./colors.js";

const FADED = 0.13;
const SAMPLE = 20_000;
const TAIL = 0.06;
const STEPS = Array.from({ length: 256 }, (_, step) => VIRIDIS.subarray(3 * step, 3 * step + 3));

/** Return the column of the labels that were given by hand: {kind, categories, codes}. */
export function labelColumn(labels, count) {
  const categories = [...new Set(labels.values())].sort();
  const codes = new Int32Array(count).fill(-1);
  for (const [id, label] of labels) codes[id] = categories.indexOf(label);
  return { kind: "category", categories, codes };
}

export class Coloring {
  #state;
  #columns = new Map();
  /** By column: the Set of hidden codes, or [low, high]. */
  #filters = new Map();

  constructor(state) {
    this.#state = state;
    this.name = null;
  }

  /** Make a column known under a name; `codes` or `values` are as in `source.column`. */
  provide(name, column) {
    if (column.kind === "category") rank(column);
    else measure(column);
    this.#columns.set(name, column);
  }

  has(name) {
    return this.#columns.has(name);
  }

  get column() {
    return this.#columns.get(this.name) ?? null;
  }

  /** Color by a column that was provided, or by none. */
  choose(name) {
    this.name = name;
    this.refresh();
  }

  filterOf(name) {
    return this.#filters.get(name);
  }

  get filtered() {
    return [...this.#filters.keys()];
  }

  /** Filter by a column: a Set of codes to hide, [low, high] to keep, or null for no filter. */
  filter(name, value) {
    if (value === null || value.size === 0) this.#filters.delete(name);
    else this.#filters.set(name, value);
    this.refresh();
  }

  /** Compute again which points are shown; the map then asks for `colors`. */
  refresh() {
    const count = this.#state.points.length / 2;
    const shown = new Uint8Array(count).fill(1);
    for (const [name, filter] of this.#filters) {
      const column = this.#columns.get(name);
      if (!column) continue;
      for (let id = 0; id < count; id += 1) {
        if (Array.isArray(filter) ? !within(column.values[id], filter) : filter.has(column.codes[id])) shown[id] = 0;
      }
    }
    this.#state.put({ shown });
  }

  /** Return Uint8Array of (count, 4). Where something is selected or found, all else is faded. */
  colors(alpha, plain) {
    const { points, shown, selection, results } = this.#state;
    const count = points.length / 2;
    const column = this.column;
    const made = new Uint8Array(4 * count);
    const special = selection.length > 0 || results.length > 0 ? new Uint8Array(count) : null;
    if (special) {
      for (const id of selection) special[id] = 1;
      for (const { id } of results) special[id] = 1;
    }
    const strong = Math.round(255 * alpha);
    const faded = Math.round(255 * alpha * FADED);
    for (let id = 0; id < count; id += 1) {
      if (!shown[id]) continue;
      const color = colorOf(column, id, plain);
      made[4 * id] = color[0];
      made[4 * id + 1] = color[1];
      made[4 * id + 2] = color[2];
      made[4 * id + 3] = special && !special[id] ? faded : strong;
    }
    return made;
  }
}

function within(value, [low, high]) {
  return value >= low && value <= high;
}

/** Number the categories by how frequent they are, since the most frequent ones get the colors. */
function rank(column) {
  column.counts = new Array(column.categories.length).fill(0);
  column.absent = 0;
  for (const code of column.codes) {
    if (code < 0) column.absent += 1;
    else column.counts[code] += 1;
  }
  column.order = column.categories.map((_, code) => code).sort((a, b) => column.counts[b] - column.counts[a]);
  column.palette = column.categories.map(() => OTHER);
  column.order.slice(0, CATEGORIES.length).forEach((code, i) => (column.palette[code] = CATEGORIES[i]));
}

function measure(column) {
  let [low, high] = [Infinity, -Infinity];
  for (const value of column.values) {
    if (value < low) low = value;
    if (value > high) high = value;
  }
  [column.low, column.high] = low <= high ? [low, high] : [0, 0];
  [column.first, column.last] = usual(column);
}

/** Return the range that the colors span. Where few values lie far off, it leaves them out: they get the end's color. */
function usual({ values, low, high }) {
  const every = Math.max(1, Math.floor(values.length / SAMPLE));
  const known = values.filter((value, i) => i % every === 0 && Number.isFinite(value)).sort();
  if (known.length === 0) return [low, high];
  const at = (share) => known[Math.round(share * (known.length - 1))];
  const [first, last] = [at(TAIL), at(1 - TAIL)];
  return high - low > 3 * (last - first) && last > first ? [first, last] : [low, high];
}

function colorOf(column, id, plain) {
  if (column === null) return plain;
  if (column.kind === "category") return column.codes[id] < 0 ? OTHER : column.palette[column.codes[id]];
  const value = column.values[id];
  if (!Number.isFinite(value)) return OTHER;
  const share = (value - column.first) / (column.last - column.first || 1);
  return STEPS[Math.round(255 * Math.max(0, Math.min(1, share)))];
}
