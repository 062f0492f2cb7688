/**
 * Draws points with WebGL 2.
 *
 * The points are drawn in an order that is spread over the collection, in portions that the graphics processor can draw
 * within a frame. While the map moves, each frame begins anew with the first portion, which looks like the whole; once
 * it is still, the other portions are added. So a million points stay smooth, whatever draws them.
 */

const VERTEX = `#version 300 es
in vec2 place; in vec4 color;
uniform vec2 scale, offset; uniform float size;
out vec4 tint;
void main() {
  gl_Position = vec4(place * scale + offset, 0.0, 1.0);
  // A point without color is filtered out, and one without a place is not drawn either.
  gl_PointSize = color.a > 0.0 ? size : 0.0;
  if (color.a == 0.0 || !(abs(place.x) <= 8.0)) gl_Position = vec4(2.0, 2.0, 2.0, 1.0);
  tint = color;
}`;
const FRAGMENT = `#version 300 es
precision highp float;
in vec4 tint; uniform float size; out vec4 made;
void main() {
  float edge = (0.5 - distance(gl_PointCoord, vec2(0.5))) * size;
  if (size > 2.5 && edge <= 0.0) discard;
  float alpha = tint.a * (size > 2.5 ? clamp(edge, 0.0, 1.0) : 1.0);
  made = vec4(tint.rgb * alpha, alpha);
}`;
const MOVING_MS = 30;
const STILL_MS = 120;
const BLANK_FRAMES = 8;
const FIRST_PORTION = 200_000;
const SMALLEST_PORTIONS = [30_000, 200_000];
/** The most that a portion may take in a browser that is busy otherwise. */
const MOST_BUSY_MS = 100;

export class GlPoints {
  #gl;
  #program;
  #buffers;
  #count = 0;
  #stride = 1;
  /** Points in the first portion of a picture, and in each further one: those may take longer, as nothing moves. */
  #portions = [FIRST_PORTION, FIRST_PORTION];
  #drawing = 0;
  /** Time between frames in which nothing is drawn, in ms: a browser that is busy otherwise has slow ones anyway. */
  #blank_ms = 0;
  #next = 0;
  #fence = null;
  #begun_ms = 0;
  #view = null;
  #asked = false;

  /** Return a renderer for the canvas, or null where the browser has no WebGL 2. */
  static on(canvas) {
    const gl = canvas.getContext("webgl2", { antialias: false, preserveDrawingBuffer: true, premultipliedAlpha: true });
    return gl === null ? null : new GlPoints(gl);
  }

  constructor(gl) {
    this.#gl = gl;
    this.#setUp();
    this.#timeBlankFrames();
    gl.canvas.addEventListener("webglcontextlost", (event) => event.preventDefault());
    gl.canvas.addEventListener("webglcontextrestored", () => {
      this.#setUp();
      this.#gl.canvas.dispatchEvent(new Event("restored"));
    });
  }

