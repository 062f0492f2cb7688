"""Choose the files that train, validate and test a classifier, and read what it hears of them.

`read_examples` says which file is for what and which labels it has. `read_logmels` and `clips_of` turn the files into
log-mels with targets.
"""

import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
import torch

from melmask.audio.logmel import normalize
from melmask.audio.notes import Listener
from melmask.audio.parts import Sound, shortened_text, sounds_of
from melmask.classifier.options import FinetuneOptions
from melmask.embedding.encoder import AudioEncoder
from melmask.errors import AudioFileError, InputError, NotFiniteError
from melmask.evaluate.tasks import METADATA, Task, read_task
from melmask.labels.options import Kind
from melmask.labels.tables import ClipTable, Event, read_clips, sorted_names
from melmask.system.finite import check_finite
from melmask.system.progress import track
from melmask.system.terminal import counted, note

PARTS = ("train", "valid", "test")
_VALID_PARTS, _MOST_PARTS = 10, 5
"""If no row is marked `valid`, one training row in ten becomes validation, and never more than one in five."""


@dataclass(frozen=True, kw_only=True)
class Examples:
    """Labeled clips, a list entry per clip.

    Attributes:
        kind: What a label says.
        classes: All labels, in the order of the classifier's outputs.
        sounds: Each file, or part of a file.
        labels: The names of each file's labels or, in an event task, its events.
        parts: 'train', 'valid' or 'test'.
    """

    kind: Kind
    classes: list[str]
    sounds: list[Sound]
    labels: Sequence[Sequence[str | Event]]
    parts: list[str]

    @property
    def sha256(self) -> str:
        """A digest of all fields; finetune.json holds it, so the way to compute it must not change."""
        rows = [
            [resolved_key(sound), labels, part]
            for sound, labels, part in zip(self.sounds, self.labels, self.parts, strict=True)
        ]
        return hashlib.sha256(json.dumps([self.kind, self.classes, rows]).encode()).hexdigest()


def resolved_key(sound: Sound) -> str:
    """Return the absolute path of a file, of a part with its times, as finetune.json names what was trained on."""
    return replace(sound, path=sound.path.resolve()).key


def read_examples(labels: Path, seed: int, options: FinetuneOptions) -> Examples:
    """Read a table of labels, the folder of a data set, or the folder of a HEAR task.

    Raises:
        InputError: it is neither, it lacks the fold, or nothing can be learned from it.
    """
    if (labels / METADATA).is_file():
        return task_examples(read_task(labels), options.fold)
    return table_examples(labels, seed, options)


def table_examples(path: Path, seed: int, options: FinetuneOptions) -> Examples:
    """Read a CSV as `read_clips` does; the seed decides which rows validate where no column says so.

    Raises:
        InputError: it is no such table, has no such fold, or nothing can be learned from it.
    """
    table = read_clips(path, options.kind, options.table)
    kind: Kind = table.kind
    parts = _parts(table, seed, options.fold)
    _report_shared_groups(table.groups or [], parts)
    known = {name for names, part in zip(table.names, parts, strict=True) if part == "train" for name in names}
    if kind == "multiclass" and len(known) < 2:
        raise InputError(f"{path}: all rows to train on have label {known.pop()!r}; a classifier needs two labels")
    return Examples(kind=kind, classes=table.class_names, sounds=table.sounds, labels=table.targets, parts=parts)


def task_examples(task: Task, fold: str) -> Examples:
    """Take the files of a HEAR task at its highest sample rate, with the split of this name, or the first one.

    Raises:
        InputError: there is no such split, or there are no sounds.
    """
    names = [split.name for split in task.data_splits]
    if fold and fold not in names:
        raise InputError(f"--fold is {fold!r}; {task.title} has {', '.join(names)}")
    split = task.data_splits[names.index(fold) if fold else 0]
    # A task has its sounds at several rates. The encoder resamples, and the highest rate lost least.
    rates = [rate for name in task.splits for rate in task.rates_hz(name)]
    if not rates:
        raise InputError(f"{task.folder} has no folder of sounds such as 16000; unpack the whole task")
    rows = [
        (task.audio_folder(name, max(rates)) / file, labels, part)
        for part in PARTS
        for name in getattr(split, part)
        for file, labels in task.files[name].items()
    ]
    return Examples(
        kind=cast(Kind, "event" if task.embedding_type == "event" else task.prediction_type),
        classes=list(task.labels),
        sounds=[Sound(path) for path, _, _ in rows],
        labels=[labels for _, labels, _ in rows],
        parts=[part for _, _, part in rows],
    )


