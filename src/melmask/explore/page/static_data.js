/** Reads what an exported page holds: one element of JSON, and blocks of bytes in base64, most of them compressed. */

const ID = "melmask-data";

/** Return the JSON of the page. */
export function facts() {
  return JSON.parse(document.getElementById(ID).textContent);
}

/** Return the bytes of a block as they are. */
export function bytesOf(name) {
  const text = document.getElementById(name).textContent;
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(text);
  const letters = atob(text);
  const bytes = new Uint8Array(letters.length);
  for (let i = 0; i < letters.length; i += 1) bytes[i] = letters.charCodeAt(i);
  return bytes;
}

/** Return the bytes of a block that was compressed with gzip. */
export async function unpacked(name) {
  const stream = new Blob([bytesOf(name)]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

const TYPES = { int8: Int8Array, uint8: Uint8Array, int16: Int16Array, uint16: Uint16Array, int32: Int32Array, float32: Float32Array, float64: Float64Array };

/** Return a packed array: {block, type}. All computers that run browsers are little-endian, as the blocks are. */
export async function arrayOf({ block, type }) {
  return new TYPES[type]((await unpacked(block)).buffer);
}

/** Return a packed JSON text. */
export async function jsonOf(name) {
  return JSON.parse(new TextDecoder().decode(await unpacked(name)));
}

/** Make a function that does its work once, and returns the same promise each time. */
export function once(work) {
  let made = null;
  return () => (made ??= work());
}
