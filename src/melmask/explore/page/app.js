/** Puts the page together: a source gives the sounds, and the parts of the page share one state. */
import { Card } from "./card.js";
import { Coloring } from "./coloring.js";
import { able, byId, debounce, fillSelect, guarded, plural, toast } from "./dom.js";
import { Inspector } from "./inspector.js";
import { startKeyboard } from "./keyboard.js";
import { CONFIDENCE, GIVEN, Labels, PREDICTED } from "./labels.js";
import { drawLegend } from "./legend.js";
import { PointMap } from "./map.js";
import { Memory } from "./memory.js";
import { Search } from "./search.js";
import { Player } from "./sound.js";
import { State } from "./state.js";
import { Tabs } from "./tabs.js";
import { startTheme } from "./theme.js";

const POLL_MS = 1000;
const OWN_COLUMNS = [GIVEN, PREDICTED, CONFIDENCE];

/** Start the page with a source: see server_source.js for what that is. */
export function startApp(source) {
  startTheme();
  return guarded(() => new App(source).start());
}

class App {
  constructor(source) {
    const state = new State();
    Object.assign(this, { source, state, memory: new Memory(source), player: new Player(source), tabs: new Tabs() });
    this.coloring = new Coloring(state);
    const canvases = { box: byId("map-box"), canvas: byId("points"), overlay: byId("overlay") };
    this.map = new PointMap(state, this.coloring, canvases);
    this.card = new Card(state, this.map, this.memory);
  }

  async start() {
    const { state, source } = this;
    state.put({ collection: await source.collection() });
    for (const element of document.querySelectorAll("[data-needs]")) {
      element.classList.toggle("unable", !element.dataset.needs.split(" ").every((name) => able(source, name)));
    }
    const choose = (id) => this.choose(id, { open: this.tabs.wide && this.tabs.name === "inspect" });
    const colorBy = (name) => this.colorBy(name);
    const parts = { ...this, choose, colorBy, colorsChanged: () => this.offerColors() };
    this.inspector = new Inspector(parts);
    this.search = new Search(parts);
    this.labels = new Labels(parts);
    this.inspector.prepare();
    this.#connect();
    this.#describe();
    await this.loadPoints();
    if (able(source, "label")) await guarded(() => this.labels.start());
    await this.colorBy(this.#firstColumn());
    this.#watchEmbedding();
    document.body.dataset.ready = "yes";
  }

  #firstColumn() {
    const { columns } = this.state.collection;
    if (this.state.labels.size > 0) return GIVEN;
    const fitting = columns.filter(({ kind, distinct }) => kind === "category" && distinct > 1 && distinct <= 50);
    return (fitting.find(({ name }) => /label|class|species/i.test(name)) ?? fitting[0] ?? { name: "" }).name;
  }

