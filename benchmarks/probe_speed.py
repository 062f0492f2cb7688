"""Compare the linear probe with scikit-learn's logistic regression on the same vectors: time and accuracy by task.

    python benchmarks/probe_speed.py --model runs/mine --vectors VECTORS --labels A.csv B.csv ... [--without-oracle]

The vectors of each task (the log-mel's, the untrained network's and the model's) are computed once and kept in the
folder VECTORS. scikit-learn fits one split after another to a gradient of 1e-5, as the probe did until it got a solver
of its own; `--tolerance 1e-8` brings it to the optimum, which may take an hour.
"""

import argparse
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from melmask.downstream.baselines import features_of_task
from melmask.downstream.linear_and_knn import CLASSIFIERS, probe_features, standardize
from melmask.downstream.options import ProbeOptions
from melmask.embedding.choice import FeatureChoice
from melmask.embedding.encoder import load
from melmask.labels.splits import Split, make_splits
from melmask.labels.tables import read_labels

Task = tuple[str, dict[str, np.ndarray], np.ndarray, list[Split]]


def tasks_of(model: str, labels: list[Path], vectors: Path, scene: str) -> Iterator[Task]:
    """Yield the name, features, labels and splits of each table."""
    vectors.mkdir(parents=True, exist_ok=True)
    for path in labels:
        table, kept = read_labels(path), vectors / f"{path.stem}.npz"
        if not kept.exists():
            options = ProbeOptions(choice=FeatureChoice(scene=scene))
            task = features_of_task(load(model), path.stem, table, options)
            if task.unreadable:
                raise SystemExit(f"{len(task.unreadable)} files of {path} cannot be read")
            np.savez(kept, **task.features)
        with np.load(kept) as arrays:
            yield path.stem, dict(arrays), table.label_indices, make_splits(table)


def oracle(features: np.ndarray, labels: np.ndarray, splits: list[Split], tolerance: float) -> float:
    """Return scikit-learn's mean accuracy over the splits."""
    from sklearn.linear_model import LogisticRegression

    accuracies = []
    for split in splits:
        train, test = standardize(features[split.train], features[split.test])
        exact = tolerance < 1e-5
        fit = LogisticRegression(C=1.0, tol=tolerance, max_iter=20_000 if exact else 2000)
        fit.fit(train.astype(float) if exact else train, labels[split.train])
        accuracies.append(np.mean(fit.predict(test) == labels[split.test]))
    return float(np.mean(accuracies))


def main() -> None:
    """Print a row for each task and representation, and the sums."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--labels", type=Path, nargs="+", required=True)
    parser.add_argument("--vectors", type=Path, required=True)
    parser.add_argument("--scene", default="mean+std")
    parser.add_argument("--tolerance", type=float, default=1e-5)
    parser.add_argument("--without-oracle", action="store_true")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    ours_s = oracle_s = worst = 0.0
    tasks = list(tasks_of(options.model, options.labels, options.vectors, options.scene))
    print(f"{'task':<18}{'features':<20}{'dims':>5}{'splits':>7}{'linear':>8}{'k-NN':>7}{'scikit-learn':>13}{'s':>8}")
    for name, features, labels, splits in tasks:
        start_s = time.perf_counter()
        scores = probe_features(features, labels, splits, f"fit {name}")
        took_s = time.perf_counter() - start_s
        ours_s += took_s
        print(f"{name:<18}all, by melmask {took_s:.1f} s", flush=True)
        for representation, rows in features.items():
            linear, knn = (scores[representation][judge].mean for judge in CLASSIFIERS)
            line = f"{'':<18}{representation:<20}{rows.shape[1]:>5}{len(splits):>7}{linear:>8.4f}{knn:>7.4f}"
            if not options.without_oracle:
                start_s = time.perf_counter()
                exact = oracle(rows, labels, splits, options.tolerance)
                took_s = time.perf_counter() - start_s
                oracle_s, worst = oracle_s + took_s, max(worst, abs(exact - linear))
                line += f"{exact:>13.4f}{took_s:>8.1f}"
            print(line, flush=True)
    print(f"melmask: {ours_s:.1f} s for linear probe and k-NN; scikit-learn: {oracle_s:.1f} s for linear alone")
    print(f"largest difference of linear accuracies: {worst:.4f}")


if __name__ == "__main__":
    main()
