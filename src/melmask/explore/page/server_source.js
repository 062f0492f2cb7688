/**
 * A source that asks the server of `melmask explore`.
 *
 * The page is given a source and asks nothing else, so that a source without a server can stand in for this one. All
 * methods return promises, apart from those that return URLs. `can` says what the source is not able to do, by false:
 * {reconstruct, attention, listen, sound, search, searchSound, label, probe, suggestions, suspects, duplicates}. It is
 * complete once `collection()` has answered, and the page hides the rest. `note` is a line to show, or "".
 *
 *   collection() -> {name, count, kind, model: {...}, columns: [{name, kind, distinct}], projections, embedding: {done, total}}
 *   points(projection) -> Float32Array of (count, 2)
 *   column(name) -> {kind, categories, codes: Int32Array} with -1 where absent, or {kind, values: Float32Array} with NaN
 *   names(from, count) -> [string]
 *   item(id) -> {id, name, start_s, end_s, duration_s, columns, error}
 *   spectrogram(id, {from_s, length_s, resolution}) -> MATRIX, whose `data` is a Uint8Array, or null where there is none
 *   holds(id) -> whether the source has this sound as the model sees it; without this method, it has all
 *   soundUrl(id) -> string, or null where the source has no sound for it
 *   reconstruct(id, request, signal) -> {hidden, rows, columns, loss, input: MATRIX, reconstruction: MATRIX, error}
 *   listen(id, request) -> Blob of a WAV file
 *   attention(id, {start_frame, from, layer, head}, signal), layers and heads from 1 -> {rows, columns, weights}
 *   search({id, start_s, end_s, count} or {sound: Blob, count}) -> [{id, similarity}]
 *   labels() -> Map from id to text;  setLabels(ids, label or null);  labelsCsvUrl() -> string
 *   recorderWorkletUrl() -> string, of recorder_worklet.js
 *   probe() -> {labelled, classes, accuracy, interval, note, codes: Int32Array, confidence: Float32Array}; where accuracy
 *     is null, note says why
 *   suggestions(count), suspects(count), duplicates(count) -> [{id, why, other}]
 */
export class ServerSource {
  #token;

  constructor(token) {
    this.#token = token;
    this.can = {};
    this.note = "";
  }

  async #ask(path, { method = "GET", body, type, signal } = {}) {
    const headers = { Authorization: `Bearer ${this.#token}` };
    if (type) headers["Content-Type"] = type;
    let answer;
    try {
      answer = await fetch(`/api/${path}`, { method, headers, body, signal });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Error("melmask explore does not answer. Is it still running?", { cause: error });
    }
    if (answer.ok) return answer;
    const told = await answer.json().catch(() => ({}));
    throw new Error(told.error || `The server answered ${answer.status} to ${path}.`);
  }

  async #json(path, options) {
    return (await this.#ask(path, options)).json();
  }

  #post(path, value, options = {}) {
    return this.#ask(path, { method: "POST", body: JSON.stringify(value), type: "application/json", ...options });
  }

  async collection() {
    const found = await this.#json("collection");
    const model = found.model;
    this.can = { reconstruct: model.decoder, listen: found.listen && model.decoder };
    return found;
  }

  async points(projection) {
    const answer = await this.#ask(`points?projection=${encodeURIComponent(projection)}`);
    return new Float32Array(await answer.arrayBuffer());
  }

  async column(name) {
    const column = await this.#json(`column?name=${encodeURIComponent(name)}`);
    if (column.codes !== undefined) column.codes = new Int32Array(decoded(column.codes));
    if (column.values !== undefined) column.values = new Float64Array(decoded(column.values));
    return column;
  }

  async names(from, count) {
    return (await this.#json(`names?from=${from}&count=${count}`)).names;
  }

  item(id) {
    return this.#json(`items/${id}`);
  }

  async spectrogram(id, { from_s = 0, length_s = 60, resolution = 0 } = {}) {
    const part = `from_s=${from_s}&length_s=${length_s}&resolution=${resolution}`;
    return matrix(await this.#json(`items/${id}/spectrogram?${part}`));
  }

  soundUrl(id) {
    return `/api/items/${id}/sound?token=${encodeURIComponent(this.#token)}`;
  }

  async reconstruct(id, request, signal) {
    const made = await (await this.#post(`items/${id}/reconstruct`, request, { signal })).json();
    return { ...made, input: matrix(made.input), reconstruction: matrix(made.reconstruction) };
  }

  async listen(id, request) {
    return (await this.#post(`items/${id}/listen`, request)).blob();
  }

  async attention(id, request, signal) {
    return (await this.#post(`items/${id}/attention`, request, { signal })).json();
  }

  async search({ sound, count, ...request }) {
    const answer = sound
      ? await this.#ask(`search?count=${count}`, {
          method: "POST",
          body: sound,
          // A browser does not know the type of every sound file; the server looks at the bytes.
          type: sound.type.startsWith("audio/") ? sound.type : "audio/*",
        })
      : await this.#post("search", { ...request, count });
    return (await answer.json()).results;
  }

  async labels() {
    const { labels } = await this.#json("labels");
    return new Map(Object.entries(labels).map(([id, label]) => [Number(id), label]));
  }

  async setLabels(ids, label) {
    const body = JSON.stringify({ ids: Array.from(ids), label });
    await this.#ask("labels", { method: "PUT", body, type: "application/json" });
  }

  labelsCsvUrl() {
    return `/api/labels.csv?token=${encodeURIComponent(this.#token)}`;
  }

  recorderWorkletUrl() {
    return "/page/recorder_worklet.js";
  }

  async probe() {
    const made = await (await this.#post("probe", {})).json();
    return { ...made, codes: new Int32Array(decoded(made.codes)), confidence: new Float32Array(decoded(made.confidence)) };
  }

  async suggestions(count) {
    return (await this.#json(`suggestions?count=${count}`)).items;
  }

  async suspects(count) {
    return (await this.#json(`suspects?count=${count}`)).items;
  }

  async duplicates(count) {
    return (await this.#json(`duplicates?count=${count}`)).items;
  }
}

function decoded(base64) {
  return Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0)).buffer;
}

function matrix(sent) {
  return { ...sent, data: new Uint8Array(decoded(sent.data)) };
}
