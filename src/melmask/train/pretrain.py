"""The pre-training loop. One step: crops, masks, forward, backward, clip, AdamW (`engine.py`).

Everything random is a pure function of (seed, batch number), so a run's state is its weights, moments and position, and
a resumed run equals an uninterrupted one. Every process runs this loop; on what one of them alone knows - signals, the
time - they agree while a step is computed.
"""

import math
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from melmask.checkpoint.folder import ModelCard
from melmask.config import PretrainConfig
from melmask.corpus.store import Store
from melmask.corpus.stream import CropStream
from melmask.errors import ConfigError, OutputError, StoreError, TrainingError
from melmask.geometry import grid_of
from melmask.models.flops import step_flops
from melmask.objectives.mae import MaskedAutoencoder
from melmask.objectives.masking import random_masks
from melmask.settings import to_dict
from melmask.system.files import claimed
from melmask.system.hardware import keep_freed_memory, matmul_peak
from melmask.train.boards import open_boards
from melmask.train.clock import Clock, memory_mb
from melmask.train.divergence import LossWatch
from melmask.train.engine import Engine
from melmask.train.log import Log, MetricsLog
from melmask.train.optimizer import learning_rate
from melmask.train.processes import Processes, joined_processes
from melmask.train.resume import check_store, note_run
from melmask.train.snapshot import SNAPSHOT, Position, load_snapshot, save_snapshot, set_aside_beyond


class StepState(NamedTuple):
    """What a hook may look at after a step."""

    step: int
    model: MaskedAutoencoder
    card: ModelCard
    run: Path


Hook = Callable[[StepState], dict[str, float] | None]
"""Called by the first process after every step that is a multiple of `run.picture_interval_steps`, and after the last;
may return numbers to log."""


Page = Callable[[Path], object]
"""Called by the first process with the run's folder, after numbers were logged but not more often than each half
minute, and at the end: what it writes shows the run as it is."""

_PAGE_INTERVAL_S = 30.0
_PEAK_PRODUCT_SIZE = 1024
_ECHO_S = 2.0
_HANG_UP = getattr(signal, "SIGHUP", None)
"""What the end of a terminal, or of the connection to it, sends."""


class Outcome(NamedTuple):
    """How a call of `pretrain` ended: steps done in all, the last logged loss, the signal that stopped it or 0."""

    step: int
    steps: int
    loss: float
    stopped_by: int


def pretrain(
    store: Store,
    run: Path,
    config: PretrainConfig,
    hooks: Sequence[Hook] = (),
    page: Page | None = None,
    initial_weights: dict[str, Tensor] | None = None,
) -> Outcome:
    """Train until `optimizer.steps`, a signal, or `run.max_minutes`; resumes from the run's snapshot if it has one.

    Args:
        store: What to learn from.
        run: Its folder; several processes must all see it.
        config: Of a run that goes on: as it was begun (`melmask.train.resume`).
        hooks: Look at the model as training goes on; only the first process' are used.
        page: Shows the run as it goes.
        initial_weights: By name, instead of random ones, for a run that begins.

    Raises:
        ConfigError: the model does not fit the store's front end, the run was begun with another store, or the batch
            cannot be shared by the processes.
        OutputError: the run's folder cannot be written to, or another job is at it.
        TrainingError: the loss is not finite any more or has jumped; the last snapshot is kept.
    """
    keep_freed_memory()
    with joined_processes(config.hardware) as processes, ExitStack() as own:
        _check_step(config, processes.count)
        _claim(run, processes, own)
        check_store(run, store)
        card = build_card(store, config)
        engine = Engine(config, store.statistics, processes)
        if initial_weights is not None:
            engine.load_weights(initial_weights)
        loop = _Loop(store, run, config, card, engine, processes)
        return loop.go(hooks, page, save_first=initial_weights is not None)


