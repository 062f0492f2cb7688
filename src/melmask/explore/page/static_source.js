/** A source without a server: an exported page holds the data, and its model runs in the browser. */
import { arrayOf, bytesOf, facts, jsonOf, once } from "./static_data.js";
import { eachValue, restored } from "./static_levels.js";
import { drawnMask } from "./static_masks.js";
import { StaticModel } from "./static_model.js";

const DB_PER_NATURAL_LOG = 10 / Math.LN10;
const RANGE_DB = 80;
const ABSENT = -32768;
const LONGEST_LABEL = 200;

/** Return the source of this page. */
export async function open() {
  return new StaticSource(facts());
}

class StaticSource {
  #facts;
  #model;
  #names;
  #pictures;
  #search;
  #held;
  #columns = new Map();
  #labels = new Map();
  #soundUrls = new Map();
  #units = new Map();
  #csvUrl = null;

  constructor(found) {
    this.#facts = found;
    const { model, search, sounds } = found;
    this.#model = model && new StaticModel(model);
    this.note = found.note;
    this.can = {
      reconstruct: Boolean(model),
      attention: Boolean(model?.attention),
      sound: sounds.length > 0,
      search: Boolean(search),
      ...Object.fromEntries(["listen", "searchSound", "probe", "suggestions", "suspects", "duplicates"].map((name) => [name, false])),
    };
    this.#names = once(() => jsonOf(found.names));
    this.#pictures = once(() => this.#readPictures());
    this.#search = once(async () => ({ rows: await arrayOf(search.rows), scales: await arrayOf(search.scales) }));
    this.#held = new Map(sounds.map((sound) => [sound.id, sound]));
    for (const [id, label] of Object.entries(found.labels)) this.#labels.set(Number(id), label);
    for (const [id, label] of this.#remembered()) this.#labels.set(id, label);
  }

  async collection() {
    return this.#facts.collection;
  }

  async points(projection) {
    const packed = await arrayOf(this.#facts.points[projection]);
    return Float32Array.from(packed, (x) => (x === ABSENT ? NaN : x / 32767));
  }

  /** Return a column; it is unpacked once. */
  column(name) {
    if (!this.#columns.has(name)) this.#columns.set(name, this.#readColumn(this.#facts.columns[name]));
    return this.#columns.get(name);
  }

  async #readColumn({ kind, codes, values, categories }) {
    if (values) return { kind, values: await arrayOf(values) };
    return { kind, categories: await jsonOf(categories), codes: Int32Array.from(await arrayOf(codes)) };
  }

  async names(from, count) {
    return (await this.#names()).slice(from, from + count);
  }

  /** Whether the page holds this sound as the model sees it, and not only a small picture. */
  holds(id) {
    return this.#held.has(id);
  }

  async item(id) {
    const columns = {};
    let duration_s = null;
    for (const { name, kind } of this.#facts.collection.columns) {
      const { values, codes, categories } = await this.column(name);
      const value = values ? values[id] : (categories[codes[id]] ?? null);
      if (name === "duration" && values) duration_s = value;
      columns[name] = typeof value !== "number" ? value : Number.isNaN(value) ? null : kind === "time" ? timeText(value) : shortened(value);
    }
    const held = this.#held.get(id);
    if (held && duration_s > held.duration_s + 0.05) {
      columns["in this page"] = `the first ${held.duration_s.toFixed(1)} s`;
      duration_s = held.duration_s;
    }
    return { id, name: (await this.#names())[id], start_s: 0, end_s: null, duration_s: Number.isNaN(duration_s) ? null : duration_s, columns, error: null };
  }

  /** Return a matrix, or null where the page has none. */
  async spectrogram(id, { from_s = 0, length_s = 60, resolution = 0 } = {}) {
    if (!this.holds(id)) return (await this.#pictures()).get(id) ?? null;
    const { logmel, frames } = await this.#logmel(id);
    const { hop_ms } = this.#facts.collection.model;
    const first = Math.min(frames - 1, Math.round((from_s * 1000) / hop_ms));
    const count = Math.max(1, Math.min(frames - first, Math.round((length_s * 1000) / hop_ms)));
    const part = this.#rows(logmel, frames, resolution, first, count);
    return { ...this.#matrix(part, count, first, resolution, rangeOf(part)), total_s: this.#held.get(id).duration_s };
  }

  soundUrl(id) {
    const held = this.#held.get(id);
    if (!held) return null;
    if (!this.#soundUrls.has(id)) {
      this.#soundUrls.set(id, URL.createObjectURL(new Blob([bytesOf(held.sound)], { type: held.type })));
    }
    return this.#soundUrls.get(id);
  }

  async reconstruct(id, { start_frame = 0, resolution = 0, hidden, leak = false }, signal) {
    const unit = await this.#unit(id, start_frame);
    const { model } = this.#facts;
    const { rows, columns } = unit;
    const mask = Array.isArray(hidden) ? hidden : drawnMask(hidden, unit, model.blocks);
    if (mask.length !== rows * columns) throw new Error(`The mask has ${mask.length} patches; this piece has ${rows * columns}.`);
    if (!mask.includes(0) || !mask.includes(1)) throw new Error("The mask hides all or none of the patches; hide some and leave some visible.");
    const visible = [...mask.keys()].filter((patch) => !mask[patch]);
    const { prediction, loss } = await this.#model.run(unit.logmel, model.bands, visible, ["prediction", "loss"], signal);
    const made = restored(prediction, unit.logmel, mask, unit, model.scale, leak);
    const truth = this.#rows(unit.logmel, unit.width, resolution, 0, unit.frames);
    const range = rangeOf(truth);
    const shown = (part) => this.#matrix(this.#rows(part, unit.width, resolution, 0, unit.frames), unit.frames, start_frame, resolution, range);
    const error = errors(unit, resolution, made);
    return {
      hidden: mask,
      rows,
      columns,
      loss: loss[0],
      resolution,
      input: shown(unit.logmel),
      reconstruction: shown(made),
      error: mask.map((value, patch) => (value ? error[patch] : null)),
    };
  }

  async attention(id, { start_frame = 0, from, layer, head }, signal) {
    const unit = await this.#unit(id, start_frame);
    const { rows, columns } = unit;
    const { layers, heads, cls } = this.#facts.collection.model;
    if (unit.attention === undefined) {
      const all = Array.from({ length: rows * columns }, (_, patch) => patch);
      unit.attention = (await this.#model.run(unit.logmel, this.#facts.model.bands, all, ["attention"], signal)).attention;
    }
    const first = Number(cls);
    const weights = attended(unit.attention, { layers, heads, tokens: rows * columns + first, first }, { from, layer, head });
    return { rows, columns, weights: Array.from(weights.subarray(first)) };
  }

  async search({ id, start_s, end_s, count }) {
    if (start_s || end_s) throw new Error("This page searches with whole sounds; leave the part empty.");
    const { rows, scales } = await this.#search();
    const size = rows.length / scales.length;
    if (scales[id] === 0) throw new Error("This sound has no embedding.");
    const own = rows.subarray(id * size, (id + 1) * size);
    const found = [];
    for (let other = 0; other < scales.length; other += 1) {
      if (other === id || scales[other] === 0) continue;
      let product = 0;
      for (let i = 0, at = other * size; i < size; i += 1, at += 1) product += own[i] * rows[at];
      found.push({ id: other, similarity: Math.min(1, product * scales[id] * scales[other]) });
    }
    return found.sort((a, b) => b.similarity - a.similarity).slice(0, count);
  }

  async labels() {
    await this.#makeCsv();
    return new Map(this.#labels);
  }

  /** Label sounds; this browser remembers it, if it may, and the CSV holds it. */
  async setLabels(ids, label) {
    const text = label === null ? null : label.trim();
    if (text !== null && (text === "" || text.length > LONGEST_LABEL || /[;|\p{Cc}]/u.test(text))) {
      throw new Error(`A label has 1 to ${LONGEST_LABEL} letters on one line, without ; and |, which separate labels in tables.`);
    }
    for (const id of ids) {
      if (text === null) this.#labels.delete(id);
      else this.#labels.set(id, text);
    }
    try {
      localStorage.setItem(this.#facts.key, JSON.stringify({ labels: [...this.#labels] }));
    } catch {
      // Private windows and full stores: the labels last as long as the page is open.
    }
    await this.#makeCsv();
  }

  labelsCsvUrl() {
    return this.#csvUrl;
  }

  /** Make the table that `melmask finetune` takes, with paths below the folder of the collection. */
  async #makeCsv() {
    const { paths, starts, ends } = this.#facts;
    const [names, from, to] = [await jsonOf(paths), starts && (await arrayOf(starts)), ends && (await arrayOf(ends))];
    const cell = (text) => (/[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
    const time = (times, id) => (times && !Number.isNaN(times[id]) ? String(times[id]) : "");
    const lines = [...this.#labels].sort(([a], [b]) => a - b).map(([id, label]) => [names[id], label, time(from, id), time(to, id)].map(cell).join(","));
    if (this.#csvUrl !== null) URL.revokeObjectURL(this.#csvUrl);
    this.#csvUrl = URL.createObjectURL(new Blob([["path,label,start,end", ...lines, ""].join("\r\n")], { type: "text/csv" }));
  }

  #remembered() {
    try {
      const kept = JSON.parse(localStorage.getItem(this.#facts.key));
      // What was taken away here must not come back with the labels of the export.
      if (kept !== null) this.#labels.clear();
      return kept?.labels ?? [];
    } catch {
      return [];
    }
  }

  async #readPictures() {
    const { pictures, durations } = this.#facts;
    const [ids, frames, hops, lows, highs, data] = await Promise.all(["ids", "frames", "hops_ms", "lows_db", "highs_db", "data"].map((name) => arrayOf(pictures[name])));
    const totals = await arrayOf(durations);
    const found = new Map();
    let at = 0;
    ids.forEach((id, i) => {
      const size = pictures.bands * frames[i];
      found.set(id, {
        bands: pictures.bands,
        frames: frames[i],
        hop_ms: hops[i],
        start_s: 0,
        low_db: lows[i],
        high_db: highs[i],
        frequencies_hz: pictures.frequencies_hz,
        data: data.subarray(at, at + size),
        total_s: Number.isNaN(totals[id]) ? undefined : totals[id],
      });
      at += size;
    });
    return found;
  }

  /** Return the log-mel (bands, frames) of a sound that the page holds, in natural-log units. */
  async #logmel(id) {
    const held = this.#held.get(id);
    if (!held) throw new Error("This page holds only a small picture of this sound, not what the model sees.");
    held.read ??= once(async () => {
      const levels = await arrayOf(held.logmel);
      return { logmel: Float32Array.from(levels, (level) => held.low + level * held.step), frames: held.frames };
    });
    return held.read();
  }

  /** Return a unit from a frame on: its log-mel of whole patches, and how many of its frames are sound. */
  async #unit(id, first) {
    const key = `${id} ${first}`;
    if (!this.#units.has(key)) {
      const { logmel, frames: total } = await this.#logmel(id);
      const { bands, mels, scale, patch_mels } = this.#facts.model;
      const { unit_frames, patch_frames, resolutions } = this.#facts.collection.model;
      const frames = Math.min(unit_frames, total - first);
      if (frames < 1) throw new Error("This page holds no sound there.");
      const width = Math.ceil(frames / patch_frames) * patch_frames;
      const part = new Float32Array(bands * width);
      for (let band = 0; band < bands; band += 1) {
        // As in embedding: what is missing of the last patch is the mean of the corpus.
        part.fill(scale.means[Math.floor(band / mels)], band * width, (band + 1) * width);
        part.set(logmel.subarray(band * total + first, band * total + first + frames), band * width);
      }
      this.#units.clear();
      this.#units.set(key, { logmel: part, width, frames, rows: mels / patch_mels, columns: width / patch_frames, patch_mels, patch_frames, resolutions });
    }
    return this.#units.get(key);
  }

  /** Return some frames of one resolution of a log-mel that is `width` frames wide. */
  #rows(logmel, width, resolution, first, count) {
    const mels = this.#facts.frequencies_hz[0].length;
    const part = new Float32Array(mels * count);
    for (let band = 0; band < mels; band += 1) {
      const start = (resolution * mels + band) * width + first;
      part.set(logmel.subarray(start, start + count), band * count);
    }
    return part;
  }

  #matrix(part, frames, first, resolution, [low_db, high_db]) {
    const { hop_ms } = this.#facts.collection.model;
    const factor = 255 / (high_db - low_db);
    const data = Uint8ClampedArray.from(part, (x) => (x * DB_PER_NATURAL_LOG - low_db) * factor);
    return {
      bands: part.length / frames,
      frames,
      hop_ms,
      start_s: (first * hop_ms) / 1000,
      low_db,
      high_db,
      frequencies_hz: this.#facts.frequencies_hz[resolution],
      data: new Uint8Array(data.buffer),
    };
  }
}

/** Return the lowest and the highest level that a log-mel is shown with, in dB: at most 80 dB. */
function rangeOf(part) {
  let [low, high] = [Infinity, -Infinity];
  for (const x of part) [low, high] = [Math.min(low, x), Math.max(high, x)];
  [low, high] = [low * DB_PER_NATURAL_LOG, high * DB_PER_NATURAL_LOG];
  return [Math.min(Math.max(low, high - RANGE_DB), high - 1), high];
}

/** Return the mean absolute error of each patch in one resolution, in dB. */
function errors(unit, resolution, made) {
  const each = unit.patch_mels * unit.patch_frames;
  const sums = new Float64Array(unit.rows * unit.columns);
  eachValue(unit, (patch, value, place) => {
    if (Math.floor(value / each) === resolution) sums[patch] += Math.abs(unit.logmel[place] - made[place]);
  });
  return sums.map((sum) => (sum * DB_PER_NATURAL_LOG) / each);
}

/** Return how much is taken from each token: `inspection/attention.py` in JavaScript. Layers and heads count from 1. */
function attended(weights, { layers, heads, tokens, first }, { from, layer, head }) {
  const size = tokens * tokens;
  /** The mean attention (tokens, tokens) of some layers and heads. */
  const mean = (chosenLayers, chosenHeads) => {
    const found = new Float64Array(size);
    const share = 1 / (chosenLayers.length * chosenHeads.length);
    for (const l of chosenLayers) {
      for (const h of chosenHeads) {
        const start = (l * heads + h) * size;
        for (let i = 0; i < size; i += 1) found[i] += weights[start + i] * share;
      }
    }
    return found;
  };
  const all = (count) => Array.from({ length: count }, (_, i) => i);
  const row = (matrix, token) => matrix.subarray(token * tokens, (token + 1) * tokens);
  const average = (matrix) => Float64Array.from({ length: tokens }, (_, to) => all(tokens).reduce((sum, i) => sum + matrix[i * tokens + to], 0) / tokens);
  if (from === "rollout") {
    // Half the attention and half the identity of each layer, one after another; a row at a time is enough.
    let through = first ? Float64Array.from({ length: tokens }, (_, i) => Number(i === 0)) : new Float64Array(tokens).fill(1 / tokens);
    for (let l = layers - 1; l >= 0; l -= 1) {
      const matrix = mean([l], all(heads));
      through = Float64Array.from({ length: tokens }, (_, to) => {
        let sum = through[to];
        for (let i = 0; i < tokens; i += 1) sum += through[i] * matrix[i * tokens + to];
        return 0.5 * sum;
      });
    }
    return through;
  }
  const chosen = mean(layer === null ? all(layers) : [layer - 1], head === null ? all(heads) : [head - 1]);
  if (from === "mean") return average(chosen);
  return row(chosen, from === "cls" ? 0 : from + first);
}

const shortened = (value) => (Number.isInteger(value) ? value : Number(value.toPrecision(6)));
const timeText = (seconds) => new Date(seconds * 1000).toISOString().replace("T", " ").slice(0, 19);
