"""`melmask make-task`: turn a user's labels and sounds into a task folder for melmask and for the HEAR kit.

The layout is that of `melmask.evaluate.tasks`. There is one more file, which the kit ignores: `failed.csv` has the path
of each sound file that could not be read and was skipped, and the reason.
"""

import contextlib
import dataclasses
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from melmask.audio.parts import shortened_text
from melmask.errors import InputError, OutputError, some_of
from melmask.evaluate.leaks import find_leaks
from melmask.evaluate.new_splits import Division, divide
from melmask.evaluate.options import AUTO, NATIVE, TaskOptions, check_word
from melmask.evaluate.sounds import SoundReport, common_length_s, move_to_splits, wav_names, write_sounds
from melmask.evaluate.tasks import GROUPS, METADATA, VOCABULARY, read_task
from melmask.labels.tables import ClipTable, Event, read_clips
from melmask.system.files import ensure_folder, locked, output_error, write_csv, write_json
from melmask.system.terminal import counted, shown

FAILED = "failed.csv"
# The HEAR kit reads the vocabulary with pandas, which takes these words for missing values.
_MISSING = re.compile(r"#N/A( N/A)?|#NA|-?1\.#(IND|QNAN)|-?(NaN|nan)|<NA>|N/A|NA|NULL|None|n/a|null")
_METRICS = {
    "multiclass": ["top1_acc", "mAP", "d_prime", "aucroc"],
    "multilabel": ["mAP", "d_prime", "aucroc"],
    "event": ["event_onset_200ms_fms", "segment_1s_er"],
}
# As in HEAR's maestro task, training stops by the loss. Then no score can choose a post-processing, so there is only
# one (times in ms).
_EVENT_METADATA = {
    "evaluation_params": {"event_postprocessing_grid": {"median_filter_ms": [150], "min_duration": [50]}},
    "use_scoring_for_early_stopping": False,
}


class TaskReport(NamedTuple):
    """What `make_task` has made."""

    folder: Path
    clips: int
    failed: int
    """Number of files that could not be read."""
    classes: int
    split_mode: str
    sizes: dict[str, int]
    """Number of clips in each split."""
    sample_duration_s: float | None
    """None if clips differ in length."""
    notes: tuple[str, ...]
    """What the user should know, each a line."""

    def __str__(self) -> str:
        length = "any length" if self.sample_duration_s is None else f"{self.sample_duration_s:g} s"
        sizes = ", ".join(f"{split} {clips}" for split, clips in self.sizes.items())
        first = f"{self.folder}: {counted(self.clips, 'clip')} of {length}, {self.classes} classes; "
        first += f"{self.split_mode}: {sizes}"
        return "\n".join(map(shown, [first, *self.notes]))


def make_task(labels: Path, out: Path, options: TaskOptions | None = None) -> TaskReport:
    """Write the task folder `out/<name>-<version>-<mode>`, which appears when it is complete.

    Sound files that cannot be read are skipped.

    Args:
        labels: The table of labels, see `melmask.labels.tables`.
        out: The folder of task folders.
        options: How the task is made; None means the defaults.

    Raises:
        ConfigError: the table's name cannot be the name of a task.
        InputError: the table cannot be used, or no sound file can be read.
        OutputError: the folder cannot be written to, or has such a task already.
    """
    options = options or TaskOptions()
    name = options.name
    if name is None:
        name = re.sub(r"[^\w.]+", "_", labels.stem).lstrip(".")
        check_word("name", name)
    folder = out / f"{name}-{options.version}-{options.mode}"
    # A rate that was given twice is written once.
    rates_hz = tuple(dict.fromkeys(options.rates_hz))
    table, notes = as_kit_reads(read_clips(labels, options.kind, options.table))
    # This first division shows errors in the table before hours of decoding.
    divide(table, options)
    with _building(folder, options.overwrite) as building:
        given_s = options.duration_s
        # Without a fixed length each clip keeps its own.
        fixed_s = common_length_s(table.sounds) if given_s == AUTO else None if given_s == NATIVE else float(given_s)
        table, names, sounds, failed = _readable(table, rates_hz, fixed_s, building, options.threads)
        table, event_notes = _within_clips(table, sounds)
        _check_classes(table)
        # Some files could not be read, so the clips that are left are divided again.
        division = divide(table, options)
        move_to_splits(building, rates_hz, names, division.split_of)
        write_json(building / METADATA, _metadata(name, options, table.kind, division, fixed_s))
        _write_labels(building, table, names, division)
        cut_short = shortened_text(clip for clip, wav in zip(table.sounds, sounds, strict=True) if wav.ends_early(clip))
        notes += (
            *filter(None, [cut_short]),
            *division.notes,
            *_length_notes(sounds, fixed_s),
            *event_notes,
            *_leak_notes(building),
        )
    notes += tuple(_absence_notes(table, division))
    if failed:
        notes += (
            f"{counted(failed, 'file')} could not be read and skipped; {FAILED} in the task folder has the reasons",
        )
    sizes = {split: division.split_of.count(split) for split in division.splits}
    clips, classes = len(table.paths), len(table.class_names)
    return TaskReport(folder, clips, failed, classes, division.mode, sizes, fixed_s, notes)


