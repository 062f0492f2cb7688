/** What all parts of the page know of each other: each value has a name, and parts listen for changes of it. */
export class State extends EventTarget {
  constructor() {
    super();
    /** The answer of `source.collection()`. */
    this.collection = null;
    /** Float32Array of (count, 2) in [-1, 1]; NaN where a sound has no place yet. */
    this.points = new Float32Array(0);
    /** Uint8Array of count: 1 where the filters let a point through. */
    this.shown = new Uint8Array(0);
    /** The sound that is inspected, or null. */
    this.current = null;
    /** The sound under the pointer, or null. */
    this.hovered = null;
    /** Int32Array of the sounds that a lasso or keys have selected. */
    this.selection = new Int32Array(0);
    /** [{id, similarity}] of the last search. */
    this.results = [];
    /** Map from sound to label. */
    this.labels = new Map();
  }

  /** Set values by name, then tell their listeners. */
  put(values) {
    Object.assign(this, values);
    for (const name of Object.keys(values)) this.dispatchEvent(new Event(name));
  }

  on(names, handler) {
    for (const name of names.split(" ")) this.addEventListener(name, handler);
  }
}
