"""Save a run and restore it: the snapshot, which resumes it exactly, and the checkpoints, which others load.

A run's folder has these files (`train/record.py` writes the first three):

run.json                the resolved configuration, and the store that it is for
metrics.jsonl           one line for each log interval
events.jsonl            starts, stops, rollbacks
snapshot.pt             all of the state, as tensors and numbers only: weights, optimizer moments, position
checkpoints/step-*/     model.safetensors and config.json; RunConfig says which of them stay
"""

import math
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from melmask.checkpoint.folder import ModelCard, save_checkpoint
from melmask.checkpoint.weights import load_torch_file
from melmask.config import RunConfig
from melmask.config_text import to_dict
from melmask.errors import CheckpointError, OutputError
from melmask.system.files import atomic_write, output_error, remove_partial
from melmask.train.engine import Engine
from melmask.train.record import CHECKPOINTS, PICTURES, RUN_FILE
from melmask.train.schedule import Schedule, scheduled
from melmask.train.state import RunState, Training

SNAPSHOT = "snapshot.pt"
_ASIDE = "set-aside-"


def save_snapshot(training: Training, state: RunState, losses: Sequence[float]) -> None:
    """Write the state to resume from, then a checkpoint; the previous ones stay until these are complete.

    A kill between the two leaves a state without its checkpoint, which `finish_snapshot` writes.

    Every process must call this; the first one writes.

    Args:
        training: The run.
        state: Where it stands.
        losses: Mean losses over all processes, one for each step since the last log.
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
        "look_pending": state.look_pending,
    }
    if training.config.optimizer.minutes:
        position["schedule"] = [list(part) for part in state.schedule.parts]
    content = {**position, **training.engine.state()}
    if processes.first:
        try:
            write_state(run / SNAPSHOT, content)
        except OutputError:
            # On a full disk, each start would leave one more checkpoint that nothing resumes from. But if there is no
            # snapshot at all, the checkpoint, which is smaller, is all that is left of the training.
            if not (run / SNAPSHOT).exists():
                save_checkpoint(_checkpoint(run, state), model, _with_training(training, state))
            raise
        save_checkpoint(_checkpoint(run, state), model, _with_training(training, state))
        _keep_to_rules(training)
    # A run may end right after this, so the other processes wait until the files are complete.
    processes.wait()
    training.clock.saved()
    # A new snapshot is progress, so earlier rollbacks no longer count.
    state.rollbacks = 0


def finish_snapshot(training: Training, state: RunState) -> None:
    """Write what a kill has left out of saving the snapshot that the run resumes from. Every process must call this."""
    run, processes = training.run, training.processes
    (missing,) = processes.maximum(
        float(processes.first and (run / SNAPSHOT).exists() and not _checkpoint(run, state).exists())
    )
    if missing:
        # Gathering a sharded model takes all processes.
        model = training.engine.inference_model()
        if processes.first:
            save_checkpoint(_checkpoint(run, state), model, _with_training(training, state))
    if processes.first:
        _keep_to_rules(training)
    processes.wait()


def remove_leftovers(run: Path) -> None:
    """Remove what a kill has left in the run's folders of files and checkpoints that it was writing."""
    for folder in (run / CHECKPOINTS, run / PICTURES):
        remove_partial(folder)
    for state in ("partial", "old"):
        for checkpoint in (run / CHECKPOINTS).glob(f".step-*.{state}"):
            shutil.rmtree(checkpoint, ignore_errors=True)


def _checkpoint(run: Path, state: RunState) -> Path:
    return run / CHECKPOINTS / f"step-{state.step:07d}"


def _keep_to_rules(training: Training) -> None:
    for old in superfluous(checkpoints_of(training.run), training.config.run):
        shutil.rmtree(old, ignore_errors=True)


def _with_training(run: Training, state: RunState) -> ModelCard:
    """Return the run's card with what is known about the training so far."""
    card = run.card
    # The loss is NaN before the first log interval ends, and JSON has no NaN.
    known = state.loss if math.isfinite(state.loss) else None
    training: dict[str, float | str | None] = {
        "step": state.step,
        "loss": known,
        "minutes": round(state.seconds / 60, 2),
    }
    decay = card.training["config"]["optimizer"]["ema_decay"]
    if decay:
        training["weights"] = f"exponential moving average, decay {decay}"
    # A run with `optimizer.minutes` has planned its steps since the card was made.
    known_steps = {"config": to_dict(scheduled(run.config, state.schedule))} if run.config.optimizer.minutes else {}
    return replace(card, training=training | card.training | known_steps)


