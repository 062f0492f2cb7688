/** Shows what the model makes of a sound: its spectrogram, what it fills in under a mask, and what it attends to. */
import { GRAYS, VIRIDIS } from "./colors.js";
import { able, byId, debounce, el, fillSelect, guarded, seconds } from "./dom.js";
import { Overview } from "./overview.js";
import { Patches } from "./patches.js";
import { prepared, plotOf, drawRange, drawTimes, drawFrequencies, lengthOf } from "./spectrogram.js";
import { onTheme } from "./theme.js";

const HEAT = [255, 150, 40];

export class Inspector {
  #id = null;
  #made = null;
  #asked = { reconstruct: null, attention: null };
  #attentionPatch = null;

  /** @param {object} parts `source, state, memory, player, tabs` */
  constructor(parts) {
    Object.assign(this, parts);
    this.input = new Patches(byId("input"), { paint: true });
    this.reconstruction = new Patches(byId("reconstruction"));
    this.attention = new Patches(byId("attention"), { scale: GRAYS });
    this.overview = new Overview(this.memory);
    this.overview.addEventListener("moved", () => this.#load());
    this.input.addEventListener("painted", () => this.#reconstruct({ hidden: this.input.hidden }));
    this.input.addEventListener("cursor", ({ detail }) => (byId("patch-text").textContent = this.input.describe(detail)));
    byId("input").addEventListener("blur", () => (byId("patch-text").textContent = ""));
    this.attention.addEventListener("patch", ({ detail }) => this.#attendFrom(detail));
    this.attention.addEventListener("cursor", ({ detail }) => (byId("attention-note").textContent = this.attention.describe(detail)));
    byId("ratio").addEventListener("input", () => (byId("ratio-text").textContent = `${byId("ratio").value} %`));
    for (const id of ["ratio", "strategy", "seed"]) byId(id).addEventListener("change", () => this.#draw());
    byId("another-seed").addEventListener("click", () => {
      byId("seed").value = Number(byId("seed").value) + 1;
      this.#draw();
    });
    byId("paint-none").addEventListener("click", () => this.#hideNothing());
    byId("resolution").addEventListener("change", () => this.#load());
    for (const id of ["layer", "head", "attention-from"]) byId(id).addEventListener("change", () => this.#attend());
    for (const button of document.querySelectorAll(".listen")) button.addEventListener("click", () => this.#listen(button.dataset.what));
    byId("inspect-play").addEventListener("click", () => this.player.playOrStop(this.#id));
    this.state.on("current", () => this.#show());
    this.tabs.addEventListener("change", () => this.#show());
    new ResizeObserver(debounce(() => this.#drawError(), 50)).observe(byId("error"));
    onTheme(() => this.#drawError());
  }

  /** Offer what the model has: its resolutions, layers and heads. */
  prepare() {
    const { model } = this.state.collection;
    byId("masking").hidden = !able(this.source, "reconstruct");
    byId("attention-figure").hidden = !able(this.source, "attention");
    for (const button of document.querySelectorAll(".listen")) button.hidden = !able(this.source, "listen");
    byId("resolution-label").hidden = !(model.resolutions > 1);
    fillSelect(byId("resolution"), Array.from({ length: model.resolutions ?? 1 }, (_, i) => [i, String(i + 1)]), 0);
    const numbered = (count) => [["", "mean"], ...Array.from({ length: count ?? 0 }, (_, i) => [i + 1, String(i + 1)])];
    fillSelect(byId("layer"), numbered(model.layers), "");
    fillSelect(byId("head"), numbered(model.heads), "");
    const from = [["mean", "all patches"], ["patch", "clicked patch"], ["rollout", "rollout"]];
    fillSelect(byId("attention-from"), model.cls ? [["cls", "CLS token"], ...from] : from, "mean");
  }

  #show() {
    if (this.tabs.name !== "inspect" || this.state.current === this.#id) return;
    this.#id = this.state.current;
    byId("inspect-empty").hidden = this.#id !== null;
    byId("inspect-body").hidden = this.#id === null;
    if (this.#id === null) return;
    this.#made = null;
    this.#attentionPatch = null;
    for (const patches of [this.input, this.reconstruction, this.attention]) patches.clear();
    guarded(() => this.#open(this.#id));
  }

  async #open(id) {
    byId("inspect-name").textContent = await this.memory.name(id);
    const item = await this.source.item(id);
    if (id !== this.#id) return;
    const facts = { ...item.columns };
    if (item.duration_s) facts.duration = seconds(item.duration_s);
    if (item.error) facts.error = item.error;
    byId("inspect-columns").replaceChildren(
      ...Object.entries(facts).flatMap(([name, value]) =>
        value === null || value === "" ? [] : [el("div", {}, el("dt", { text: name }), el("dd", { text: String(value) }))],
      ),
    );
    // Of a sound that cannot be read there is nothing to show but the reason.
    byId("inspect-body").classList.toggle("unreadable", Boolean(item.error));
    if (item.error) return;
    const { model } = this.state.collection;
    const unit_s = (model.unit_frames * model.hop_ms) / 1000;
    await this.overview.show(id, item.duration_s || unit_s, unit_s);
    if (id === this.#id) await this.#load();
  }

  /** Whether the source can do this with the chosen sound: an exported page has only some sounds as the model sees them. */
  #can(what) {
    return able(this.source, what) && (this.source.holds?.(this.#id) ?? true);
  }

  get #where() {
    const { model } = this.state.collection;
    return { start_frame: Math.round((this.overview.start_s * 1000) / model.hop_ms), resolution: Number(byId("resolution").value || 0) };
  }

  /** Show the piece that the overview marks: with a mask where the model can fill it in, or else as it is. */
  #load() {
    this.#attentionPatch = null;
    byId("masking").hidden = !this.#can("reconstruct");
    byId("attention-figure").hidden = !this.#can("attention");
    byId("resolution-label").hidden = !this.#can("") || !(this.state.collection.model.resolutions > 1);
    if (this.#can("reconstruct")) return this.#draw();
    return guarded(async () => {
      const id = this.#id;
      const whole = await this.memory.spectrogram(id, { from_s: this.overview.from_s, resolution: this.#where.resolution });
      if (id !== this.#id) return;
      if (whole === null) byId("input-note").textContent = "This page has no spectrogram of this sound.";
      else this.#showInput(this.overview.piece(whole), this.#grid());
    });
  }

  #grid() {
    const { model } = this.state.collection;
    const columns = Math.floor(model.unit_frames / model.patch_frames);
    return { rows: model.rows, columns, length_s: this.#lengthOf(columns) };
  }

  /** Return the time that patches cover, in s. The last ones of a sound may reach beyond its end. */
  #lengthOf(columns) {
    const { model } = this.state.collection;
    return (columns * model.patch_frames * model.hop_ms) / 1000;
  }

  /** Draw a mask with the chosen strategy, share and seed. */
  #draw() {
    const strategy = byId("strategy").value;
    return this.#reconstruct({ hidden: { ratio: Number(byId("ratio").value) / 100, strategy, seed: Number(byId("seed").value) || 0 } });
  }

  #hideNothing() {
    this.input.hidden = this.input.hidden.map(() => 0);
    this.input.draw();
    byId("loss").textContent = "Nothing is hidden: paint on the input.";
  }

  #reconstruct({ hidden }) {
    if (this.#id === null || !this.#can("reconstruct")) return undefined;
    if (Array.isArray(hidden) && !hidden.includes(1)) return this.#hideNothing();
    if (Array.isArray(hidden) && !hidden.includes(0)) {
      byId("loss").textContent = "Everything is hidden: leave the model something to see.";
      return undefined;
    }
    byId("loss").textContent = "…";
    return this.#latest("reconstruct", async (signal) => {
      const made = await this.source.reconstruct(this.#id, { ...this.#where, hidden, leak: false }, signal);
      if (signal.aborted) return;
      this.#made = made;
      const { rows, columns } = made;
      const grid = { rows, columns, length_s: this.#lengthOf(columns) };
      this.#showInput(made.input, { ...grid, hidden: made.hidden });
      this.reconstruction.show(made.reconstruction, { ...grid, range: [made.input.low_db, made.input.high_db] });
      this.#drawError();
      this.#tell();
    });
  }

  /** Do `work` with a signal that ends when the same kind of work is asked for again. */
  #latest(kind, work) {
    this.#asked[kind]?.abort();
    const control = new AbortController();
    this.#asked[kind] = control;
    return guarded(() => work(control.signal));
  }

  #showInput(matrix, options) {
    this.input.show(matrix, options);
    byId("input-note").textContent = `${matrix.start_s.toFixed(2)} to ${(matrix.start_s + lengthOf(matrix)).toFixed(2)} s`;
    byId("input").setAttribute("aria-label", `Spectrogram of ${options.rows} rows and ${options.columns} columns of patches`);
    this.attention.show(matrix, { ...options, hidden: undefined });
    if (this.#can("attention")) this.#attend();
  }

  #tell() {
    const known = this.#made.error.filter((x) => x !== null);
    const mean = known.reduce((sum, x) => sum + x, 0) / Math.max(1, known.length);
    const share = (100 * known.length) / Math.max(1, this.#made.error.length);
    byId("loss").textContent = `mean error ${mean.toFixed(1)} dB · loss ${this.#made.loss.toFixed(3)} · ${share.toFixed(0)} % hidden`;
  }

  #drawError() {
    const canvas = byId("error");
    if (this.#made === null || canvas.clientWidth === 0) return;
    const { rows, columns, error, input } = this.#made;
    const context = prepared(canvas);
    const plot = plotOf(canvas);
    const most = Math.max(1, ...error.filter((x) => x !== null));
    error.forEach((value, patch) => {
      if (value === null) return;
      const step = 3 * Math.round(255 * Math.max(0, value / most));
      context.fillStyle = `rgb(${VIRIDIS[step]} ${VIRIDIS[step + 1]} ${VIRIDIS[step + 2]})`;
      const [row, column] = [Math.floor(patch / columns), patch % columns];
      const edge = (part, of, length) => Math.round((part / of) * length);
      const [x, y] = [edge(column, columns, plot.width), edge(rows - 1 - row, rows, plot.height)];
      context.fillRect(plot.left + x, plot.top + y, edge(column + 1, columns, plot.width) - x, edge(rows - row, rows, plot.height) - y);
    });
    drawTimes(context, plot, input.start_s, this.#lengthOf(columns));
    drawFrequencies(context, plot, input.frequencies_hz);
    drawRange(context, canvas, plot, [0, most], VIRIDIS, "dB");
  }

  #attendFrom(patch) {
    this.#attentionPatch = patch;
    byId("attention-from").value = "patch";
    this.#attend();
  }

  #attend() {
    if (this.#id === null || !this.#can("attention")) return undefined;
    let from = byId("attention-from").value;
    const rollout = from === "rollout";
    for (const id of ["layer", "head"]) byId(id).disabled = rollout;
    if (from === "patch") {
      if (this.#attentionPatch === null) this.#attentionPatch = this.attention.cursor;
      from = this.#attentionPatch;
    }
    const chosen = (id) => (rollout || byId(id).value === "" ? null : Number(byId(id).value));
    return this.#latest("attention", async (signal) => {
      const request = { start_frame: this.#where.start_frame, from, layer: chosen("layer"), head: chosen("head") };
      const { weights } = await this.source.attention(this.#id, request, signal);
      if (signal.aborted) return;
      const [least, most] = [Math.min(...weights), Math.max(...weights)];
      this.attention.shades = weights.map((weight) => [...HEAT, (0.85 * (weight - least)) / (most - least || 1)]);
      this.attention.outlined = typeof from === "number" ? from : null;
      this.attention.draw();
      const where = typeof from === "number" ? ` · from ${this.attention.describe(from)}` : "";
      byId("attention-note").textContent = `${(100 * least).toFixed(1)} to ${(100 * most).toFixed(1)} % on a patch${where}`;
    });
  }

  #listen(what) {
    const hidden = this.input.hidden;
    return guarded(async () => this.player.playBlob(await this.source.listen(this.#id, { start_frame: this.#where.start_frame, hidden, what })));
  }
}
