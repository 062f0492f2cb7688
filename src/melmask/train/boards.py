"""Where a run's numbers go besides its own files: TensorBoard if it is installed, Weights & Biases if configured."""

import os
import socket
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from melmask.config import PretrainConfig
from melmask.config_text import to_dict
from melmask.errors import ConfigError
from melmask.system.extras import require
from melmask.system.files import atomic_write, ensure_folder
from melmask.system.reading import SMALL_FILE_BYTES, read_text, reason_of
from melmask.system.terminal import note

WANDB_ID = "wandb_id"
"""The file with the run's identity at Weights & Biases, so that a resumed run stays the same run there."""


class Board(ABC):
    """A place that shows numbers as they come."""

    name: str
    """The board's name in messages."""

    @abstractmethod
    def add(self, step: int, numbers: Mapping[str, float]) -> None:
        """Show the numbers of a step."""

    @abstractmethod
    def close(self) -> None:
        """Flush everything."""


def open_boards(run: Path, first_step: int, config: PretrainConfig) -> list[Board]:
    """Open the boards of a run that begins, or that resumes after `first_step`.

    Raises:
        ConfigError: Weights & Biases refuses the run.
        MissingExtraError: Weights & Biases is configured but not installed.
    """
    # Weights & Biases comes first: if it refuses the run, nothing else should be open.
    boards: list[Board] = []
    if config.run.wandb_project:
        boards.append(_WeightsAndBiases(run, config))
    try:
        boards.append(_TensorBoard(run / "tensorboard", first_step))
    except ImportError:
        pass
    except Exception as error:
        # TensorBoard is optional, and an installation of it may be broken in many ways: that must not stop a run.
        reason = " ".join(str(error).split())
        note(f"melmask: TensorBoard takes no numbers ({reason}); the run continues without it")
    return boards


class _TensorBoard(Board):
    """Writes TensorBoard's event files; a resumed run hides the earlier numbers beyond its first step.

    Each row is written at once. PyTorch's own writer uses a thread, which prints a traceback when the disk is full.
    """

    name = "TensorBoard"

    def __init__(self, folder: Path, first_step: int):
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event, self._summary = Event, Summary
        name = f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}.{os.getpid()}.{first_step}"
        self._writer = RecordWriter((ensure_folder(folder) / name).open("wb"))
        self._write(file_version="brain.Event:2")
        # This event makes TensorBoard drop what a previous session wrote from that step on.
        self._write(step=first_step + 1, session_log=SessionLog(status=SessionLog.START))

    def add(self, step: int, numbers: Mapping[str, float]) -> None:
        values = [self._summary.Value(tag=f"train/{name}", simple_value=value) for name, value in numbers.items()]
        self._write(step=step, summary=self._summary(value=values))

    def _write(self, **event: Any) -> None:
        self._writer.write(self._event(wall_time=time.time(), **event).SerializeToString())
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


def _identity(path: Path) -> str:
    try:
        return read_text(path, SMALL_FILE_BYTES).strip() if path.exists() else ""
    except ValueError as error:
        raise ConfigError(f"{path} is damaged ({reason_of(error)}); delete it, and the run gets a new name") from error


class _WeightsAndBiases(Board):
    """Shows numbers as a run of a project; with `WANDB_MODE=offline`, wandb keeps them in the run's folder."""

    name = "Weights & Biases"

    def __init__(self, run: Path, config: PretrainConfig):
        require("wandb")
        import wandb

        path = run / WANDB_ID
        # An empty file holds no identity, and wandb must be given the same one each time.
        if not (identity := _identity(path)):
            with atomic_write(path, "w") as file:
                file.write(identity := uuid.uuid4().hex)
        try:
            self._run: Any = wandb.init(
                project=config.run.wandb_project,
                name=run.resolve().name,
                id=identity,
                resume="allow",
                dir=str(run),
                config=to_dict(config),
                settings=wandb.Settings(console="off", silent=True),
            )
        except Exception as error:
            # wandb's service, the network and wandb's checks raise errors of many classes.
            reason = " ".join(str(error).split()).rstrip(".")
            raise ConfigError(
                f"run.wandb_project is {config.run.wandb_project!r}, but wandb says: {reason}; log in with "
                "`wandb login`, or set WANDB_MODE=offline"
            ) from None
        # A resumed run repeats steps. wandb's own step count only grows and would drop them, so ours is the axis.
        self._run.define_metric("step")
        self._run.define_metric("train/*", step_metric="step")

    def add(self, step: int, numbers: Mapping[str, float]) -> None:
        self._run.log({"step": step, **{f"train/{name}": value for name, value in numbers.items()}})

    def close(self) -> None:
        self._run.finish()
