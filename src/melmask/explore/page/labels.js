/** Labels: names for what is selected, a probe that learns them at once, and lists of what to look at next. */
import { CATEGORIES, cssOf } from "./colors.js";
import { labelColumn } from "./coloring.js";
import { able, byId, el, guarded, plural, toast } from "./dom.js";
import { SoundList } from "./sound_list.js";

/** The names of the columns that the labels make. A table may have a column "label" of its own. */
export const GIVEN = "my label";
export const PREDICTED = "predicted label";
export const CONFIDENCE = "confidence";

const LISTS = {
  suggestions: { count: 10, none: "There is nothing to suggest. Label some sounds of two kinds first." },
  suspects: { count: 20, none: "No label is suspect: the probe agrees with all of them." },
  duplicates: { count: 50, none: "There are no near-duplicates." },
};

export class Labels {
  #probed = 0;

  /** @param {object} parts `source, state, memory, player, coloring`, `choose(id)` and `colorBy(name)` */
  constructor(parts) {
    Object.assign(this, parts);
    this.list = new SoundList(byId("list"), parts);
    byId("label-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#apply(byId("label-name").value.trim());
    });
    byId("label-remove").addEventListener("click", () => this.give(this.#targets(), null));
    byId("selection-clear").addEventListener("click", () => this.state.put({ selection: new Int32Array(0) }));
    for (const [id, name] of [["label", GIVEN], ["predicted", PREDICTED], ["confidence", CONFIDENCE]]) {
      byId(`color-${id}`).addEventListener("click", () => this.colorBy(name));
    }
    for (const name of Object.keys(LISTS)) byId(`ask-${name}`).addEventListener("click", () => this.ask(name));
    this.state.on("selection current labels", () => this.#describe());
    this.state.on("labels", () => this.#listLabels());
  }

  async start() {
    byId("color-label").disabled = true;
    this.state.put({ labels: await this.source.labels() });
    this.#provide();
    // The page does not wait for the probe, which may take a while on a large collection.
    this.probe();
  }

  /** Return what a label would be given to: the selection, or else the chosen sound. */
  #targets() {
    const { selection, current } = this.state;
    return selection.length > 0 ? selection : current === null ? [] : [current];
  }

  async #describe() {
    const { selection, current } = this.state;
    const note = byId("selection-note");
    byId("label-remove").disabled = this.#targets().length === 0;
    byId("selection-clear").hidden = selection.length === 0;
    byId("label-form").querySelector("[type=submit]").disabled = this.#targets().length === 0;
    if (selection.length > 0) note.textContent = `${plural(selection.length, "sound")} selected.`;
    else if (current === null) note.textContent = "Select sounds with the lasso, or choose one on the map.";
    else note.textContent = `The chosen sound: ${await this.memory.name(current)}`;
  }

  #apply(name) {
    if (name === "") return toast("Type a name for the label first.", true);
    return this.give(this.#targets(), name);
  }

  /** Give sounds a label, or take it from them with null; then train the probe. */
  give(ids, label) {
    if (ids.length === 0) return undefined;
    return guarded(async () => {
      await this.source.setLabels(ids, label);
      const labels = new Map(this.state.labels);
      for (const id of ids) {
        if (label === null) labels.delete(id);
        else labels.set(id, label);
      }
      this.state.put({ labels });
      toast(label === null ? `Label removed from ${plural(ids.length, "sound")}.` : `${plural(ids.length, "sound")} labeled “${label}”.`);
      this.#provide();
      await this.probe();
    });
  }

  #provide() {
    byId("color-label").disabled = this.state.labels.size === 0;
    if (this.state.labels.size > 0 || this.coloring.has(GIVEN)) {
      this.coloring.provide(GIVEN, labelColumn(this.state.labels, this.state.points.length / 2));
    }
    this.colorsChanged();
  }

