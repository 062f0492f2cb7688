"""A run's folder and its state: what resumes it exactly, and the checkpoints that others load.

run.json                the resolved configuration, and which store it is for
snapshot.pt             weights, optimizer moments, position: all of the state (tensors and numbers only)
checkpoints/step-*/     model.safetensors and config.json; RunConfig says which of them stay
metrics.jsonl           one line a log interval; events.jsonl: starts, stops, rollbacks
"""

import math
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from melmask.checkpoint.folder import ModelCard, save_checkpoint
from melmask.config import RunConfig
from melmask.errors import CheckpointError, OutputError
from melmask.system.files import atomic_write, output_error
from melmask.train.engine import Engine
from melmask.train.record import CHECKPOINTS, RUN_FILE
from melmask.train.state import RunState, Training

SNAPSHOT = "snapshot.pt"
_ASIDE = "set-aside-"


def save_snapshot(training: Training, state: RunState, losses: Sequence[float]) -> None:
    """Write the checkpoint, then the state to resume from; the previous ones stay until these are whole.

    Every process must call this; the first one writes.

    Args:
        training: The run.
        state: Where it stands.
        losses: Those of the steps since the last log, over all processes.
    """
    run, processes = training.run, training.processes
    state.seconds = training.clock.seconds()
    model = training.engine.inference_model()
    position = {
        "step": state.step,
        "skipped": state.skipped,
        "seconds": state.seconds,
        "losses": list(losses),
        "recent": list(state.recent),
    }
    content = {**position, **training.engine.state()}
    if processes.first:
        checkpoint = run / CHECKPOINTS / f"step-{state.step:07d}"
        known = checkpoint.exists()
        save_checkpoint(checkpoint, model, _with_training(training.card, state))
        try:
            write_state(run / SNAPSHOT, content)
        except OutputError:
            # On a full disk each start would leave one more that nothing resumes from. Where there is no snapshot at
            # all, it is the only thing left of the training.
            if not known and (run / SNAPSHOT).exists():
                shutil.rmtree(checkpoint, ignore_errors=True)
            raise
        for old in superfluous(checkpoints_of(run), training.config.run):
            shutil.rmtree(old, ignore_errors=True)
    # The others go on when the files are whole: a run may end right after this.
    processes.wait()
    training.clock.saved()
    # A new snapshot is progress: what went wrong before it no longer counts.
    state.rollbacks = 0


def _with_training(card: ModelCard, state: RunState) -> ModelCard:
    """Add to the card how far the training is."""
    # None before the first log interval is over: JSON has no NaN.
    known = state.loss if math.isfinite(state.loss) else None
    training: dict[str, float | str | None] = {
        "step": state.step,
        "loss": known,
        "minutes": round(state.seconds / 60, 2),
    }
    decay = card.training["config"]["optimizer"]["ema_decay"]
    if decay:
        training["weights"] = f"exponential moving average, decay {decay}"
    return replace(card, training=training | card.training)


def write_state(path: Path, state: dict[str, Any]) -> None:
    """Write tensors and numbers so that the file appears whole or not at all.

    Raises:
        OutputError: it cannot be written.
    """
    try:
        with atomic_write(path) as file:
            torch.save(state, file)
    except RuntimeError as error:
        # torch.save reports whatever stops it, a full disk or Ctrl-C, as an unexpected position in its archive.
        cause = error.__context__
        if cause is not None and not isinstance(cause, Exception):
            raise cause from None
        raise output_error(path, cause if isinstance(cause, OSError) else OSError(str(error))) from error


def load_snapshot(run: Path, engine: Engine) -> RunState:
    """Restore the engine in place; returns where the run stands, at its beginning if there is no snapshot.

    Raises:
        CheckpointError: the snapshot is damaged or of another network.
    """
    path = run / SNAPSHOT
    if not path.exists():
        return RunState()
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        # weights_only above: a snapshot is data, and loading one never runs code.
        state = _state_in(content, engine.device)
    except Exception as error:
        checkpoints = checkpoints_of(run)
        or_else = f", or start another run with --init {checkpoints[-1]}" if checkpoints else ""
        raise CheckpointError(f"{path} is damaged; delete it to start the run again from step 0{or_else}") from error
    try:
        engine.load_state(content)
    except (KeyError, RuntimeError, ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} is of another model; resume with the settings in {run / RUN_FILE}") from error
    return state


def _state_in(content: dict[str, Any], device: torch.device) -> RunState:
    """Read where the run stands; what early versions did not save takes its default."""
    state = RunState(step=content.get("step", 0), skipped=content.get("skipped", 0))
    if not isinstance(state.step, int):
        raise TypeError("step")
    state.seconds = content.get("seconds", 0.0)
    state.losses = list(torch.tensor(content.get("losses", []), device=device))
    state.recent.extend(content.get("recent", []))
    return state


def set_aside_beyond(run: Path, step: int) -> list[Path]:
    """Rename checkpoints of later steps than this training has reached, such as those of one that lost its snapshot.

    They would be taken for the run's newest and push out its own. Of those that earlier calls renamed, only the
    furthest stays, and only if it went further than these.
    """
    beyond = [checkpoint for checkpoint in checkpoints_of(run) if step_of(checkpoint) > step]
    aside = checkpoints_of(run, _ASIDE) if beyond else []
    if aside and step_of(aside[-1]) > step_of(beyond[-1]):
        aside.pop()
    for earlier in aside:
        shutil.rmtree(earlier, ignore_errors=True)
    return [checkpoint.rename(checkpoint.with_name(f"{_ASIDE}{checkpoint.name}")) for checkpoint in beyond]


def superfluous(checkpoints: list[Path], keep: RunConfig) -> list[Path]:
    """Return those of a run's checkpoints, oldest first, that the rules do not keep."""
    # Periods are counted by whole multiples: the first checkpoint in a new one is the one that stays.
    every, stay, last_period = keep.keep_every_steps, set(checkpoints[-keep.keep_checkpoints :]), -1
    for checkpoint in checkpoints if every else ():
        period = step_of(checkpoint) // every
        if period > max(last_period, 0):
            stay.add(checkpoint)
        last_period = period
    return [checkpoint for checkpoint in checkpoints if checkpoint not in stay]


def step_of(checkpoint: Path) -> int:
    """Return the optimizer steps of a checkpoint."""
    return int(checkpoint.name.removeprefix(_ASIDE).removeprefix("step-"))


def checkpoints_of(run: Path, prefix: str = "") -> list[Path]:
    """Return the run's whole checkpoints, oldest first; with `prefix`, those whose names begin with it."""
    prefix += "step-"
    # A copy that somebody has kept under a longer name is not the run's.
    own = (path for path in (run / CHECKPOINTS).glob(f"{prefix}*") if path.name[len(prefix) :].isdecimal())
    return sorted(own, key=step_of)
