"""Embed one clip: the vector of the whole clip, the vectors of its time steps, and their times.

python examples/01_embed_a_clip.py                            # an untrained toy model and a synthetic sound
python examples/01_embed_a_clip.py --model runs/mine dog.wav  # your model and your sound
"""

import argparse
from pathlib import Path

import melmask
from melmask.checkpoint.folder import ModelCard
from melmask.datasets.synthetic import SAMPLE_RATE_HZ, synthesize
from melmask.embedding.encoder import untrained
from melmask.models.presets import preset

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("sound", nargs="?", type=Path)
parser.add_argument("--model", help="a run, a checkpoint folder, a third-party .pth file, or hub:owner/name")
options = parser.parse_args()

# Without training, the vectors mean little, but their shapes and times are those of a trained model of this size.
model = melmask.load(options.model) if options.model else untrained(ModelCard(model=preset("tiny")))

if options.sound:
    e = model.embed(options.sound)
else:
    # An array has no sample rate of its own, so the call states it.
    e = model.embed(synthesize("sweep_rising", seed=0), sample_rate_hz=SAMPLE_RATE_HZ)

print("scene ", e.scene.shape, "one vector for the clip")
print("frames", e.frames.shape, "one vector for each time step")
print("times ", [f"{time_ms:.0f} ms" for time_ms in e.times_ms[:4]], "... the centers of the steps")

if not options.sound:
    # The same clip with features of block 6, averaged over frequency, with the deviation over time in the scene vector.
    e = model.embed(
        synthesize("sweep_rising", seed=0),
        sample_rate_hz=SAMPLE_RATE_HZ,
        layer=6,
        pooling="mean",
        scene="mean+std",
    )
    print("scene ", e.scene.shape, "with layer=6, pooling='mean', scene='mean+std'")
