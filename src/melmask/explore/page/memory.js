/** Asks a source for names and spectrograms once, and keeps the latest. */

const NAMES_AT_ONCE = 1000;
const SPECTROGRAMS = 300;
const GLIMPSE_S = 10;

export class Memory {
  #source;
  #names = new Map();
  #spectrograms = new Map();

  constructor(source) {
    this.#source = source;
  }

  /** Return the name of a sound. Names come a thousand at once, so that moving over a map asks seldom. */
  async name(id) {
    const part = Math.floor(id / NAMES_AT_ONCE);
    return (await this.#part(part))[id - part * NAMES_AT_ONCE] ?? `sound ${id}`;
  }

  #part(part) {
    if (!this.#names.has(part)) {
      const asked = this.#source.names(part * NAMES_AT_ONCE, NAMES_AT_ONCE);
      asked.catch(() => this.#names.delete(part));
      this.#names.set(part, asked);
    }
    return this.#names.get(part);
  }

  /** Find up to `most` sounds whose names contain `text`, whatever the case; `count` is the size of the collection. */
  async find(text, count, most) {
    const wanted = text.toLowerCase();
    const found = [];
    for (let part = 0; part * NAMES_AT_ONCE < count && found.length < most; part += 1) {
      (await this.#part(part)).forEach((name, i) => {
        if (found.length < most && name.toLowerCase().includes(wanted)) found.push(part * NAMES_AT_ONCE + i);
      });
    }
    return found;
  }

  /** Return a spectrogram of the beginning of a sound, which is all that fits into a small picture. */
  glimpse(id) {
    return this.spectrogram(id, { length_s: GLIMPSE_S });
  }

  /** Return the spectrogram of a sound, or of the part that the options of `source.spectrogram` name. */
  spectrogram(id, options = {}) {
    const key = JSON.stringify([id, options]);
    const known = this.#spectrograms.get(key);
    if (known) {
      // A Map keeps the order of insertion: what is asked for again moves to the end, and the oldest goes first.
      this.#spectrograms.delete(key);
      this.#spectrograms.set(key, known);
      return known;
    }
    const asked = this.#source.spectrogram(id, options);
    asked.catch(() => this.#spectrograms.delete(key));
    this.#spectrograms.set(key, asked);
    if (this.#spectrograms.size > SPECTROGRAMS) this.#spectrograms.delete(this.#spectrograms.keys().next().value);
    return asked;
  }
}
