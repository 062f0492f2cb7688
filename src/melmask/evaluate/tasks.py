"""Read HEAR 2021 task folders: what to predict from which clips, how clips are split, and how to score.

    esc50-v2.0.0-full/
        task_metadata.json      kinds, splits, metrics, length of the clips
        labelvocabulary.csv     idx,label with idx 0 to n - 1
        fold00.json ...         or train.json, valid.json, test.json: {"a.wav": ["dog"]}, of an event task
                                {"a.wav": [{"label": "dog", "start": 0.0, "end": 1200.0}]}, times in ms
        48000/fold00/a.wav      int16 mono, one folder per sample rate
        groups.json             {"a.wav": "speaker 1"}: an optional file of melmask's own

They are read as the HEAR evaluation kit reads them (heareval 2021.1.3, task_predictions.py and score.py). If the kit
would stop with an assertion or a KeyError, the reader raises an error of one line.
"""

import csv
import difflib
import io
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

from melmask.downstream.events import EVENT_METRICS
from melmask.downstream.metrics import SCENE_METRICS
from melmask.errors import InputError, some_of, unknown_name
from melmask.evaluate.options import FEWEST_FOLDS
from melmask.labels.tables import Event
from melmask.system.reading import (
    LARGE_FILE_BYTES,
    SMALL_FILE_BYTES,
    DamagedFileError,
    read_json,
    read_text,
    reason_of,
)
from melmask.system.terminal import note

METADATA, VOCABULARY, GROUPS = "task_metadata.json", "labelvocabulary.csv", "groups.json"
METRICS = {"scene": SCENE_METRICS, "event": EVENT_METRICS}
"""Names of the metrics by embedding type."""
PREDICTION_TYPES = {"scene": ("multiclass", "multilabel"), "event": ("multilabel",)}
FOLD_MODES = ("new_split_kfold", "presplit_kfold")
SPLIT_MODES = ("trainvaltest", *FOLD_MODES)
# The kit has these grids in its source and not in the metadata of the tasks.
_EVENT_GRID = {"median_filter_ms": [250], "min_duration": [125, 250]}
_EVENT_DEFAULTS = {"median_filter_ms": [150], "min_duration": [60]}
_SHORTEST_S, _LONGEST_S = 0.001, 86400
"""Length of a clip; the kit stacks clips, so a day is more than any memory holds."""
LAST_EVENT_MS = 1e8
"""When events may begin and end: within a day. Scores and pages keep a number for each 10 ms."""
_MOST_POINTS = 10_000
"""Points of a grid of hyper-parameters; the kit's has eight."""
_LONGEST_SHOWN = 200
_GRIDS_BY_NAME = {"dcase2016_task2": {"check_val_every_n_epoch": [10]}}


class DataSplit(NamedTuple):
    """One way to train and test: the names of the splits that make up each part."""

    train: tuple[str, ...]
    valid: tuple[str, ...]
    test: tuple[str, ...]

    @property
    def name(self) -> str:
        """The tested splits, joined as in the kit's results: "fold00", "test"."""
        return "|".join(self.test)


@dataclass(frozen=True)
class Task:
    """A task folder, read and checked.

    Attributes:
        folder: Where it lies; `title` is its name, "esc50-v2.0.0-full".
        name: The task's name, "esc50".
        embedding_type: "scene" (one vector per clip) or "event" (one per time step).
        prediction_type: "multiclass" (exactly one label per clip) or "multilabel" (any number).
        labels: The classes in the order of their indices.
        splits: Names of the splits, in the metadata's order.
        data_splits: With folds, one for each: fold i tests, fold i + 1 validates, the rest train.
        metrics: Names among `METRICS`; heads are chosen by the first.
        sample_duration_s: Length of every clip; None if clips differ in length.
        stop_on_score: Whether training stops by the first metric; otherwise by the validation loss.
        parameter_grid: Hyper-parameters that the task sets itself, each with the values to try.
        event_grid: Values to try of median_filter_ms and min_duration (ms).
        files: Split -> name of the wav -> its labels (scene) or events (event), in the order of the file.
        groups: Name of the wav -> its group, which should not be on both sides of a split; empty if there are none.
    """

    folder: Path
    name: str
    embedding_type: str
    prediction_type: str
    labels: tuple[str, ...]
    splits: tuple[str, ...]
    data_splits: tuple[DataSplit, ...]
    metrics: tuple[str, ...]
    sample_duration_s: float | None
    stop_on_score: bool
    parameter_grid: dict[str, list[Any]]
    event_grid: dict[str, list[Any]]
    files: dict[str, dict[str, list[Any]]]
    groups: dict[str, str]

    @property
    def title(self) -> str:
        """The folder's name, which tells versions of a task apart."""
        return self.folder.name

    def audio_folder(self, split: str, rate_hz: int) -> Path:
        """Return where a split's wav files of a sample rate lie, if the task has that rate."""
        return self.folder / str(rate_hz) / split

    def rates_hz(self, split: str) -> list[int]:
        """Return the sample rates, ascending, for which the folder has sounds of a split."""
        folders = [path for path in self.folder.iterdir() if path.name.isdecimal() and (path / split).is_dir()]
        return sorted(int(path.name) for path in folders)


