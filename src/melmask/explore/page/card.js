/** The card beside a point of the map: its name at once, its spectrogram as soon as it is there. */
import { byId, guarded, seconds } from "./dom.js";
import { drawSpectrogram, lengthOf } from "./spectrogram.js";
import { onTheme } from "./theme.js";

const GAP = 18;

export class Card {
  #state;
  #map;
  #memory;
  #id = null;

  constructor(state, map, memory) {
    this.#state = state;
    this.#map = map;
    this.#memory = memory;
    this.box = byId("card");
    state.on("hovered", () => this.show(state.hovered));
    onTheme(() => this.#id !== null && this.show(this.#id));
  }

  hide() {
    this.show(null);
  }

  async show(id) {
    this.#id = id;
    this.box.hidden = id === null;
    if (id === null) return;
    const canvas = byId("card-spectrogram");
    canvas.getContext("2d").clearRect(0, 0, canvas.width, canvas.height);
    byId("card-facts").textContent = this.#state.labels.get(id) ?? "";
    this.#place();
    await guarded(async () => {
      const [name, matrix] = [this.#memory.name(id), this.#memory.glimpse(id)];
      // An error of the spectrogram is met below; here it must not count as forgotten while the name is awaited.
      matrix.catch(() => {});
      const text = await name;
      if (this.#id !== id) return;
      byId("card-name").textContent = text;
      const made = await matrix;
      if (this.#id !== id) return;
      const label = this.#state.labels.get(id);
      // An exported page has pictures of some sounds only.
      const length = made === null ? "no spectrogram in this page" : seconds(made.total_s ?? lengthOf(made));
      if (made !== null) drawSpectrogram(canvas, made, { axes: false });
      byId("card-facts").textContent = [length, label].filter(Boolean).join(" · ");
    });
  }

  /** Put the card beside the point, on the side where there is room. */
  #place() {
    const [x, y] = this.#map.screen(this.#id);
    const { offsetWidth: width, offsetHeight: height } = this.box;
    const { clientWidth: wide, clientHeight: high } = this.#map.box;
    const left = x + GAP + width < wide ? x + GAP : x - GAP - width;
    const clamp = (value, most) => Math.max(4, Math.min(value, most - 4));
    this.box.style.left = `${clamp(left, wide - width)}px`;
    this.box.style.top = `${clamp(y - height / 2, high - height)}px`;
  }
}
