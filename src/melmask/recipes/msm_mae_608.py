"""The successor's re-training of MSM-MAE on 6.08-s units: larger batches, more epochs, clipped gradients.

command   torchrun --nproc-per-node 8 -m melmask pretrain STORE --recipe msm_mae_608 --out runs/msm_mae_608
data      AudioSet, 2.0 M clips of 10 s; on another store an epoch is one crop of each of its clips
hardware  written for GPUs; a large batch on few of them: hardware.micro_batch=64
time      not measured: no GPU was at hand; melmask bench msm_mae_608 measures it, docs/training.md has the arithmetic
expected  linear evaluation: ESC-50 89.2, Speech Commands 96.0, mean of nine tasks 79.1 (as published for AudioSet)
"""

from melmask.config import DataConfig, OptimizerConfig, PretrainConfig
from melmask.models.presets import preset


def config() -> PretrainConfig:
    """Return ViT-B on 80x608 with batches of 2048, peak rate 3e-4 * batch / 256, and 2-D decoder positions."""
    return PretrainConfig(
        model=preset("base", frames=608, decoder_positions="grid"),
        data=DataConfig(batch_size=2048, sampling="clip"),
        optimizer=OptimizerConfig(
            learning_rate=3e-4, learning_rate_batch=256, epochs=300.0, warmup_epochs=20.0, max_gradient_norm=3.0
        ),
    )
