"""`melmask make-task`: a user's labels and sounds as a task folder, which melmask and the HEAR kit evaluate alike.

The layout is that of `melmask.evaluate.tasks`, with one more file, which the kit ignores: `failed.csv` has the path and
the reason of each sound file that could not be read and was left out.
"""

import contextlib
import csv
import dataclasses
import json
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from melmask.errors import InputError, OutputError
from melmask.evaluate.division import Division, divide
from melmask.evaluate.leaks import find_leaks
from melmask.evaluate.options import AUTO, TaskOptions, check_word
from melmask.evaluate.sounds import SoundReport, common_length_s, move_to_splits, wav_names, write_sounds
from melmask.evaluate.tasks import GROUPS, METADATA, VOCABULARY, read_task
from melmask.labels.tables import ClipTable, Event, read_clips
from melmask.system.files import ensure_folder, locked, output_error

FAILED = "failed.csv"
# What pandas, by which the HEAR kit reads the vocabulary, takes for a missing value.
_MISSING = re.compile(r"#N/A( N/A)?|#NA|-?1\.#(IND|QNAN)|-?(NaN|nan)|<NA>|N/A|NA|NULL|None|n/a|null")
_METRICS = {
    "multiclass": ["top1_acc", "mAP", "d_prime", "aucroc"],
    "multilabel": ["mAP", "d_prime", "aucroc"],
    "event": ["event_onset_200ms_fms", "segment_1s_er"],
}
# As in HEAR's maestro task, the loss decides when to stop, so events are made in one way only (times in ms).
_EVENT_METADATA = {
    "evaluation_params": {"event_postprocessing_grid": {"median_filter_ms": [150], "min_duration": [50]}},
    "use_scoring_for_early_stopping": False,
}


class TaskReport(NamedTuple):
    """What was made.

    Attributes: `folder`; `clips` in it; `failed`, files that could not be read; `classes`; `split_mode` and `sizes`
    (clips of each split); `sample_duration_s`, None for clips of any length; `notes`, each a line.
    """

    folder: Path
    clips: int
    failed: int
    classes: int
    split_mode: str
    sizes: dict[str, int]
    sample_duration_s: float | None
    notes: tuple[str, ...]

    def __str__(self) -> str:
        length = "any length" if self.sample_duration_s is None else f"{self.sample_duration_s:g} s"
        sizes = ", ".join(f"{split} {clips}" for split, clips in self.sizes.items())
        first = f"{self.folder}: {self.clips} clips of {length}, {self.classes} classes; {self.split_mode}: {sizes}"
        return "\n".join([first, *self.notes])


def make_task(labels: Path, out: Path, options: TaskOptions | None = None) -> TaskReport:
    """Write the task folder `out/<name>-<version>-<mode>`; it appears when it is complete.

    Args:
        labels: the table of labels, see `melmask.labels.tables`.
        out: the folder of task folders.
        options: how the task is made; the defaults where None.

    Raises:
        ConfigError: the table's name cannot be the task's.
        InputError: the table cannot be used, or no sound file can be read. Single files that cannot are left out.
        OutputError: the place cannot be written to, or has such a task already.
    """
    options = options or TaskOptions()
    name = options.name
    if name is None:
        name = re.sub(r"[^\w.]+", "_", labels.stem).lstrip(".")
        check_word("name", name)
    folder = out / f"{name}-{options.version}-{options.mode}"
    # A rate that is given twice is written once.
    rates_hz = tuple(dict.fromkeys(options.rates_hz))
    table, notes = as_kit_reads(read_clips(labels, options.kind, options.table))
    # Dividing here shows what is wrong with the table before hours of decoding.
    divide(table, options)
    with _building(folder, options.overwrite) as building:
        fixed_s = _clip_length_s(options.duration_s, table.paths)
        table, names, sounds, failed = _readable(table, rates_hz, fixed_s, building, options.threads)
        table, event_notes = _within_clips(table, sounds)
        _check_classes(table)
        # Files that could not be read are gone, so the clips are divided again.
        division = divide(table, options)
        move_to_splits(building, rates_hz, names, division.split_of)
        _write_json(building / METADATA, _metadata(name, options, table.kind, division, fixed_s))
        _write_labels(building, table, names, division)
        notes += (*division.notes, *_length_notes(sounds, fixed_s), *event_notes, *_leak_notes(building))
    notes += tuple(_absence_notes(table, division))
    if failed:
        notes += (f"{failed} files could not be read and were left out, see {FAILED} there",)
    sizes = {split: division.split_of.count(split) for split in division.splits}
    clips, classes = len(table.paths), len(table.class_names)
    return TaskReport(folder, clips, failed, classes, division.mode, sizes, fixed_s, notes)


