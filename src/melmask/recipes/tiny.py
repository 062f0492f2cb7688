"""A 192 x 12 network for ten hours of audio on a laptop.

command   melmask pretrain STORE --recipe tiny --out runs/tiny
data      any; the figures are for 8.4 hours of environmental sound, words, speech, song and notes
hardware  two cores of an AMD EPYC (Zen 5) with bf16: 429 crops a second by melmask bench tiny, 1.4 GB of memory
time      59 minutes, other work beside it
expected  loss .136; linear probe of seven tasks .723, log-mel mean and std .582, untrained .591 (docs in
          benchmarks/results/2026-11-23-main-battery.md)
"""

from melmask.config import DataConfig, OptimizerConfig, PretrainConfig, RunConfig
from melmask.models.presets import preset


def config() -> PretrainConfig:
    """80x208 crops, 16x16 patches, three of four hidden."""
    return PretrainConfig(
        model=preset("tiny"),
        data=DataConfig(batch_size=256),
        optimizer=OptimizerConfig(learning_rate=2e-3, steps=4500, warmup_steps=200),
        run=RunConfig(log_interval_steps=20, picture_interval_steps=500),
    )