  #timeBlankFrames() {
    const times = [];
    const frame = (now) => {
      times.push(now);
      if (times.length <= BLANK_FRAMES) requestAnimationFrame(frame);
      else this.#blank_ms = times.slice(1).map((time, i) => time - times[i]).sort((a, b) => a - b)[BLANK_FRAMES / 2];
    };
    requestAnimationFrame(frame);
  }

  #setUp() {
    const gl = this.#gl;
    const program = gl.createProgram();
    for (const [kind, text] of [[gl.VERTEX_SHADER, VERTEX], [gl.FRAGMENT_SHADER, FRAGMENT]]) {
      const shader = gl.createShader(kind);
      gl.shaderSource(shader, text);
      gl.compileShader(shader);
      gl.attachShader(program, shader);
    }
    gl.linkProgram(program);
    gl.useProgram(program);
    this.#program = program;
    this.#buffers = { place: gl.createBuffer(), color: gl.createBuffer() };
    this.#attribute("place", 2, gl.FLOAT, false);
    this.#attribute("color", 4, gl.UNSIGNED_BYTE, true);
    gl.enable(gl.BLEND);
    gl.blendFunc(gl.ONE, gl.ONE_MINUS_SRC_ALPHA);
    this.#fence = null;
  }

  #attribute(name, size, type, normalized) {
    const gl = this.#gl;
    const location = gl.getAttribLocation(this.#program, name);
    gl.bindBuffer(gl.ARRAY_BUFFER, this.#buffers[name]);
    gl.enableVertexAttribArray(location);
    gl.vertexAttribPointer(location, size, type, normalized, 0, 0);
  }

  /** Take the places: Float32Array of (count, 2). */
  setPoints(points) {
    this.#count = points.length / 2;
    this.#stride = spreadingStride(this.#count);
    this.#upload("place", this.#spread(points, 2, Float32Array));
  }

  /** Take the colors: Uint8Array of (count, 4), red, green, blue, alpha. */
  setColors(colors) {
    this.#upload("color", this.#spread(colors, 4, Uint8Array));
  }

  #spread(values, width, Kind) {
    const made = new Kind(values.length);
    for (let i = 0, id = 0; i < this.#count; i += 1) {
      for (let part = 0; part < width; part += 1) made[width * i + part] = values[width * id + part];
      id += this.#stride;
      if (id >= this.#count) id -= this.#count;
    }
    return made;
  }

  #upload(name, values) {
    const gl = this.#gl;
    gl.bindBuffer(gl.ARRAY_BUFFER, this.#buffers[name]);
    gl.bufferData(gl.ARRAY_BUFFER, values, gl.DYNAMIC_DRAW);
  }

  /** Draw anew. `scale` and `offset` bring a place to clip space; `size` is in pixels of the canvas. */
  draw(view) {
    this.#view = view;
    this.#next = 0;
    this.#ask();
  }

  #ask() {
    if (!this.#asked) requestAnimationFrame(() => this.#frame());
    this.#asked = true;
  }

  #frame() {
    this.#asked = false;
    const gl = this.#gl;
    if (gl.isContextLost() || !this.#ready()) return;
    const { scale, offset, size } = this.#view;
    gl.viewport(0, 0, gl.canvas.width, gl.canvas.height);
    gl.uniform2f(gl.getUniformLocation(this.#program, "scale"), ...scale);
    gl.uniform2f(gl.getUniformLocation(this.#program, "offset"), ...offset);
    gl.uniform1f(gl.getUniformLocation(this.#program, "size"), size);
    if (this.#next === 0) {
      gl.clearColor(0, 0, 0, 0);
      gl.clear(gl.COLOR_BUFFER_BIT);
    }
    this.#drawing = this.#next === 0 ? 0 : 1;
    const count = Math.min(this.#portions[this.#drawing], this.#count - this.#next);
    if (count > 0) gl.drawArrays(gl.POINTS, this.#next, count);
    this.#next += count;
    this.#fence = gl.fenceSync(gl.SYNC_GPU_COMMANDS_COMPLETE, 0);
    this.#begun_ms = performance.now();
    gl.flush();
    if (this.#next < this.#count) this.#ask();
    else gl.canvas.dispatchEvent(new Event("drawn"));
  }

  /** Return whether the last portion is drawn, and fit the size of portions to the time that it took. */
  #ready() {
    if (this.#fence === null) return true;
    const gl = this.#gl;
    const state = gl.clientWaitSync(this.#fence, 0, 0);
    if (state === gl.TIMEOUT_EXPIRED) {
      this.#ask();
      return false;
    }
    gl.deleteSync(this.#fence);
    this.#fence = null;
    const took_ms = performance.now() - this.#begun_ms;
    const allowed_ms = Math.max([MOVING_MS, STILL_MS][this.#drawing], Math.min(MOST_BUSY_MS, 2 * this.#blank_ms));
    const factor = took_ms > 1.3 * allowed_ms ? Math.max(0.3, allowed_ms / took_ms) : took_ms < 0.7 * allowed_ms ? 1.4 : 1;
    // A tab that was hidden was asked for no frame all that time.
    if (took_ms < 5000) this.#portions[this.#drawing] = this.#within(factor * this.#portions[this.#drawing]);
    return true;
  }

  #within(portion) {
    return Math.round(Math.max(SMALLEST_PORTIONS[this.#drawing], Math.min(portion, Math.max(this.#count, FIRST_PORTION))));
  }
}

/** Return a step that visits all of `count` places, and whose first visits are spread evenly over them. */
function spreadingStride(count) {
  const divisor = (a, b) => (b === 0 ? a : divisor(b, a % b));
  let stride = Math.max(1, Math.round(count * 0.6180339887));
  while (divisor(stride, count) > 1) stride += 1;
  return stride % Math.max(1, count) || 1;
}
