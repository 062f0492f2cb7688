"""What the training loop works with (`Training`), and the one object that it changes (`RunState`)."""

from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from melmask.checkpoint.folder import ModelCard
from melmask.config import PretrainConfig
from melmask.corpus.stream import CropStream
from melmask.train.clock import Clock
from melmask.train.engine import Engine
from melmask.train.log import Log
from melmask.train.processes import Processes
from melmask.train.schedule import Schedule

JUDGED_INTERVALS = 11
"""A spike is judged by the mean losses of this many log intervals."""


@dataclass(kw_only=True)
class RunState:
    """Where a run stands: all that the loop changes, except for the weights and moments in the engine."""

    step: int = 0
    """Optimizer steps done."""
    skipped: int = 0
    """Batches skipped after rollbacks."""
    seconds: float = 0.0
    """Training time up to the last snapshot."""
    look_pending: bool = False
    """Whether the hooks have yet to look at the model of this step, because a signal stopped the run."""
    # Only the fields from `step` to `schedule` are in a snapshot; the others belong to one call.
    losses: list[Tensor] = field(default_factory=list)
    """Losses of the steps since the last log. They stay on the device, as reading one would wait for it."""
    recent: deque[float] = field(default_factory=lambda: deque(maxlen=JUDGED_INTERVALS))
    """Mean losses of the last log intervals, oldest first."""
    schedule: Schedule = field(default_factory=Schedule)
    """The planned steps; a snapshot of a run with `optimizer.minutes` has them, too."""
    loss: float = float("nan")
    """The last logged loss; NaN before the first one."""
    rollbacks: int = 0
    """Rollbacks since the last snapshot."""
    stopped_by: int = 0
    """The signal that asked to stop, 0 if none did."""
    ended: bool = False
    """Whether this call of `pretrain` takes no more steps."""

    @property
    def batch(self) -> int:
        """The number of the batch that the next step takes."""
        return self.step + self.skipped

    def stepped(self, loss: Tensor) -> None:
        """Count a step; the device may still be computing its `loss`."""
        self.losses.append(loss)
        self.step += 1

    def logged(self, loss: float) -> None:
        """Begin a new log interval after one with this mean loss."""
        self.loss, self.losses = loss, []
        self.recent.append(loss)

    def back_to(self, saved: "RunState") -> None:
        """Return to a snapshot and skip the batches since."""
        # The position in the data stays where it is: the run retrains these steps on other batches.
        self.skipped += self.step - saved.step
        self.step, self.losses, self.recent = saved.step, saved.losses, saved.recent
        self.rollbacks += 1


@dataclass(frozen=True, kw_only=True)
class Training:
    """What the loop works with; these objects stay the same while a run trains."""

    run: Path
    config: PretrainConfig
    card: ModelCard
    engine: Engine
    processes: Processes
    stream: CropStream
    clock: Clock
    log: Log
    signals: list[int]
    """The signals that this process has received, oldest first; it grows as they arrive."""
    peak_flops: float
    """Operations a second of a large matrix product, on all processes together."""

    @property
    def views(self) -> int:
        """Views of crops in a batch, over all processes."""
        return self.config.data.batch_size * self.engine.objective.views_per_crop