def find_tasks(folder: Path, names: Sequence[str] = ()) -> list[Task]:
    """Read the tasks below `folder`, sorted by folder name.

    Args:
        folder: A folder of task folders, or a single task folder. A damaged task is reported on standard error and
            skipped; anything else in the folder is ignored.
        names: The wanted tasks, by task name ("esc50", every version of it) or folder name; empty means all tasks.

    Raises:
        InputError: there are no tasks, or a wanted one cannot be used.
        ConfigError: no task has one of the names; the message gives the nearest.
    """
    found = [folder] if (folder / METADATA).is_file() else _task_folders(folder)
    if not names:
        return _readable_tasks(found)
    known = {one: (one.name, _name_of(one)) for one in found}
    for name in names:
        if not any(name in both for both in known.values()):
            raise unknown_name("task", name, list(dict.fromkeys(name for both in known.values() for name in both)))
    return [read_task(one) for one in found if set(known[one]) & set(names)]


def _readable_tasks(folders: Sequence[Path]) -> list[Task]:
    """Read the tasks that can be used. Report the others, or raise the first error if there are only others."""
    tasks, errors = [], []
    for folder in folders:
        try:
            tasks.append(read_task(folder))
        except InputError as error:
            errors.append(error)
    if not tasks:
        raise errors[0]
    for reason in errors:
        note(f"a task is skipped: {reason}")
    return tasks


def _task_folders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; give the one that holds the task folders")
    # `make-task` builds a task in a folder whose name begins with a dot.
    found = sorted(path.parent for path in folder.glob(f"*/{METADATA}") if not path.parent.name.startswith("."))
    if not found:
        deeper = next(folder.glob(f"*/*/{METADATA}"), None)
        hint = f"there are some in {deeper.parents[1]}, give that" if deeper else "melmask make-task makes one"
        raise InputError(f"{folder} holds no task folder (a folder with {METADATA}); {hint}")
    return found


def _name_of(folder: Path) -> str:
    """Return the task's name, or the folder's if the metadata cannot be read, which only matters for wanted tasks."""
    try:
        return str(_read_object(folder / METADATA).get("task_name", folder.name))
    except InputError:
        return folder.name


def read_task(folder: Path) -> Task:
    """Read and check a task folder; the sound files are not read.

    Raises:
        InputError: a file is missing or damaged, or holds what the kit could not use.
    """
    metadata = _Metadata(folder / METADATA)
    embedding_type = metadata.choice("embedding_type", tuple(METRICS))
    prediction_type = metadata.choice("prediction_type", PREDICTION_TYPES[embedding_type])
    splits = metadata.texts("splits")
    labels = _read_vocabulary(folder / VOCABULARY)
    reader = _SplitReader(labels, all(map(str.isdecimal, labels)), embedding_type, prediction_type)
    files = {split: reader.read(folder / f"{split}.json") for split in splits}
    if embedding_type == "event":
        _check_distinct(folder, files)
    groups = _read_object(folder / GROUPS) if (folder / GROUPS).exists() else {}
    name = metadata.text("task_name")
    stop_on_score = metadata.take(
        "use_scoring_for_early_stopping", lambda value: isinstance(value, bool), "true or false", True
    )
    event_grid = metadata.event_grid()
    task = Task(
        folder=folder,
        name=name,
        embedding_type=embedding_type,
        prediction_type=prediction_type,
        labels=labels,
        splits=splits,
        data_splits=metadata.data_splits(splits),
        metrics=metadata.metrics(METRICS[embedding_type]),
        sample_duration_s=metadata.duration(),
        stop_on_score=stop_on_score,
        parameter_grid={**_GRIDS_BY_NAME.get(name, {}), **metadata.grid("task_specific_param_grid")},
        event_grid={**_EVENT_DEFAULTS, **event_grid} if event_grid else dict(_EVENT_GRID),
        files=files,
        groups={name: str(group) for name, group in groups.items()},
    )
    # A choice among post-processings needs a score on validation rows, and the loss is none.
    if embedding_type == "event" and not stop_on_score and math.prod(map(len, task.event_grid.values())) > 1:
        raise metadata.wrong("event_postprocessing_grid", event_grid, "one value each, as nothing is chosen by score")
    return task


