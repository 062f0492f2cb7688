"""Find out whether a training has broken down (a loss that is not finite, a spike), and return to the last snapshot."""

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from melmask.errors import TrainingError
from melmask.train.snapshot import SNAPSHOT, load_snapshot
from melmask.train.state import RunState, Training


class Measured(NamedTuple):
    """What was measured since the last log, over all processes; the gradient norm is that of the last step."""

    mean_loss: float
    worst_loss: float
    gradient_norm: float


def find_fault(measured: Measured, recent: Sequence[float], spike_factor: float) -> str | None:
    """Return what is wrong with the steps since the last log; None if nothing is.

    Args:
        measured: What these steps gave.
        recent: Mean losses of the log intervals before them; their median is the usual loss.
        spike_factor: A loss above the usual one by this factor is a spike; 0: no loss is a spike.
    """
    mean_loss, worst_loss, gradient_norm = measured
    if not math.isfinite(mean_loss + worst_loss):
        return "the loss is not finite"
    if not math.isfinite(gradient_norm):
        return "the gradient is not finite"
    # A single spike does not move the median. Without past intervals no loss is unusual.
    usual = statistics.median(recent) if recent else math.inf
    if spike_factor and worst_loss > spike_factor * usual:
        return f"a loss of {worst_loss:.4g} is {worst_loss / usual:.1f} times the usual {usual:.4g}"
    return None


def roll_back(training: Training, state: RunState, fault: str) -> None:
    """Return to the last snapshot and skip the batches since, if the configuration allows it.

    Raises:
        TrainingError: it says to stop, there were too many rollbacks in a row, or there is no snapshot.
    """
    config, at, saved = training.config.run, state.step, (training.run / SNAPSHOT).exists()
    training.log.event(at, "spike", fault)
    if config.on_divergence == "stop" or state.rollbacks >= config.max_rollbacks or not saved:
        kept = f"the last good snapshot is in {training.run}" if saved else "nothing was saved yet"
        or_else = ", or resume with run.on_divergence=rollback" if saved and config.on_divergence == "stop" else ""
        raise TrainingError(
            f"step {at}: {fault}; {kept}: start another run with a lower optimizer.learning_rate or with "
            f"optimizer.max_gradient_norm=1{or_else}"
        )
    state.back_to(load_snapshot(training.run, training.engine))
    # The time still counts as the run's, but not in the rates of the next interval.
    training.clock.restarted(state.step)
    skipped = at - state.step
    training.log.event(state.step, "rollback", f"{fault}; back from step {at}, skipping {skipped} batches")
