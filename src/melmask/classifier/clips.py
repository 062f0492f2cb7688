"""What a classifier hears of its examples: log-mels, and as targets which class sounds in each of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from melmask.classifier.examples import Examples
from melmask.classifier.head import Kind
from melmask.embedding.encoder import AudioEncoder
from melmask.errors import AudioFileError
from melmask.labels.tables import Event
from melmask.system.progress import track


@dataclass(frozen=True)
class Clips:
    """Labeled clips of any length.

    logmels: (frames, mels) float16 each, normalized.  targets: (classes,) float32 of each clip, 0 or 1; of an event
    task (frames, classes), what sounds when.
    """

    logmels: Sequence[np.ndarray]
    targets: Sequence[np.ndarray]

    def __len__(self) -> int:
        return len(self.logmels)


def read_logmels(model: AudioEncoder, paths: Sequence[Path]) -> tuple[dict[Path, np.ndarray], dict[Path, str]]:
    """Return the normalized log-mel of each readable file, (frames, mels) float16, and why the others have none."""
    logmels: dict[Path, np.ndarray] = {}
    errors: dict[Path, str] = {}
    statistics, grid = model.card.statistics, model.step_grid()
    for path in track(paths, len(paths), "read"):
        try:
            pieces = [piece.cpu().numpy() for _, piece in model.segments_of_file(path, grid)]
        except AudioFileError as error:
            errors[path] = str(error)
        else:
            logmel = (np.concatenate(pieces, axis=1) - statistics.mean) / statistics.std
            # Half the memory of float32, and finer than the noise in any recording.
            logmels[path] = logmel.T.astype(np.float16)
    return logmels, errors


def clips_of(model: AudioEncoder, examples: Examples, logmels: dict[Path, np.ndarray], part: str) -> Clips:
    """Return the clips of one part ('train', 'valid' or 'test') that could be read."""
    numbers = {label: number for number, label in enumerate(examples.classes)}
    hop_ms, patch_frames = model.card.front_end.hop_ms, model.card.model.patch_frames
    kept, targets = [], []
    # Clips keep the order of the examples: batches draw them by number, and a resumed job must draw the same ones.
    for path, labels, own in zip(examples.paths, examples.labels, examples.parts, strict=True):
        if own != part or path not in logmels:
            continue
        logmel = logmels[path]
        shape = (len(logmel), len(numbers)) if examples.kind == "event" else (len(numbers),)
        # Events need a target for each frame, as the crop that a step sees begins anywhere.
        target = np.zeros(shape, dtype=np.float32)
        for label in labels:
            if isinstance(label, Event):
                first, end = frames_of_event(label, hop_ms, len(logmel), patch_frames)
                target[first:end, numbers[label.label]] = 1
            else:
                target[numbers[label]] = 1
        kept.append(logmel)
        targets.append(target)
    return Clips(kept, targets)


def frames_of_event(event: Event, hop_ms: float, frames: int, shortest: int) -> tuple[int, int]:
    """Return the first frame of an event and the one after its last, at least `shortest` frames apart."""
    first, end = round(event.start_ms / hop_ms), round(event.end_ms / hop_ms) + 1
    if end - first < shortest:
        # A step takes the label at its center, which most events shorter than a step would miss.
        first = max(0, min((first + end - shortest) // 2, frames - shortest))
        end = first + shortest
    return first, end


def labels_in(clips: Clips, classes: Sequence[str]) -> list[str]:
    """Return the labels that occur in these clips, of which there is at least one."""
    occurs = np.any([target.reshape(-1, len(classes)).any(0) for target in clips.targets], axis=0)
    return [label for label, there in zip(classes, occurs, strict=True) if there]


def crop_frames(model: AudioEncoder, train: Clips, kind: Kind, crop_s: float) -> int:
    """Return the length of a training crop in frames, whole patches.

    Nearly all clips fit into a crop, unless they are longer than `crop_s` or, in event tasks, the model's unit.
    """
    config = model.card.model
    limit = config.frames if kind == "event" else round(1000 * crop_s / model.card.front_end.hop_ms)
    # The few longest clips must not make all other ones repeat themselves.
    longest = int(np.quantile([len(logmel) for logmel in train.logmels], 0.95))
    return max(1, round(min(limit, longest) / config.patch_frames)) * config.patch_frames