class _Metadata:
    """task_metadata.json, each value checked when it is taken."""

    def __init__(self, path: Path):
        self._path = path
        self._values = _read_object(path)

    def wrong(self, key: str, value: Any, expected: str) -> InputError:
        return InputError(f"{self._path}: {key} is {_short(value)}; expected {expected}; correct it")

    def take(self, key: str, fits: Callable[[Any], bool], expected: str, *default: Any) -> Any:
        """Return a value that `fits`; a `default` stands in for a missing one.

        Raises:
            InputError: the value is missing or does not fit.
        """
        if key not in self._values and not default:
            raise InputError(f"{self._path} has no {key!r}; the kit needs one, add it")
        value = self._values.get(key, *default)
        if not fits(value):
            raise self.wrong(key, value, expected)
        return value

    def text(self, key: str) -> str:
        return str(self.take(key, _is_text, "a text"))

    def texts(self, key: str) -> tuple[str, ...]:
        def fits(value: Any) -> bool:
            is_list = isinstance(value, list) and bool(value) and all(map(_is_text, value))
            return is_list and len(set(value)) == len(value)

        return tuple(self.take(key, fits, "a list of different names"))

    def choice(self, key: str, known: Sequence[str]) -> str:
        return str(self.take(key, lambda value: value in known, " or ".join(known)))

    def duration(self) -> float | None:
        expected = f"seconds, or null for clips of any length ({_SHORTEST_S:g} to {_LONGEST_S})"
        value = self.take(
            "sample_duration", lambda s: s is None or (_is_number(s) and _SHORTEST_S <= s <= _LONGEST_S), expected
        )
        return None if value is None else float(value)

    def metrics(self, known: Sequence[str]) -> tuple[str, ...]:
        names = self.texts("evaluation")
        unknown = [name for name in names if name not in known]
        if unknown:
            raise self.wrong("evaluation", unknown[0], f"some of {', '.join(known)}")
        return names

    def grid(self, key: str) -> dict[str, list[Any]]:
        parameters = self._values.get("evaluation_params") or {}
        grid = parameters.get(key, {}) if isinstance(parameters, dict) else parameters
        if not isinstance(grid, dict) or not all(isinstance(values, list) and values for values in grid.values()):
            raise self.wrong(key, grid, "an object of lists of values")
        if math.prod(map(len, grid.values())) > _MOST_POINTS:
            raise self.wrong(key, grid, f"at most {_MOST_POINTS} combinations of values")
        return grid

    def event_grid(self) -> dict[str, list[Any]]:
        grid = self.grid("event_postprocessing_grid")
        for name, values in grid.items():
            if name not in _EVENT_GRID or not all(
                _is_number(value) and 0 <= value <= LAST_EVENT_MS for value in values
            ):
                known = " and ".join(_EVENT_GRID)
                raise self.wrong("event_postprocessing_grid", grid, f"{known}, lists of times in ms")
        return grid

    def data_splits(self, splits: tuple[str, ...]) -> tuple[DataSplit, ...]:
        if self.choice("split_mode", SPLIT_MODES) in FOLD_MODES:
            # The kit sorts the folds, whatever their order in the metadata.
            folds = sorted(splits)
            if len(folds) < FEWEST_FOLDS:
                raise self.wrong("splits", folds, f"at least {FEWEST_FOLDS} folds: to test, to validate and to train")
            # In each turn one fold tests, the next one validates, and the rest train; the first follows the last.
            turns = [folds[i:] + folds[:i] for i in range(len(folds))]
            return tuple(DataSplit(tuple(sorted(turn[2:])), (turn[1],), (turn[0],)) for turn in turns)
        # Other splits may be there, but the kit uses these three.
        if missing := {"train", "valid", "test"} - set(splits):
            raise self.wrong("splits", list(splits), f"{', '.join(sorted(missing))} too with split_mode trainvaltest")
        return (DataSplit(("train",), ("valid",), ("test",)),)