def _report_shared_groups(groups: list[str], parts: list[str]) -> None:
    # If a group is both trained on and tested, the score is better than it will be on new groups.
    groups_of = {part: {group for group, own in zip(groups, parts, strict=False) if own == part} for part in PARTS}
    shared = set().union(*(a & b for a, b in itertools.combinations(groups_of.values(), 2)))
    if shared:
        note(f"{counted(len(shared), 'group')} with clips in several parts of train, valid and test")


def _parts(table: ClipTable, seed: int, fold: str) -> list[str]:
    """Return each row's part: from column `split`, else from `fold`, else 'train'; some validate if none does."""
    if fold and table.folds is None:
        raise InputError(f"--fold is {fold!r}, but {table.source} has no column `fold`; leave --fold out or add it")
    if table.splits is not None and not fold:
        parts = list(table.splits)
    elif table.folds is not None:
        folds = sorted_names(table.folds)
        chosen = fold or folds[0]
        if chosen not in folds:
            raise InputError(f"--fold is {chosen!r}; the table has {', '.join(folds)}")
        following = folds[(folds.index(chosen) + 1) % len(folds)]
        # With only two folds, one tests, and the validation clips are taken from the other.
        part_of = {following: "valid" if len(folds) > 2 else "train", chosen: "test"}
        parts = [part_of.get(name, "train") for name in table.folds]
    else:
        parts = ["train"] * len(table.paths)
    rows = [row for row, part in enumerate(parts) if part == "train"]
    if not rows:
        raise InputError(f"{table.source} has no row to train on, only {' and '.join(sorted(set(parts)))}; mark some")
    if "valid" not in parts:
        for row in _held_out(table, rows, seed):
            parts[row] = "valid"
    return parts


