/** The whole sound, with the piece that the model sees at once; the piece can be moved. */
import { byId, guarded, seconds } from "./dom.js";
import { drawSpectrogram, lengthOf, plotOf } from "./spectrogram.js";
import { css, onTheme } from "./theme.js";

const LONGEST_S = 60;

export class Overview extends EventTarget {
  #memory;
  #id = null;
  #matrix = null;
  #dragging = false;

  constructor(memory) {
    super();
    this.#memory = memory;
    this.canvas = byId("overview");
    this.slider = byId("piece");
    this.start_s = 0;
    this.slider.addEventListener("input", () => this.#move(Number(this.slider.value), false));
    this.slider.addEventListener("change", () => this.#move(Number(this.slider.value), true));
    this.canvas.addEventListener("pointerdown", (event) => {
      this.#dragging = true;
      this.canvas.setPointerCapture(event.pointerId);
      this.#point(event, false);
    });
    this.canvas.addEventListener("pointermove", (event) => this.#dragging && this.#point(event, false));
    this.canvas.addEventListener("pointerup", (event) => {
      this.#dragging = false;
      this.#point(event, true);
    });
    new ResizeObserver(() => this.#draw()).observe(this.canvas);
    onTheme(() => this.#draw());
  }

  /** Return where the minute begins that holds the piece, in s. */
  get from_s() {
    return Math.floor(this.start_s / LONGEST_S) * LONGEST_S;
  }

  /** Show a sound. One that is no longer than a piece needs no overview. */
  async show(id, duration_s, unit_s) {
    Object.assign(this, { duration_s, unit_s, start_s: 0 });
    this.#id = id;
    this.#matrix = null;
    const long = duration_s > unit_s * 1.02;
    byId("overview-figure").hidden = !long;
    this.slider.max = Math.max(0, duration_s - unit_s).toFixed(2);
    this.slider.step = Math.max(0.01, unit_s / 8).toFixed(2);
    this.slider.value = 0;
    if (!long) return;
    await this.#fetch();
    if (id === this.#id && this.#matrix !== null) this.#move(this.#loudest(), false);
  }

  /** Return where the loudest piece begins, in s: many sounds begin with silence, where there is nothing to see. */
  #loudest() {
    const { bands, frames, data, hop_ms, start_s } = this.#matrix;
    const levels = new Float64Array(frames + 1);
    for (let i = 0; i < bands * frames; i += 1) levels[(i % frames) + 1] += data[i];
    for (let frame = 1; frame <= frames; frame += 1) levels[frame] += levels[frame - 1];
    const wide = Math.min(frames, Math.round((this.unit_s * 1000) / hop_ms));
    let best = 0;
    for (let frame = 0; frame + wide <= frames; frame += 1) {
      if (levels[frame + wide] - levels[frame] > levels[best + wide] - levels[best]) best = frame;
    }
    return start_s + (best * hop_ms) / 1000;
  }

  async #fetch() {
    const [id, from_s] = [this.#id, this.from_s];
    const matrix = await this.#memory.spectrogram(id, { from_s });
    if (id !== this.#id || from_s !== this.from_s) return;
    this.#matrix = matrix;
    byId("overview-note").textContent = this.duration_s > LONGEST_S ? `minute ${from_s / LONGEST_S + 1} of ${Math.ceil(this.duration_s / LONGEST_S)}` : seconds(this.duration_s);
    this.#draw();
  }

  /** Return the part of a matrix that the piece covers. */
  piece(matrix) {
    const first = Math.max(0, Math.round(((this.start_s - matrix.start_s) * 1000) / matrix.hop_ms));
    const frames = Math.max(1, Math.min(Math.round((this.unit_s * 1000) / matrix.hop_ms), matrix.frames - first));
    const data = new Uint8Array(matrix.bands * frames);
    for (let band = 0; band < matrix.bands; band += 1) {
      data.set(matrix.data.subarray(band * matrix.frames + first, band * matrix.frames + first + frames), band * frames);
    }
    return { ...matrix, frames, data, start_s: this.start_s };
  }

  #point(event, done) {
    if (this.#matrix === null) return;
    const plot = plotOf(this.canvas);
    const at_s = this.#matrix.start_s + ((event.offsetX - plot.left) / plot.width) * lengthOf(this.#matrix);
    this.#move(at_s - this.unit_s / 2, done);
  }

  #move(start_s, done) {
    const before = this.from_s;
    this.start_s = Math.max(0, Math.min(start_s, this.duration_s - this.unit_s));
    this.slider.value = this.start_s;
    if (this.from_s !== before) guarded(() => this.#fetch());
    this.#draw();
    if (done) this.dispatchEvent(new Event("moved"));
  }

  #draw() {
    byId("piece-text").textContent = seconds(this.start_s);
    if (this.#matrix === null || this.canvas.clientWidth === 0) return;
    const { context, plot } = drawSpectrogram(this.canvas, this.#matrix);
    const x = (s) => plot.left + Math.max(0, Math.min(1, (s - this.#matrix.start_s) / lengthOf(this.#matrix))) * plot.width;
    const [left, right] = [x(this.start_s), x(this.start_s + this.unit_s)];
    context.fillStyle = css("veil", 0.55);
    context.fillRect(plot.left, plot.top, left - plot.left, plot.height);
    context.fillRect(right, plot.top, plot.left + plot.width - right, plot.height);
    context.lineWidth = 2;
    context.strokeStyle = css("focus");
    context.strokeRect(left, plot.top, right - left, plot.height);
  }
}
