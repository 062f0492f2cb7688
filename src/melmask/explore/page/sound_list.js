/** A list of sounds: each with its name, what there is to say of it, its spectrogram, and buttons. */
import { el } from "./dom.js";
import { drawSpectrogram } from "./spectrogram.js";
import { onTheme } from "./theme.js";

export class SoundList {
  #entries = [];

  /**
   * @param {HTMLElement} box an <ol>
   * @param {object} parts `memory`, `player`, and `choose(id)`, which is called when a sound is chosen
   */
  constructor(box, { memory, player, choose }) {
    Object.assign(this, { box, memory, player, choose });
    this.watcher = new IntersectionObserver((seen) => {
      for (const { isIntersecting, target } of seen) if (isIntersecting) this.#draw(target);
    });
    box.addEventListener("keydown", (event) => this.#key(event));
    onTheme(() => this.#entries.forEach(({ canvas }) => this.watcher.observe(canvas)));
  }

  /** Show sounds: [{id, why, other}], where `why` is text and `other` a second sound. */
  show(items, buttons = () => []) {
    this.watcher.disconnect();
    this.#entries = items.flatMap((item) => [item.id, ...(item.other === undefined || item.other === null ? [] : [item.other])].map((id) => this.#entry(id, item, buttons)));
    this.box.replaceChildren(...this.#entries.map(({ row }) => row));
    for (const { canvas } of this.#entries) this.watcher.observe(canvas);
  }

  #entry(id, item, buttons) {
    const second = id !== item.id;
    const canvas = el("canvas", { "data-id": id, "aria-hidden": "true" });
    const name = el("span", { class: "name", text: "…" });
    this.memory.name(id).then((text) => (name.textContent = name.title = text), () => {});
    const row = el(
      "li",
      { class: second ? "second" : "" },
      el("button", { class: "open", type: "button", "data-id": id, on: { click: () => this.choose(id) } }, canvas, name, el("span", { class: "muted", text: second ? "" : item.why })),
      el("span", { class: "do" },
        el("button", { type: "button", text: "▶", "aria-label": "Play", on: { click: () => this.player.playOrStop(id) } }),
        ...(second ? [] : buttons(item)),
      ),
    );
    return { row, canvas };
  }

  async #draw(canvas) {
    this.watcher.unobserve(canvas);
    const matrix = await this.memory.glimpse(Number(canvas.dataset.id)).catch(() => null);
    if (matrix !== null && canvas.isConnected) drawSpectrogram(canvas, matrix, { axes: false });
  }

  #key(event) {
    const step = { ArrowUp: -1, ArrowDown: 1 }[event.key];
    if (!step) return;
    const open = [...this.box.querySelectorAll(".open")];
    const at = open.findIndex((button) => button.closest("li").contains(document.activeElement));
    open[Math.max(0, Math.min(open.length - 1, at + step))]?.focus();
    event.preventDefault();
  }
}
