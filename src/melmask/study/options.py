"""The options of `melmask study`; they stand before what the study's file says. PyTorch is not imported."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from melmask.labels.options import TableOptions
from melmask.study.description import Study, read_study


@dataclass(frozen=True, kw_only=True)
class StudyOptions:
    """How a study is done."""

    sounds: tuple[Path, ...] = field(default=(), metadata={"metavar": "SOURCE"})
    """Sounds to learn from, instead of the study's: folders, sound files, or tables with a column of paths. Leave out
    test rows."""
    labels: tuple[Path, ...] = field(default=(), metadata={"metavar": "CSV"})
    """Labeled files to judge on, instead of the study's: a table, or the folder of a data set, for each task."""
    recipe: str | None = field(default=None, metadata={"metavar": "NAME"})
    """Recipe that all runs share, instead of the study's."""
    minutes: float | None = None
    """Minutes of training of each run, instead of the study's budget."""
    steps: int | None = field(default=None, metadata={"limits": (1, 2**31)})
    """Steps of each run, instead of the study's budget."""
    seeds: tuple[int, ...] = field(default=(), metadata={"metavar": "N"})
    """Seeds of the runs, instead of the study's."""
    side_by_side: int | None = field(default=None, metadata={"limits": (1, 1024)})
    """How many runs are under way at once, instead of the study's number. They share the cores."""
    clips: int | None = field(default=None, metadata={"limits": (1, 2**31)})
    """Judge by at most this many rows of each table, instead of the study's number."""
    shard: str | None = field(default=None, metadata={"metavar": "I/N"})
    """I/N: do every N-th run from the I-th on, 0 <= I < N, as one of N jobs of an array."""
    engine: Literal["local", "ray"] = "local"
    """Where to compute: on this machine, or on a Ray cluster."""
    merge: tuple[Path, ...] = field(default=(), metadata={"metavar": "STUDY"})
    """Folders of other shards of the same study, whose runs count as done and are shown."""
    final: bool = False
    """When all runs are done, judge the winner on the test rows. This is done once, and recorded."""
    table: TableOptions = field(default=TableOptions())


def chosen_study(source: str, options: StudyOptions, settings: tuple[str, ...] = ()) -> Study:
    """Return the study that a command line asks for.

    Raises:
        InputError: there is no such study, or its file is not TOML.
        ConfigError: a part of it cannot be used.
    """
    study = read_study(source)
    given: dict[str, Any] = {
        "sounds": tuple(path.absolute() for path in options.sounds),
        "labels": tuple(path.absolute() for path in options.labels),
        "recipe": options.recipe,
        "seeds": options.seeds,
        "side_by_side": options.side_by_side,
        "clips": options.clips,
        "settings": (*study.settings, *settings) if settings else (),
    }
    changes = {name: value for name, value in given.items() if value}
    if options.minutes is not None or options.steps is not None:
        changes |= {"minutes": options.minutes or 0.0, "steps": options.steps or 0}
    table = {name: value for name, value in vars(options.table).items() if value is not None}
    if table.get("audio_root"):
        table["audio_root"] = table["audio_root"].absolute()
    return replace(study, **changes, table=replace(study.table, **table))
