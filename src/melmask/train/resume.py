"""Which configuration a call of `melmask pretrain` means: a recipe's for a new run, its own for one that goes on."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from melmask.config import PretrainConfig
from melmask.corpus.store import Store
from melmask.corpus.stream import CropStream
from melmask.errors import CheckpointError, ConfigError
from melmask.recipes import DEFAULT_RECIPE, recipe
from melmask.settings import from_dict, to_dict, with_overrides
from melmask.system.files import write_json
from melmask.train.snapshot import RUN_FILE, SNAPSHOT

_MAY_CHANGE = ("run.", "hardware.")
_MAY_NOT_CHANGE = ("run.seed",)


def resolve_config(run: Path, recipe_name: str | None, overrides: Sequence[str], store: Store) -> PretrainConfig:
    """The run's saved configuration if it has begun, else the recipe's; with overrides, and steps for epochs.

    Raises:
        ConfigError: unknown recipe or key, or a setting or store that would change the result of a run that has begun.
        CheckpointError: the run's file is damaged.
    """
    path = run / RUN_FILE
    if not path.exists():
        if (run / SNAPSHOT).exists():
            raise CheckpointError(f"{path} is missing, but {SNAPSHOT} is there; put it back, or use another --out")
        return _with_steps(with_overrides(recipe(recipe_name or DEFAULT_RECIPE), overrides), overrides, store)
    try:
        saved = from_dict(PretrainConfig, json.loads(path.read_text())["pretrain"])
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged; use another --out") from error
    except ConfigError as error:
        raise CheckpointError(f"{path} is damaged or of another melmask ({error}); use another --out") from error
    # A store that has grown gives other steps for its epochs, which nobody has asked for.
    check_store(run, store)
    wanted = _with_steps(with_overrides(recipe(recipe_name) if recipe_name else saved, overrides), overrides, store)
    before, after = _flat(to_dict(saved)), _flat(to_dict(wanted))
    for key, value in after.items():
        fixed = key in _MAY_NOT_CHANGE or not key.startswith(_MAY_CHANGE)
        if fixed and value != before[key]:
            raise ConfigError(
                f"{run} was begun with {key} = {before[key]}, not {value}; use another --out for another run"
            )
    return wanted


def _with_steps(config: PretrainConfig, overrides: Sequence[str], store: Store) -> PretrainConfig:
    if not config.optimizer.epochs:
        return config
    steps = [text for text in overrides if text.startswith(("optimizer.steps=", "optimizer.warmup_steps="))]
    if steps:
        raise ConfigError(
            f"{steps[0]} does not fit optimizer.epochs, which gives the steps; add optimizer.epochs=0 and "
            "optimizer.warmup_epochs=0, or set the epochs"
        )
    crops = CropStream(store, config.data, config.model.frames, config.run.seed).crops_per_epoch
    steps_per_epoch = crops / config.data.batch_size
    optimizer = replace(
        config.optimizer,
        steps=max(1, round(config.optimizer.epochs * steps_per_epoch)),
        warmup_steps=round(config.optimizer.warmup_epochs * steps_per_epoch),
    )
    return replace(config, optimizer=optimizer)


def note_run(run: Path, config: PretrainConfig, store: Store) -> None:
    """Write the run's configuration and which store it is for."""
    facts = {
        "pretrain": to_dict(config),
        "store": str(store.folder.resolve()),
        "store_sha256": store.sha256,
        "frames": int(store.frames.sum()),
        "hop_ms": store.front_end.hop_ms,
    }
    write_json(run / RUN_FILE, facts)


def check_store(run: Path, store: Store) -> None:
    """Raise ConfigError if the run was begun with a store of other content: its crops would be others."""
    path = run / RUN_FILE
    begun_with = json.loads(path.read_text()) if path.exists() else {}
    frames = int(store.frames.sum())
    if (begun_with.get("frames", frames), begun_with.get("store_sha256", store.sha256)) != (frames, store.sha256):
        raise ConfigError(
            f"{run} was begun with a store of {begun_with.get('frames', 'other')} frames; {store.folder} has "
            f"{frames} and other clips or another front end: give the store that it was begun with, or another --out"
        )


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat
