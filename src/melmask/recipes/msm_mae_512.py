"""The paper's MSM-MAE on 5.12-s units, its best on HEAR (PMLR 166, section 4.1 and appendix A).

command   torchrun --nproc-per-node 8 -m melmask pretrain STORE --recipe msm_mae_512 --out runs/msm_mae_512
data      AudioSet, 2.0 M clips of 10 s; on another store an epoch is one crop of each of its clips
hardware  written for GPUs; a large batch on few of them: hardware.micro_batch=64
time      not measured: no GPU was at hand; melmask bench msm_mae_512 measures it, docs/training.md has the arithmetic
expected  HEAR: CREMA-D 73.4, ESC-50 85.6 (the paper, AudioSet); no loss is published
"""

from dataclasses import replace

from melmask.config import PretrainConfig
from melmask.models.presets import preset
from melmask.recipes.msm_mae_208 import config as config_208


def config() -> PretrainConfig:
    """Return msm_mae_208 with crops of 80x512."""
    return replace(config_208(), model=preset("base", frames=512))