def _whole_number(text: str) -> str:
    """Return a whole number as int would print it: "+007" becomes "7"."""
    # Python converts no text of thousands of digits to an int.
    digits = text.lstrip("+-").lstrip("0") or "0"
    return f"-{digits}" if text.startswith("-") and digits != "0" else digits


def as_kit_reads(table: ClipTable) -> tuple[ClipTable, tuple[str, ...]]:
    """Return the table with labels that the kit's table reader does not change, and a note if any had to change.

    The kit reads a vocabulary that has only numbers as numbers. Then 007 becomes 7, and a clip's "007" is unknown.

    Raises:
        InputError: the kit reads a label as a missing value, or two labels as the same.
    """
    names = table.class_names
    if missing := [name for name in names if _MISSING.fullmatch(name)]:
        raise InputError(f"{table.source}: the HEAR kit reads label {missing[0]!r} as a missing value; rename it")
    # pandas converts a column if all of its values are whole numbers, numbers, or true and false.
    read = {name: name for name in names}
    if all(re.fullmatch(r"[+-]?\d+", name) for name in names):
        read = {name: _whole_number(name) for name in names}
    elif all(re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", name) for name in names):
        read = {name: str(float(name)) for name in names}
    elif all(name.lower() in ("true", "false") for name in names):
        read = {name: name.capitalize() for name in names}
    if len(set(read.values())) < len(names):
        raise InputError(f"{table.source}: the HEAR kit reads some of {some_of(names)} as equal; rename them")
    changed = [name for name in names if read[name] != name]
    if not changed:
        return table, ()
    targets = [
        [item._replace(label=read[item.label]) if isinstance(item, Event) else read[item] for item in items]
        for items in table.targets
    ]
    note = f"labels are written as the HEAR kit reads them, {changed[0]!r} as {read[changed[0]]!r}"
    return dataclasses.replace(table, targets=targets), (note,)


@contextlib.contextmanager
def _building(folder: Path, overwrite: bool) -> Iterator[Path]:
    """Yield a folder that replaces `folder` on success, and is removed otherwise."""
    if folder.exists():
        if not overwrite:
            raise OutputError(f"{folder} exists; choose another --name, --version or --out, or give --overwrite")
        if not (folder / METADATA).is_file():
            raise OutputError(f"{folder} is no task folder, so it is not overwritten; choose another --name or --out")
    # Because of the dot, `find_tasks` does not take it for a task. The name is fixed, so that the next call finds and
    # clears what a killed one left.
    building, replaced = (folder.with_name(f".{folder.name}.{word}") for word in ("partial", "replaced"))
    lock = ensure_folder(building) / ".lock"
    with locked(lock, folder):
        try:
            # A killed job may have left files of another division.
            for rest in building.iterdir():
                if rest != lock:
                    shutil.rmtree(rest) if rest.is_dir() else rest.unlink()
            shutil.rmtree(replaced, ignore_errors=True)
            yield building
            lock.unlink(missing_ok=True)
            # A folder cannot replace one that is not empty, so the old task is moved away first.
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
    """Write the sounds; return the rows that could be read, their names and reports, and how many files failed."""
    names = wav_names(table.sounds)
    sounds = write_sounds(table.sounds, names, rates_hz, fixed_s, building, threads)
    failures = [(str(clip), sound.error) for clip, sound in zip(table.sounds, sounds, strict=True) if sound.error]
    if len(failures) == len(sounds):
        raise InputError(f"none of {counted(len(failures), 'file')} could be read; the first: {failures[0][1]}")
    if failures:
        write_csv(building / FAILED, [("path", "reason"), *failures])
    kept = [row for row, sound in enumerate(sounds) if sound.error is None]
    return table.rows(kept), [names[row] for row in kept], [sounds[row] for row in kept], len(failures)


def _within_clips(table: ClipTable, written: list[SoundReport]) -> tuple[ClipTable, tuple[str, ...]]:
    """Drop events that begin after the end of their clip, and cut those that end after it."""
    if table.kind != "event":
        return table, ()
    targets, gone = [], 0
    for events, clip in zip(table.targets, written, strict=True):
        end_ms = clip.sound_s * 1000
        heard = [event._replace(end_ms=min(event.end_ms, end_ms)) for event in events if event.start_ms < end_ms]
        gone += len(events) - len(heard)
        targets.append(heard)
    notes = (f"{gone} events begin after the end of their clip and were dropped",) if gone else ()
    return dataclasses.replace(table, targets=targets), notes


def _check_classes(table: ClipTable) -> None:
    """Raise InputError if too few classes are left, because no file of the others could be read."""
    fewest = 2 if table.kind == "multiclass" else 1
    if len(table.class_names) < fewest:
        left = f"{len(table.class_names)} classes are left in the clips that could be read"
        raise InputError(f"{table.source}: {left}; expected {fewest} or more, check the files")


def _metadata(
    name: str, options: TaskOptions, kind: str, division: Division, fixed_s: float | None
) -> dict[str, object]:
    """Return every key that the kit and hear-preprocess use for such a task."""
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
        # The kit does not use this one, but its own tasks have it.
        "tmp_dir": "_workdir",
        "split_mode": division.mode,
        "splits": list(division.splits),
        **sizes,
        "sample_duration": fixed_s,
        "evaluation": _METRICS[kind],
        **(_EVENT_METADATA if kind == "event" else {}),
    }


