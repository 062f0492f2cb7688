"""Where a run's numbers go besides its own files: TensorBoard if installed, Weights & Biases if asked for."""

import uuid
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from melmask.config import PretrainConfig
from melmask.errors import ConfigError, MissingExtraError
from melmask.files import atomic_write
from melmask.settings import to_dict

WANDB_ID = "wandb_id"
"""The file that keeps a run's identity at Weights & Biases, so that a resumed run goes on there."""


class Board(ABC):
    """Takes numbers as they come."""

    @abstractmethod
    def add(self, step: int, numbers: Mapping[str, float]) -> None:
        """Show numbers at a step."""

    @abstractmethod
    def close(self) -> None:
        """Flush everything."""


def open_boards(run: Path, first_step: int, config: PretrainConfig) -> list[Board]:
    """The boards of a run that begins or goes on behind `first_step`.

    Raises:
        ConfigError: Weights & Biases refuses.
        MissingExtraError: it is asked for and not installed.
    """
    boards: list[Board] = []
    if config.run.wandb_project:
        boards.append(_WeightsAndBiases(run, config))
    with suppress(ImportError):
        boards.append(_TensorBoard(run / "tensorboard", first_step))
    return boards


class _TensorBoard(Board):
    """Event files; resuming hides what lies beyond the first step."""

    def __init__(self, folder: Path, first_step: int):
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=first_step + 1)

    def add(self, step: int, numbers: Mapping[str, float]) -> None:
        for name, value in numbers.items():
            self._writer.add_scalar(f"train/{name}", value, step)

    def close(self) -> None:
        self._writer.close()


class _WeightsAndBiases(Board):
    """A run of a project; where it is kept is wandb's own matter (`WANDB_MODE=offline`: in the run's folder)."""

    def __init__(self, run: Path, config: PretrainConfig):
        try:
            import wandb
        except ImportError:
            raise MissingExtraError("wandb", "wandb") from None
        path = run / WANDB_ID
        if not path.exists():
            with atomic_write(path, "w") as file:
                file.write(uuid.uuid4().hex)
        try:
            self._run: Any = wandb.init(
                project=config.run.wandb_project,
                name=run.resolve().name,
                id=path.read_text().strip(),
                resume="allow",
                dir=str(run),
                config=to_dict(config),
                settings=wandb.Settings(console="off", silent=True),
            )
        except wandb.Error as error:
            reason = " ".join(str(error).split()).rstrip(".")
            raise ConfigError(
                f"run.wandb_project is {config.run.wandb_project!r}, but wandb says: {reason}; log in with "
                "`wandb login`, or set WANDB_MODE=offline"
            ) from None
        # A resumed run repeats steps, which wandb's own count, always growing, would drop.
        self._run.define_metric("step")
        self._run.define_metric("train/*", step_metric="step")

    def add(self, step: int, numbers: Mapping[str, float]) -> None:
        self._run.log({"step": step, **{f"train/{name}": value for name, value in numbers.items()}})

    def close(self) -> None:
        self._run.finish()
