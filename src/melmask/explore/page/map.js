/** The map: moves and zooms, finds the point under the pointer or in the direction of a key, and selects with a lasso. */
import { debounce } from "./dom.js";
import { GlPoints } from "./points_gl.js";
import { PlainPoints } from "./points_2d.js";
import { color, css, onTheme } from "./theme.js";
import { select, zoom, zoomIdentity } from "./vendor/d3-zoom.js";
import { KDBush } from "./vendor/kdbush.js";

const REACH_PX = 12;
const MOST_RINGS = 3000;
const DIRECTIONS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };

export class PointMap extends EventTarget {
  #state;
  #coloring;
  #points;
  #index = null;
  #transform = zoomIdentity;
  #lasso = null;
  #recoloring = false;

  constructor(state, coloring, { box, canvas, overlay }) {
    super();
    this.#state = state;
    this.#coloring = coloring;
    Object.assign(this, { box, canvas, overlay, lassoing: false, pointSize: 0 });
    this.#points = GlPoints.on(canvas);
    /** Whether the points are drawn without WebGL. */
    this.plain = this.#points === null;
    if (this.plain) this.#points = new PlainPoints(canvas);
    this.zoom = zoom()
      .scaleExtent([0.5, 4000])
      // Pressing with Shift or with the lasso draws; a wheel and two fingers always zoom.
      .filter((event) => event.type === "wheel" || (!event.button && !this.#draws(event)))
      .on("zoom", ({ transform }) => {
        this.#transform = transform;
        this.draw();
      });
    select(overlay).call(this.zoom).on("dblclick.zoom", null);
    this.#listen();
  }

  #draws(event) {
    return (this.lassoing || event.shiftKey) && !(event.touches?.length > 1);
  }

  #listen() {
    const { overlay } = this;
    const size = debounce(() => this.draw(), 0);
    new ResizeObserver(size).observe(this.box);
    overlay.addEventListener("pointermove", (event) => this.#move(event));
    overlay.addEventListener("pointerleave", () => this.#lasso === null && this.#hover(null));
    overlay.addEventListener("pointerdown", (event) => this.#press(event));
    overlay.addEventListener("pointerup", (event) => this.#lift(event));
    overlay.addEventListener("click", (event) => this.#click(event));
    overlay.addEventListener("keydown", (event) => this.#key(event));
    overlay.addEventListener("focus", () => this.#drawOverlay());
    overlay.addEventListener("blur", () => this.#drawOverlay());
    this.canvas.addEventListener("restored", () => this.#take());
    this.#state.on("points", () => this.#take());
    this.#state.on("shown", () => this.recolor());
    this.#state.on("selection results", () => this.recolor());
    this.#state.on("current hovered", () => this.#drawOverlay());
    onTheme(() => this.recolor());
  }

  #take() {
    const { points } = this.#state;
    const count = points.length / 2;
    this.#index = new KDBush(Math.max(1, count), 64, Float32Array);
    // What has no place yet lies far away, where nothing finds it.
    for (let id = 0; id < Math.max(1, count); id += 1) {
      const placed = Number.isFinite(points[2 * id]);
      this.#index.add(placed ? points[2 * id] : 99, placed ? points[2 * id + 1] : 99);
    }
    this.#index.finish();
    this.#points.setPoints(points);
    this.recolor();
  }

  /** Draw with new colors, once for all that has changed until the next frame. */
  recolor() {
    if (!this.#recoloring) requestAnimationFrame(() => this.#recolor());
    this.#recoloring = true;
  }

  #recolor() {
    this.#recoloring = false;
    const count = this.#state.points.length / 2;
    if (this.#state.shown.length !== count) return;
    // Many points are drawn more transparent, so that dense places can be told from thin ones.
    const alpha = count < 5e3 ? 0.9 : count < 5e4 ? 0.7 : count < 3e5 ? 0.5 : 0.35;
    this.#points.setColors(this.#coloring.colors(alpha, color("curve")));
    this.draw();
  }

  /** Return the size of a point in CSS pixels: the chosen one, or one that suits the number of points. */
  get size() {
    const count = this.#state.points.length / 2;
    const fitting = count < 500 ? 10 : count < 5e3 ? 7 : count < 5e4 ? 4.5 : count < 3e5 ? 3 : 2;
    return this.pointSize || fitting;
  }

  /** Return CSS pixels for a unit of the map before zooming. */
  get #unit() {
    return 0.46 * Math.min(this.box.clientWidth, this.box.clientHeight);
  }

  /** Return the place of a sound on the screen, in CSS pixels of the map. */
  screen(id) {
    const { points } = this.#state;
    const x = this.box.clientWidth / 2 + points[2 * id] * this.#unit;
    const y = this.box.clientHeight / 2 - points[2 * id + 1] * this.#unit;
    return this.#transform.apply([x, y]);
  }

  #world([x, y]) {
    const [left, top] = this.#transform.invert([x, y]);
    return [(left - this.box.clientWidth / 2) / this.#unit, (this.box.clientHeight / 2 - top) / this.#unit];
  }

  draw() {
    const { clientWidth: width, clientHeight: height } = this.box;
    if (width === 0 || height === 0) return;
    const ratio = Math.min(2, window.devicePixelRatio || 1);
    for (const canvas of [this.canvas, this.overlay]) {
      const [wide, high] = [Math.round(width * ratio), Math.round(height * ratio)];
      if (canvas.width !== wide || canvas.height !== high) [canvas.width, canvas.height] = [wide, high];
    }
    const { k, x, y } = this.#transform;
    const unit = (2 * k * this.#unit) / 1;
    this.#points.draw({
      scale: [unit / width, unit / height],
      offset: [k + (2 * x) / width - 1, 1 - k - (2 * y) / height],
      size: this.size * ratio * Math.min(2, Math.max(1, k ** 0.25)),
    });
    this.#drawOverlay();
  }

  #drawOverlay() {
    const context = this.overlay.getContext("2d");
    const ratio = this.overlay.width / Math.max(1, this.box.clientWidth);
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, this.box.clientWidth, this.box.clientHeight);
    const radius = this.size / 2 + 2;
    const { selection, results, hovered, current } = this.#state;
    if (selection.length <= MOST_RINGS) for (const id of selection) this.#ring(context, id, radius, css("ink"), 1.2);
    for (const { id } of results) this.#ring(context, id, radius + 1, css("warn"), 2);
    if (hovered !== null) this.#ring(context, hovered, radius + 3, css("ink"), 2);
    if (current !== null) {
      this.#ring(context, current, radius + 5, css("card"), 5);
      this.#ring(context, current, radius + 5, css("focus"), 3);
    }
    if (this.#lasso !== null && this.#lasso.length > 1) {
      context.beginPath();
      this.#lasso.forEach(([x, y], i) => (i === 0 ? context.moveTo(x, y) : context.lineTo(x, y)));
      context.closePath();
      context.fillStyle = css("curve", 0.15);
      context.fill();
      context.lineWidth = 1.5;
      context.strokeStyle = css("curve");
      context.stroke();
    }
  }

  #ring(context, id, radius, style, line) {
    const [x, y] = this.screen(id);
    if (!Number.isFinite(x) || !this.#state.shown[id]) return;
    context.beginPath();
    context.arc(x, y, radius, 0, 2 * Math.PI);
    context.lineWidth = line;
    context.strokeStyle = style;
    context.stroke();
  }

  /** Return the point nearest to a place on the screen, or null where none is near. */
  nearest(place) {
    if (this.#index === null) return null;
    const [x, y] = this.#world(place);
    const pixel = 1 / (this.#unit * this.#transform.k);
    // A small circle first: on a crowded map the whole reach holds thousands of points.
    for (const reach of [3, REACH_PX / 2, REACH_PX]) {
      const near = this.#index.within(x, y, reach * pixel).filter((id) => this.#state.shown[id]);
      if (near.length > 0) return this.#closest(near, x, y);
    }
    return null;
  }

  #closest(ids, x, y) {
    const { points } = this.#state;
    const far = (id) => (points[2 * id] - x) ** 2 + (points[2 * id + 1] - y) ** 2;
    return ids.reduce((best, id) => (far(id) < far(best) ? id : best));
  }

  #hover(id) {
    if (id !== this.#state.hovered) this.#state.put({ hovered: id });
  }

  #move(event) {
    const place = [event.offsetX, event.offsetY];
    if (this.#lasso !== null) {
      this.#lasso.push(place);
      this.#drawOverlay();
    } else if (event.pointerType === "mouse" && event.buttons === 0) {
      this.#hover(this.nearest(place));
    }
  }

  #press(event) {
    if (event.button !== 0 || !this.#draws(event)) return;
    this.#lasso = [[event.offsetX, event.offsetY]];
    this.overlay.setPointerCapture(event.pointerId);
  }

  #lift() {
    const polygon = this.#lasso;
    this.#lasso = null;
    if (polygon === null) return;
    if (polygon.length > 3) {
      this.#state.put({ selection: this.#inside(polygon.map((place) => this.#world(place))) });
      this.dispatchEvent(new Event("lassoed"));
      // The click that ends a lasso chooses nothing.
      this.ignoreClick = true;
      setTimeout(() => (this.ignoreClick = false), 0);
    }
    this.#drawOverlay();
  }

  #inside(polygon) {
    const [xs, ys] = [polygon.map(([x]) => x), polygon.map(([, y]) => y)];
    const within = this.#index.range(Math.min(...xs), Math.min(...ys), Math.max(...xs), Math.max(...ys));
    const { points, shown } = this.#state;
    const kept = within.filter((id) => shown[id] && contains(polygon, points[2 * id], points[2 * id + 1]));
    return Int32Array.from(kept).sort();
  }

  /** Select all shown points that lie within the view. */
  selectView() {
    const corners = [[0, 0], [this.box.clientWidth, 0], [this.box.clientWidth, this.box.clientHeight], [0, this.box.clientHeight]];
    this.#state.put({ selection: this.#inside(corners.map((place) => this.#world(place))) });
    this.dispatchEvent(new Event("lassoed"));
  }

  #click(event) {
    if (this.ignoreClick || event.defaultPrevented) return;
    const id = this.nearest([event.offsetX, event.offsetY]);
    if (id !== null) this.dispatchEvent(new CustomEvent("chosen", { detail: { id, open: true } }));
  }

  #key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const direction = DIRECTIONS[event.key];
    if (direction && event.shiftKey) this.#pan(direction);
    else if (direction) this.#step(direction);
    else if (event.key === "+" || event.key === "=") this.zoomBy(1.5);
    else if (event.key === "-") this.zoomBy(1 / 1.5);
    else if (event.key === "0") this.reset();
    else if (event.key === "Enter" && this.#state.current !== null) this.#choose(this.#state.current, true);
    else return;
    event.preventDefault();
  }

  #choose(id, open) {
    this.dispatchEvent(new CustomEvent("chosen", { detail: { id, open, key: true } }));
  }

  #pan([x, y]) {
    select(this.overlay).call(this.zoom.translateBy, (-80 * x) / this.#transform.k, (80 * y) / this.#transform.k);
  }

  zoomBy(factor) {
    select(this.overlay).call(this.zoom.scaleBy, factor);
  }

  reset() {
    select(this.overlay).call(this.zoom.transform, zoomIdentity);
  }

  /** Bring a sound into view, without zooming. */
  reveal(id) {
    const [x, y] = this.screen(id);
    const { clientWidth: width, clientHeight: height } = this.box;
    if (!Number.isFinite(x) || (x > 30 && y > 30 && x < width - 30 && y < height - 30)) return;
    const { k } = this.#transform;
    select(this.overlay).call(this.zoom.translateBy, (width / 2 - x) / k, (height / 2 - y) / k);
  }

  #step(direction) {
    const { current } = this.#state;
    const next = current === null ? this.#central() : this.#neighbor(current, direction);
    if (next !== null) this.#choose(next, false);
  }

