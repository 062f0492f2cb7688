"""`melmask predict`: labels of files, or what sounds when, to a CSV, JSON-lines or Parquet table; resumable."""

import itertools
import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from melmask.adapters.hear import default_hop_ms
from melmask.classifier.model import AudioClassifier, iterate_labels
from melmask.downstream.events import events_of
from melmask.embedding.choice import FeatureChoice
from melmask.embedding.extract import FileEmbedding, embed_files
from melmask.embedding.tables import write_rows
from melmask.errors import ConfigError, InputError
from melmask.system.files import atomic_write, ensure_folder, locked, output_error
from melmask.system.progress import track

SUFFIXES = (".csv", ".jsonl", ".parquet")
_LONGEST_MS = 3_600_000.5
_NOTHING: dict[str, Any] = {"label": None, "probability": None}


class PredictionReport(NamedTuple):
    """How many files were labelled, how many could not be read, and how many rows were written."""

    files: int
    failed: int
    rows: int


def predict_files(
    classifier: AudioClassifier,
    paths: Sequence[Path],
    out: Path,
    *,
    events: bool = False,
    threshold: float = 0.5,
    hop_ms: float | None = None,
    median_filter_ms: float = 250.0,
    min_duration_ms: float = 125.0,
) -> PredictionReport:
    """Write a row for each label of each file: path, label, probability; with `events` also start_s and end_s.

    A file's rows depend on its sound alone. A file in which nothing is above the threshold has one row without a
    label, a file that cannot be read one with its `error`; the next call tries that again.

    Args:
        classifier: As `load_classifier` gives it. One trained on whole clips tells events only in so far as a step
            sounds like a clip of its label.
        paths: Sound files of any length.
        out: X.csv, X.jsonl or X.parquet.
        events: What sounds when, instead of what a whole file is.
        threshold: What a label's probability has to exceed; of one label a clip, the likeliest is always given.
        hop_ms: Time between the steps of events; by default the longest within 50 ms, as in HEAR.
        median_filter_ms: Over time, before the threshold: as many whole steps as fit, an odd number.
        min_duration_ms: Shorter events are dropped.

    Raises:
        ConfigError: an unknown suffix, or a threshold, hop, filter or duration that cannot be.
        InputError: no file was given, or none could be read.
        OutputError: the table cannot be written.
    """
    if out.suffix not in SUFFIXES or out.is_dir():
        raise ConfigError(f"{out} is no file that ends in {', '.join(SUFFIXES)}; give one of these")
    if not paths:
        raise InputError("no files were given; expected one sound file at least")
    choice = _checked(median_filter_ms=median_filter_ms, min_duration_ms=min_duration_ms, threshold=threshold)
    hop_ms = _hop_ms(classifier, hop_ms) if events else None
    ensure_folder(out.parent)
    journal = _Journal(out, [classifier.sha256, events, hop_ms, choice])
    done = journal.read()
    # One file twice in a row would pass for one of double length.
    paths = list(dict.fromkeys(paths))
    todo = [path for path in paths if str(path) not in done]
    scene = classifier.card.scene
    embedded = embed_files(classifier.encoder, todo, keep_frames=events, hop_ms=hop_ms, scene=scene)
    with journal:
        for path, parts in track(itertools.groupby(embedded, key=lambda part: part.path), len(todo), "predict"):
            done[str(path)] = rows = _rows_of(classifier, parts, events, hop_ms, choice)
            journal.add(str(path), rows)
    failed = [done[str(path)][0]["error"] for path in paths if "error" in done[str(path)][0]]
    if len(failed) == len(paths):
        journal.remove()
        raise InputError(f"none of the {len(paths)} files could be read, as {failed[0]}")
    table = [{"path": str(path), **row} for path in paths for row in done[str(path)]]
    times = {"start_s": float, "end_s": float} if events else {}
    write_rows(out, {"path": str, **times, "label": str, "probability": float, "error": str}, table)
    journal.remove()
    return PredictionReport(len(paths) - len(failed), len(failed), len(table))


def _hop_ms(classifier: AudioClassifier, hop_ms: float | None) -> float:
    """Checked before anything of an earlier job is replaced."""
    hop_ms = default_hop_ms(classifier.encoder.card) if hop_ms is None else hop_ms
    card = classifier.encoder.card
    FeatureChoice(hop_ms=hop_ms, scene=classifier.card.scene).check(card.model, card.front_end)
    return hop_ms


def _checked(**choice: float) -> dict[str, float]:
    for name, value in choice.items():
        if not 0 <= value < (1 if name == "threshold" else _LONGEST_MS):
            known = "a probability from 0 to below 1" if name == "threshold" else "0 to an hour, in milliseconds"
            raise ConfigError(f"{name} is {value:g}; give {known}")
    return choice


