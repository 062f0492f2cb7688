/** Records the microphone as it is: without the compression of MediaRecorder, which would change what the model hears. */
import { wavOf } from "./wav.js";

export class Recorder {
  #workletUrl;
  #stream;
  #context;
  #parts = [];

  constructor(workletUrl) {
    this.#workletUrl = workletUrl;
  }

  /** Ask for the microphone and begin. Rejects where the user or the browser refuses. */
  async start() {
    if (!navigator.mediaDevices?.getUserMedia) throw new Error("This browser gives this page no microphone.");
    try {
      // Made for calls, these filters take away what is not speech.
      const raw = { echoCancellation: false, noiseSuppression: false, autoGainControl: false };
      this.#stream = await navigator.mediaDevices.getUserMedia({ audio: raw });
    } catch (error) {
      throw new Error(`There is no microphone to record from (${error.name}).`, { cause: error });
    }
    this.#parts = [];
    this.#context = new AudioContext();
    await this.#context.audioWorklet.addModule(this.#workletUrl);
    const node = new AudioWorkletNode(this.#context, "recorder", { numberOfOutputs: 0 });
    node.port.onmessage = ({ data }) => this.#parts.push(data);
    this.#context.createMediaStreamSource(this.#stream).connect(node);
    await this.#context.resume();
  }

  /** Return the length so far, in s. */
  get duration_s() {
    return this.#parts.reduce((sum, part) => sum + part.length, 0) / (this.#context?.sampleRate ?? 1);
  }

  /** End, release the microphone, and return a Blob of a WAV file. */
  async stop() {
    const rate = this.#context.sampleRate;
    for (const track of this.#stream.getTracks()) track.stop();
    await this.#context.close();
    const samples = new Float32Array(this.#parts.reduce((sum, part) => sum + part.length, 0));
    let at = 0;
    for (const part of this.#parts) {
      samples.set(part, at);
      at += part.length;
    }
    return wavOf(samples, rate);
  }
}
