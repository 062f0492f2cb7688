/** The model of an exported page: an ONNX graph that onnxruntime-web runs in this browser, on one thread. */
import { once, unpacked } from "./static_data.js";

export class StaticModel {
  #facts;
  #last = Promise.resolve();

  /** @param {object} facts `block` of the graph, `runtime` block of WebAssembly, `attention` whether the graph gives it */
  constructor(facts) {
    this.#facts = facts;
    this.start = once(() => this.#start());
  }

  async #start() {
    const ort = await import("./vendor/onnxruntime/ort.js");
    // More threads need memory that pages may share only if their host sends certain headers.
    ort.env.wasm.numThreads = 1;
    ort.env.logLevel = "error";
    ort.env.wasm.wasmBinary = (await unpacked(this.#facts.runtime)).buffer;
    const session = await ort.InferenceSession.create(await unpacked(this.#facts.block), { executionProviders: ["wasm"] });
    return { ort, session };
  }

  /**
   * Run the graph on one unit.
   * @param {Float32Array} logmel (bands, frames)
   * @param {number[]} visible the numbers of the visible patches
   * @param {string[]} outputs the names of the arrays that are wanted
   */
  async run(logmel, bands, visible, outputs, signal) {
    const { ort, session } = await this.start();
    const before = this.#last;
    let done;
    this.#last = new Promise((resolve) => (done = resolve));
    // A session computes one thing at a time.
    await before;
    try {
      signal?.throwIfAborted();
      const found = await session.run(
        {
          logmel: new ort.Tensor("float32", logmel, [bands, logmel.length / bands]),
          visible_ids: new ort.Tensor("int64", BigInt64Array.from(visible, BigInt), [visible.length]),
        },
        outputs,
      );
      return Object.fromEntries(outputs.map((name) => [name, found[name].data]));
    } finally {
      done();
    }
  }
}