def write_state(path: Path, state: dict[str, Any]) -> None:
    """Write tensors and numbers to a file that appears whole or not at all.

    Raises:
        OutputError: it cannot be written.
    """
    try:
        with atomic_write(path) as file:
            torch.save(state, file)
    except RuntimeError as error:
        # torch.save reports everything that stops it, a full disk or Ctrl-C, as a wrong position in its archive. The
        # context is the real cause.
        cause = error.__context__
        if cause is not None and not isinstance(cause, Exception):
            raise cause from None
        raise output_error(path, cause if isinstance(cause, OSError) else OSError(str(error))) from error


def load_snapshot(run: Path, engine: Engine) -> RunState:
    """Restore the engine and return where the run stands: at its beginning if there is no snapshot.

    Raises:
        CheckpointError: the snapshot is damaged or belongs to another network.
    """
    path = run / SNAPSHOT
    if not path.exists():
        return RunState()
    try:
        # A snapshot is data: with weights_only, loading one never runs code.
        content: dict[str, Any] = load_torch_file(path)
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
    """Return where the run stands; what early versions did not save takes its default."""
    state = RunState(step=content.get("step", 0), skipped=content.get("skipped", 0))
    if any(type(count) is not int or count < 0 for count in (state.step, state.skipped)):
        raise TypeError("step")
    state.seconds = float(content.get("seconds", 0.0))
    if not 0 <= state.seconds < math.inf:
        raise ValueError("seconds")
    state.look_pending = content.get("look_pending", False) is True
    state.losses = list(torch.tensor(content.get("losses", []), device=device))
    state.recent.extend(content.get("recent", []))
    state.schedule = Schedule.read(content.get("schedule", []))
    return state


def set_aside_beyond(run: Path, step: int) -> list[Path]:
    """Rename checkpoints of later steps than `step`, which a training has left that went further and lost its snapshot.

    Under their names they would count as the run's newest checkpoints and displace its own. Of those that earlier calls
    renamed, only the one of the latest step stays, and only if its step is later than those of this call.

    Returns:
        The new paths.
    """
    beyond = [checkpoint for checkpoint in checkpoints_of(run) if step_of(checkpoint) > step]
    aside = checkpoints_of(run, _ASIDE) if beyond else []
    if aside and step_of(aside[-1]) > step_of(beyond[-1]):
        aside.pop()
    for earlier in aside:
        shutil.rmtree(earlier, ignore_errors=True)
    return [checkpoint.rename(checkpoint.with_name(f"{_ASIDE}{checkpoint.name}")) for checkpoint in beyond]


def superfluous(checkpoints: list[Path], keep: RunConfig) -> list[Path]:
    """Return those of a run's checkpoints, oldest first, that the rules of `keep` do not keep."""
    # Period k has the steps from k * every on; the first checkpoint in each period stays, except in period 0.
    every, stay, last_period = keep.keep_every_steps, set(checkpoints[-keep.keep_checkpoints :]), -1
    for checkpoint in checkpoints if every else ():
        period = step_of(checkpoint) // every
        if period > max(last_period, 0):
            stay.add(checkpoint)
        last_period = period
    return [checkpoint for checkpoint in checkpoints if checkpoint not in stay]


def step_of(checkpoint: Path) -> int:
    """Return the number of optimizer steps in the name of a checkpoint."""
    return int(checkpoint.name.removeprefix(_ASIDE).removeprefix("step-"))


def checkpoints_of(run: Path, prefix: str = "") -> list[Path]:
    """Return the run's complete checkpoints, oldest first; with `prefix`, those whose names begin with it."""
    prefix += "step-"
    # A copy that a user keeps under a longer name does not belong to the run.
    own = (path for path in (run / CHECKPOINTS).glob(f"{prefix}*") if path.name[len(prefix) :].isdecimal())
    return sorted(own, key=step_of)
