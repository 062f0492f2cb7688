"""What a call of `pretrain` works with, and the one object that its loop changes."""

from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from melmask.checkpoint.folder import ModelCard
from melmask.config import PretrainConfig
from melmask.train.clock import Clock
from melmask.train.engine import Engine
from melmask.train.log import Log
from melmask.train.processes import Processes

JUDGED_INTERVALS = 11
"""The mean losses of so many log intervals are remembered, to judge a spike by."""


@dataclass(kw_only=True)
class RunState:
    """Where a run stands: all that the loop changes, but for the weights and moments in the engine."""

    step: int = 0
    """Optimizer steps done."""
    skipped: int = 0
    """Batches skipped after rollbacks."""
    seconds: float = 0.0
    """Of training, up to the last snapshot."""
    losses: list[Tensor] = field(default_factory=list)
    """Of the steps since the last log, on the device: reading one would wait for it."""
    recent: deque[float] = field(default_factory=lambda: deque(maxlen=JUDGED_INTERVALS))
    """Mean losses of the last log intervals, oldest first, which a spike is judged by."""
    loss: float = float("nan")
    """The last one that was logged."""
    rollbacks: int = 0
    """Those since the last snapshot."""
    stopped_by: int = 0
    """The signal that asked to stop, 0 if none did."""
    ended: bool = False
    """Whether this call of `pretrain` takes no more steps."""

    @property
    def batch(self) -> int:
        """Number of the batch that the next step takes."""
        return self.step + self.skipped

    def stepped(self, loss: Tensor) -> None:
        """Count a step that has been begun; `loss` may still be under way."""
        self.losses.append(loss)
        self.step += 1

    def logged(self, loss: float) -> None:
        """Begin a new log interval after one with this mean loss."""
        self.loss, self.losses = loss, []
        self.recent.append(loss)

    def back_to(self, saved: "RunState") -> None:
        """Go back to a snapshot; the batches since are skipped when the run goes on."""
        self.skipped += self.step - saved.step
        self.step, self.losses, self.recent = saved.step, saved.losses, saved.recent
        self.rollbacks += 1


@dataclass(frozen=True, kw_only=True)
class Training:
    """What stays the same while a run trains."""

    run: Path
    config: PretrainConfig
    card: ModelCard
    engine: Engine
    processes: Processes
    clock: Clock
    log: Log
    peak_flops: float
    """Operations a second of a large matrix product, on all processes together."""
