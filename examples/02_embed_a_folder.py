"""Embed a folder of sound and find, for each file, the file that sounds most like it.

    python examples/02_embed_a_folder.py                         # an untrained toy model and synthetic sounds
    python examples/02_embed_a_folder.py --model runs/mine FOLDER

`melmask embed FOLDER --model runs/mine --out X.parquet` writes the same vectors to a table and resumes if it is killed.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np

import melmask
from melmask import embed_files
from melmask.audio.files import find_audio
from melmask.checkpoint.folder import ModelCard
from melmask.datasets.synthetic import write_sound_set
from melmask.embedding.encoder import untrained
from melmask.models.presets import preset

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("folder", nargs="?", type=Path)
parser.add_argument("--model", help="a run, a checkpoint folder, a third-party .pth file, or hub:owner/name")
options = parser.parse_args()

model = melmask.load(options.model) if options.model else untrained(ModelCard(model=preset("tiny")))

with tempfile.TemporaryDirectory() as temporary:
    folder = options.folder
    if folder is None:
        folder = write_sound_set(Path(temporary), clips_per_class=4).parent

    names, vectors = [], []
    for result in embed_files(model, find_audio([folder])):
        # A file that cannot be read gives its error instead of a vector, and the loop continues.
        if result.error:
            print("skipped", result.path, result.error)
        else:
            names.append(str(result.path.relative_to(folder)))
            vectors.append(result.scene)

# All vectors share a large common part. Without it, the cosine compares what differs between the files.
unit = np.stack(vectors) - np.mean(vectors, axis=0)
unit /= np.linalg.norm(unit, axis=1, keepdims=True)
similarity = unit @ unit.T
np.fill_diagonal(similarity, -1)
for name, row in zip(names, similarity, strict=True):
    print(f"{name:40} {names[row.argmax()]:40} {row.max():.2f}")
