"""The pre-training loop: batch, draws, rate, step, log, look, save.

Everything random is a pure function of (seed, batch number). So a run's state is its weights, moments and position, and
a resumed run equals an uninterrupted one. A look at the model (pictures, scores) comes before the snapshot of its step:
if a kill comes between them, the run resumes before that step and looks again. Every process runs this loop. What one
process alone knows (signals, the time) becomes common knowledge while the device computes a step.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from melmask.checkpoint.folder import ModelCard
from melmask.config import PretrainConfig
from melmask.config_text import to_dict
from melmask.corpus.store import Corpus
from melmask.corpus.stream import CropStream
from melmask.errors import ConfigError, OutputError, StoreError, TrainingError
from melmask.models.network import Network
from melmask.objectives.base import build_objective
from melmask.synth.scenes import GENERATOR
from melmask.system.files import claimed
from melmask.system.hardware import keep_freed_memory, matmul_peak
from melmask.system.terminal import note
from melmask.train.boards import open_boards
from melmask.train.clock import Clock, peak_memory_bytes
from melmask.train.divergence import Measured, find_fault, roll_back
from melmask.train.engine import Engine
from melmask.train.log import Log, MetricsLog
from melmask.train.optimizer import learning_rate
from melmask.train.processes import Processes, joined_processes
from melmask.train.record import MetricsRow, update_run_file, write_run_file
from melmask.train.resume import check_store
from melmask.train.schedule import Planner, Schedule, scheduled
from melmask.train.signals import collected_signals
from melmask.train.snapshot import finish_snapshot, load_snapshot, remove_leftovers, save_snapshot, set_aside_beyond
from melmask.train.state import RunState, Training


class StepState(NamedTuple):
    """What a hook may look at after a step."""

    step: int
    model: Network
    card: ModelCard
    run: Path


Hook = Callable[[StepState], dict[str, float] | None]
"""Called by the first process after every step that is a multiple of `run.picture_interval_steps`, and after the last;
it may return numbers to log."""


Page = Callable[[Path], object]
"""Called by the first process with the run's folder to show the run as it is: after numbers were logged, but at most
once in half a minute, and at the end."""

_PAGE_INTERVAL_S = 30.0
_ENDLESS = 2**62
_PEAK_PRODUCT_SIZE = 1024
"""Products of this size show in milliseconds, within a few per cent, how fast the machine is."""


class Outcome(NamedTuple):
    """How a call of `pretrain` ended: steps done in all, the last logged loss, the signal that stopped it or 0."""

    step: int
    steps: int
    loss: float
    stopped_by: int


def pretrain(
    store: Corpus,
    run: Path,
    config: PretrainConfig,
    hooks: Sequence[Hook] = (),
    page: Page | None = None,
    initial_weights: dict[str, Tensor] | None = None,
) -> Outcome:
    """Train until `optimizer.steps`, a signal, or `run.max_minutes`; resume from the run's snapshot if it has one.

    Args:
        store: The log-mels to learn from.
        run: The run's folder; several processes must all see it.
        config: The configuration; a resumed run needs the one that it began with (`melmask.train.resume`).
        hooks: They look at the model while it trains; only those of the first process are called.
        page: It shows the run while it trains.
        initial_weights: Weights of the network by name, instead of random ones, for a new run.

    Raises:
        ConfigError: the model does not fit the store's front end, the run began with another store, or the processes
            cannot share the batch equally.
        OutputError: the run's folder cannot be written to, or another job is using it.
        TrainingError: the loss is no longer finite or has jumped; the last snapshot is kept.
    """
    with ExitStack() as own:
        training, state = _set_up(own, store, run, config, initial_weights)
        engine, processes, clock = training.engine, training.processes, training.clock
        planner = Planner(config.optimizer, state.step, clock.seconds())
        # Only the first process writes, draws pictures and prints.
        page, hooks = (page, hooks) if processes.first else (None, ())
        own.enter_context(_recorded(training, state, page))
        if not state.step and (initial_weights is not None or config.run.on_divergence == "rollback"):
            # A kill would lose the weights of another model, and a rollback needs a snapshot to return to.
            save_snapshot(training, state, [])

        finish_snapshot(training, state)
        if state.look_pending:
            training.log.note(state.step, _look(training, state, hooks))
        # This loop turns once, and once more after each rollback, which skips the batches that led to it.
        while not state.ended:
            # A run that plans its steps does not know yet how many batches it takes.
            count = _ENDLESS if config.optimizer.minutes else state.schedule.steps - state.step
            with closing(training.stream.batches(state.batch, count, config.hardware.readers)) as batches:
                for crops in clock.waits(batches):
                    drawn = engine.objective.draw(state.batch, processes.rank, processes.count)
                    rate = learning_rate(state.step, config.optimizer, training.views, state.schedule)
                    # Each process sees only its own signals and time. They exchange them while the device computes.
                    asked = processes.begin_maximum(lambda: _wishes(training))
                    loss, norm = engine.step(crops, drawn, rate)
                    state.stepped(loss)

                    *wishes, seconds = asked()
                    _plan(training, state, planner.look(state.schedule, state.step, seconds))
                    due = _due(training, state, *wishes)
                    # Most steps end here, without waiting for the device.
                    if not any(due):
                        continue
                    measured, losses, fault = _measure(training, state, norm, due.save)
                    if fault is not None:
                        facts = f"(learning rate {rate:.2e}, gradient norm {measured.gradient_norm:.2e})"
                        roll_back(training, state, f"{fault} {facts}")
                        break

                    if due.log:
                        _log(training, state, measured, rate)
                    with clock.beside():
                        _show_and_save(training, state, due, [] if due.log else losses, (page, hooks))
                    if due.end:
                        state.ended = True
                        break
        return Outcome(state.step, _steps(training, state), state.loss, state.stopped_by)


def _set_up(
    own: ExitStack, store: Corpus, run: Path, config: PretrainConfig, initial_weights: dict[str, Tensor] | None
) -> tuple[Training, RunState]:
    """Build what the loop works with, and restore where the run stands; `own` closes it all at the end."""
    keep_freed_memory()
    processes = own.enter_context(joined_processes(config.hardware))
    least = processes.count * config.crops_together
    if config.data.batch_size % least:
        groups = f" in groups of {config.crops_together} crops (contrast.crops)" if config.contrast.weight else ""
        raise ConfigError(
            f"data.batch_size is {config.data.batch_size}, which {processes.count} processes cannot share "
            f"equally{groups}; give a multiple of {least}"
        )
    objective = build_objective(config, initial_weights)
    # All checks come before anything is written, so that a refused call leaves a run as it was.
    _claim(run, processes, own)
    check_store(run, store)
    # The objective may have kept the decoder for itself.
    card = replace(build_card(store, config), model=objective.network.config)
    engine = Engine(objective, config, store.statistics, processes)
    state = load_snapshot(run, engine)
    if not state.schedule.parts:
        state.schedule = Schedule.of(config.optimizer)
    planned = scheduled(config, state.schedule)
    training = Training(
        run=run,
        config=config,
        card=card,
        engine=engine,
        processes=processes,
        stream=CropStream(store, config.data, config.model.frames, config.run.seed, processes.rank, processes.count),
        clock=Clock(state.step, state.seconds),
        log=own.enter_context(closing(_open_log(run, planned, store, state.step) if processes.first else Log())),
        signals=own.enter_context(collected_signals(processes.count)),
        peak_flops=matmul_peak(processes.device, engine.precision, _PEAK_PRODUCT_SIZE) * processes.count,
    )
    return training, state


class _Due(NamedTuple):
    """What has to be done after a step."""

    log: bool
    save: bool
    look: bool
    end: bool


def _wishes(training: Training) -> tuple[float, float, float, float]:
    """Return the signal to stop by, or 0, whether this process' time is over, whether to save, and the run's time."""
    config, clock = training.config.run, training.clock
    out_of_time = 0 < config.max_minutes * 60 <= clock.seconds_here()
    save = clock.seconds_since_save() >= config.snapshot_interval_s
    return float(sum(training.signals[:1])), float(out_of_time), float(save), clock.seconds()


def _plan(training: Training, state: RunState, schedule: Schedule) -> None:
    """Continue with this schedule; record it if it is another one."""
    if schedule is state.schedule:
        return
    state.schedule = schedule
    if training.processes.first:
        update_run_file(training.run, scheduled(training.config, schedule))
    minutes = training.config.optimizer.minutes
    training.log.event(state.step, "plan", f"{schedule.steps} steps in {minutes:g} minutes")


def _steps(training: Training, state: RunState) -> int:
    """Return the steps of the whole run; those of the recipe before a run has planned its own."""
    return state.schedule.steps or max(training.config.optimizer.steps, state.step + 1)


def _due(training: Training, state: RunState, stopped_by: float, out_of_time: float, save: float) -> _Due:
    """Decide what to do after this step; the last three arguments are what any process asks for."""
    config = training.config
    last = state.step >= _steps(training, state)

    def every(interval_steps: int) -> bool:
        """Tell whether an interval ends here; one of 0 steps ends only with the run."""
        return last or (interval_steps > 0 and not state.step % interval_steps)

    state.stopped_by = int(stopped_by)
    end = last or bool(stopped_by or out_of_time)
    looks = every(config.run.picture_interval_steps)
    return _Due(every(config.run.log_interval_steps), end or bool(save), looks, end)


def _measure(training: Training, state: RunState, norm: Tensor, save: bool) -> tuple[Measured, list[float], str | None]:
    """Return numbers of the steps since the last call, their losses, and what is wrong with them, if anything is.

    This is the one place where the loop waits for the device.
    """
    processes = training.processes
    losses = processes.mean(torch.stack(state.losses))
    (gradient_norm,) = processes.maximum(float(norm))
    measured = Measured(float(losses.mean()), float(losses.max()), gradient_norm)
    fault = find_fault(measured, state.recent, training.config.run.spike_factor)
    # The loss is that of the weights before the step. A snapshot must not hold what the step broke.
    if fault is None and save and any(processes.maximum(float(training.engine.is_broken()))):
        fault = "the step left weights that are not finite numbers"
    return measured, losses.tolist(), fault


def _show_and_save(
    training: Training,
    state: RunState,
    due: _Due,
    losses: list[float],
    shows: tuple[Page | None, Sequence[Hook]],
) -> None:
    """Show the run on its page and let the hooks look, then save it with the losses that were not logged."""
    page, hooks = shows
    if due.log and page is not None and training.clock.page_due(_PAGE_INTERVAL_S):
        page(training.run)
    # A scheduler that stops a run may soon kill it: it looks when it resumes.
    state.look_pending = due.look and state.stopped_by > 0 and state.step < _steps(training, state)
    if due.look and not state.look_pending:
        training.log.note(state.step, _look(training, state, hooks))
    if due.save:
        save_snapshot(training, state, losses)


def _log(training: Training, state: RunState, measured: Measured, rate: float) -> None:
    """Log the interval that ends with this step, and begin the next one."""
    config = training.config
    batch_size, steps = config.data.batch_size, _steps(training, state)
    rates = training.clock.rates(state.step, steps, batch_size)
    flops_per_s = training.engine.objective.step_flops(batch_size) * rates.crops_per_s / batch_size
    row = MetricsRow(
        step=state.step,
        loss=measured.mean_loss,
        learning_rate=rate,
        gradient_norm=measured.gradient_norm,
        **rates._asdict(),
        peak_share=flops_per_s / training.peak_flops,
        memory_mb=peak_memory_bytes(training.processes.device) / 2**20,
    )
    state.logged(measured.mean_loss)
    training.log.write(row, steps)
    contention = training.engine.contention
    if contention is not None and (news := contention.news()):
        training.log.say(news)


def _look(training: Training, state: RunState, hooks: Sequence[Hook]) -> dict[str, float]:
    """Let the hooks look at the model and return their numbers."""
    # Gathering a sharded model takes all processes, also those without hooks.
    model = training.engine.inference_model()
    numbers = [hook(StepState(state.step, model, training.card, training.run)) for hook in hooks]
    return {name: value for found in numbers if found for name, value in found.items()}


def _open_log(run: Path, config: PretrainConfig, store: Corpus, step: int) -> MetricsLog:
    """Open the record of a run that begins, or that resumes at `step`."""
    write_run_file(run, config, store)
    for path in set_aside_beyond(run, step):
        note(f"melmask: {path} is of a training that went further than this one, so it was set aside")
    return MetricsLog(run, step, open_boards(run, step, config))


@contextmanager
def _recorded(training: Training, state: RunState, page: Page | None) -> Iterator[None]:
    """Record that the run begins and how this call of `pretrain` ends, and show it at the end."""
    run, log = training.run, training.log
    show = page or (lambda _: None)
    state.loss, state.ended = log.last_loss, state.step >= _steps(training, state)
    shares = training.engine.shares
    if shares > 1 and not state.ended:
        log.say(f"this CPU computes {shares} shares of each batch side by side (hardware.shares)")
    count = training.processes.count
    # The run's page reads the number from this text.
    log.event(state.step, "resume" if state.step else "start", "1 process" if count == 1 else f"{count} processes")
    try:
        yield
    except (OutputError, StoreError) as error:
        # Without this event, the record would show the run as still running. A full disk may refuse it.
        with suppress(OutputError):
            log.event(state.step, "stop", str(error))
        raise
    except TrainingError:
        # `roll_back` has recorded the reason.
        show(run)
        raise
    if state.step < _steps(training, state):
        why = f"signal {state.stopped_by}" if state.stopped_by else "run.max_minutes"
        log.event(state.step, "stop", why)
    else:
        log.event(state.step, "done", "")
    show(run)


def _claim(run: Path, processes: Processes, own: ExitStack) -> None:
    """Keep other jobs from the run until `own` ends.

    Raises:
        OutputError: another job has it, or its folder cannot be written to; raised in all processes.
    """
    refused = None
    if processes.first:
        try:
            own.enter_context(claimed(run))
            remove_leftovers(run)
        except OutputError as error:
            refused = error
    (stop,) = processes.maximum(float(refused is not None))
    if stop:
        raise refused or OutputError(f"{run} cannot be used; the first process of this run reports why")


def build_card(store: Corpus, config: PretrainConfig) -> ModelCard:
    """Build the checkpoint's description; the front end and the statistics are the store's.

    Raises:
        ConfigError: the model does not fit the front end.
    """
    # Any other setting of the front end may differ between runs; only the height of the input is built in.
    if config.model.mels != store.front_end.mels:
        raise ConfigError(
            f"model.mels is {config.model.mels} but {store.folder} has {store.front_end.mels} mel bands; "
            f"set model.mels={store.front_end.mels} or prepare another store"
        )
    has, wants = store.front_end.resolutions, config.model.resolutions
    if has != wants:
        hint = f"with --resolutions {wants}" if wants <= 2 else "anew"
        raise ConfigError(
            f"model.resolutions is {wants} but {store.folder} has {has}; prepare another store {hint}, or set "
            f"model.resolutions={has}"
        )
    return ModelCard(
        model=config.model,
        front_end=store.front_end,
        statistics=store.statistics,
        reading=store.reading,
        training={"config": to_dict(config), **_sound_facts(store, config)},
        layers=config.features.layers(config.model.depth),
    )


def _sound_facts(store: Corpus, config: PretrainConfig) -> dict[str, object]:
    """Say how much of what a model is trained on, if some of it is synthetic."""
    if not config.data.synth_crops:
        return {}
    hop_s = store.front_end.hop_ms / store.reading.expand / 1000
    hours = float(store.frames.sum()) * hop_s / 3600 if config.data.synth_share < 1 else 0.0
    share = config.data.synth_crops / config.data.batch_size
    return {"sound": {"recorded_hours": round(hours, 3), "synthetic_share": share, "generator": GENERATOR}}
