"""A 384 x 12 network for ten hours of audio on a laptop: about an hour.

command   melmask pretrain STORE --recipe small --out runs/small
data      any; the figures are for 8.4 hours of environmental sound, words, speech, song and notes
hardware  two cores of an AMD EPYC (Zen 5) with bf16: about 145 crops a second undisturbed, 2.9 GB of memory
time      53 minutes at that rate; the run of the figures shared its machine and took longer
expected  with one resolution, as in release 0.1.0: loss .48; linear probe of seven tasks, scenes of mean and deviation,
          .780 (one seed); tiny_025 .771, log-mel .582, untrained .682
          (benchmarks/results/2026-11-23-small-and-finetune.md). Two resolutions were not measured at this size

The settings are those of tiny_025 with two resolutions, whitened scene vectors and twice the batch, which halves the
cost of Muon. None was tuned for this network, and the cheaper steps of tiny were not tried with it.
model.resolutions=1 gives the recipe of release 0.1.0.
"""

from melmask.config import DataConfig, FeaturesConfig, MaskingConfig, OptimizerConfig, PretrainConfig, RunConfig
from melmask.models.presets import preset


def config() -> PretrainConfig:
    """Return the settings: 80x208 crops, 16x16 patches with three of four hidden, normalized targets, and Muon."""
    return PretrainConfig(
        model=preset("small", resolutions=2),
        masking=MaskingConfig(normalize_target=True),
        data=DataConfig(batch_size=256),
        optimizer=OptimizerConfig(name="muon", learning_rate=4e-3, steps=1800, warmup_share=0.0833),
        features=FeaturesConfig(whiten=128),
        run=RunConfig(log_interval_steps=20, picture_interval_steps=500),
    )
