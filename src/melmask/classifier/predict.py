"""`melmask predict`: write a table of what each file is, or of what sounds when in it."""

import itertools
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from melmask.adapters.hear import default_hop_ms
from melmask.audio.notes import summary
from melmask.audio.parts import Sound, shortened_text, sounds_of
from melmask.audio.video import missing_decoder
from melmask.classifier.model import AudioClassifier
from melmask.classifier.options import PredictOptions
from melmask.classifier.predictions import Journal, Prediction, check_table_path, write_predictions
from melmask.downstream.events import events_of
from melmask.embedding.choice import FeatureChoice
from melmask.embedding.extract import FileEmbedding, embed_files
from melmask.embedding.reading import read_as
from melmask.errors import AudioFileError, InputError, NotFiniteError
from melmask.system.files import changed_since, ensure_folder
from melmask.system.progress import track
from melmask.system.terminal import counted, note

_Parts = Iterator[FileEmbedding]


class PredictionReport(NamedTuple):
    """How many sounds were labeled, how many could not be, and how many rows were written."""

    files: int
    failed: int
    rows: int
    notes: Sequence[str] = ()
    """Which of the failed files an extra would read, which parts of files were shortened, and how many files have
    something to know of."""


def predict_files(
    classifier: AudioClassifier, paths: Sequence[Path | Sound], out: Path, options: PredictOptions = PredictOptions()
) -> PredictionReport:
    """Write a row for each label of each sound: path, label, probability; for events also start_s and end_s.

    If a sound is a part of a file, all rows have start_s and end_s: those of the part or, for events, those of the
    event, counted from the file's start.

    The rows of a file depend only on its sound. A file in which nothing exceeds the threshold has one row without a
    label, and a file that cannot be read has one row with its `error`. The same call resumes a job that was killed.

    Args:
        classifier: As `load_classifier` returns it. If it was trained on whole clips, its events only say that a step
            sounds like a clip of that label.
        paths: Sound files of any length, or parts of them.
        out: X.csv, X.jsonl or X.parquet.
        options: What to report.

    Raises:
        ConfigError: an unknown suffix, or a hop that does not divide a patch.
        InputError: no file was given, or none could be read.
        OutputError: the table cannot be written.
    """
    check_table_path(out)
    if not paths:
        raise InputError("no files were given; expected at least one sound file")
    classifier = copy(classifier)
    classifier.encoder = read_as(classifier.encoder, options.reading)
    # All checks come before the journal of a previous job is replaced.
    choice = _features(classifier, options)
    ensure_folder(out.parent)
    # Rows are grouped by their sound below, so a file given twice in a row would look like one of double length.
    sounds = list(dict.fromkeys(sounds_of(paths)))
    # The journal names the job as in release 0.1.0, so that jobs which were killed then can still resume.
    numbers = {name: getattr(options, name) for name in ("median_filter_ms", "min_duration_ms", "threshold")}
    job = [classifier.sha256, options.events, choice.hop_ms, numbers]
    if reading := classifier.encoder.reading.changed_facts():
        job.append(reading)
    with Journal.of(out, job) as journal:
        done = (sound for sound in sounds if sound.key in journal.done)
        changed = {sound.key for sound in done if changed_since(sound.path, journal.written_s)}
        if changed:
            note(f"{counted(len(changed), 'sound')} have changed since the job was stopped, and are predicted again")
        todo = [sound for sound in sounds if sound.key not in journal.done or sound.key in changed]
        embedded = embed_files(classifier.encoder, todo, choice, keep_frames=options.events)
        shortened, hop_s = list[Sound](), classifier.encoder.hop_ms / 1000
        for sound, parts in track(itertools.groupby(embedded, key=lambda part: part.sound), len(todo), "predict"):
            noted = _noting(shortened, parts, hop_s)
            journal.add(sound.key, _rows_of_file(classifier, noted, choice, options))
        rows = [(sound, row) for sound in sounds for row in journal.done[sound.key]]
        labeled = {sound for sound, row in rows if row.error is None}
        errors = [(sound, row.error) for sound, row in rows if row.error is not None]
        if labeled:
            write_predictions(out, rows, options.events)
    if not labeled:
        raise InputError(f"none of {counted(len(sounds), 'file')} could be labeled; the first error: {errors[0][1]}")
    noticed = {sound: row.note for sound, row in rows if row.note is not None}
    missing = missing_decoder(str(sound.path) for sound, _ in errors if sound not in labeled)
    notes = [*filter(None, (missing, shortened_text(shortened))), *summary(noticed.values(), "its column note")]
    if channels := sum(sound in labeled for sound, _ in errors):
        what = f"{counted(channels, 'channel')} could not be labeled, and others of the same files could"
        notes.insert(0, f"{what}; the rows hold the reason")
    return PredictionReport(len(labeled), len(sounds) - len(labeled), len(rows), notes)


def _noting(shortened: list[Sound], parts: _Parts, hop_s: float) -> _Parts:
    """Yield the parts of a result, and note its sound if its file was too short for it."""
    for part in parts:
        if part.scene is not None and part.sound.shortened(part.duration_s, hop_s):
            shortened.append(part.sound)
        yield part


