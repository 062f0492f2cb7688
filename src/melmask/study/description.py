"""What a study is: its TOML file, as frozen dataclasses that check themselves. PyTorch is not imported here.

    recipe = "tiny"                     # settings that all runs share: a recipe ...
    sounds = ["sounds.csv"]             # folders, sound files or tables to learn from
    labels = ["words.csv"]              # labeled tables to judge on, or folders of data sets
    seeds = [0, 1, 2]
    minutes = 5.0                       # of training for each run; or steps = 400
    search = "one"                      # "grid", "one" axis at a time around the recipe, or "random"
    random_runs = 20                    # how many settings "random" draws
    side_by_side = 1                    # runs at once
    scene = "mean+std"                  # what a clip's vector holds
    clips = 0                           # choose by at most so many rows of each table; 0: all
    choose_by = "linear"                # the probe that names the winner, or "k-NN"

    [settings]                          # ... and changes of it, also of the front end
    "masking.normalize_target" = true
    "front_end.win_samples" = 400

    [[axes]]
    name = "patch"
    settings = ["model.patch_mels", "model.patch_frames"]
    values = [[16, 16], [16, 8]]

    [table]                             # how tables are read: audio_root, path_column, label_column
    audio_root = "/data"

Relative paths begin at the file's folder.
"""

import itertools
import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from importlib import resources
from pathlib import Path
from typing import Any, Literal, get_args

from melmask.downstream.options import ProbeOptions
from melmask.embedding.choice import AUTO, SCENES
from melmask.errors import ConfigError, InputError, unknown_name
from melmask.labels.options import TableOptions
from melmask.recipes import DEFAULT_RECIPE
from melmask.system.reading import SMALL_FILE_BYTES, read_text, reason_of

BUNDLED = ("paper", "mine")
"""Studies that come with melmask; each is a file in `melmask/study/bundled`."""
Value = bool | int | float | str
Search = Literal["grid", "one", "random"]
Probe = Literal["linear", "k-NN"]
_PATHS = ("sounds", "labels")
_OWN_END = "run.max_minutes"
# These may grow while a study lasts; a change of any other part would mix runs that do not compare.
MAY_GROW = ("name", "about", "axes", "seeds", "labels", "side_by_side", "random_runs", "choose_by")


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One thing that a study varies: a setting, or several settings that change together."""

    name: str
    settings: tuple[str, ...]
    values: tuple[tuple[Value, ...], ...]
    """Each has a value for each setting."""

    def __post_init__(self) -> None:
        if not self.settings or not self.values:
            raise ConfigError(f"axis {self.name!r} has no settings or no values; give both, as lists")
        for value in self.values:
            if len(value) != len(self.settings):
                raise ConfigError(
                    f"axis {self.name!r} has the value {list(value)} for {len(self.settings)} settings; give "
                    f"{len(self.settings)} numbers or words, in the order {', '.join(self.settings)}"
                )


@dataclass(frozen=True, kw_only=True)
class Study:
    """All that a study's file says."""

    name: str
    about: str = ""
    recipe: str = DEFAULT_RECIPE
    settings: tuple[str, ...] = ()
    """Changes of the recipe, as "section.name=value"."""
    axes: tuple[Axis, ...] = ()
    search: Search = "grid"
    random_runs: int = 20
    seeds: tuple[int, ...] = (0,)
    minutes: float = 0.0
    steps: int = 0
    """Steps of each run; with 0 minutes and 0 steps, those of the recipe."""
    sounds: tuple[Path, ...] = ()
    labels: tuple[Path, ...] = ()
    table: TableOptions = field(default_factory=TableOptions)
    side_by_side: int = 1
    scene: str = "mean+std"
    clips: int = 0
    choose_by: Probe = "linear"

    def __post_init__(self) -> None:
        if self.minutes < 0 or self.steps < 0 or (self.minutes and self.steps):
            raise ConfigError(f"minutes is {self.minutes} and steps {self.steps}; give one of them, above 0")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ConfigError(f"seeds are {list(self.seeds)}; give whole numbers, each once")
        names = [axis.name for axis in self.axes]
        if not names or len(set(names)) < len(names):
            raise ConfigError(f"the axes are {names}; give at least one, each with a name of its own")
        settings = [setting for axis in self.axes for setting in axis.settings]
        if self.search != "one" and len(set(settings)) < len(settings):
            twice = next(setting for setting in settings if settings.count(setting) > 1)
            raise ConfigError(
                f'search is {self.search!r}, and {twice} is on two axes; vary it on one, or set search = "one"'
            )
        if self.side_by_side < 1 or self.random_runs < 1 or self.clips < 0:
            raise ConfigError("side_by_side and random_runs are whole numbers from 1, and clips from 0")
        if any(text.partition("=")[0] == _OWN_END for text in (*self.settings, *settings)):
            raise ConfigError(f"{_OWN_END} would end runs before their budget; give the study minutes or steps instead")

    @property
    def budget(self) -> tuple[str, ...]:
        """The setting that decides how long each run is."""
        if self.minutes:
            return (f"optimizer.minutes={self.minutes}",)
        return (f"optimizer.steps={self.steps}",) if self.steps else ()

    @property
    def probe(self) -> ProbeOptions:
        """How tables are read and clips become vectors."""
        choice = ProbeOptions().choice.changed(scene=self.scene)
        return ProbeOptions(table=self.table, choice=choice)


