"""Compare fine-tuning with the linear probe of the same model, on the validation rows of each task.

    python benchmarks/finetune_tasks.py --model runs/mine --labels A.csv B.csv ... [--audio-root DIR] [--clips 400]
        [epochs=6 ...]

`probe` is the probe of `melmask probe`, trained on the rows that fine-tuning trains on. `epoch 0` is the probe that
fine-tuning begins with, and `fine-tuned` its best epoch. Test rows are not read. With --clips 0 all rows are used.
"""

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from melmask.classifier.examples import Examples, clips_of, read_examples, read_logmels
from melmask.classifier.finetune import up_to_its_layer
from melmask.classifier.network import ClassifierNetwork
from melmask.classifier.options import FinetuneConfig, FinetuneOptions
from melmask.classifier.training import EpochMetrics, Finetuning, crop_frames
from melmask.config import HardwareConfig
from melmask.config_text import with_overrides
from melmask.downstream.linear_and_knn import linear_probe
from melmask.embedding.encoder import load
from melmask.labels.options import TableOptions
from melmask.labels.splits import Split
from melmask.system.hardware import pick_precision


def without_test(examples: Examples, most: int, seed: int) -> Examples:
    """Keep at most `most` rows to train on and half as many to validate on, drawn at random; 0 keeps all."""
    parts, kept = np.array(examples.parts), []
    for part, limit in (("train", most), ("valid", most // 2)):
        rows = np.random.default_rng(seed).permutation(np.flatnonzero(parts == part))
        kept += rows[: limit if most else None].tolist()
    kept.sort()
    return replace(
        examples,
        sounds=[examples.sounds[row] for row in kept],
        labels=[examples.labels[row] for row in kept],
        parts=[examples.parts[row] for row in kept],
    )


def compare(
    source: str, path: Path, audio_root: Path | None, most: int, config: FinetuneConfig
) -> tuple[float, float, float, str]:
    """Return the accuracies of the probe, of epoch 0 and of the best epoch, and the scores of all epochs."""
    options = FinetuneOptions(table=TableOptions(audio_root=audio_root))
    examples = without_test(read_examples(path, config.seed, options), most, config.seed)
    model = up_to_its_layer(load(source))
    logmels = read_logmels(model, examples.sounds)[0]
    train, valid = (clips_of(model, examples, logmels, part) for part in ("train", "valid"))
    whitening, normed = None if config.scene != "mean+std" else model.card.whitening, not model.card.layers
    kind, classes = examples.kind, len(examples.classes)
    network = ClassifierNetwork(model.model, kind, classes, config.scene, model.device, whitening, normed)
    rows = [network.head_rows(clips) for clips in (train, valid)]
    vectors = np.concatenate([vectors.cpu().numpy() for vectors, _ in rows])
    labels = np.concatenate([targets.numpy().argmax(1) for _, targets in rows])
    numbers = np.arange(len(labels))
    if whitening is not None:
        vectors = whitening(vectors).astype(np.float32)
    split = Split("valid", numbers[: len(train)], numbers[:0], numbers[len(train) :])
    frames = crop_frames(model, train, examples.kind, config.crop_s)
    precision = pick_precision(HardwareConfig(), model.device)
    training = Finetuning(network, config, frames, model.card.front_end.hop_ms, precision)
    scores: list[float] = []

    def report(metrics: EpochMetrics, _: float | None) -> None:
        scores.append(metrics.score)

    with tempfile.TemporaryDirectory() as folder:
        training.run(train, valid, Path(folder) / "finetune.pt", report)
    return linear_probe(vectors, labels, [split]).mean, scores[0], max(scores), " ".join(f"{s:.3f}" for s in scores)


def main() -> None:
    """Print a row for each task, and the means."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--labels", type=Path, nargs="+", required=True)
    parser.add_argument("--audio-root", type=Path)
    parser.add_argument("--clips", type=int, default=400)
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", default=[])
    options = parser.parse_intermixed_args()
    config = with_overrides(FinetuneConfig(), options.settings)
    print(f"{'task':<18}{'probe':>8}{'epoch 0':>9}{'fine-tuned':>12}{'s':>7}  epochs")
    rows = []
    for path in options.labels:
        start_s = time.perf_counter()
        probe, first, best, scores = compare(options.model, path, options.audio_root, options.clips, config)
        rows.append((probe, first, best))
        took_s = time.perf_counter() - start_s
        print(f"{path.stem:<18}{probe:>8.3f}{first:>9.3f}{best:>12.3f}{took_s:>7.0f}  {scores}", flush=True)
    probe, first, best = np.mean(rows, axis=0)
    print(f"{'mean':<18}{probe:>8.3f}{first:>9.3f}{best:>12.3f}")


if __name__ == "__main__":
    main()
