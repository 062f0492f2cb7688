"""A 384 x 12 network for ten hours of audio and a patient laptop.

command   melmask pretrain STORE --recipe small --out runs/small
data      any
hardware  two cores of an AMD EPYC (Zen 5) with bf16: 146 crops a second by melmask bench small, 2.5 GB of memory
time      4.9 hours, by that rate
expected  not run to its end yet
"""

from melmask.config import DataConfig, OptimizerConfig, PretrainConfig
from melmask.models.presets import preset


def config() -> PretrainConfig:
    """80x208 crops, 16x16 patches, three of four hidden."""
    return PretrainConfig(
        model=preset("small"),
        data=DataConfig(batch_size=256),
        optimizer=OptimizerConfig(learning_rate=1e-3, steps=10000, warmup_steps=500),
    )
