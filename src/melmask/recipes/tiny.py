"""A 192 x 12 network for ten hours of audio on a laptop."""

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
