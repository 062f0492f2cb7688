"""Recipe tiny of release 0.1.0: one spectrogram, with a window of 25 ms. It also learns from stores of that release.

command   melmask pretrain STORE --recipe tiny_025 --out runs/tiny-025
data      any; the figures are for 8.4 hours of environmental sound, words, speech, song and notes
hardware  two cores of an AMD EPYC (Zen 5) with bf16: about 400 crops a second, 1.1 GB of memory
time      932 s measured on an idle machine, 1019 s while tests ran
expected  loss .51; linear probe of seven tasks, scenes of mean and deviation: .762; with an earlier way to draw crops,
          three seeds gave .772, .766 and .776; log-mel .581, untrained .668
          (benchmarks/results/2026-11-23-main-battery-muon.md, 2026-11-24-main-battery.md)

docs/log.md says how this differs from the paper, and what each difference is worth; msm_mae_208 is the paper's recipe.
"""

from melmask.config import DataConfig, MaskingConfig, OptimizerConfig, PretrainConfig, RunConfig
from melmask.models.presets import preset


def config() -> PretrainConfig:
    """Return the settings: 80x208 crops, 16x16 patches with three of four hidden, normalized targets, and Muon."""
    return PretrainConfig(
        model=preset("tiny"),
        masking=MaskingConfig(normalize_target=True),
        data=DataConfig(batch_size=128),
        optimizer=OptimizerConfig(name="muon", learning_rate=4e-3, steps=2800, warmup_share=0.0714),
        run=RunConfig(log_interval_steps=20, picture_interval_steps=500),
    )
