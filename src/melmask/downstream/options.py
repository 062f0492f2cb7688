"""The options of `melmask probe` and `few-labels`. Command lines are built from them, so PyTorch is not imported."""

from dataclasses import dataclass, field
from typing import Literal

from melmask.config import ReadingOptions
from melmask.embedding.choice import FeatureChoice
from melmask.errors import ConfigError
from melmask.labels.options import TableOptions

ALL = "all"
"""Instead of a number of labels per class: every training clip."""


@dataclass(frozen=True, kw_only=True)
class ProbeOptions:
    """How a model is probed on labeled files."""

    scheme: str = "auto"
    """How test clips are held out: fold, split, group or random; auto takes the first that the table allows."""
    table: TableOptions = field(default=TableOptions())
    choice: FeatureChoice = FeatureChoice()
    """Which features of the model are taken."""
    normalization: Literal["checkpoint", "dataset"] = "checkpoint"
    """Whose mean and standard deviation of log-mels are used: the checkpoint's, or those of each task's files."""
    reading: ReadingOptions = field(default=ReadingOptions())
    seed: int = field(default=0, metadata={"limits": (0, 2**32 - 1)})
    """Seed of the untrained network and of random splits."""

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ConfigError(f"seed is {self.seed}; expected a whole number from 0")
        self.reading.check_one_clip()


@dataclass(frozen=True, kw_only=True)
class FewLabelsOptions(ProbeOptions):
    """How a model is judged by the number of labels that it needs."""

    per_class: tuple[str, ...] = field(default=("1", "2", "5", "10", ALL), metadata={"metavar": "N"})
    """Numbers of labeled clips per class, from 1, and all."""
    draws: int = 5
    """How many times each number of labels is drawn at random; with a single draw there is no interval."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.draws < 1:
            raise ConfigError(f"draws is {self.draws}; expected at least 1")
        if not self.per_class:
            raise ConfigError(f"per_class is empty; expected whole numbers from 1, or {ALL!r}")
        for text in map(_plain, self.per_class):
            if text != ALL and not (text.isascii() and text.isdecimal() and len(text) < 10 and int(text) >= 1):
                raise ConfigError(f"per_class has {text!r}; expected whole numbers from 1, or {ALL!r}")

    @property
    def numbers(self) -> list[int | str]:
        """The numbers of labels per class, ascending and each once, "all" last."""
        texts = {_plain(text) for text in self.per_class}
        numbers: list[int | str] = sorted({int(text) for text in texts - {ALL}})
        return [*numbers, ALL] if ALL in texts else numbers


def _plain(text: str) -> str:
    return text.strip().lower()
