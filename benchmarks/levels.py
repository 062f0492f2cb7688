"""Compare ways to give predicted patches a level and a contrast: `embedding/levels.py`.

    python benchmarks/levels.py SOUND... [--fit]

Takes the first unit of each sound, hides three quarters of it by each strategy, and lets the model in the box, which
predicts normalized patches, reconstruct it. Prints the error of the reconstruction, as the root of the mean square over
hidden values in dB, in the mean over the sounds. `--fit` also fits the covariance of levels by maximum likelihood
(scikit-learn's SciPy): fit on some sounds, and compare on others.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

import melmask
from melmask.audio.files import read_audio
from melmask.audio.logmel import DB_PER_NATURAL_LOG, normalize
from melmask.config import MaskingConfig
from melmask.embedding.encoder import AudioEncoder
from melmask.embedding.levels import LEAST_VARIANCE, estimated_levels
from melmask.geometry import PatchGrid, grid_of
from melmask.objectives import mae
from melmask.objectives.masking import draw_masks

STRATEGIES = ("random", "inverse-blocks", "time", "frequency")


def units_of(model: AudioEncoder, sounds: list[Path]) -> torch.Tensor:
    """Return the normalized log-mels of the first unit of each sound that is long enough."""
    frames, found = model.card.model.frames, []
    for path in sounds:
        logmel = model.logmel(read_audio(path, model.sample_rate_hz), model.sample_rate_hz)[0]
        if logmel.shape[1] >= frames:
            found.append(torch.from_numpy(logmel[:, :frames]))
    return normalize(torch.stack(found), model.card.statistics)


def by_distance(values: np.ndarray, masked: np.ndarray, grid: PatchGrid) -> tuple[np.ndarray, np.ndarray]:
    """Interpolate levels and the logarithms of contrasts by the inverse cube of the distance in patches."""
    row, column = np.divmod(np.arange(grid.patches), grid.columns)
    cubes = ((row[:, None] - row) ** 2 + (column[:, None] - column) ** 2) ** 1.5
    weights = 1 / np.maximum(cubes[:, ~masked], 1e-9)
    weights /= weights.sum(1, keepdims=True)
    seen = values[~masked]
    contrasts = 0.5 * np.log(seen.var(-1, ddof=1) + LEAST_VARIANCE)
    return (weights @ seen.mean(-1))[..., None], np.exp(weights @ contrasts)[..., None]


def true_levels(values: np.ndarray, masked: np.ndarray, grid: PatchGrid) -> tuple[np.ndarray, np.ndarray]:
    """Return the levels and contrasts of the hidden patches themselves."""
    return values.mean(-1, keepdims=True), np.sqrt(values.var(-1, ddof=1, keepdims=True) + LEAST_VARIANCE)


WAYS = {"their own, which leaks": true_levels, "regression": estimated_levels, "inverse cube of distance": by_distance}


def fitted(levels: np.ndarray, grid: PatchGrid) -> np.ndarray:
    """Fit the covariance of `embedding/levels.py` to (fields, patches) of levels; return its eight constants."""
    from scipy.optimize import minimize

    row, column = np.divmod(np.arange(grid.patches), grid.columns)
    rows, columns = np.abs(row[:, None] - row), np.abs(column[:, None] - column)

    def negative_likelihood(logarithms: np.ndarray) -> float:
        of_rows, rows_length, of_columns, columns_length, of_patches, near_rows, near_columns, noise = np.exp(
            logarithms
        )
        covariance = of_rows * np.exp(-rows / rows_length) + of_columns * np.exp(-columns / columns_length)
        covariance += of_patches * np.exp(-rows / near_rows - columns / near_columns) + noise * np.eye(grid.patches)
        root = np.linalg.cholesky(covariance)
        return float(0.5 * (np.linalg.solve(root, levels.T) ** 2).sum() / len(levels) + np.log(np.diag(root)).sum())

    start = np.log([0.5, 5.0, 0.2, 5.0, 0.2, 2.0, 2.0, 0.01])
    return np.exp(minimize(negative_likelihood, start, method="L-BFGS-B", bounds=[(-7, 4)] * len(start)).x)


def main() -> None:
    """Print the table, and with --fit the constants."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sounds", nargs="+", type=Path)
    parser.add_argument("--fit", action="store_true")
    options = parser.parse_args()
    model = melmask.load(device="cpu")
    config, grid = model.card.model, grid_of(model.card.model)
    x = units_of(model, options.sounds)
    truth = model.model.encoder.patches_of(x).unflatten(-1, (config.resolutions, -1)).numpy()
    if options.fit:
        print(fitted(truth.mean(-1).transpose(0, 2, 1).reshape(-1, grid.patches), grid).round(3))
    scale_db = DB_PER_NATURAL_LOG * model.card.statistics.std
    print("| levels from | " + " | ".join(STRATEGIES) + " |")
    cells: dict[str, list[str]] = {name: [] for name in WAYS}
    for strategy in STRATEGIES:
        masks = draw_masks(MaskingConfig(strategy=strategy), grid, 0, 0, len(x))
        with torch.inference_mode():
            made = mae.reconstruct(model.model, x, masks, True).prediction.unflatten(-1, truth.shape[2:]).numpy()
        for name, way in WAYS.items():
            errors = []
            for values, prediction, masked in zip(truth, made, masks.numpy(), strict=True):
                levels, contrasts = way(values, masked, grid)
                distances = (prediction * contrasts + levels - values)[masked]
                errors.append(np.sqrt(np.mean(distances**2)))
            cells[name].append(f"{scale_db * np.mean(errors):.1f}")
    for name, row in cells.items():
        print(f"| {name} | " + " | ".join(row) + " |")


if __name__ == "__main__":
    main()
