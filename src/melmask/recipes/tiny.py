"""A 192 x 12 network for ten hours of audio on a laptop: a quarter of an hour. It hears two resolutions.

command   melmask prepare FOLDER --out STORE
          melmask pretrain STORE --recipe tiny --out runs/tiny
data      any; the figures are for 8.4 hours of environmental sound, words, speech, song and notes
hardware  two cores of an AMD EPYC (Zen 5) with bf16: 400 to 460 crops a second, 1.5 GB of memory
time      810 s measured beside little else, at a median of 461 crops a second
expected  loss .44; linear probe of seven tasks .812, k-NN .692, pitch classes .890; log-mel .581, untrained .723
          (benchmarks/results/2026-11-29-main-battery.md, three seeds)

A window of 25 ms resolves time, and one of 128 ms resolves pitch. docs/log.md says what the other settings are worth;
tiny_025 has the first window alone, and msm_mae_208 is the paper's recipe.
"""

from dataclasses import replace

from melmask.config import PretrainConfig
from melmask.recipes import tiny_025


def config() -> PretrainConfig:
    """Return the settings of tiny_025, with two resolutions in each patch and whitened scene vectors."""
    settings = tiny_025.config()
    model, features = replace(settings.model, resolutions=2), replace(settings.features, whiten=128)
    return replace(settings, model=model, features=features)