def read_study(source: str) -> Study:
    """Read the study that `source` names: a TOML file, or one of `BUNDLED`.

    Raises:
        InputError: there is no such file, or it is not TOML.
        ConfigError: it has an unknown part, or a value that cannot be used.
    """
    path = Path(source)
    if source in BUNDLED and not path.is_file():
        text = resources.files("melmask.study").joinpath("bundled", f"{source}.toml").read_text(encoding="utf-8")
        path = Path(f"{source}.toml")
    elif path.is_file():
        try:
            text = read_text(path, SMALL_FILE_BYTES)
        except (OSError, ValueError) as error:
            raise InputError(f"{path} is not a study ({reason_of(error)}); give a TOML file") from error
    else:
        raise InputError(f"there is no study {source}; give a TOML file, or one of {', '.join(BUNDLED)}")
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{source} is not TOML: {error}; see `melmask study --help` for an example") from None
    return study_from(content, path.stem, path.absolute().parent)


def study_from(content: Mapping[str, Any], name: str, folder: Path) -> Study:
    """Build a study from what its file holds; relative paths begin at `folder`.

    Raises:
        ConfigError: it has an unknown part, or a value that cannot be used.
    """
    known = [part.name for part in fields(Study)]
    for key in content:
        if key not in known:
            raise unknown_name("part of a study", key, known)
    given: dict[str, Any] = {"name": name, "random_runs": 20, "side_by_side": 1, **content}
    for key, kind in (("minutes", float), ("steps", int), ("random_runs", int), ("side_by_side", int), ("clips", int)):
        value = given.get(key, 0)
        if isinstance(value, bool) or not isinstance(value, (int, kind)):
            raise ConfigError(f"{key} is {value!r}; give a number")
        given[key] = kind(value)
    for key, words in (("search", get_args(Search)), ("choose_by", get_args(Probe)), ("scene", (*SCENES, AUTO))):
        if key in given and given[key] not in words:
            raise unknown_name(key, str(given[key]), words)
    for key in ("recipe", "about", "name"):
        if not isinstance(given.get(key, ""), str):
            raise ConfigError(f"{key} is {given[key]!r}; give a text")
    for key in _PATHS:
        given[key] = tuple(folder / path for path in _list(key, given.get(key, []), str))
    given["seeds"] = tuple(_list("seeds", given.get("seeds", [0]), int))
    if isinstance(given.get("axes"), Mapping):
        raise ConfigError("axes is one table; write [[axes]] with two brackets above each axis, not [axes]")
    given["axes"] = tuple(map(_axis, _list("axes", given.get("axes", []), dict)))
    settings = given.get("settings", {})
    if isinstance(settings, Mapping):
        settings = [f"{key}={value_text(value)}" for key, value in _leaves(settings)]
    given["settings"] = tuple(_list("settings", settings, str))
    given["table"] = _table(given.get("table", {}), folder)
    return Study(**given)


def as_content(study: Study) -> dict[str, Any]:
    """Return what `study_from` reads back; it can be written as JSON, and its paths are absolute."""
    content = asdict(study)
    content |= {key: [str(path) for path in content[key]] for key in _PATHS}
    content["table"] = {key: str(value) for key, value in content["table"].items() if value is not None}
    return content


def value_text(value: Value | list[object]) -> str:
    """Write a value as settings on a command line have it."""
    if isinstance(value, list):
        return json.dumps(value)
    if isinstance(value, bool):
        return str(value).lower()
    # Six digits, unless the number has more.
    return short if isinstance(value, float) and float(short := f"{value:g}") == value else str(value)


def _axis(content: Mapping[str, Any]) -> Axis:
    for key in content:
        if key not in ("name", "settings", "setting", "values"):
            raise unknown_name("part of an axis", key, ("name", "settings", "values"))
    settings = content.get("settings", content.get("setting", []))
    settings = [settings] if isinstance(settings, str) else _list("settings of an axis", settings, str)
    values = _list("values of an axis", content.get("values", []), object)
    lists = [tuple(value) if isinstance(value, list | tuple) else (value,) for value in values]
    for value in itertools.chain.from_iterable(lists):
        if not isinstance(value, bool | int | float | str):
            raise ConfigError(
                f"an axis has the value {value!r}; give numbers, words, true or false, or a list as JSON text"
            )
    name = content.get("name") or " and ".join(setting.rpartition(".")[2] for setting in settings)
    return Axis(name=str(name), settings=tuple(settings), values=tuple(dict.fromkeys(lists)))


def _leaves(settings: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Value | list[object]]]:
    """Return settings by their dotted keys; TOML reads an unquoted `masking.ratio` as a table with a `ratio`."""
    found: list[tuple[str, Value | list[object]]] = []
    for key, value in settings.items():
        found += _leaves(value, f"{prefix}{key}.") if isinstance(value, Mapping) else [(prefix + key, value)]
    return found


def _list(name: str, value: Any, kind: type) -> Sequence[Any]:
    if not isinstance(value, list | tuple) or not all(isinstance(item, kind) for item in value):
        raise ConfigError(f"{name} is {value!r}; give a list")
    return value


def _table(content: Any, folder: Path) -> TableOptions:
    if isinstance(content, TableOptions):
        return content
    known = [option.name for option in fields(TableOptions)]
    if not isinstance(content, Mapping) or not all(isinstance(value, str) for value in content.values()):
        raise ConfigError(f"table is {content!r}; give texts by name: {', '.join(known)}")
    for key in content:
        if key not in known:
            raise unknown_name("part of a table", key, known)
    root = content.get("audio_root")
    return TableOptions(**{**content, "audio_root": folder / root if root else None})