def _write_labels(building: Path, table: ClipTable, names: list[str], division: Division) -> None:
    write_csv(building / VOCABULARY, [("idx", "label"), *enumerate(table.class_names)])
    content: dict[str, dict[str, list[Any]]] = {split: {} for split in division.splits}
    for name, split, items in zip(names, division.split_of, table.targets, strict=True):
        content[split][name] = [
            {"label": item.label, "start": item.start_ms, "end": item.end_ms} if isinstance(item, Event) else item
            for item in items
        ]
    for split, labels in content.items():
        write_json(building / f"{split}.json", labels)
    if table.groups is not None:
        write_json(building / GROUPS, dict(zip(names, table.groups, strict=True)))


def _leak_notes(folder: Path) -> tuple[str, ...]:
    """Report what is on both sides of a split. The folder is read like any task, which also checks it."""
    leaks = find_leaks(read_task(folder))
    notes = []
    if leaks.groups:
        notes.append(f"{counted(leaks.groups, 'group')} both tested and trained on, because the table says so")
    if leaks.files:
        notes.append(f"{counted(leaks.files, 'sound')} both tested and trained on")
    return tuple(notes)


def _length_notes(written: list[SoundReport], fixed_s: float | None) -> list[str]:
    """Report how many clips were cut or padded to the common length."""
    if fixed_s is None:
        return []
    cut = sum(clip.cut for clip in written)
    # The common length is rounded up to 10 ms, and so little padding is not worth a note.
    padded = sum(fixed_s - clip.sound_s > 0.01 for clip in written)
    if not cut and not padded:
        return []
    return [f"{counted(cut, 'clip')} cut to {fixed_s:g} s, and {padded} padded to it"]


def _absence_notes(table: ClipTable, division: Division) -> list[str]:
    """Report which splits lack classes: their scores are poor or undefined."""
    present: dict[str, set[str]] = {split: set() for split in division.splits}
    for names, split in zip(table.names, division.split_of, strict=True):
        present[split].update(names)
    classes = table.class_names
    lacking = {split: [name for name in classes if name not in known] for split, known in present.items()}
    return [
        f"{split} has no clip of {len(absent)} of {len(classes)} classes ({', '.join(absent[:3])}"
        f"{', ...' if len(absent) > 3 else ''}), so a mean over classes says little about it"
        for split, absent in lacking.items()
        if absent
    ]
