"""The paper's MSM-MAE on 2.08-s units (PMLR 166, section 4.1 and appendix A).

command   torchrun --nproc-per-node 8 -m melmask pretrain STORE --recipe msm_mae_208 --out runs/msm_mae_208
data      AudioSet, 2.0 M clips of 10 s; on another store an epoch is one crop of each of its clips
hardware  written for GPUs; a large batch on few of them: hardware.micro_batch=64
time      not measured: no GPU was at hand; melmask bench msm_mae_208 measures it, docs/training.md has the arithmetic
expected  HEAR scores a little below those of 512 frames (the paper, table 2); no loss is published
"""

from melmask.config import DataConfig, OptimizerConfig, PretrainConfig
from melmask.models.presets import preset


def config() -> PretrainConfig:
    """Return ViT-B on 80x208, batches of 512 (64 on each of 8 GPUs), peak rate 1.5e-4 * batch / 128, no clipping."""
    return PretrainConfig(
        model=preset("base"),
        data=DataConfig(batch_size=512, sampling="clip"),
        optimizer=OptimizerConfig(learning_rate=1.5e-4, learning_rate_batch=128, epochs=100.0, warmup_epochs=10.0),
    )
