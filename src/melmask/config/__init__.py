"""Every setting of melmask: frozen dataclasses that check themselves when built, without torch.

`PretrainConfig` has two kinds of sections. `run` and `hardware` must not change the result beyond rounding; all others
decide it. A checkpoint's `config.json` holds `FrontEndConfig`, `Statistics` and `ModelConfig`, because inference needs
no other settings.
"""

from melmask.config.model import (
    ModelConfig,
)
from melmask.config.objectives import (
    ContrastConfig,
    M2DConfig,
    MaskingConfig,
    ObjectiveConfig,
    RandomProjectionConfig,
)
from melmask.config.sound import (
    EACH,
    FRONT_END_32_KHZ,
    LOG_EPSILON,
    LONGEST_WINDOW_MS,
    MEAN,
    FrontEndConfig,
    Reading,
    ReadingOptions,
    ResolutionConfig,
    Statistics,
)
from melmask.config.training import (
    WHITENED,
    DataConfig,
    FeaturesConfig,
    HardwareConfig,
    OptimizerConfig,
    PretrainConfig,
    RunConfig,
)

__all__ = [
    "EACH",
    "FRONT_END_32_KHZ",
    "LOG_EPSILON",
    "LONGEST_WINDOW_MS",
    "MEAN",
    "WHITENED",
    "ContrastConfig",
    "DataConfig",
    "FeaturesConfig",
    "FrontEndConfig",
    "HardwareConfig",
    "M2DConfig",
    "MaskingConfig",
    "ModelConfig",
    "ObjectiveConfig",
    "OptimizerConfig",
    "PretrainConfig",
    "RandomProjectionConfig",
    "Reading",
    "ReadingOptions",
    "ResolutionConfig",
    "RunConfig",
    "Statistics",
]
