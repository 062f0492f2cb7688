/** A spectrogram with its patches: shows which are hidden, lets a hand or the keys paint them, and reports clicks. */
import { drawSpectrogram, lengthOf, plotOf } from "./spectrogram.js";
import { css, onTheme } from "./theme.js";

export class Patches extends EventTarget {
  #matrix = null;
  #brush = null;
  #scale;

  /**
   * @param {HTMLCanvasElement} canvas
   * @param {object} options `paint`: whether pressing a patch changes it; `scale`: a color table.
   */
  constructor(canvas, { paint = false, scale } = {}) {
    super();
    this.canvas = canvas;
    this.#scale = scale;
    this.rows = 0;
    this.columns = 0;
    /** 1 where a patch is hidden, numbered row * columns + column, row 0 the lowest. */
    this.hidden = [];
    /** A shade for each patch: [red, green, blue, alpha] or null. */
    this.shades = [];
    this.outlined = null;
    this.cursor = 0;
    canvas.tabIndex = 0;
    canvas.addEventListener("keydown", (event) => this.#key(event, paint));
    canvas.addEventListener("focus", () => this.draw());
    canvas.addEventListener("blur", () => this.draw());
    canvas.addEventListener("pointerdown", (event) => this.#press(event, paint));
    canvas.addEventListener("pointermove", (event) => this.#drag(event));
    for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, () => this.#lift());
    new ResizeObserver(() => this.draw()).observe(canvas);
    onTheme(() => this.draw());
  }

  get patches() {
    return this.rows * this.columns;
  }

  /**
   * Show a matrix. `rows` and `columns` are those of its patches, which cover `length_s`; `hidden` is the mask; `range` is
   * [low, high] in dB.
   */
  show(matrix, { rows, columns, length_s = lengthOf(matrix), hidden, range } = {}) {
    this.#matrix = matrix;
    Object.assign(this, { length_s, range });
    if (rows) [this.rows, this.columns] = [rows, columns];
    if (hidden) this.hidden = [...hidden];
    this.cursor = Math.min(this.cursor, Math.max(0, this.patches - 1));
    this.draw();
  }

  clear() {
    this.#matrix = null;
    [this.rows, this.columns] = [0, 0];
    this.canvas.getContext("2d").clearRect(0, 0, this.canvas.width, this.canvas.height);
  }

  /** Return the times and frequencies of a patch in words. */
  describe(patch) {
    const [row, column] = [Math.floor(patch / this.columns), patch % this.columns];
    const wide_s = this.length_s / this.columns;
    const start_s = this.#matrix.start_s + column * wide_s;
    const high = this.#matrix.bands / this.rows;
    const hz = this.#matrix.frequencies_hz;
    const [low, top] = [hz[Math.floor(row * high)], hz[Math.min(hz.length - 1, Math.ceil((row + 1) * high) - 1)]];
    const state = this.hidden.length === 0 ? "" : this.hidden[patch] ? ", hidden" : ", visible";
    return `${start_s.toFixed(2)} to ${(start_s + wide_s).toFixed(2)} s, ${low.toFixed(0)} to ${top.toFixed(0)} Hz${state}`;
  }

  draw() {
    if (this.#matrix === null || this.canvas.clientWidth === 0) return;
    const { context } = drawSpectrogram(this.canvas, this.#matrix, { range: this.range, scale: this.#scale, length_s: this.length_s });
    for (let patch = 0; patch < this.patches; patch += 1) {
      const [x, y, width, height] = this.#box(patch);
      const shade = this.shades[patch];
      if (this.hidden[patch]) {
        context.fillStyle = css("veil", 0.86);
        context.fillRect(x, y, width, height);
      } else if (shade) {
        context.fillStyle = `rgb(${shade.slice(0, 3).join(" ")} / ${shade[3]})`;
        context.fillRect(x, y, width, height);
      }
    }
    this.#lines(context);
    if (this.outlined !== null) this.#frame(context, this.outlined, "#fff", 2.5);
    if (document.activeElement === this.canvas && this.patches > 0) this.#frame(context, this.cursor, css("focus"), 3);
  }

  #lines(context) {
    const plot = plotOf(this.canvas);
    context.fillStyle = "rgb(255 255 255 / 0.16)";
    for (let i = 1; i < this.columns; i += 1) context.fillRect(plot.left + (i / this.columns) * plot.width, plot.top, 1, plot.height);
    for (let i = 1; i < this.rows; i += 1) context.fillRect(plot.left, plot.top + (i / this.rows) * plot.height, plot.width, 1);
  }

  #frame(context, patch, style, line) {
    const [x, y, width, height] = this.#box(patch);
    context.lineWidth = line;
    context.strokeStyle = style;
    context.strokeRect(x, y, width, height);
  }

  #box(patch) {
    const plot = plotOf(this.canvas);
    const [wide, high] = [plot.width / this.columns, plot.height / this.rows];
    const [row, column] = [Math.floor(patch / this.columns), patch % this.columns];
    return [plot.left + column * wide, plot.top + (this.rows - 1 - row) * high, wide, high];
  }

  #at(event) {
    const plot = plotOf(this.canvas);
    const column = Math.floor(((event.offsetX - plot.left) / plot.width) * this.columns);
    const row = this.rows - 1 - Math.floor(((event.offsetY - plot.top) / plot.height) * this.rows);
    const inside = column >= 0 && column < this.columns && row >= 0 && row < this.rows;
    return inside ? row * this.columns + column : null;
  }

  #press(event, paint) {
    const patch = this.#at(event);
    if (patch === null || this.#matrix === null || event.button !== 0) return;
    this.cursor = patch;
    if (!paint) return this.#tell("patch", patch);
    // The first patch decides: pressing a visible one hides all that the hand passes, and the other way round.
    this.#brush = this.hidden[patch] ? 0 : 1;
    this.canvas.setPointerCapture(event.pointerId);
    this.#set(patch, this.#brush);
  }

  #drag(event) {
    const patch = this.#brush === null ? null : this.#at(event);
    if (patch !== null) this.#set(patch, this.#brush);
  }

  #lift() {
    if (this.#brush === null) return;
    this.#brush = null;
    this.#tell("painted", null);
  }

  #set(patch, value) {
    if (this.hidden[patch] === value) return;
    this.hidden[patch] = value;
    this.draw();
  }

  #key(event, paint) {
    if (this.patches === 0) return;
    const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [1, 0], ArrowDown: [-1, 0] }[event.key];
    if (step) {
      const row = Math.floor(this.cursor / this.columns) + step[0];
      const column = (this.cursor % this.columns) + step[1];
      if (row >= 0 && row < this.rows && column >= 0 && column < this.columns) this.cursor = row * this.columns + column;
      this.#tell("cursor", this.cursor);
      this.draw();
    } else if (event.key === " " && paint) {
      this.#set(this.cursor, this.hidden[this.cursor] ? 0 : 1);
      this.#tell("cursor", this.cursor);
      this.#tell("painted", this.cursor);
    } else if (event.key === "Enter" || event.key === " ") {
      this.#tell("patch", this.cursor);
    } else {
      return;
    }
    event.preventDefault();
    event.stopPropagation();
  }

  #tell(what, patch) {
    this.dispatchEvent(new CustomEvent(what, { detail: patch }));
  }
}