def _held_out(table: ClipTable, rows: list[int], seed: int) -> list[int]:
    """Choose rows to validate on: a tenth of `rows`, or up to a fifth if labels are many or groups are large.

    Each label gets its share, groups stay whole, and one group or clip of each label is left to train on.

    Raises:
        InputError: no row can be held out.
    """
    # A unit must stay together: it is a group, or a single clip. "No label" counts as a label.
    names = [own or [""] for own in table.names]
    units: dict[str, list[int]] = {}
    for row in np.random.default_rng(seed).permutation(rows).tolist():
        units.setdefault(table.groups[row] if table.groups else str(row), []).append(row)
    labels_of = {unit: {name for row in own for name in names[row]} for unit, own in units.items()}
    left = Counter(name for labels in labels_of.values() for name in labels)

    # Each unit counts for its rarest label, and the units of a label get evenly spaced places in the queue.
    rarest = {unit: min(labels, key=lambda name: (left[name], name)) for unit, labels in labels_of.items()}
    count, turn = Counter(rarest.values()), Counter[str]()
    place: dict[str, float] = {}
    for unit, name in rarest.items():
        # The first unit of every label comes before all second ones, so that a rare label is validated, too.
        place[unit] = turn[name] and (turn[name] + 0.5) / count[name]
        turn[name] += 1

    enough = max(1, round(len(rows) / _VALID_PARTS), min(len(left), len(rows) // _MOST_PARTS))
    most = max(enough, len(rows) // _MOST_PARTS)
    held: list[int] = []
    # Units that are larger than needed come last. One of them is taken only if no other unit could be.
    for unit in sorted(units, key=lambda unit: (max(0, len(units[unit]) - enough), place[unit])):
        spare = all(left[name] > 1 for name in labels_of[unit])
        if spare and (not held or (len(held) < enough and len(held) + len(units[unit]) <= most)):
            held += units[unit]
            left.subtract(labels_of[unit])
    if not held:
        what = "group" if table.groups else "clip"
        raise InputError(
            f"{table.source}: no {what} can be held out to validate, because each is the last one of a label; label "
            "more clips, or mark rows `valid` in a column `split`"
        )
    return held


@dataclass(frozen=True)
class Clips:
    """Labeled clips of any length.

    Attributes:
        logmels: (frames, mels) float16 of each clip, normalized.
        targets: (classes,) float32 of each clip, 0 or 1. In event tasks (frames, classes), which say what sounds when.
    """

    logmels: Sequence[np.ndarray]
    targets: Sequence[np.ndarray]

    def __len__(self) -> int:
        return len(self.logmels)


class ReadFiles(NamedTuple):
    """Sounds that were read: what came of each, why others could not be read, and what is to be known."""

    logmels: dict[Sound, np.ndarray]
    """Normalized, (frames, mels) float16."""
    errors: dict[Sound, str]
    notes: dict[Sound, str]


def read_logmels(model: AudioEncoder, paths: Sequence[Path | Sound]) -> ReadFiles:
    """Return the normalized log-mel of each readable sound, the other sounds' errors, and notes."""
    logmels: dict[Sound, np.ndarray] = {}
    errors: dict[Sound, str] = {}
    notes: dict[Sound, str] = {}
    shortened: list[Sound] = []
    hop_s = model.hop_ms / 1000
    statistics, grid = model.card.statistics, model.step_grid()
    for sound in track(sounds_of(paths), len(paths), "read"):
        listener = Listener(model.reading, model.sample_rate_hz)
        try:
            pieces = [piece.cpu().numpy() for _, piece in model.segments_of_file(sound, grid, listener=listener)]
            with np.errstate(over="ignore"):
                logmel = normalize(torch.from_numpy(np.concatenate(pieces, axis=1)), statistics).numpy()
                # float16 takes half the memory of float32, and is still finer than the noise in any recording.
                half = logmel.T.astype(np.float16)
            check_finite(half, f"{sound}: the normalized log-mel")
        except (AudioFileError, NotFiniteError) as error:
            errors[sound] = str(error)
        else:
            logmels[sound] = half
            if listener.note is not None:
                notes[sound] = listener.note
            shortened += [sound] * sound.shortened((len(half) - 1) * hop_s, hop_s)
    if text := shortened_text(shortened):
        note(text)
    return ReadFiles(logmels, errors, notes)


def clips_of(model: AudioEncoder, examples: Examples, logmels: dict[Sound, np.ndarray], part: str) -> Clips:
    """Return the clips of one part ('train', 'valid' or 'test') that could be read."""
    numbers = {label: number for number, label in enumerate(examples.classes)}
    hop_ms, patch_frames = model.hop_ms, model.card.model.patch_frames
    kept, targets = [], []
    beyond: list[tuple[Sound, Event]] = []
    # Clips keep the order of the examples: batches draw them by number, and a resumed job must draw the same ones.
    for sound, labels, own in zip(examples.sounds, examples.labels, examples.parts, strict=True):
        if own != part or sound not in logmels:
            continue
        logmel = logmels[sound]
        shape = (len(logmel), len(numbers)) if examples.kind == "event" else (len(numbers),)
        # Events need a target for each frame, because a training crop can begin at any of them.
        target = np.zeros(shape, dtype=np.float32)
        for label in labels:
            if isinstance(label, Event):
                if round(label.start_ms / hop_ms) >= len(logmel):
                    beyond.append((sound, label))
                    continue
                first, end = frames_of_event(label, hop_ms, len(logmel), patch_frames)
                target[first:end, numbers[label.label]] = 1
            else:
                target[numbers[label]] = 1
        kept.append(logmel)
        targets.append(target)
    if beyond:
        sound, event = beyond[0]
        note(
            f"{counted(len(beyond), 'event')} to {part} on begin after the end of their file and do not count, such as "
            f"{event.label!r} at {event.start_ms / 1000:g} s of {sound}"
        )
    return Clips(kept, targets)


def frames_of_event(event: Event, hop_ms: float, frames: int, shortest: int) -> tuple[int, int]:
    """Return the first frame of an event and the frame after its last, at least `shortest` frames apart."""
    first, end = round(event.start_ms / hop_ms), round(event.end_ms / hop_ms) + 1
    if end - first < shortest:
        # A step has the labels at its center, and an event that is shorter than a step may lie beside all centers.
        first = max(0, min((first + end - shortest) // 2, frames - shortest))
        end = first + shortest
    return first, end
