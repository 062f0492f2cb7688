"""A run's folder and its state: what resumes it exactly, and the checkpoints that others load.

run.json                the resolved configuration, the front end and statistics of the store
snapshot.pt             weights, optimizer moments, step: all of the state (tensors and numbers only)
checkpoints/step-*/     model.safetensors and config.json, the last `_KEEP_CHECKPOINTS` of them
metrics.jsonl           one line a log interval
"""

import shutil
from pathlib import Path
from typing import Any

import torch

from melmask.checkpoint.folder import ModelCard, save_checkpoint
from melmask.errors import CheckpointError
from melmask.files import atomic_write, output_error
from melmask.models.mae import MaskedAutoencoder

_KEEP_CHECKPOINTS = 2
RUN_FILE, SNAPSHOT, CHECKPOINTS = "run.json", "snapshot.pt", "checkpoints"


def save_snapshot(
    run: Path,
    step: int,
    seconds: float,
    model: MaskedAutoencoder,
    optimizer: torch.optim.Optimizer,
    card: ModelCard,
) -> None:
    """Write the checkpoint, then the state to resume from; the previous ones stay until these are whole."""
    save_checkpoint(run / CHECKPOINTS / f"step-{step:07d}", model, card)
    state = {
        "step": step,
        "seconds": seconds,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
    }
    try:
        with atomic_write(run / SNAPSHOT) as file:
            torch.save(state, file)
    except RuntimeError as error:
        # torch.save reports a full disk as an unexpected position in its archive.
        cause = error.__context__ if isinstance(error.__context__, OSError) else OSError(str(error))
        raise output_error(run / SNAPSHOT, cause) from error
    for old in checkpoints_of(run)[:-_KEEP_CHECKPOINTS]:
        shutil.rmtree(old, ignore_errors=True)


def load_snapshot(run: Path, model: MaskedAutoencoder, optimizer: torch.optim.Optimizer) -> tuple[int, float]:
    """Restore model and optimizer in place; returns the steps done and the seconds they took, (0, 0.0) if none."""
    path = run / SNAPSHOT
    if not path.exists():
        return 0, 0.0
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        step, seconds, weights, moments = (state[key] for key in ("step", "seconds", "model", "optimizer"))
    except Exception as error:
        raise CheckpointError(f"{path} is damaged; delete it to start the run again from step 0") from error
    try:
        model.load_state_dict(weights)
        optimizer.load_state_dict(moments)
    except (RuntimeError, ValueError) as error:
        raise CheckpointError(f"{path} is of another model; resume with the settings in {run / RUN_FILE}") from error
    return step, seconds


def checkpoints_of(run: Path) -> list[Path]:
    """The run's whole checkpoints, oldest first."""
    return sorted((run / CHECKPOINTS).glob("step-*"))