def as_kit_reads(table: ClipTable) -> tuple[ClipTable, tuple[str, ...]]:
    """Return the table with labels that the kit's table reader leaves as they are, and a note if any had to change.

    The kit reads a vocabulary of numbers alone as numbers: 007 becomes 7, and then a clip's "007" is unknown.

    Raises:
        InputError: a label is read as a missing value, or two become the same.
    """
    names = table.class_names
    if missing := [name for name in names if _MISSING.fullmatch(name)]:
        raise InputError(f"{table.source}: label {missing[0]!r} is read as a missing value by the HEAR kit; rename it")
    # pandas takes a column for numbers, or for true and false, if all of its values are such.
    read = {name: name for name in names}
    if all(re.fullmatch(r"[+-]?\d+", name) for name in names):
        read = {name: str(int(name)) for name in names}
    elif all(re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", name) for name in names):
        read = {name: str(float(name)) for name in names}
    elif all(name.lower() in ("true", "false") for name in names):
        read = {name: name.capitalize() for name in names}
    if len(set(read.values())) < len(names):
        raise InputError(f"{table.source}: of {', '.join(names)} the HEAR kit takes some for the same; rename them")
    changed = [name for name in names if read[name] != name]
    if not changed:
        return table, ()
    targets = [
        [item._replace(label=read[item.label]) if isinstance(item, Event) else read[item] for item in items]
        for items in table.targets
    ]
    note = f"labels are written as the HEAR kit reads them, {changed[0]!r} as {read[changed[0]]!r}"
    return dataclasses.replace(table, targets=targets), (note,)


def _clip_length_s(duration_s: float | str, paths: Sequence[Path]) -> float | None:
    """The length that every clip gets, or None where each keeps its own."""
    if duration_s == AUTO:
        return common_length_s(paths)
    return None if isinstance(duration_s, str) else float(duration_s)


@contextlib.contextmanager
def _building(folder: Path, overwrite: bool) -> Iterator[Path]:
    """Give a folder that takes the place of `folder` on success, and is removed otherwise."""
    if folder.exists():
        if not overwrite:
            raise OutputError(f"{folder} exists; choose another --name, --version or --out, or give --overwrite")
        if not (folder / METADATA).is_file():
            raise OutputError(f"{folder} is no task folder, so it is not overwritten; choose another --name or --out")
    # The dot keeps it from being taken for a task. The name is fixed, so that the next call finds and clears what a
    # killed one left.
    building, replaced = (folder.with_name(f".{folder.name}.{word}") for word in ("partial", "replaced"))
    lock = ensure_folder(building) / ".lock"
    with locked(lock, folder):
        try:
            # A job that was killed may have left a part of another division.
            for rest in building.iterdir():
                if rest != lock:
                    shutil.rmtree(rest) if rest.is_dir() else rest.unlink()
            shutil.rmtree(replaced, ignore_errors=True)
            yield building
            lock.unlink(missing_ok=True)
            # A folder cannot replace one that is not empty, so the former task steps aside first.
            if folder.exists():
                folder.replace(replaced)
            building.replace(folder)
            shutil.rmtree(replaced, ignore_errors=True)
        except OSError as error:
            raise output_error(folder, error) from error
        finally:
            shutil.rmtree(building, ignore_errors=True)


def _readable(
    table: ClipTable, rates_hz: Sequence[int], fixed_s: float | None, building: Path, threads: int | None
) -> tuple[ClipTable, list[str], list[SoundReport], int]:
    """Write the sounds; return the rows that could be read, their files' names, what was written, how many failed."""
    names = wav_names(table.paths)
    sounds = write_sounds(table.paths, names, rates_hz, fixed_s, building, threads)
    failures = [(str(path), sound.error) for path, sound in zip(table.paths, sounds, strict=True) if sound.error]
    if len(failures) == len(sounds):
        raise InputError(f"none of the {len(failures)} files could be read; the first: {failures[0][1]}")
    if failures:
        _write_table(building / FAILED, [("path", "reason"), *failures])
    kept = [row for row, sound in enumerate(sounds) if sound.error is None]
    return table.rows(kept), [names[row] for row in kept], [sounds[row] for row in kept], len(failures)


def _within_clips(table: ClipTable, written: list[SoundReport]) -> tuple[ClipTable, tuple[str, ...]]:
    """Leave out events that begin after their clip's end, and let others end with it."""
    if table.kind != "event":
        return table, ()
    targets, gone = [], 0
    for events, clip in zip(table.targets, written, strict=True):
        end_ms = clip.sound_s * 1000
        heard = [event._replace(end_ms=min(event.end_ms, end_ms)) for event in events if event.start_ms < end_ms]
        gone += len(events) - len(heard)
        targets.append(heard)
    notes = (f"{gone} events begin after their clip's end and were left out",) if gone else ()
    return dataclasses.replace(table, targets=targets), notes


def _check_classes(table: ClipTable) -> None:
    """Refuse a task that has too few classes left: files that could not be read may have been the last of a class."""
    fewest = 2 if table.kind == "multiclass" else 1
    if len(table.class_names) < fewest:
        left = f"{len(table.class_names)} classes are left in the clips that could be read"
        raise InputError(f"{table.source}: {left}; expected {fewest} or more, check the files")


def _metadata(
    name: str, options: TaskOptions, kind: str, division: Division, fixed_s: float | None
) -> dict[str, object]:
    """Every key of the kit's and of hear-preprocess's own tasks that applies here."""
    if division.mode == "trainvaltest":
        sizes: dict[str, object] = {"max_task_duration_by_split": dict.fromkeys(division.splits)}
    else:
        sizes = {"nfolds": len(division.splits), "max_task_duration_by_fold": None}
    return {
        "task_name": name,
        "version": options.version,
        "embedding_type": "event" if kind == "event" else "scene",
        "prediction_type": "multiclass" if kind == "multiclass" else "multilabel",
        "default_mode": options.mode,
        "mode": options.mode,
        "tmp_dir": "_workdir",
        "split_mode": division.mode,
        "splits": list(division.splits),
        **sizes,
        "sample_duration": fixed_s,
        "evaluation": _METRICS[kind],
        **(_EVENT_METADATA if kind == "event" else {}),
    }


def _write_labels(building: Path, table: ClipTable, names: list[str], division: Division) -> None:
    _write_table(building / VOCABULARY, [("idx", "label"), *enumerate(table.class_names)])
    content: dict[str, dict[str, list[Any]]] = {split: {} for split in division.splits}
    for name, split, items in zip(names, division.split_of, table.targets, strict=True):
        content[split][name] = [
            {"label": item.label, "start": item.start_ms, "end": item.end_ms} if isinstance(item, Event) else item
            for item in items
        ]
    for split, labels in content.items():
        _write_json(building / f"{split}.json", labels)
    if table.groups is not None:
        _write_json(building / GROUPS, dict(zip(names, table.groups, strict=True)))


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _write_table(path: Path, rows: Sequence[tuple[Any, ...]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


def _leak_notes(folder: Path) -> tuple[str, ...]:
    """Report what is on both sides of a split. The folder is read like any other task, which checks it."""
    leaks = find_leaks(read_task(folder))
    notes = []
    if leaks.groups:
        notes.append(f"{leaks.groups} groups are tested and trained on, as the table has it")
    if leaks.files:
        notes.append(f"{leaks.files} sounds are tested and trained on")
    return tuple(notes)


def _length_notes(written: list[SoundReport], fixed_s: float | None) -> list[str]:
    """Report how many clips were cut or padded to the common length, its rounding to 10 ms aside."""
    if fixed_s is None:
        return []
    cut = sum(clip.cut for clip in written)
    padded = sum(fixed_s - clip.sound_s > 0.01 for clip in written)
    return [f"{cut} clips were longer than {fixed_s:g} s and cut, {padded} shorter and padded"] if cut or padded else []


def _absence_notes(table: ClipTable, division: Division) -> list[str]:
    """Report which splits lack classes, because scores are poor or undefined there."""
    present: dict[str, set[str]] = {split: set() for split in division.splits}
    for names, split in zip(table.names, division.split_of, strict=True):
        present[split].update(names)
    classes = table.class_names
    lacking = {split: [name for name in classes if name not in known] for split, known in present.items()}
    return [
        f"{split} has no clip of {len(absent)} of {len(classes)} classes ({', '.join(absent[:3])}"
        f"{', ...' if len(absent) > 3 else ''}): scores averaged over classes mean little there"
        for split, absent in lacking.items()
        if absent
    ]