def _read_vocabulary(path: Path) -> tuple[str, ...]:
    """Return the classes in the order of `idx`, which must run from 0 to n - 1."""
    try:
        rows = list(csv.DictReader(io.StringIO(read_text(path, SMALL_FILE_BYTES), newline="")))
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"{path} cannot be read ({reason_of(error)}); expected a CSV table idx,label") from error
    if not rows or not {"idx", "label"} <= rows[0].keys():
        raise InputError(f"{path} has no rows under idx,label; expected one for each class")
    label_of = {str(row["idx"]).strip(): str(row["label"] or "") for row in rows}
    wanted = [str(index) for index in range(len(rows))]
    if sorted(label_of) != sorted(wanted):
        raise InputError(f"{path}: idx is {some_of(list(label_of))}; expected 0 to {len(rows) - 1}, each once")
    labels = tuple(label_of[index] for index in wanted)
    # pandas, with which the kit reads the table, takes a column of digits for numbers.
    if all(label.isdecimal() for label in labels):
        labels = tuple(map(_plain, labels))
    if len(set(labels)) < len(labels):
        twice = next(label for label in labels if labels.count(label) > 1)
        raise InputError(f"{path}: label {twice!r} is listed twice; expected each class once, remove one")
    return labels


def _plain(label: Any) -> str:
    """Return a label as a text, 007 as 7: the kit's table reader does so if all labels are numbers."""
    text = str(label)
    return str(Decimal(text)) if text.isdecimal() else text


class _SplitReader(NamedTuple):
    """The reader of a split's labels, which depend on the kind of task."""

    labels: tuple[str, ...]
    numbers: bool
    embedding_type: str
    prediction_type: str

    def read(self, path: Path) -> dict[str, list[Any]]:
        """Return the labels or events by the name of the wav."""
        content = _read_object(path)
        if not content:
            raise InputError(f"{path} lists no files; expected at least one clip in each split")
        is_event, known = self.embedding_type == "event", set(self.labels)
        read_one = self._events if is_event else self._scene
        for name, items in content.items():
            # A path could point to a file outside the task.
            if Path(name).name != name:
                raise InputError(f"{path}: {name!r} is not the plain name of a file; move it into the split's folder")
            if not isinstance(items, list):
                what = "events" if is_event else "labels"
                raise InputError(f"{path}: {name} has {_short(items)}; expected a list of {what}")
        return {name: read_one(f"{path}: {name}", items, known) for name, items in content.items()}

    def _scene(self, where: str, items: list[Any], known: set[str]) -> list[str]:
        if self.prediction_type == "multiclass" and len(items) != 1:
            raise InputError(f"{where} has {len(items)} labels; expected exactly one, as the task is multiclass")
        return [self._known(where, item, known) for item in items]

    def _events(self, where: str, items: list[Any], known: set[str]) -> list[Event]:
        events = []
        for item in items:
            if not isinstance(item, dict) or not {"label", "start", "end"} <= item.keys():
                raise InputError(f"{where} has {_short(item)}; expected label, start and end")
            start_ms, end_ms = item["start"], item["end"]
            if not (
                _is_number(start_ms) and _is_number(end_ms) and -LAST_EVENT_MS <= start_ms <= end_ms <= LAST_EVENT_MS
            ):
                times = f"{_short(start_ms)} to {_short(end_ms)}"
                raise InputError(f"{where} has an event from {times}; expected times in ms, the start first")
            events.append(Event(self._known(where, item["label"], known), float(start_ms), float(end_ms)))
        return events

    def _known(self, where: str, item: Any, known: set[str]) -> str:
        # If all labels are numbers, a file may hold 7, "7" or "007" for the same one.
        label = _plain(item) if self.numbers else str(item)
        if label not in known:
            near = difflib.get_close_matches(label, self.labels, 1)
            hint = f"the nearest there is {near[0]!r}" if near else "add it there"
            raise InputError(f"{where} has label {label!r}, which {VOCABULARY} does not list; {hint}")
        return label


def _check_distinct(folder: Path, files: dict[str, dict[str, list[Any]]]) -> None:
    """Raise InputError if two clips have the same name, because events are scored by file name."""
    split_of: dict[str, str] = {}
    for split, names in files.items():
        for name in names:
            if name in split_of:
                both = f"{split_of[name]} and {split}"
                raise InputError(f"{folder}: {name} is in both {both}; events need different names, rename one")
            split_of[name] = split


def _short(value: Any) -> str:
    """Return a value as JSON, cut to what fits an error."""
    text = json.dumps(value)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value != ""


def _is_number(value: Any) -> bool:
    # In Python, true and false are whole numbers.
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _read_object(path: Path) -> dict[str, Any]:
    """Read the JSON object in a file."""
    try:
        content = read_json(path, LARGE_FILE_BYTES)
    except FileNotFoundError:
        raise InputError(f"{path} is missing; expected a HEAR task folder, copy or make it again") from None
    except (OSError, DamagedFileError) as error:
        raise InputError(f"{path} cannot be read ({reason_of(error)}); expected JSON, copy or make it again") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} holds a {type(content).__name__}; expected a JSON object")
    return content