  #describe() {
    const { name, count, kind, model, projections } = this.state.collection;
    document.title = `${name} · melmask explore`;
    byId("collection-name").textContent = name;
    byId("collection-facts").textContent = `${plural(count, kind === "segments" ? "segment" : "file")} · ${model.name}`;
    byId("overlay").setAttribute("aria-label", `Map of ${plural(count, "sound")}`);
    const names = { pca: "PCA", umap: "UMAP", pacmap: "PaCMAP" };
    fillSelect(byId("projection"), projections.map((value) => [value, names[value] ?? value]), byId("projection").value || projections[0]);
    byId("projection-label").hidden = projections.length < 2;
    this.offerColors();
    const notes = [this.map.plain ? "This browser has no WebGL 2, so large maps move slowly." : "", this.source.note];
    byId("map-note").textContent = notes.filter(Boolean).join(" ");
    byId("map-note").hidden = byId("map-note").textContent === "";
  }

  offerColors() {
    const columns = this.state.collection.columns.filter(({ kind }) => kind !== "text").map(({ name }) => name);
    const own = OWN_COLUMNS.filter((name) => this.coloring.has(name) && !columns.includes(name));
    fillSelect(byId("color"), [["", "nothing"], ...[...own, ...columns].map((name) => [name, name])], this.coloring.name ?? "");
    // What the labels or the probe say has changed under the colors that are shown.
    if (OWN_COLUMNS.includes(this.coloring.name)) this.coloring.refresh();
  }

  async loadPoints() {
    const points = await this.source.points(byId("projection").value);
    this.state.put({ shown: new Uint8Array(points.length / 2).fill(1), points });
    this.coloring.refresh();
    byId("point-size").value = this.map.size;
  }

  /** Show another map of the same sounds, which may have to be computed first. */
  async project() {
    const chosen = byId("projection");
    chosen.disabled = true;
    toast(`Computing the map by ${chosen.selectedOptions[0].textContent}. This may take a while.`);
    try {
      await this.loadPoints();
    } catch (error) {
      chosen.value = this.state.collection.projections[0];
      throw error;
    } finally {
      chosen.disabled = false;
    }
    this.map.reset();
  }

  /** Color the map by a column; "" is none. */
  async colorBy(name) {
    if (name !== "" && !this.coloring.has(name)) this.coloring.provide(name, await this.source.column(name));
    byId("color").value = name;
    this.coloring.choose(name === "" ? null : name);
  }

  /** Choose a sound; with `open`, show it in the inspector, and with `card`, beside its point. */
  choose(id, { open = false, card = false } = {}) {
    this.state.put({ current: id });
    this.map.reveal(id);
    if (card) {
      this.card.show(id);
      this.player.touch(id);
    }
    if (open) this.inspect();
  }

  inspect() {
    this.card.hide();
    this.tabs.show("inspect");
  }

  #connect() {
    const { state, map, player } = this;
    map.addEventListener("chosen", ({ detail }) => {
      // A finger has no pointer that hovers: the first touch shows the card, and its bar opens the inspector.
      const open = detail.open && (this.tabs.wide || detail.key);
      this.choose(detail.id, { open, card: !open });
      if (open && detail.key) byId("inspect").focus();
    });
    map.addEventListener("lassoed", () => {
      toast(state.selection.length === 0 ? "No sound is selected." : `${plural(state.selection.length, "sound")} selected. Name them under Labels.`);
      if (this.tabs.wide && able(this.source, "label") && state.selection.length > 0) this.tabs.show("labels");
    });
    state.on("shown", () => drawLegend(byId("legend"), this.coloring));
    state.on("hovered", () => player.touch(state.hovered));
    state.on("current", () => this.#showCurrent());
    byId("overlay").addEventListener("blur", () => this.card.hide());
    byId("color").addEventListener("change", ({ target }) => guarded(() => this.colorBy(target.value)));
    byId("projection").addEventListener("change", () => guarded(() => this.project()));
    byId("point-size").addEventListener("input", ({ target }) => {
      map.pointSize = Number(target.value);
      map.draw();
    });
    const click = (id, f) => byId(id).addEventListener("click", f);
    click("lasso", () => this.toggleLasso());
    click("select-view", () => map.selectView());
    click("reset-view", () => map.reset());
    click("current-play", () => player.playOrStop(state.current));
    click("current-inspect", () => this.inspect());
    for (const id of ["current-similar", "inspect-similar"]) click(id, () => this.search.current());
    click("current-select", () => this.toggleSelected());
    startKeyboard(this.#actions());
  }

  #actions() {
    const { state, tabs, player } = this;
    const go = (tab, id) => () => {
      tabs.show(tab);
      byId(id).focus();
    };
    const chosen = (f) => () => (state.current === null ? toast("Choose a sound first.") : f());
    const ifAble = (name, f) => () => able(this.source, name) && f();
    return {
      m: go("map", "overlay"),
      1: go("map", "overlay"),
      2: go("inspect", "inspect"),
      3: ifAble("search", go("search", "search")),
      4: ifAble("label", go("labels", "labels")),
      i: chosen(() => {
        this.inspect();
        byId("inspect").focus();
      }),
      " ": chosen(() => player.playOrStop(state.current)),
      s: () => player.toggle(),
      t: () => byId("theme").click(),
      x: ifAble("label", chosen(() => this.toggleSelected())),
      v: () => this.map.selectView(),
      l: () => this.toggleLasso(),
      n: ifAble("search", chosen(() => this.search.current())),
      "/": ifAble("search", go("search", "search-name")),
      b: ifAble("label", go("labels", "label-name")),
      Escape: () => this.clear(),
    };
  }

  /** Clear what is selected and found, and end the lasso. */
  clear() {
    if (this.map.lassoing) this.toggleLasso();
    this.state.put({ selection: new Int32Array(0) });
    this.search.clear();
    this.card.hide();
    this.player.stop();
  }

  toggleLasso() {
    this.map.lassoing = !this.map.lassoing;
    byId("lasso").setAttribute("aria-pressed", this.map.lassoing);
    byId("map-box").classList.toggle("lassoing", this.map.lassoing);
  }

  toggleSelected() {
    const { selection, current } = this.state;
    const without = selection.filter((id) => id !== current);
    const next = without.length < selection.length ? without : Int32Array.from([...selection, current]).sort();
    this.state.put({ selection: next });
    toast(`${plural(next.length, "sound")} selected.`);
  }

  async #showCurrent() {
    const { current } = this.state;
    byId("current").hidden = current === null;
    if (current !== null) byId("current-name").textContent = await this.memory.name(current);
  }

  /** Show how far embedding is, and take the new places and columns when it is done. */
  #watchEmbedding() {
    const { embedding } = this.state.collection;
    if (!embedding) return;
    const { done, total, failed, running, error } = embedding;
    const busy = done < total && running !== false;
    byId("embedding").hidden = !busy && !error && !failed;
    byId("embedding-bar").hidden = !busy;
    byId("embedding-bar").value = done / Math.max(1, total);
    const count = (n) => n.toLocaleString("en");
    const words = [busy ? `${count(done)} of ${count(total)} embedded` : "", failed ? `${count(failed)} cannot be read` : "", error];
    byId("embedding-text").textContent = words.filter(Boolean).join(" · ");
    if (busy) setTimeout(() => guarded(() => this.#poll()), POLL_MS);
  }

  async #poll() {
    const before = this.state.collection.embedding.done;
    this.state.put({ collection: await this.source.collection() });
    const { done, total } = this.state.collection.embedding;
    this.#watchEmbedding();
    if (done >= total || (done - before) / Math.max(1, total) > 0.02) await this.#renew();
  }

  /** Take the places anew, and the column of the colors, which may be clusters of them. */
  #renew = debounce(() => guarded(async () => {
    this.#describe();
    const { name } = this.coloring;
    if (name !== null && !OWN_COLUMNS.includes(name)) this.coloring.provide(name, await this.source.column(name));
    await this.loadPoints();
  }), 50);
}
