"""The options of `melmask evaluate` and `melmask make-task`; this module does not import PyTorch.

The text under a field is its help on the command line. Its metadata have the flag if that is not the field's name, the
placeholder of the value, and the smallest and largest number.
"""

import re
from dataclasses import dataclass, field
from typing import Literal, get_args

from melmask.embedding.choice import FeatureChoice
from melmask.errors import ConfigError, unknown_name
from melmask.labels.options import Kind, TableOptions

PROTOCOLS = ("hear", "hear-fixed", "linear", "knn")
PRECISIONS = ("auto", "fp32", "bf16")
GRID_POINTS = 8
"""The HEAR kit tries this many points of its grid."""
Scheme = Literal["fold", "split", "new"]
AUTO, NATIVE = "auto", "native"
FEWEST_FOLDS = 3
"""One fold tests, one chooses the epoch, and one trains."""
MOST_SAMPLES = (2**32 - 64) // 2
"""The most samples that the length field of a 16-bit wav file can express."""
# Higher rates and more threads than these are typing errors.
_HIGHEST_RATE_HZ = 768_000
_MOST_THREADS = 4096
# scikit-learn takes no larger seeds, and a seed should mean the same in every tool.
_SEEDS = (0, 2**32 - 1)


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """How `melmask evaluate` judges models on tasks."""

    tasks: tuple[str, ...] = field(default=(), metadata={"flag": "--task", "metavar": "NAME"})
    """Evaluate only these tasks, given by task name or folder name. All tasks are evaluated by default."""
    protocols: tuple[str, ...] = field(default=("hear",), metadata={"flag": "--protocol", "metavar": "NAME"})
    """Protocols to evaluate with: hear, hear-fixed, linear, knn."""
    choice: FeatureChoice = field(default=FeatureChoice())
    """Which features of melmask's models are judged. A third-party module chooses its own."""
    grid_points: int = GRID_POINTS
    """How many points of the grid hear and hear-fixed try. The HEAR kit tries 8."""
    head_precision: str = "auto"
    """Precision of the hidden layers in hear and hear-fixed: fp32, bf16 or auto. Auto uses bf16 on CPUs that multiply
    it in hardware, and fp32 elsewhere."""
    seed: int = field(default=42, metadata={"limits": _SEEDS})
    """Seed of the weights, the dropout and the order of the rows."""
    device: str = "auto"
    """Device to compute on: cpu, cuda, cuda:1 or mps. Auto uses a GPU if there is one."""
    precision: str = "fp32"
    """Precision of melmask's models: fp32, fp32-fast or bf16."""

    def __post_init__(self) -> None:
        for protocol in self.protocols:
            if protocol not in PROTOCOLS:
                raise unknown_name("protocol", protocol, PROTOCOLS)
        if self.grid_points < 1:
            raise ConfigError(f"{self.grid_points} points of the grid were asked for; give at least 1")
        if self.head_precision not in PRECISIONS:
            raise unknown_name("head precision", self.head_precision, PRECISIONS)
        _check_seed(self.seed)


@dataclass(frozen=True, kw_only=True)
class TaskOptions:
    """How `melmask make-task` makes a task of labeled files."""

    name: str | None = None
    """Name of the task. The default is the name of the table."""
    version: str = "v1"
    """Version of the task. It is the second part of the folder's name."""
    mode: str = "full"
    """Mode of the task. It is the last part of the folder's name."""
    kind: Kind | None = None
    """Kind of the labels. By default the columns of the table decide. It also says what rows with times are: events
    within whole files, or else clips of their own."""
    scheme: Scheme | None = None
    """How clips are divided: by the table's folds, by its splits, or into new folds. The default is the first of these
    that the table has the columns for."""
    folds: int = 5
    """How many new folds are made."""
    seed: int = field(default=0, metadata={"limits": _SEEDS})
    """Seed of new folds and of a new validation split."""
    rates_hz: tuple[int, ...] = field(default=(16000,), metadata={"flag": "--rates", "metavar": "HZ"})
    """Sample rates to write the sounds at, in Hz. A model is evaluated at its own rate."""
    duration_s: float | str = AUTO
    """Length of every clip: seconds, auto or native. Clips are cut or zero-padded at their end. Native leaves clips as
    they are. Auto takes the common length if 19 of 20 clips are within 10 % of the median, and else leaves them too."""
    table: TableOptions = field(default=TableOptions())
    threads: int | None = field(default=None, metadata={"limits": (1, _MOST_THREADS)})
    """Number of decoding threads. The default is one for each core."""
    overwrite: bool = False
    """Replace a task of the same name."""

    def __post_init__(self) -> None:
        for what in ("name", "version", "mode"):
            word = getattr(self, what)
            if word is not None:
                check_word(what, word)
        if self.kind is not None and self.kind not in get_args(Kind):
            raise ConfigError(f"the kind of labels is {self.kind!r}; expected one of {', '.join(get_args(Kind))}")
        if self.scheme is not None and self.scheme not in get_args(Scheme):
            raise ConfigError(f"the scheme is {self.scheme!r}; expected one of {', '.join(get_args(Scheme))}")
        if self.folds < FEWEST_FOLDS:
            raise ConfigError(f"{self.folds} folds were asked for; expected {FEWEST_FOLDS} or more")
        _check_seed(self.seed)
        if self.threads is not None and not 1 <= self.threads <= _MOST_THREADS:
            raise ConfigError(f"{self.threads} threads were asked for; give 1 to {_MOST_THREADS}")
        self._check_sounds()

    def _check_sounds(self) -> None:
        rates_hz, duration_s = self.rates_hz, self.duration_s
        if not rates_hz or not 1 <= min(rates_hz) <= max(rates_hz) <= _HIGHEST_RATE_HZ:
            given = ", ".join(map(str, rates_hz)) or "none"
            raise ConfigError(f"sample rates are {given}; expected whole numbers of Hz, at most {_HIGHEST_RATE_HZ}")
        if isinstance(duration_s, str):
            fits = duration_s in (AUTO, NATIVE)
        else:
            fits = duration_s * min(rates_hz) >= 1 and duration_s * max(rates_hz) <= MOST_SAMPLES
        if not fits:
            most = f"{MOST_SAMPLES / max(rates_hz) / 3600:.3g} h"
            raise ConfigError(
                f"the clips' duration is {duration_s!r}; expected seconds, {AUTO} or {NATIVE} (a wav file takes {most})"
            )


def check_word(what: str, word: str) -> None:
    """Raise ConfigError unless `word` can be a part of a task folder's name."""
    if not re.fullmatch(r"\w[\w.+-]*", word):
        raise ConfigError(f"the task's {what} is {word!r}; expected letters, digits and the signs _ . + -")


def _check_seed(seed: int) -> None:
    least, largest = _SEEDS
    if not least <= seed <= largest:
        raise ConfigError(f"the seed is {seed}; give a whole number from {least} to {largest}")
