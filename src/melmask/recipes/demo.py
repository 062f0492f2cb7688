"""Two minutes on two CPU cores, for the synthetic sounds of `melmask demo`."""

from melmask.config import DataConfig, FeaturesConfig, MaskingConfig, OptimizerConfig, PretrainConfig, RunConfig
from melmask.models.presets import preset


def config() -> PretrainConfig:
    """Return a narrow, shallow network that learns the demo's sounds in a few hundred steps; the rest is as in tiny."""
    return PretrainConfig(
        model=preset("tiny", depth=4, decoder_width=96, decoder_heads=3),
        masking=MaskingConfig(normalize_target=True),
        data=DataConfig(batch_size=128),
        optimizer=OptimizerConfig(name="muon", learning_rate=4e-3, steps=800, warmup_share=0.075),
        features=FeaturesConfig(whiten=128),
        run=RunConfig(log_interval_steps=25, snapshot_interval_s=30.0, picture_interval_steps=200),
    )