class _Journal:
    """What is done, a line a file, so that a killed job goes on behind it; gone when the table is written."""

    def __init__(self, out: Path, job: list[Any]):
        self._out, self._path = out, out.with_name(f".{out.name}.partial.jsonl")
        self._lock_path = self._path.with_suffix(".lock")
        self._own = ExitStack()
        self._head = json.dumps(job)
        self._file: IO[str] | None = None

    def read(self) -> dict[str, list[dict[str, Any]]]:
        """Path -> rows of what the same job has done without an error; what is left of another one is dropped."""
        try:
            head, *lines = self._path.read_text(encoding="utf-8").split("\n")
            # The last line is empty, or cut off by a kill.
            entries = [json.loads(line) for line in lines[:-1]] if head == self._head else []
        except (OSError, ValueError):
            return {}
        return {entry["path"]: entry["rows"] for entry in entries if "error" not in entry["rows"][0]}

    def __enter__(self) -> None:
        self._own.enter_context(locked(self._lock_path, self._out))
        done = self.read()
        with atomic_write(self._path, "w") as file:
            file.write(self._head + "\n")
            file.writelines(_line(path, rows) for path, rows in done.items())
        try:
            self._file = self._path.open("a", encoding="utf-8")
        except OSError as error:
            raise output_error(self._path, error) from error

    def __exit__(self, *_: object) -> None:
        assert self._file is not None
        self._file.close()
        self._own.close()

    def add(self, path: str, rows: list[dict[str, Any]]) -> None:
        """Take in one file's rows."""
        assert self._file is not None
        try:
            self._file.write(_line(path, rows))
            self._file.flush()
        except OSError as error:
            raise output_error(self._path, error) from error

    def remove(self) -> None:
        """The table is written."""
        for path in (self._path, self._lock_path):
            path.unlink(missing_ok=True)


def _line(path: str, rows: list[dict[str, Any]]) -> str:
    return json.dumps({"path": path, "rows": rows}) + "\n"


def _rows_of(
    classifier: AudioClassifier,
    parts: Iterator[FileEmbedding],
    events: bool,
    hop_ms: float | None,
    choice: dict[str, Any],
) -> list[dict[str, Any]]:
    """One file's rows, never none, or one with its error."""
    if events:
        return _events_of(classifier, parts, hop_ms, choice) or [_NOTHING]
    # Without frame vectors a file is one part.
    (part,) = parts
    if part.error is not None:
        return [{"error": part.error}]
    assert part.scene is not None
    row = classifier.probabilities(part.scene[None])[0]
    labels = iterate_labels(classifier.card, row, choice["threshold"])
    return [{"label": label, "probability": round(p, 6)} for label, p in labels] or [_NOTHING]


def _events_of(
    classifier: AudioClassifier, parts: Iterator[FileEmbedding], hop_ms: float | None, choice: dict[str, Any]
) -> list[dict[str, Any]]:
    """What sounds when; of a long file only probabilities are kept."""
    encoder, errors, duration_s = classifier.encoder, [], 0.0

    def frames() -> Iterator[np.ndarray]:
        nonlocal duration_s
        for part in parts:
            duration_s = part.duration_s
            if part.error is not None:
                errors.append(part.error)
            elif part.frames is not None and len(part.frames):
                yield part.frames

    grid, front_end, labels = (
        encoder.step_grid(FeatureChoice(hop_ms=hop_ms)),
        encoder.card.front_end,
        classifier.card.labels,
    )
    step_ms = grid.hop_frames * front_end.hop_ms
    steps = list(classifier.of_steps(frames(), step_ms))
    if errors:
        return [{"error": errors[0]}]
    probabilities = np.concatenate(steps)
    times_ms = grid.times_ms(len(probabilities), front_end)
    # The kit's filter of an even width is no median: of two steps it takes either, and lengthens every event.
    width = int(choice["median_filter_ms"] / step_ms + 1e-6)
    filter_ms = (width - 1 + width % 2) * step_ms if width else 0.0
    found = []
    for event in events_of(probabilities, times_ms, labels, filter_ms, 0.0, choice["threshold"]):
        inside = (times_ms >= event.start_ms) & (times_ms <= event.end_ms)
        mean = float(probabilities[inside, labels.index(event.label)].mean())
        # A step stands for the time up to half-way to its neighbours, the first and the last up to the file's ends.
        start_s = 0.0 if event.start_ms <= times_ms[0] else (event.start_ms - step_ms / 2) / 1000
        end_s = duration_s if event.end_ms >= times_ms[-1] else (event.end_ms + step_ms / 2) / 1000
        if (end_s - start_s) * 1000 > choice["min_duration_ms"] - 1e-6:
            times = {"start_s": round(start_s, 4), "end_s": round(end_s, 4)}
            found.append({**times, "label": event.label, "probability": round(mean, 6)})
    return found
