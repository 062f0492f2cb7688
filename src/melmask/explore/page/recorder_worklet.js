/** Runs in the browser's audio thread: passes on the first channel of what the microphone gives. */
class RecorderProcessor extends AudioWorkletProcessor {
  process([input]) {
    if (input.length > 0) this.port.postMessage(input[0].slice());
    return true;
  }
}
registerProcessor("recorder", RecorderProcessor);