class _Loop:
    """One call of `pretrain`: the run's position, and what is done at it."""

    def __init__(
        self, store: Store, run: Path, config: PretrainConfig, card: ModelCard, engine: Engine, processes: Processes
    ):
        self._store, self._run, self._config, self._card = store, run, config, card
        self._engine, self._processes = engine, processes
        self._clock = self._stand_at(load_snapshot(run, engine))
        self._rollbacks, self._loss, self._stopped_by = 0, float("nan"), 0
        self._page_s = 0.0
        # Products of this size say within a few per cent what the machine can do, in milliseconds.
        self._peak_flops = matmul_peak(processes.device, engine.precision, _PEAK_PRODUCT_SIZE) * processes.count
        self._step_flops = step_flops(config.model, config.masking.ratio, config.views)

    def _stand_at(self, position: Position) -> Clock:
        """Make this the run's position; a clock that counts from there."""
        self._step, self._skipped = position.step, position.skipped
        self._losses = list(torch.tensor(position.losses, device=self._processes.device))
        self._watch = LossWatch(self._config.run.spike_factor, position.recent)
        return Clock(position.step, position.seconds)

    def go(self, hooks: Sequence[Hook], page: Page | None, save_first: bool) -> Outcome:
        """Train to the end, or until something stops it."""
        steps, first = self._config.optimizer.steps, self._processes.first
        if first:
            note_run(self._run, self._config, self._store)
            for path in set_aside_beyond(self._run, self._step):
                sys.stderr.write(f"melmask: {path} is of a training that went further than this one; set aside\n")
        with closing(self._open_log() if first else Log()) as log, _signals(self._processes.count) as received:
            self._loss = log.last_loss
            log.event(self._step, "resume" if self._step else "start", f"{self._processes.count} processes")
            if not self._step and (save_first or self._config.run.on_divergence == "rollback"):
                # What a run would otherwise lose if it were killed, or could not return to.
                self._save()
            ended = self._step >= steps
            try:
                while not ended:
                    ended = self._train(log, hooks, page if first else None, received)
            except (OutputError, StoreError) as error:
                # Else the record would say that it still runs.
                with suppress(OutputError):
                    log.event(self._step, "stop", str(error))
                raise
            stopped = self._step < steps
            why = f"signal {self._stopped_by}" if self._stopped_by else "run.max_minutes"
            log.event(self._step, "stop" if stopped else "done", why if stopped else "")
            if page is not None and first:
                page(self._run)
        return Outcome(self._step, steps, self._loss, self._stopped_by)

    def _open_log(self) -> MetricsLog:
        return MetricsLog(self._run, self._step, open_boards(self._run, self._step, self._config))

    def _train(self, log: Log, hooks: Sequence[Hook], page: Page | None, received: list[int]) -> bool:
        """Steps from here on; False if a rollback asks to be called again."""
        config, processes, clock = self._config, self._processes, self._clock
        steps = config.optimizer.steps
        rows = processes.rank, processes.count
        stream = CropStream(self._store, config.data, config.model.frames, config.run.seed, *rows)
        ahead = stream.batches(self._step + self._skipped, steps - self._step, config.hardware.readers)
        with closing(ahead):
            for crops in clock.waits(ahead):
                rate = learning_rate(self._step, config)
                wishes = processes.begin_maximum(lambda: self._wishes(received))
                loss, norm = self._engine.step(crops, self._masks(), rate)
                self._losses.append(loss)
                self._step += 1

                looks = self._every(config.run.picture_interval_steps)
                logs = self._every(config.run.log_interval_steps)
                stopped_by, out_of_time, due = wishes()
                self._stopped_by = int(stopped_by)
                last = self._step == steps or bool(stopped_by or out_of_time)
                if not (logs or last or due or looks):
                    continue
                # The one place where the device is waited for; a broken model is never saved.
                losses = processes.mean(torch.stack(self._losses))
                mean_loss, worst_loss = float(losses.mean()), float(losses.max())
                (gradient_norm,) = processes.maximum(float(norm))
                fault = self._watch.fault(mean_loss, worst_loss, gradient_norm)
                # The loss was computed before the step that it led to.
                if fault is None and (last or due) and any(processes.maximum(float(self._engine.is_broken()))):
                    fault = "the step left weights that are no finite numbers"
                if fault is not None:
                    facts = f"{fault} (learning rate {rate:.2e}, gradient norm {gradient_norm:.2e})"
                    self._go_back(facts, log, page)
                    return False
                if logs:
                    self._loss = mean_loss
                    self._losses = []
                    self._watch.recent.append(mean_loss)
                    self._log({"loss": mean_loss, "learning_rate": rate, "gradient_norm": gradient_norm}, log)
                with clock.beside():
                    if logs:
                        self._show(page)
                    if last or due:
                        self._save([] if logs else losses.tolist())
                    if looks:
                        log.note(self._step, self._look(hooks))
                if last:
                    break
        return True

    def _log(self, numbers: dict[str, float], log: Log) -> None:
        config, steps = self._config, self._config.optimizer.steps
        row = {"step": self._step, **numbers, **self._clock.rates(self._step, steps, config.data.batch_size)}
        row["peak_share"] = self._step_flops * row["crops_per_s"] / config.data.batch_size / self._peak_flops
        log.write(row | {"memory_mb": memory_mb(self._processes.device)}, steps)

    def _masks(self) -> Tensor:
        """The masks of this process' crops in this step, those of a crop one after another."""
        config, processes = self._config, self._processes
        grid = grid_of(config.model)
        batch = self._step + self._skipped
        visible = grid.visible_patches(config.masking.ratio)
        masks = random_masks(config.run.seed, batch, config.views, grid.patches, visible)
        own = masks.unflatten(0, (-1, config.masking.masks_per_crop))[processes.rank :: processes.count]
        return own.flatten(0, 1)

    def _every(self, interval_steps: int) -> bool:
        """Whether it is the turn of something done each so many steps (0: never but at the end), and at the end."""
        return self._step == self._config.optimizer.steps or (interval_steps > 0 and not self._step % interval_steps)

    def _wishes(self, received: list[int]) -> tuple[float, float, float]:
        """What this process wants: the signal to stop by, or 0; whether its time is over; whether to save."""
        config, clock = self._config.run, self._clock
        out_of_time = 0 < config.max_minutes * 60 <= clock.seconds_here()
        due = clock.seconds_since_save() >= config.snapshot_interval_s
        return float(sum(received[:1])), float(out_of_time), float(due)

    def _look(self, hooks: Sequence[Hook]) -> dict[str, float]:
        """What the hooks of the first process say of the model; gathering it may need all of them."""
        model = self._engine.inference_model()
        if not self._processes.first:
            return {}
        numbers = [hook(StepState(self._step, model, self._card, self._run)) for hook in hooks]
        return {name: value for found in numbers if found for name, value in found.items()}

    def _show(self, page: Page | None) -> None:
        if page is not None and self._clock.seconds_here() - self._page_s >= _PAGE_INTERVAL_S:
            self._page_s = self._clock.seconds_here()
            page(self._run)

    def _save(self, losses: Sequence[float] = ()) -> None:
        seconds = self._clock.seconds()
        position = Position(self._step, self._skipped, seconds, list(losses), list(self._watch.recent))
        card = _with_training(self._card, position, self._loss)
        save_snapshot(self._run, position, self._engine, card, self._config.run, self._processes)
        self._clock.saved()
        self._rollbacks = 0

    def _go_back(self, fault: str, log: Log, page: Page | None) -> None:
        """To the last snapshot, to go on behind the batches since; or the end, if that is what is configured."""
        config, at, saved = self._config.run, self._step, (self._run / SNAPSHOT).exists()
        log.event(at, "spike", fault)
        if config.on_divergence == "stop" or self._rollbacks >= config.max_rollbacks or not saved:
            if page is not None:
                page(self._run)
            kept = f"the last good snapshot is in {self._run}" if saved else "nothing was saved yet"
            or_else = ", or go on with run.on_divergence=rollback" if saved and config.on_divergence == "stop" else ""
            raise TrainingError(
                f"step {at}: {fault}; {kept}: start another run with a lower optimizer.learning_rate or "
                f"optimizer.max_gradient_norm=1{or_else}"
            )
        position = load_snapshot(self._run, self._engine)
        self._rollbacks += 1
        # Its clock goes on: the time was spent.
        self._stand_at(position._replace(skipped=at + self._skipped - position.step))
        self._clock.restarted(self._step)
        log.event(self._step, "rollback", f"{fault}; back from step {at}, passing over {at - self._step} batches")


