"""The pre-training loop. One step: crops, masks, forward, backward, clip, AdamW.

Everything random is a pure function of (seed, step), so a run's state is its weights, moments and step number, and a
resumed run equals an uninterrupted one.
"""

import math
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch

from melmask.checkpoint.folder import ModelCard
from melmask.config import PretrainConfig
from melmask.data.store import Store
from melmask.data.stream import CropStream
from melmask.errors import ConfigError, TrainingError
from melmask.files import ensure_folder
from melmask.hardware import pick_device, pick_precision, use_threads
from melmask.models.mae import MaskedAutoencoder, build_model
from melmask.models.masking import random_masks
from melmask.settings import to_dict
from melmask.train.metrics import MetricsLog
from melmask.train.optimizer import build_optimizer, learning_rate
from melmask.train.resume import check_store, note_run
from melmask.train.snapshot import load_snapshot, save_snapshot


class StepState(NamedTuple):
    """What a hook may look at after a step."""

    step: int
    model: MaskedAutoencoder
    card: ModelCard
    run: Path


Hook = Callable[[StepState], None]
"""Called after every step that is a multiple of `run.picture_interval_steps`, and after the last."""


class Outcome(NamedTuple):
    """How a call of `pretrain` ended: steps done in all, the last logged loss, the signal that stopped it or 0."""

    step: int
    steps: int
    loss: float
    stopped_by: int


def pretrain(store: Store, run: Path, config: PretrainConfig, hooks: Sequence[Hook] = ()) -> Outcome:
    """Train until `optimizer.steps`, a signal, or `run.max_minutes`; resumes from the run's snapshot if it has one.

    Raises:
        ConfigError: the model does not fit the store's front end, or the run was begun with another store.
        TrainingError: the loss is not finite any more; the last snapshot is kept.
    """
    device = pick_device(config.hardware.device)
    precision = pick_precision(config.hardware, device)
    use_threads(config.hardware.threads)
    ensure_folder(run)
    check_store(run, store)
    model = build_model(config.model, config.run.seed).to(device)
    optimizer = build_optimizer(model, config.optimizer)
    card = build_card(store, config)
    step, seconds_before = load_snapshot(run, model, optimizer)
    note_run(run, config, store)
    steps, patches = config.optimizer.steps, model.encoder.grid.patches
    visible = model.encoder.grid.visible_patches(config.masking.ratio)
    stream = CropStream(store, config.data, config.model.frames, config.run.seed)
    mean, std = store.statistics.mean, store.statistics.std
    clock, loss_sum = _Clock(step, seconds_before), torch.zeros((), device=device)

    def save() -> None:
        save_snapshot(run, step, clock.seconds(), model, optimizer, _with_training(card, step, loss, clock, config))
        clock.saved()

    with closing(MetricsLog(run, step)) as log, _signals() as received:
        loss = log.last_loss
        for crops in stream.batches(step, steps - step, config.hardware.readers):
            masked = random_masks(config.run.seed, step, config.data.batch_size, patches, visible).to(device)
            logmel = torch.from_numpy(crops).to(device, non_blocking=True).float().transpose(1, 2)
            rate = learning_rate(step, config.optimizer)
            for group in optimizer.param_groups:
                group["lr"] = rate
            with torch.autocast(device.type, precision, enabled=precision != torch.float32):
                output = model((logmel - mean) / std, masked, config.masking)
            optimizer.zero_grad(set_to_none=True)
            output.loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(
                model.parameters(), config.optimizer.max_gradient_norm or float("inf")
            )
            optimizer.step()
            loss_sum += output.loss.detach()
            step += 1

            out_of_time = 0 < config.run.max_minutes * 60 <= clock.seconds_here()
            last = step == steps or bool(received) or out_of_time
            logs = step == steps or step % config.run.log_interval_steps == 0
            saves = last or clock.seconds_since_save() >= config.run.snapshot_interval_s
            if logs or saves:
                # The one place where the device is waited for; a broken model is never saved.
                mean_loss = float(loss_sum) / clock.steps_since_log(step)
                if not math.isfinite(mean_loss + float(norm)):
                    raise TrainingError(_diverged(step, mean_loss, rate, float(norm), run))
                if logs:
                    loss = mean_loss
                    loss_sum.zero_()
                    log.write(
                        {"step": step, "loss": loss, "learning_rate": rate, "gradient_norm": float(norm)}
                        | clock.rates(step, steps, config.data.batch_size),
                        steps,
                    )
            if saves:
                save()
            if step == steps or (config.run.picture_interval_steps and step % config.run.picture_interval_steps == 0):
                for hook in hooks:
                    hook(StepState(step, model, card, run))
            if last:
                break
    return Outcome(step, steps, loss, received[0] if received else 0)


def build_card(store: Store, config: PretrainConfig) -> ModelCard:
    """The checkpoint's description; the front end and the statistics are the store's."""
    if config.model.mels != store.front_end.mels:
        raise ConfigError(
            f"model.mels is {config.model.mels} but {store.folder} has {store.front_end.mels} mel bands; "
            f"set model.mels={store.front_end.mels} or prepare another store"
        )
    return ModelCard(model=config.model, front_end=store.front_end, statistics=store.statistics)


def _with_training(card: ModelCard, step: int, loss: float, clock: "_Clock", config: PretrainConfig) -> ModelCard:
    # None before the first log interval is over: JSON has no NaN.
    known = loss if math.isfinite(loss) else None
    training: dict[str, Any] = {"step": step, "loss": known, "minutes": round(clock.seconds() / 60, 2)}
    return ModelCard(
        model=card.model,
        front_end=card.front_end,
        statistics=card.statistics,
        training=training | {"config": to_dict(config)},
    )


def _diverged(step: int, loss: float, rate: float, norm: float, run: Path) -> str:
    return (
        f"the loss is {loss} at step {step} (learning rate {rate:.2e}, gradient norm {norm:.2e}); the last good "
        f"snapshot is in {run}: start another run with a lower optimizer.learning_rate or optimizer.max_gradient_norm=1"
    )


class _Clock:
    """Training time, over all resumptions, and the rates made of it."""

    def __init__(self, step: int, seconds_before: float):
        self._start_s = self._saved_s = self._logged_s = time.monotonic()
        self._before_s = seconds_before
        self._logged_step = step

    def seconds_here(self) -> float:
        return time.monotonic() - self._start_s

    def seconds(self) -> float:
        return self._before_s + self.seconds_here()

    def seconds_since_save(self) -> float:
        return time.monotonic() - self._saved_s

    def saved(self) -> None:
        self._saved_s = time.monotonic()

    def steps_since_log(self, step: int) -> int:
        return step - self._logged_step

    def rates(self, step: int, steps: int, batch_size: int) -> dict[str, float]:
        now_s = time.monotonic()
        step_s = (now_s - self._logged_s) / self.steps_since_log(step)
        self._logged_s, self._logged_step = now_s, step
        return {
            "crops_per_s": batch_size / step_s,
            "seconds": self.seconds(),
            "left_s": (steps - step) * step_s,
        }


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM instead of dying of the first; the loop saves and ends at the next step."""
    received: list[int] = []

    def note(number: int, _frame: Any) -> None:
        received.append(number)
        signal.signal(number, before[number])

    before = {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, note)
    except ValueError:
        # Only the main thread may set handlers; elsewhere the caller decides.
        pass
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
