"""The settings of what a network is trained to do, a section for each; `training.py` puts them together."""

import math
from dataclasses import dataclass

from melmask.config.checks import LARGEST_BATCH, MOST_FRAMES, MOST_STEPS, WIDEST, check, check_range

MASKING_STRATEGIES = ("random", "inverse-blocks", "time", "frequency")
"""The names that `masking.strategy` may have; `objectives/masking.py` draws the masks."""


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """What the network is trained to do."""

    kind: str = "mae"
    """The objective's name, a module of `melmask.objectives`. 'mae' reconstructs hidden patches; its settings are in
    `masking`. 'm2d' predicts what a slow copy of the encoder makes of them, and 'random_projection' predicts which code
    of a random codebook each is nearest to. Their settings are in the sections of these names, and in `masking`."""


@dataclass(frozen=True, kw_only=True)
class M2DConfig:
    """The settings of the objective 'm2d', Masked Modeling Duo (arXiv 2210.14648; TASLP 2024, arXiv 2404.06095)."""

    feature_weight: float = 1.0
    """Weight of the error of the predicted features, which is 0 to 4 for each patch."""
    reconstruction_weight: float = 0.0
    """Weight of the masked autoencoder's reconstruction error, which the same decoder then predicts; 0: only features
    are predicted (the paper), and the checkpoint has no decoder."""
    first_decay: float = 0.995
    """Share of the target encoder's own weights that stays after the first step (the paper: .99995)."""
    last_decay: float = 0.999
    """The same after `decay_steps` steps and later (the paper: .99999)."""
    decay_steps: int = 2800
    """Steps over which the decay moves from the first to the last, in a line. The paper takes all of its 300,000 or so.
    The defaults average over the same shares of 2800 steps, those of recipe tiny_025."""

    def __post_init__(self) -> None:
        check(
            0 < self.feature_weight < math.inf,
            f"m2d.feature_weight is {self.feature_weight}; give a weight above 0, or set objective.kind=mae",
        )
        check(
            0 <= self.reconstruction_weight < math.inf,
            f"m2d.reconstruction_weight is {self.reconstruction_weight}; give 0 or more",
        )
        check(
            0 <= self.first_decay <= self.last_decay <= 1,
            f"m2d.first_decay and last_decay are {self.first_decay} and {self.last_decay}; give 0 <= first <= last "
            "<= 1",
        )
        check_range(self, "m2d.decay_steps", 0, MOST_STEPS)


@dataclass(frozen=True, kw_only=True)
class RandomProjectionConfig:
    """The settings of the objective 'random_projection' (BEST-RQ, arXiv 2202.01855; BEST-RQ-2, arXiv 2606.30700)."""

    codes: int = 1024
    """Codes in a codebook; the paper has 8192."""
    codebooks: int = 4
    """Codebooks, each with a projection of its own. The decoder predicts a code of each of them."""
    dimensions: int = 16
    """Dimensions that a patch is projected to, and that a code has."""

    def __post_init__(self) -> None:
        check_range(self, "random_projection.codes", 2, 1 << 20)
        check_range(self, "random_projection.codebooks", 1, 1024)
        check_range(self, "random_projection.dimensions", 1, WIDEST)


@dataclass(frozen=True, kw_only=True)
class MaskingConfig:
    """What is hidden of each crop, and what the masked autoencoder must predict."""

    ratio: float = 0.75
    """Share of the patches that are hidden; int(patches * (1 - ratio)) stay visible."""
    masks_per_crop: int = 1
    """How many times each crop of a batch is seen, each time under another mask (EAT, arXiv 2401.03497). The network's
    batch is larger than the data's by this factor."""
    normalize_target: bool = False
    """Whether the values of each target patch are normalized to zero mean and unit variance (the paper: false). The
    objective 'random_projection' projects patches that are normalized in this way or not."""
    strategy: str = "random"
    """What stays visible: single patches ('random', the paper), blocks ('inverse-blocks', EAT, arXiv 2401.03497), whole
    columns ('time') or whole rows ('frequency') of patches, so that stripes of time or of frequency are hidden. Of
    several names, as in 'time+frequency', each mask takes one at random."""
    block_rows: int = 3
    """Height of the blocks of 'inverse-blocks', in patches."""
    block_columns: int = 3
    """Width of the blocks of 'inverse-blocks', in patches."""
    stripe: int = 1
    """How many columns ('time') or rows ('frequency') of patches stay visible side by side."""

    def __post_init__(self) -> None:
        check(0 < self.ratio < 1, f"masking.ratio is {self.ratio}; give a share between 0 and 1")
        check_range(self, "masking.masks_per_crop", 1, 4096)
        check(
            set(self.strategies) <= set(MASKING_STRATEGIES),
            f"masking.strategy is {self.strategy!r}; give {', '.join(MASKING_STRATEGIES)}, or several of them with + "
            "between them",
        )
        for name in ("block_rows", "block_columns", "stripe"):
            check_range(self, f"masking.{name}", 1, MOST_FRAMES)

    @property
    def strategies(self) -> tuple[str, ...]:
        """The names in `strategy`."""
        return tuple(self.strategy.split("+"))


@dataclass(frozen=True, kw_only=True)
class ContrastConfig:
    """A contrast between the masks of a crop, beside reconstruction (CAN, arXiv 2210.16870); the paper has none."""

    weight: float = 0.0
    """Weight of the contrast in the loss, beside 1 for the reconstruction; 0: no contrast. It needs
    `masking.masks_per_crop` of 2 or more."""
    crops: int = 32
    """Each crop is compared with the others of a group of this size; `data.batch_size` is a multiple of it. The groups
    depend on neither the number of processes nor the shares of a step."""
    temperature: float = 0.2
    """Cosine similarities are divided by this; a lower one makes the nearest other crops count more."""

    def __post_init__(self) -> None:
        check(0 <= self.weight <= 1000, f"contrast.weight is {self.weight}; give 0 to 1000")
        check_range(self, "contrast.crops", 2, LARGEST_BATCH)
        check(0.001 <= self.temperature <= 1000, f"contrast.temperature is {self.temperature}; give 0.001 to 1000")
