/** Draws masks with the strategies of pre-training (`objectives/masking.py`); a seed gives other masks than there. */

/** Return numbers in [0, 1) that depend on the seed alone (mulberry32). */
function randomOf(seed) {
  let state = (seed + 0x9e3779b9) >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let x = Math.imul(state ^ (state >>> 15), state | 1);
    x ^= x + Math.imul(x ^ (x >>> 7), x | 61);
    return ((x ^ (x >>> 14)) >>> 0) / 4294967296;
  };
}

/**
 * Return a mask: 1 where a patch is hidden.
 * @param {object} wanted `ratio, strategy, seed`
 * @param {object} blocks the rows and columns of the piece that a strategy leaves visible as a whole; 0 is all of them
 */
export function drawnMask({ ratio, strategy, seed }, { rows, columns }, blocks) {
  const random = randomOf(seed);
  const patches = rows * columns;
  const visible = Math.max(1, Math.min(patches - 1, Math.floor(patches * (1 - ratio) + 1e-6)));
  // Noise decides between patches of the same block; without blocks, it decides alone.
  const order = Array.from({ length: patches }, random);
  if (strategy !== "random") {
    const [high, wide] = blocks[strategy].map((side, axis) => side || [rows, columns][axis]);
    firstBlocks(random, [rows, columns], [high, wide]).forEach((number, patch) => (order[patch] += number));
  }
  const first = [...order.keys()].sort((a, b) => order[a] - order[b]).slice(0, visible);
  const hidden = new Array(patches).fill(1);
  for (const patch of first) hidden[patch] = 0;
  return hidden;
}

/** Put blocks down one after another, in a random order of all places; number each patch by the first upon it. */
function firstBlocks(random, whole, block) {
  // Blocks may hang over the edges, so that every patch lies in equally many places.
  const size = block.map((side, axis) => (side >= whole[axis] ? 1 : side));
  const places = block.map((side, axis) => (side >= whole[axis] ? 1 : whole[axis] + side - 1));
  const numbers = Array.from({ length: places[0] * places[1] }, (_, i) => i);
  for (let i = numbers.length - 1; i > 0; i -= 1) {
    const j = Math.floor(random() * (i + 1));
    [numbers[i], numbers[j]] = [numbers[j], numbers[i]];
  }
  const found = [];
  for (let row = 0; row < whole[0]; row += 1) {
    for (let column = 0; column < whole[1]; column += 1) {
      let least = Infinity;
      for (let y = 0; y < size[0]; y += 1) {
        for (let x = 0; x < size[1]; x += 1) {
          const place = (places[0] === 1 ? 0 : row + y) * places[1] + (places[1] === 1 ? 0 : column + x);
          least = Math.min(least, numbers[place]);
        }
      }
      found.push(least);
    }
  }
  return found;
}
