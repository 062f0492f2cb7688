/** The tools beside the map: one at a time. On a narrow screen the map is a tab of its own. */
import { byId } from "./dom.js";

const NAMES = ["map", "inspect", "search", "labels"];

export class Tabs extends EventTarget {
  #wide = matchMedia("(min-width: 800px)");

  constructor() {
    super();
    for (const name of NAMES) byId(`tab-${name}`).addEventListener("click", () => this.show(name));
    document.querySelector("[role=tablist]").addEventListener("keydown", (event) => this.#key(event));
    this.#wide.addEventListener("change", () => this.show(this.wanted));
    this.show("map");
  }

  /** Whether the map and a tool are seen side by side. */
  get wide() {
    return this.#wide.matches;
  }

  /** Show a tab; beside the map, "map" means the inspector. */
  show(name) {
    this.wanted = name;
    this.name = name === "map" && this.wide ? "inspect" : name;
    document.body.dataset.tab = this.name;
    for (const other of NAMES) {
      const button = byId(`tab-${other}`);
      button.setAttribute("aria-selected", other === this.name);
      button.tabIndex = other === this.name ? 0 : -1;
    }
    this.dispatchEvent(new Event("change"));
  }

  #key(event) {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step) return;
    const usable = NAMES.map((name) => byId(`tab-${name}`)).filter((button) => button.offsetParent !== null);
    const next = usable[(usable.indexOf(document.activeElement) + step + usable.length) % usable.length];
    next.focus();
    next.click();
    event.preventDefault();
  }
}