def _features(classifier: AudioClassifier, options: PredictOptions) -> FeatureChoice:
    """Return the features that the classifier sees, and check the hop of events. Whole files have no hop."""
    card = classifier.encoder.card
    hop_ms = default_hop_ms(card) if options.hop_ms is None else options.hop_ms
    choice = FeatureChoice(scene=classifier.card.scene, hop_ms=hop_ms if options.events else None)
    return choice.of_model(card)


def _rows_of_file(
    classifier: AudioClassifier, parts: _Parts, choice: FeatureChoice, options: PredictOptions
) -> list[Prediction]:
    """Return the rows of one file, or of each of its channels, with what is to be known of the file."""
    rows = []
    for channel, of_channel in itertools.groupby(parts, key=lambda part: part.channel):
        notes: list[str | None] = []
        found = _rows_of(classifier, _noted(of_channel, notes), choice, options)
        rows += [replace(row, channel=channel, note=notes[-1]) for row in found]
    return rows


def _noted(parts: _Parts, notes: list[str | None]) -> _Parts:
    """Yield the parts, and add the note of each to `notes`; the last one has the file's."""
    for part in parts:
        notes.append(part.note)
        yield part


def _rows_of(
    classifier: AudioClassifier, parts: _Parts, choice: FeatureChoice, options: PredictOptions
) -> list[Prediction]:
    """Return the rows of one clip, at least one."""
    try:
        if options.events:
            rows = _events_in(classifier, parts, choice, options)
        else:
            rows = _labels_of(classifier, parts, options.threshold)
    except (AudioFileError, NotFiniteError) as error:
        return [Prediction(error=str(error))]
    return rows or [Prediction()]


def _readable(parts: _Parts) -> _Parts:
    """Yield the parts of a file; raise AudioFileError if it cannot be read to its end, which voids earlier parts."""
    for part in parts:
        if part.error is not None:
            raise AudioFileError(part.error)
        yield part


def _labels_of(classifier: AudioClassifier, parts: _Parts, threshold: float) -> list[Prediction]:
    """Return the likeliest label of a file or, if it can have several, all above the threshold, likeliest first."""
    # Without frame vectors a file comes as one part.
    (part,) = _readable(parts)
    assert part.scene is not None
    probabilities, card = classifier.probabilities(part.scene[None])[0], classifier.card
    order = np.argsort(-probabilities, kind="stable").tolist()
    if card.kind == "multiclass":
        chosen = order[:1]
    else:
        chosen = [number for number in order if probabilities[number] > threshold]
    return [Prediction(label=card.labels[n], probability=round(float(probabilities[n]), 6)) for n in chosen]


def _events_in(
    classifier: AudioClassifier, parts: _Parts, choice: FeatureChoice, options: PredictOptions
) -> list[Prediction]:
    """Return what sounds when in a file. Only the probabilities of a long file are kept in memory."""
    encoder, labels, duration_s, begins_s = classifier.encoder, classifier.card.labels, 0.0, 0.0
    # The options are about the sound as it is played, and the rows about the file.
    expand = encoder.reading.expand

    def frames() -> Iterator[Float[np.ndarray, "_ dims"]]:
        nonlocal duration_s, begins_s
        for part in _readable(parts):
            duration_s, begins_s = part.duration_s * expand, part.sound.start_s
            if part.frames is not None and len(part.frames):
                yield part.frames

    grid, front_end = encoder.step_grid(choice), encoder.card.front_end
    step_ms = grid.hop_frames * front_end.hop_ms
    probabilities = np.concatenate(list(classifier.of_steps(frames(), step_ms)))
    times_ms = grid.times_ms(len(probabilities), front_end)
    # The width is made odd. The HEAR kit's filter of an even width is no median: with two steps it takes the larger,
    # and so lengthens every event.
    width = int(options.median_filter_ms / step_ms + 1e-6)
    filter_ms = (width - 1 + width % 2) * step_ms if width else 0.0
    found = []
    # `events_of` measures durations from center to center of steps, so its own minimum is left at 0.
    for event in events_of(probabilities, times_ms, labels, filter_ms, 0.0, options.threshold):
        inside = (times_ms >= event.start_ms) & (times_ms <= event.end_ms)
        mean = float(probabilities[inside, labels.index(event.label)].mean())
        # A step covers the time half-way to its neighbors; the first and the last step reach to the file's ends.
        start_s = 0.0 if event.start_ms <= times_ms[0] else (event.start_ms - step_ms / 2) / 1000
        end_s = duration_s if event.end_ms >= times_ms[-1] else (event.end_ms + step_ms / 2) / 1000
        # The small constant keeps an event that is just long enough but for rounding.
        if (end_s - start_s) * 1000 > options.min_duration_ms - 1e-6:
            start_s, end_s = round(begins_s + start_s / expand, 4), round(begins_s + end_s / expand, 4)
            found.append(Prediction(label=event.label, probability=round(mean, 6), start_s=start_s, end_s=end_s))
    return found
