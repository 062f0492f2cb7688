"""A 384 x 12 network for ten hours of audio on a laptop: about an hour. It hears two resolutions.

command   melmask pretrain STORE --recipe small --out runs/small
data      any; the figures are for 8.4 hours of environmental sound, words, speech, song and notes
hardware  two cores of an AMD EPYC (Zen 5) with bf16: about 217 crops a second undisturbed, 2.9 GB of memory
time      51 minutes at that rate
expected  the whole recipe was not measured. In 7 minutes of these steps it has .777 (linear probe of seven tasks,
          validation rows, one seed) and .656 (k-NN), and by its earlier steps .766 and .643 (docs/log.md). In release
          0.1.0, with one resolution: .780 after 53 minutes (benchmarks/results/2026-11-23-small-and-finetune.md)

The settings are those of tiny but for the size and twice the batch, which halves the cost of Muon. model.resolutions=1,
model.decoder_depth=4, masking.ratio=0.75, optimizer.steps=1800, features.whiten=0 and features.depth_share=1 give the
recipe of release 0.1.0.
"""

from dataclasses import replace

from melmask.config import PretrainConfig
from melmask.models.presets import preset
from melmask.recipes import tiny


def config() -> PretrainConfig:
    """Return the settings of tiny for a network twice as wide, with twice the batch and a longer warm-up."""
    settings = tiny.config()
    return replace(
        settings,
        model=preset("small", resolutions=2, decoder_depth=1),
        data=replace(settings.data, batch_size=256),
        optimizer=replace(settings.optimizer, steps=2600, warmup_share=0.0833),
    )