  /** Return the shown point that is nearest to the middle of the view. */
  #central() {
    const [x, y] = this.#world([this.box.clientWidth / 2, this.box.clientHeight / 2]);
    for (let reach = 0.01; reach < 8; reach *= 2) {
      const near = this.#index.within(x, y, reach).filter((id) => this.#state.shown[id]);
      if (near.length > 0) return this.#closest(near, x, y);
    }
    return null;
  }

  /** Return the next shown point in a direction; the circle grows until there is one. */
  #neighbor(from, [right, up]) {
    const { points, shown } = this.#state;
    const [x, y] = [points[2 * from], points[2 * from + 1]];
    if (!Number.isFinite(x)) return this.#central();
    for (let reach = 2 / (this.#unit * this.#transform.k); reach < 8; reach *= 2) {
      let [best, least] = [null, Infinity];
      for (const id of this.#index.within(x, y, reach)) {
        if (!shown[id] || id === from) continue;
        const [dx, dy] = [points[2 * id] - x, points[2 * id + 1] - y];
        const along = dx * right + dy * up;
        const aside = Math.abs(dx * up) + Math.abs(dy * right);
        // Sounds at the very same place are visited in the order of their numbers.
        const same = dx === 0 && dy === 0 && (right + up > 0 ? id > from : id < from);
        const cost = same ? Math.abs(id - from) * 1e-12 : along > 0 && aside <= along ? along + aside : Infinity;
        if (cost < least) [best, least] = [id, cost];
      }
      if (best !== null) return best;
    }
    return null;
  }
}

/** Return whether a polygon holds a place, by counting how often a ray crosses its sides. */
function contains(polygon, x, y) {
  let inside = false;
  for (let i = 0, j = polygon.length - 1; i < polygon.length; j = i, i += 1) {
    const [[x1, y1], [x2, y2]] = [polygon[i], polygon[j]];
    if (y1 > y !== y2 > y && x < ((x2 - x1) * (y - y1)) / (y2 - y1) + x1) inside = !inside;
  }
  return inside;
}