  #listLabels() {
    byId("labels-csv").href = this.source.labelsCsvUrl();
    const counts = new Map();
    for (const label of this.state.labels.values()) counts.set(label, (counts.get(label) ?? 0) + 1);
    const names = [...counts.keys()].sort();
    byId("label-names").replaceChildren(...names.map((value) => el("option", { value })));
    // The same order as in the legend: the most frequent one first.
    const ordered = names.sort((a, b) => counts.get(b) - counts.get(a));
    byId("label-list").replaceChildren(
      ...ordered.map((name, i) => {
        const dot = el("span", { class: "dot" });
        dot.style.background = cssOf(CATEGORIES[i % CATEGORIES.length]);
        const use = () => {
          byId("label-name").value = name;
          byId("label-name").focus();
        };
        return el("li", {}, el("button", { type: "button", class: "entry", title: "Use this label", on: { click: use } }, dot, el("span", { class: "text", text: name }), el("span", { class: "count", text: counts.get(name).toLocaleString("en") })));
      }),
    );
    byId("labels-csv").classList.toggle("off", names.length === 0);
    if (names.length === 0) byId("probe-note").textContent = "There are no labels yet.";
  }

  /** Train the probe on the labels, and say how well it does on labels that it did not see. */
  async probe() {
    const { labels, collection } = this.state;
    const kinds = new Set(labels.values());
    const ready = able(this.source, "probe") && kinds.size >= 2;
    if (!ready) {
      if (kinds.size === 1) byId("probe-note").textContent = "A probe needs two labels or more.";
      return;
    }
    this.#probed += 1;
    const mine = this.#probed;
    byId("probe-note").textContent = "Training a probe …";
    try {
      const made = await this.source.probe();
      if (mine !== this.#probed) return;
      byId("probe-note").textContent = scoreText(made);
      this.coloring.provide(PREDICTED, { kind: "category", categories: made.classes, codes: made.codes });
      this.coloring.provide(CONFIDENCE, { kind: "number", values: made.confidence });
      for (const id of ["color-predicted", "color-confidence"]) byId(id).disabled = made.codes.length !== collection.count;
      this.colorsChanged();
    } catch (error) {
      if (mine === this.#probed) byId("probe-note").textContent = `No probe yet: ${error.message}`;
    }
  }

  /** Show one of the lists of sounds. */
  ask(name) {
    for (const other of Object.keys(LISTS)) byId(`ask-${other}`).setAttribute("aria-pressed", other === name);
    byId("list-note").textContent = "Looking …";
    this.list.show([]);
    return guarded(async () => {
      let items = [];
      try {
        items = await this.source[name](LISTS[name].count);
        byId("list-note").textContent = items.length === 0 ? LISTS[name].none : "";
      } catch (error) {
        byId("list-note").textContent = error.message;
      }
      this.list.show(items, name === "duplicates" ? undefined : (item) => [this.#giver(item.id)]);
    });
  }

  /** Return a field that gives a sound a label: one of those there are, with one choice. */
  #giver(id) {
    const names = [...new Set(this.state.labels.values())].sort();
    const select = el("select", { "aria-label": "Label for this sound" }, el("option", { value: "", text: "label …" }), ...names.map((text) => el("option", { value: `=${text}`, text })));
    const own = this.state.labels.get(id);
    if (own !== undefined) select.value = `=${own}`;
    select.addEventListener("change", () => select.value !== "" && this.give([id], select.value.slice(1)));
    return select;
  }
}

function scoreText({ accuracy, interval, labelled, classes, note }) {
  const share = (x) => `${(100 * x).toFixed(0)} %`;
  const range = interval ? ` (95 % interval ${share(interval[0])} to ${share(interval[1])})` : "";
  if (accuracy === null) return `Probe trained on ${plural(labelled, "labeled sound")}, without a score: ${note}.`;
  return `Probe: ${share(accuracy)} right${range}, cross-validated on ${plural(labelled, "labeled sound")} of ${plural(classes.length, "kind")}.`;
}
