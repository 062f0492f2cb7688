/** Color scales: of spectrograms (magma, as in melmask's figures), of numbers, of categories. */
import { interpolateMagma, interpolateViridis, schemeTableau10 } from "./vendor/d3-scale-chromatic.js";

function rgb(text) {
  if (text.startsWith("#")) return [1, 3, 5].map((at) => parseInt(text.slice(at, at + 2), 16));
  return text.match(/\d+/g).slice(0, 3).map(Number);
}

function table(scale) {
  const made = new Uint8Array(256 * 3);
  for (let i = 0; i < 256; i += 1) made.set(rgb(scale(i / 255)), 3 * i);
  return made;
}

/** Uint8Array of 256 times red, green, blue. */
export const MAGMA = table(interpolateMagma);
export const VIRIDIS = table(interpolateViridis);
export const GRAYS = table((x) => `rgb(${Array(3).fill(Math.round(25 + 205 * x)).join(",")})`);

/** Twenty colors for categories: ten that differ in hue, and the same ten, lighter. */
export const CATEGORIES = (() => {
  const strong = schemeTableau10.map(rgb);
  return [...strong, ...strong.map((color) => color.map((part) => Math.round(part * 0.55 + 255 * 0.45 * 0.9)))];
})();

/** What has no category, or one of the rarer ones. */
export const OTHER = [140, 148, 156];

export const cssOf = (color) => `rgb(${color.join(" ")})`;
