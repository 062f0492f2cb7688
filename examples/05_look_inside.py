"""Draw what a model reconstructs: the log-mel, the visible patches, and the decoder's picture of the hidden ones.

    python examples/05_look_inside.py --model runs/mine dog.wav rain.wav --out reconstructions.png
    python examples/05_look_inside.py     # an untrained model and synthetic sounds: its reconstruction is noise

It needs the extra `plot`.
"""

import argparse
from pathlib import Path

import numpy as np

import melmask
from melmask.audio.files import read_audio
from melmask.checkpoint.folder import ModelCard
from melmask.datasets.synthetic import SAMPLE_RATE_HZ, synthesize
from melmask.embedding.encoder import untrained
from melmask.figures.reconstruction import save_reconstruction_picture
from melmask.models.presets import preset

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("sounds", nargs="*", type=Path, help="up to six")
parser.add_argument("--model", help="a run, a checkpoint folder, or hub:owner/name; it must have its decoder")
parser.add_argument("--out", type=Path, default=Path("reconstructions.png"))
options = parser.parse_args()

model = melmask.load(options.model) if options.model else untrained(ModelCard(model=preset("tiny")))
rate_hz = model.sample_rate_hz
if options.sounds:
    titles = [path.stem for path in options.sounds]
    waveforms = [read_audio(path, rate_hz) for path in options.sounds]
else:
    titles = ["sweep_rising", "arpeggio_falling"]
    waveforms = [synthesize(title, seed=0, sample_rate_hz=SAMPLE_RATE_HZ) for title in titles]
    rate_hz = SAMPLE_RATE_HZ

# The picture shows one unit of each clip, so all of them get the length of the shortest.
shortest = min(len(waveform) for waveform in waveforms)
logmels = model.logmel(np.stack([waveform[:shortest] for waveform in waveforms]), sample_rate_hz=rate_hz)
save_reconstruction_picture(options.out, model, logmels, titles, mask_ratio=0.75, seed=0)

# The same by hand, for one clip: hide patches, reconstruct, and compare.
shape = model.card.model
columns = min(logmels.shape[2], shape.frames) // shape.patch_frames
unit = logmels[:1, :, : columns * shape.patch_frames]
masked = np.random.default_rng(0).random((1, columns * (shape.mels // shape.patch_mels))) < 0.75  # True = hidden
r = model.reconstruct(unit, masked=masked)
print(f"{options.out}; {masked.sum()} of {masked.size} patches of {titles[0]} hidden, loss {r.loss:.3f}")