def _claim(run: Path, processes: Processes, own: ExitStack) -> None:
    """Keep other jobs from the run until `own` ends; if the first process cannot, none goes on."""
    refused = None
    if processes.first:
        try:
            own.enter_context(claimed(run))
        except OutputError as error:
            refused = error
    (stop,) = processes.maximum(float(refused is not None))
    if stop:
        raise refused or OutputError(f"{run} cannot be used, as the first process of this run says; do what it says")


def build_card(store: Store, config: PretrainConfig) -> ModelCard:
    """The checkpoint's description; the front end and the statistics are the store's."""
    if config.model.mels != store.front_end.mels:
        raise ConfigError(
            f"model.mels is {config.model.mels} but {store.folder} has {store.front_end.mels} mel bands; "
            f"set model.mels={store.front_end.mels} or prepare another store"
        )
    return ModelCard(
        model=config.model,
        front_end=store.front_end,
        statistics=store.statistics,
        training={"config": to_dict(config)},
    )


def _check_step(config: PretrainConfig, processes: int) -> None:
    grid = grid_of(config.model)
    if grid.visible_patches(config.masking.ratio) >= grid.patches:
        raise ConfigError(
            f"masking.ratio is {config.masking.ratio:g}, which hides none of {grid.patches} patches; give more"
        )
    if config.data.batch_size % processes:
        raise ConfigError(
            f"data.batch_size is {config.data.batch_size}, which {processes} processes cannot share equally; give a "
            f"multiple of {processes}"
        )


