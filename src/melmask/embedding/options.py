"""The options of `melmask embed`. Its command line is built from them, so this module does not import PyTorch."""

from dataclasses import dataclass, field
from typing import Literal

from melmask.config import ReadingOptions
from melmask.embedding.choice import FeatureChoice
from melmask.labels.options import TableOptions


@dataclass(frozen=True, kw_only=True)
class EmbedOptions:
    """How files are embedded."""

    choice: FeatureChoice = FeatureChoice()
    """Which features of the model are taken."""
    frames: bool = False
    """Keep the frame vectors too, not only the scene vector of each file."""
    normalization: Literal["checkpoint", "dataset"] = "checkpoint"
    """Whose mean and standard deviation of log-mels are used: the checkpoint's, or those of the files given."""
    reading: ReadingOptions = field(default=ReadingOptions())
    shard: str | None = field(default=None, metadata={"metavar": "I/N"})
    """I/N: take every N-th file from the I-th on, 0 <= I < N, as one of N jobs of an array."""
    engine: Literal["local", "ray"] = "local"
    """Where to compute: on this machine, or on a Ray cluster."""
    workers: int = 2
    """Number of Ray workers, of one CPU or one GPU each."""
    table: TableOptions = field(default=TableOptions(), metadata={"without": ("label_column",)})
    device: str = "auto"
    """Device of the model: cpu, cuda, cuda:1 or mps; auto takes a GPU if there is one."""
    precision: str = "fp32"
    """Arithmetic of the model: fp32, fp32-fast or bf16."""
