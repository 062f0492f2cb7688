"""Which configuration a call of `melmask pretrain` means: the recipe's for a new run, its own for a resumed one."""

from collections.abc import Sequence
from dataclasses import replace
from operator import attrgetter
from pathlib import Path

from melmask.config import PretrainConfig
from melmask.config_text import to_dict
from melmask.corpus.store import Corpus
from melmask.corpus.stream import CropStream
from melmask.errors import CheckpointError, ConfigError
from melmask.recipes import DEFAULT_RECIPE, ONE_RESOLUTION_RECIPE, recipe, with_settings
from melmask.train.record import RUN_FILE, flat, read_run_file
from melmask.train.snapshot import SNAPSHOT

_MAY_CHANGE = ("features.", "run.", "hardware.")
_MAY_NOT_CHANGE = ("run.seed",)


def resolve_config(
    run: Path, recipe_name: str | None, overrides: Sequence[str], store: Corpus | None
) -> PretrainConfig:
    """Return the run's saved configuration if it has begun, else the recipe's, with overrides and epochs as steps.

    `store` is None for a run whose crops are all synthetic.

    Raises:
        ConfigError: a recipe or key is unknown, or a setting or the store would change the result of a run that has
            begun.
        CheckpointError: the run's file is damaged.
    """
    path = run / RUN_FILE
    begun = read_run_file(run)
    if begun is None:
        if (run / SNAPSHOT).exists():
            raise CheckpointError(f"{path} is missing, but {SNAPSHOT} is there; put it back, or use another --out")
        name = recipe_name or _default_recipe(store)
        return _with_steps(with_settings(recipe(name), overrides), overrides, store)
    try:
        saved = begun.config()
    except ConfigError as error:
        raise CheckpointError(f"{path} is damaged or of another melmask ({error}); use another --out") from error
    # This comes before epochs become steps: a store that has grown would silently change the number of steps.
    if store is not None:
        check_store(run, store)
    wanted = _with_steps(with_settings(recipe(recipe_name) if recipe_name else saved, overrides), overrides, store)
    if (key := _other_setting(saved, wanted)) is not None:
        # Without the recipe, the settings of the command line still count.
        without = _with_steps(with_settings(saved, overrides), overrides, store)
        leave = ", or leave out --recipe to resume it" if _other_setting(saved, without) is None else ""
        had, value = (attrgetter(key)(config) for config in (saved, wanted))
        raise ConfigError(f"{run} began with {key} = {had}, not {value}; use another --out for another run{leave}")
    return wanted


def _other_setting(saved: PretrainConfig, wanted: PretrainConfig) -> str | None:
    """Return the first setting that may not change in a run that has begun, and does; None if there is none."""
    # What follows from other settings is not compared: the share of the warm-up, or the steps that minutes plan.
    derived = ("optimizer.steps", "optimizer.warmup_steps") if saved.optimizer.minutes else ("optimizer.warmup_share",)
    # Settings may be left out of either where they have their default.
    for key in {**flat(to_dict(saved)), **flat(to_dict(wanted))}:
        fixed = key in _MAY_NOT_CHANGE or not key.startswith((*_MAY_CHANGE, *derived))
        if fixed and attrgetter(key)(saved) != attrgetter(key)(wanted):
            return key
    return None


def _default_recipe(store: Corpus | None) -> str:
    """Return the recipe of a run that names none: stores of release 0.1.0 have one resolution."""
    return ONE_RESOLUTION_RECIPE if store is not None and store.front_end.resolutions == 1 else DEFAULT_RECIPE


def _with_steps(config: PretrainConfig, overrides: Sequence[str], store: Corpus | None) -> PretrainConfig:
    steps = [text for text in overrides if text.startswith(("optimizer.steps=", "optimizer.warmup_steps="))]
    if config.optimizer.minutes:
        return _with_minutes(config, steps)
    if not config.optimizer.epochs:
        return config
    if steps:
        raise ConfigError(
            f"{steps[0]} does not fit optimizer.epochs, which decides the steps; add optimizer.epochs=0 and "
            "optimizer.warmup_epochs=0, or set the epochs"
        )
    from_store = config.data.batch_size - config.data.synth_crops
    if store is None or not from_store:
        raise ConfigError(
            "optimizer.epochs counts passes over a store, but all crops are synthetic; add optimizer.epochs=0 and "
            "optimizer.warmup_epochs=0, and set optimizer.steps, or give --minutes"
        )
    # The stream knows how many crops an epoch of this store has.
    crops = CropStream(store, config.data, config.model.frames, config.run.seed).crops_per_epoch
    steps_per_epoch = crops / from_store
    optimizer = replace(
        config.optimizer,
        steps=max(1, round(config.optimizer.epochs * steps_per_epoch)),
        warmup_steps=round(config.optimizer.warmup_epochs * steps_per_epoch),
    )
    return replace(config, optimizer=optimizer)


def _with_minutes(config: PretrainConfig, steps: Sequence[str]) -> PretrainConfig:
    """Return the configuration of a run that plans its steps itself, with the share of its warm-up."""
    if steps:
        raise ConfigError(
            f"{steps[0]} does not fit optimizer.minutes, which decides the steps; give either of the two, and the "
            "warm-up as optimizer.warmup_share"
        )
    old = config.optimizer
    by_steps = old.warmup_share or old.warmup / old.steps
    share = old.warmup_epochs / old.epochs if old.epochs else by_steps
    optimizer = replace(old, epochs=0.0, warmup_epochs=0.0, warmup_share=share, warmup_steps=round(share * old.steps))
    return replace(config, optimizer=optimizer)


def check_store(run: Path, store: Corpus) -> None:
    """Check that the run began with this store; with another one, it would train on other crops.

    Raises:
        ConfigError: it began with a store of other content.
        CheckpointError: the run's file is damaged.
    """
    begun = read_run_file(run)
    if begun is None:
        return
    frames = int(store.frames.sum())
    # The files of early versions lack these numbers, and nothing can be compared then.
    same_length, same_content = begun.frames in (None, frames), begun.store_sha256 in (None, store.sha256)
    if not (same_length and same_content):
        if store.folder is None:
            raise ConfigError(f"{run} began with the store {begun.store}; give it, or another --out")
        if not begun.store and begun.store_sha256:
            raise ConfigError(f"{run} began without a store; leave out {store.folder}, or give another --out")
        raise ConfigError(
            f"{run} began with a store of {begun.frames or 'other'} frames; {store.folder} has {frames} and other "
            "clips or another front end; give the store that it began with, or another --out"
        )
