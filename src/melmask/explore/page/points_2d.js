/** Draws points without WebGL, pixel by pixel: for browsers on machines that have no graphics. */
export class PlainPoints {
  #canvas;
  #points = new Float32Array(0);
  #colors = new Uint8Array(0);
  #view = null;

  constructor(canvas) {
    this.#canvas = canvas;
  }

  setPoints(points) {
    this.#points = points;
  }

  setColors(colors) {
    this.#colors = colors;
  }

  draw(view) {
    if (this.#view === null) requestAnimationFrame(() => this.#frame());
    this.#view = view;
  }

  #frame() {
    const { scale, offset, size } = this.#view;
    this.#view = null;
    const { width, height } = this.#canvas;
    const context = this.#canvas.getContext("2d");
    const image = context.createImageData(width, height);
    const pixels = new Uint32Array(image.data.buffer);
    const colors = new Uint32Array(this.#colors.buffer, this.#colors.byteOffset, this.#colors.length / 4);
    const side = Math.max(1, Math.round(size * 0.8));
    for (let id = 0; id < colors.length; id += 1) {
      const left = Math.round(((this.#points[2 * id] * scale[0] + offset[0] + 1) / 2) * width - side / 2);
      const top = Math.round(((1 - this.#points[2 * id + 1] * scale[1] - offset[1]) / 2) * height - side / 2);
      if (colors[id] >>> 24 === 0 || !(left >= 0 && top >= 0 && left + side < width && top + side < height)) continue;
      for (let y = top; y < top + side; y += 1) pixels.fill(colors[id], y * width + left, y * width + left + side);
    }
    context.putImageData(image, 0, 0);
    this.#canvas.dispatchEvent(new Event("drawn"));
  }
}
