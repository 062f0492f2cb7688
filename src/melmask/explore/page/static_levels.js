/** Brings the prediction of a model back to a log-mel: `embedding/reconstruction.py` in JavaScript. */

/** Where the values of a patch lie: calls `visit(patch, value, place)`, with places in a (bands, frames) log-mel. */
export function eachValue({ rows, columns, patch_mels, patch_frames, resolutions }, visit) {
  const frames = columns * patch_frames;
  const mels = rows * patch_mels;
  for (let patch = 0; patch < rows * columns; patch += 1) {
    const [row, column] = [Math.floor(patch / columns), patch % columns];
    let value = 0;
    for (let resolution = 0; resolution < resolutions; resolution += 1) {
      for (let mel = 0; mel < patch_mels; mel += 1) {
        const start = (resolution * mels + row * patch_mels + mel) * frames + column * patch_frames;
        for (let frame = 0; frame < patch_frames; frame += 1, value += 1) visit(patch, value, start + frame);
      }
    }
  }
}

/**
 * Return the log-mel (bands, frames) of a prediction (patches, values), in natural-log units.
 *
 * A model of normalized targets predicts patches without level and contrast. Both are estimated from the visible patches
 * or, with `leak`, taken from the hidden patches themselves.
 * @param {Float32Array} prediction
 * @param {Float32Array} logmel what was heard
 * @param {number[]} hidden 1 where a patch is hidden
 * @param {object} grid `rows, columns, patch_mels, patch_frames, resolutions`
 * @param {object} scale `means, stds` of the resolutions, `normalized`, `least_variance`, `covariance` [rows][columns], `noise`
 */
export function restored(prediction, logmel, hidden, grid, scale, leak) {
  const { patch_mels, patch_frames, resolutions } = grid;
  const each = patch_mels * patch_frames;
  const levels = scale.normalized ? levelsOf(logmel, hidden, grid, scale, leak) : null;
  const made = new Float32Array(logmel.length);
  eachValue(grid, (patch, value, place) => {
    const resolution = Math.floor(value / each);
    let x = prediction[patch * each * resolutions + value];
    if (levels !== null) x = x * levels.contrasts[resolution][patch] + levels.levels[resolution][patch];
    made[place] = x * scale.stds[resolution] + scale.means[resolution];
  });
  return made;
}

/** Return the mean and the deviation of each patch, by resolution: true where it is visible, else estimated. */
function levelsOf(logmel, hidden, grid, scale, leak) {
  const { rows, columns, patch_mels, patch_frames, resolutions } = grid;
  const [patches, each] = [rows * columns, patch_mels * patch_frames];
  const lists = () => Array.from({ length: resolutions }, () => new Float64Array(patches));
  const [levels, squares] = [lists(), lists()];
  const normal = (place, resolution) => (logmel[place] - scale.means[resolution]) / scale.stds[resolution];
  eachValue(grid, (patch, value, place) => {
    const resolution = Math.floor(value / each);
    levels[resolution][patch] += normal(place, resolution) / each;
  });
  eachValue(grid, (patch, value, place) => {
    const resolution = Math.floor(value / each);
    squares[resolution][patch] += (normal(place, resolution) - levels[resolution][patch]) ** 2;
  });
  const contrasts = squares.map((sums) => sums.map((sum) => Math.sqrt(sum / (each - 1) + scale.least_variance)));
  if (leak) return { levels, contrasts };
  const visible = [...hidden.keys()].filter((patch) => !hidden[patch]);
  const estimate = regression(visible, grid, scale);
  for (let resolution = 0; resolution < resolutions; resolution += 1) {
    const logs = visible.map((patch) => Math.log(contrasts[resolution][patch]));
    const center = logs.reduce((sum, log) => sum + log, 0) / logs.length;
    const level = estimate(visible.map((patch) => levels[resolution][patch]));
    const contrast = estimate(logs.map((log) => log - center));
    for (let patch = 0; patch < patches; patch += 1) {
      if (!hidden[patch]) continue;
      levels[resolution][patch] = level(patch);
      contrasts[resolution][patch] = Math.exp(center + contrast(patch));
    }
  }
  return { levels, contrasts };
}

/** Return a function of what is known of the visible patches, which returns a function of a patch: what is expected there. */
function regression(visible, { columns }, { covariance, noise }) {
  const between = (a, b) => covariance[Math.abs(Math.floor(a / columns) - Math.floor(b / columns))][Math.abs((a % columns) - (b % columns))];
  const count = visible.length;
  // The Cholesky factor of the covariance of the visible patches, row by row.
  const factor = visible.map((a, i) => Float64Array.from({ length: i + 1 }, (_, j) => between(a, visible[j]) + (i === j ? noise : 0)));
  for (let i = 0; i < count; i += 1) {
    for (let j = 0; j <= i; j += 1) {
      let sum = factor[i][j];
      for (let k = 0; k < j; k += 1) sum -= factor[i][k] * factor[j][k];
      factor[i][j] = i === j ? Math.sqrt(sum) : sum / factor[j][j];
    }
  }
  return (known) => {
    const x = Float64Array.from(known);
    for (let i = 0; i < count; i += 1) {
      for (let k = 0; k < i; k += 1) x[i] -= factor[i][k] * x[k];
      x[i] /= factor[i][i];
    }
    for (let i = count - 1; i >= 0; i -= 1) {
      for (let k = i + 1; k < count; k += 1) x[i] -= factor[k][i] * x[k];
      x[i] /= factor[i][i];
    }
    return (patch) => visible.reduce((sum, other, i) => sum + between(patch, other) * x[i], 0);
  };
}
