/** Draws matrices of levels, with time in s, frequency in Hz and level in dB. */
import { MAGMA } from "./colors.js";
import { css } from "./theme.js";

const FONT = "11px system-ui, sans-serif";
const MARGIN = { left: 40, right: 46, top: 8, bottom: 20 };
const NONE = { left: 0, right: 0, top: 0, bottom: 0 };

/** Make the canvas sharp on this screen, and return its context in CSS pixels, cleared. */
export function prepared(canvas) {
  const ratio = Math.min(2, window.devicePixelRatio || 1);
  const { clientWidth: width, clientHeight: height } = canvas;
  canvas.width = Math.max(1, Math.round(width * ratio));
  canvas.height = Math.max(1, Math.round(height * ratio));
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, width, height);
  return context;
}

/** Return the rectangle of a canvas that holds the picture, in CSS pixels. */
export function plotOf(canvas, axes = true) {
  const margin = axes ? MARGIN : NONE;
  return {
    left: margin.left,
    top: margin.top,
    width: Math.max(1, canvas.clientWidth - margin.left - margin.right),
    height: Math.max(1, canvas.clientHeight - margin.top - margin.bottom),
  };
}

/** Return the picture of a matrix as a canvas of one pixel a value. `range` is [low, high] in dB. */
export function pictureOf(matrix, range = [matrix.low_db, matrix.high_db], scale = MAGMA) {
  const { bands, frames, data, low_db, high_db } = matrix;
  const picture = new OffscreenCanvas(frames, bands);
  const context = picture.getContext("2d");
  const image = context.createImageData(frames, bands);
  const steps = new Uint8Array(256);
  for (let i = 0; i < 256; i += 1) {
    const level = low_db + (i / 255) * (high_db - low_db);
    steps[i] = Math.round(255 * Math.max(0, Math.min(1, (level - range[0]) / (range[1] - range[0] || 1))));
  }
  for (let band = 0; band < bands; band += 1) {
    for (let frame = 0; frame < frames; frame += 1) {
      const step = 3 * steps[data[band * frames + frame]];
      const at = 4 * ((bands - 1 - band) * frames + frame);
      image.data[at] = scale[step];
      image.data[at + 1] = scale[step + 1];
      image.data[at + 2] = scale[step + 2];
      image.data[at + 3] = 255;
    }
  }
  context.putImageData(image, 0, 0);
  return picture;
}

/**
 * Draw a matrix on a canvas, and return {context, plot} to draw more upon it.
 * @param {object} options `axes`: whether there are any; `range`: [low, high] in dB; `scale`: a color table;
 *   `length_s`: the time that the width stands for, where it is longer than the matrix.
 */
export function drawSpectrogram(canvas, matrix, { axes = true, range, scale, length_s } = {}) {
  const context = prepared(canvas);
  const plot = plotOf(canvas, axes);
  const own_s = lengthOf(matrix);
  const shown = range ?? [matrix.low_db, matrix.high_db];
  const width = (plot.width * own_s) / (length_s ?? own_s);
  context.imageSmoothingQuality = "high";
  // Scaled up, each value stays a rectangle, as in melmask's figures.
  context.imageSmoothingEnabled = matrix.frames > width || matrix.bands > plot.height;
  context.drawImage(pictureOf(matrix, shown, scale), plot.left, plot.top, width, plot.height);
  if (axes) {
    drawTimes(context, plot, matrix.start_s, length_s ?? own_s);
    drawFrequencies(context, plot, matrix.frequencies_hz);
    drawRange(context, canvas, plot, shown, scale ?? MAGMA, "dB");
  }
  return { context, plot };
}

export const lengthOf = (matrix) => (matrix.frames * matrix.hop_ms) / 1000;

/** Draw the axis of time below the plot. */
export function drawTimes(context, plot, start_s, length_s) {
  context.font = FONT;
  context.fillStyle = css("muted");
  context.textBaseline = "top";
  const step = niceStep(length_s / Math.max(2, plot.width / 70));
  const digits = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
  for (let tick = Math.ceil(start_s / step - 1e-6); tick * step <= start_s + length_s + 1e-6; tick += 1) {
    const x = plot.left + ((tick * step - start_s) / length_s) * plot.width;
    context.fillRect(Math.round(x), plot.top + plot.height, 1, 3);
    // The last tick may stand at the very edge; the unit comes after it, in the margin.
    context.textAlign = "center";
    context.fillText((tick * step).toFixed(digits), x, plot.top + plot.height + 5);
  }
  context.textAlign = "right";
  context.fillText("s", plot.left + plot.width + 22, plot.top + plot.height + 5);
}

/** Draw the axis of frequency left of the plot; `frequencies_hz` are those of the bands, from low to high. */
export function drawFrequencies(context, plot, frequencies_hz) {
  context.font = FONT;
  context.fillStyle = css("muted");
  context.textBaseline = "middle";
  context.textAlign = "right";
  let last = Infinity;
  for (let decade = 10; decade < 1e6; decade *= 10) {
    for (const hz of [decade, 2 * decade, 5 * decade]) {
      const band = bandAt(frequencies_hz, hz);
      if (band === null) continue;
      const y = plot.top + plot.height * (1 - (band + 0.5) / frequencies_hz.length);
      if (last - y < 16 || y < plot.top + 12) continue;
      last = y;
      context.fillRect(plot.left - 4, Math.round(y), 3, 1);
      context.fillText(hz >= 1000 ? `${hz / 1000}k` : String(hz), plot.left - 6, y);
    }
  }
  context.textBaseline = "top";
  context.fillText("Hz", plot.left - 6, plot.top - 4);
}

/** Return where `hz` lies among the bands, as a fraction of a band; null outside. */
function bandAt(frequencies_hz, hz) {
  if (hz < frequencies_hz[0] || hz > frequencies_hz.at(-1)) return null;
  const above = frequencies_hz.findIndex((frequency) => frequency >= hz);
  if (above === 0) return 0;
  const [low, high] = [frequencies_hz[above - 1], frequencies_hz[above]];
  return above - 1 + (hz - low) / (high - low);
}

/** Draw a bar of the colors right of the plot, with the values at its ends. */
export function drawRange(context, canvas, plot, [low, high], scale, unit) {
  const left = plot.left + plot.width + 8;
  for (let y = 0; y < plot.height; y += 1) {
    const step = 3 * Math.round(255 * (1 - y / plot.height));
    context.fillStyle = `rgb(${scale[step]} ${scale[step + 1]} ${scale[step + 2]})`;
    context.fillRect(left, plot.top + y, 8, 1.5);
  }
  context.font = FONT;
  context.fillStyle = css("muted");
  context.textAlign = "left";
  context.textBaseline = "top";
  context.fillText(numberText(high), left + 11, plot.top - 2);
  context.textBaseline = "middle";
  context.fillText(unit, left + 11, plot.top + plot.height / 2);
  context.textBaseline = "bottom";
  context.fillText(numberText(low), left + 11, plot.top + plot.height + 2);
}

const numberText = (x) => (Math.abs(x) >= 10 || Number.isInteger(x) ? x.toFixed(0) : x.toPrecision(2)).replace("-", "−");

/** Return the next of 1, 2, 5, 10 ... that is not below `x`. */
function niceStep(x) {
  const decade = 10 ** Math.floor(Math.log10(x));
  return [1, 2, 5, 10].map((factor) => factor * decade).find((step) => step >= x * 0.999);
}
