"""Fit a linear classifier to the vectors of labeled clips, and compare a model with the log-mel average.

    python examples/04_linear_probe.py                           # an untrained model and synthetic sounds of 16 classes
    python examples/04_linear_probe.py --model runs/mine labels.csv   # a CSV with path, label and split (train, test)

`melmask probe --model runs/mine --labels labels.csv` does more: folds, groups, intervals, k-NN and pictures.
"""

import argparse
import csv
import tempfile
from pathlib import Path

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import melmask
from melmask.audio.files import read_audio
from melmask.checkpoint.folder import ModelCard
from melmask.datasets.synthetic import write_sound_set
from melmask.embedding.encoder import untrained
from melmask.models.presets import preset

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("labels", nargs="?", type=Path)
parser.add_argument("--model", help="a run, a checkpoint folder, a third-party .pth file, or hub:owner/name")
parser.add_argument("--clips-per-class", type=int, default=20, help="how many synthetic sounds to make")
options = parser.parse_args()

model = melmask.load(options.model) if options.model else untrained(ModelCard(model=preset("tiny")))
model_vectors, logmel_vectors = [], []
with tempfile.TemporaryDirectory() as temporary:
    table = options.labels or write_sound_set(Path(temporary), options.clips_per_class)
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        waveform = read_audio(table.parent / row["path"], model.sample_rate_hz)
        model_vectors.append(model.embed(waveform, sample_rate_hz=model.sample_rate_hz, scene="mean+std").scene)
        # The baseline: what the loudness of each mel band alone tells.
        (logmel,) = model.logmel(waveform, sample_rate_hz=model.sample_rate_hz)
        logmel_vectors.append(np.concatenate([logmel.mean(1), logmel.std(1)]))

labels = np.array([row["label"] for row in rows])
train = np.array([row["split"] == "train" for row in rows])
test = np.array([row["split"] == "test" for row in rows])
print(f"{train.sum()} clips to train on, {test.sum()} to test on; chance is {1 / len(set(labels)):.3f}")
for name, vectors in (("log-mel mean+std", logmel_vectors), (model.name, model_vectors)):
    x = np.stack(vectors)
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(x[train], labels[train])
    print(f"{name:30} {probe.score(x[test], labels[test]):.3f}")
