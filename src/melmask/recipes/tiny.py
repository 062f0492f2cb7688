"""A 192 x 12 network for ten hours of audio on a laptop: a quarter of an hour. It hears two resolutions.

command   melmask prepare FOLDER --out STORE
          melmask pretrain STORE --recipe tiny --out runs/tiny
data      any; the figures are for 8.4 hours of environmental sound, words, speech, song and notes
hardware  two cores of an AMD EPYC (Zen 5) with bf16: 570 to 670 crops a second, 1.5 GB of memory
time      770 to 900 s at these rates
expected  loss .45; linear probe of seven tasks .826, k-NN .697, pitch classes .906; log-mel .581, untrained .749
          (benchmarks/results/2026-11-30-main-battery.md, three seeds)

A window of 25 ms resolves time, and one of 256 ms resolves pitch. docs/log.md says what the other settings are worth;
tiny_025 has the first window alone, and msm_mae_208 is the paper's recipe.
"""

from dataclasses import replace

from melmask.config import PretrainConfig
from melmask.recipes import tiny_025


def config() -> PretrainConfig:
    """Return the settings of tiny_025 but for two resolutions in each patch, cheaper steps, and other features.

    With four of five patches hidden and one block in the decoder, a step takes four fifths of the time and teaches as
    much, so there are more steps. The last blocks of the encoder then do part of the decoder's work. The features are
    those of the middle block, so embedding takes half of the time (docs/log.md). Scene vectors are whitened.
    """
    settings = tiny_025.config()
    return replace(
        settings,
        model=replace(settings.model, resolutions=2, decoder_depth=1),
        masking=replace(settings.masking, ratio=0.8),
        optimizer=replace(settings.optimizer, steps=4000),
        features=replace(settings.features, whiten=128, depth_share=0.5),
    )