def _with_training(card: ModelCard, position: Position, loss: float) -> ModelCard:
    # None before the first log interval is over: JSON has no NaN.
    known = loss if math.isfinite(loss) else None
    training: dict[str, Any] = {"step": position.step, "loss": known, "minutes": round(position.seconds / 60, 2)}
    decay = card.training["config"]["optimizer"]["ema_decay"]
    if decay:
        training["weights"] = f"exponential moving average, decay {decay}"
    return replace(card, training=training | card.training)


@contextmanager
def _signals(processes: int) -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM instead of dying of the first; the loop saves and ends at the next step."""
    received: list[int] = []
    first_s = 0.0

    def note(number: int, _frame: Any) -> None:
        nonlocal first_s
        # One process dies of a second one that is no echo of the first: a program around this one may pass on what both
        # got. Of several each gets two: its own, and the one that torchrun passes on.
        if processes == 1 and received and time.monotonic() - first_s > _ECHO_S:
            for kind, handler in before.items():
                signal.signal(kind, handler)
            signal.raise_signal(number)
        first_s = first_s or time.monotonic()
        received.append(number)

    before = {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, note)
        # Whoever started this under nohup wants it to go on.
        if _HANG_UP is not None and signal.getsignal(_HANG_UP) != signal.SIG_IGN:
            before[_HANG_UP] = signal.signal(_HANG_UP, note)
    except ValueError:
        # Only the main thread may set handlers; elsewhere the caller decides.
        pass
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
