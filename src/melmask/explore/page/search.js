/** Search: from the chosen sound or a part of it, from a file, from the microphone, and by name. */
import { able, byId, debounce, guarded, plural, toast } from "./dom.js";
import { Recorder } from "./recorder.js";
import { SoundList } from "./sound_list.js";

const MOST_RESULTS = 20;
const MOST_NAMES = 50;
const LONGEST_RECORDING_S = 30;

export class Search {
  #recorder = null;
  #last = 0;

  /** @param {object} parts `source, state, memory, player, tabs`, and `choose(id)` */
  constructor(parts) {
    Object.assign(this, parts);
    this.list = new SoundList(byId("results"), parts);
    byId("search-current").addEventListener("click", () => this.current());
    byId("search-file").addEventListener("change", ({ target }) => target.files[0] && this.file(target.files[0]));
    byId("search-mic").addEventListener("click", () => guarded(() => this.#record()));
    byId("search-name").addEventListener("input", debounce(({ target }) => this.#byName(target.value.trim()), 200));
    byId("results-clear").addEventListener("click", () => this.clear());
    byId("results-select").addEventListener("click", () => {
      this.state.put({ selection: Int32Array.from(this.state.results, ({ id }) => id).sort() });
      this.tabs.show("labels");
    });
    this.state.on("current", () => this.#enable());
    this.#enable();
    this.#acceptDrops();
  }

  #enable() {
    byId("search-current").disabled = this.state.current === null;
  }

  /** Search for what resembles the chosen sound, or the part of it that the fields name. */
  current() {
    const id = this.state.current;
    if (id === null) return undefined;
    const part = (name) => (byId(name).value === "" ? null : Number(byId(name).value));
    const request = { id, start_s: part("part-start"), end_s: part("part-end"), count: MOST_RESULTS };
    return this.#run(request, async () => `Sounds like ${await this.memory.name(id)}`);
  }

  /** Search for what resembles a sound file. */
  file(file) {
    byId("search-file").value = "";
    return this.#run({ sound: file, count: MOST_RESULTS }, async () => `Sounds like the file ${file.name}`);
  }

  #run(request, title) {
    this.tabs.show("search");
    byId("search-note").textContent = "Searching …";
    this.#last += 1;
    const mine = this.#last;
    return guarded(async () => {
      try {
        const results = await this.source.search(request);
        // A slow answer must not replace that of a later question.
        if (mine !== this.#last) return;
        this.#show(results, await title());
        // Asked by a key of the map, the answer is where one goes on; whoever is in a field stays there.
        if ([document.body, byId("overlay")].includes(document.activeElement)) byId("results").querySelector(".open")?.focus();
      } finally {
        if (mine === this.#last) byId("search-note").textContent = "";
      }
    });
  }

  clear() {
    this.#last += 1;
    byId("search-note").textContent = "";
    this.#show([], "");
  }

  #show(results, title) {
    byId("results-title").textContent = title || "Results";
    for (const name of ["results-clear", "results-select"]) byId(name).hidden = results.length === 0;
    if (!able(this.source, "label")) byId("results-select").hidden = true;
    this.list.show(results.map(({ id, similarity }) => ({ id, why: similarity === undefined ? "" : `similarity ${similarity.toFixed(3)}` })));
    this.state.put({ results });
    if (title) byId("search-note").textContent = plural(results.length, "sound");
  }

  #byName(text) {
    if (text === "") return this.clear();
    return guarded(async () => {
      this.#last += 1;
      const mine = this.#last;
      const found = await this.memory.find(text, this.state.collection.count, MOST_NAMES);
      if (mine === this.#last) this.#show(found.map((id) => ({ id })), `Names with “${text}”`);
      if (mine === this.#last && found.length === MOST_NAMES) byId("search-note").textContent = `The first ${MOST_NAMES} sounds`;
    });
  }

  async #record() {
    const button = byId("search-mic");
    if (this.#recorder === null) {
      const recorder = new Recorder(this.source.recorderWorkletUrl());
      await recorder.start();
      this.#recorder = recorder;
      button.classList.add("recording");
      button.setAttribute("aria-pressed", "true");
      this.ticks = setInterval(() => {
        button.textContent = `■ Stop (${recorder.duration_s.toFixed(0)} s)`;
        if (recorder.duration_s >= LONGEST_RECORDING_S) button.click();
      }, 200);
      button.textContent = "■ Stop (0 s)";
      toast("Recording. Press again to search.");
      return;
    }
    const recorder = this.#recorder;
    this.#recorder = null;
    clearInterval(this.ticks);
    button.classList.remove("recording");
    button.setAttribute("aria-pressed", "false");
    button.textContent = "● Record";
    const length_s = recorder.duration_s;
    const sound = await recorder.stop();
    if (length_s < 0.05) throw new Error("The microphone gave no sound.");
    await this.#run({ sound, count: MOST_RESULTS }, async () => `Sounds like the recording of ${length_s.toFixed(1)} s`);
  }

  #acceptDrops() {
    const veil = byId("drop");
    const carriesFile = (event) => able(this.source, "searchSound") && [...(event.dataTransfer?.types ?? [])].includes("Files");
    addEventListener("dragover", (event) => {
      if (!carriesFile(event)) return;
      event.preventDefault();
      veil.hidden = false;
    });
    addEventListener("dragleave", (event) => event.relatedTarget === null && (veil.hidden = true));
    addEventListener("drop", (event) => {
      veil.hidden = true;
      if (!carriesFile(event)) return;
      event.preventDefault();
      if (event.dataTransfer.files.length > 0) this.file(event.dataTransfer.files[0]);
    });
  }
}
