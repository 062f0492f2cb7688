"""Embed the clips of a HEAR task with a HEAR model, part by part, and cache each part.

The name of a cached part is a digest of the model's identity, of the kind and batch size of the embeddings, and of the
bytes of the sound files. So no part is ever stale, an interrupted job resumes at the next part, and tasks that share
files share parts.
"""

import hashlib
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from melmask.audio.files import read_audio
from melmask.errors import InputError
from melmask.evaluate.models import Client
from melmask.evaluate.tasks import Task
from melmask.labels.tables import Event
from melmask.system.arrays import read_arrays
from melmask.system.files import atomic_write
from melmask.system.progress import track
from melmask.system.reading import DamagedFileError, open_file, reason_of

# An interruption costs one part at most. Event clips have a vector for each step, so a part has fewer of them.
_SCENES_PER_PART, _EVENT_CLIPS_PER_PART = 512, 32
# In the kit, a step at the very end of an event still belongs to the event.
_END_MARGIN_MS = 1e-4


class SplitEmbeddings(NamedTuple):
    """The vectors of one split, clip by clip, in the order into which the kit shuffles the clips.

    Attributes:
        files: Names of the clips.
        vectors: (rows, dims) float32; a row is a clip or, in event tasks, a step.
        targets: (rows, classes) bool.
        clip_of: (rows,), the index of each row's clip in `files`.
        times_ms: (rows,), centers of the steps; empty for scenes.
    """

    files: list[str]
    vectors: np.ndarray
    targets: np.ndarray
    clip_of: np.ndarray
    times_ms: np.ndarray


class _Clip(NamedTuple):
    vectors: np.ndarray
    """(1, dims) of a scene, or (steps, dims)."""
    times_ms: np.ndarray


def embed_task(client: Client, task: Task, cache: Path) -> dict[str, SplitEmbeddings]:
    """Embed every split of a task, or read the parts that `cache` has.

    Clips pass through the model in batches of the kit's size, in the order of the split's JSON. So a model whose
    embeddings depend on the rest of the batch gives the same embeddings as in the kit.

    Raises:
        InputError: a sound file is missing or unreadable, its length differs from others in its batch, or the
            model's answer cannot be used.
        OutputError: the cache cannot be written to.
    """
    folders = {split: _audio_folder(task, split, client.sample_rate_hz) for split in task.splits}
    jobs = [
        (split, names) for split in task.splits for names in _parts(list(task.files[split]), _part_size(client, task))
    ]
    clips: dict[str, dict[str, _Clip]] = {split: {} for split in task.splits}
    for split, names in track(jobs, len(jobs), f"embed {task.title} with {client.name}", "part"):
        clips[split].update(_embedded_part(client, task, folders[split], names, cache))
    # As in the kit, one generator shuffles all splits, so their order matters.
    order = random.Random(0)
    return {split: _put_together(task, split, clips[split], order) for split in task.splits}


def batch_size(client: Client, task: Task) -> int:
    """Return how many clips the kit embeds at once: fewer if they are longer or their rate is higher."""
    # Clips of different lengths cannot be stacked.
    if task.sample_duration_s is None:
        return 1
    # This formula is the kit's.
    return max(1, int(0.7 * (120 / task.sample_duration_s) * (16000 / client.sample_rate_hz)))


def _part_size(client: Client, task: Task) -> int:
    """Return the number of clips in a part: whole batches, so that a part can be computed alone."""
    clips = _SCENES_PER_PART if task.embedding_type == "scene" else _EVENT_CLIPS_PER_PART
    batch = batch_size(client, task)
    return max(1, clips // batch) * batch


def _parts(names: list[str], size: int) -> Iterator[list[str]]:
    for start in range(0, len(names), size):
        yield names[start : start + size]


def _audio_folder(task: Task, split: str, rate_hz: int) -> Path:
    """Return the folder of a split's sounds at the model's rate or, to be resampled, at the highest rate."""
    wanted = task.audio_folder(split, rate_hz)
    if wanted.is_dir():
        return wanted
    rates = task.rates_hz(split)
    if not rates:
        raise InputError(
            f"{wanted} does not exist, and split {split} has no sounds at another rate; unpack the whole task"
        )
    return task.audio_folder(split, rates[-1])


def _embedded_part(client: Client, task: Task, folder: Path, names: list[str], cache: Path) -> dict[str, _Clip]:
    """Read a part from the cache, or compute and save it."""
    path = cache / f"{_key(client, task, folder, names)}.npz"
    vectors, times_ms, steps = _read_part(path, len(names)) or _compute_part(client, task, folder, names, path)
    # A file has the clips of a part one after another. Scenes have no times.
    ends = np.cumsum(steps)
    return {
        name: _Clip(vectors[end - count : end], times_ms[end - count : end] if len(times_ms) else times_ms)
        for name, end, count in zip(names, ends, steps, strict=True)
    }


def _key(client: Client, task: Task, folder: Path, names: Sequence[str]) -> str:
    # The batch size belongs to the key, because some models' embeddings depend on the batch.
    digest = hashlib.sha256(f"{client.identity} {task.embedding_type} {batch_size(client, task)}".encode())
    for name in names:
        try:
            with open_file(folder / name) as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        except OSError as error:
            raise InputError(f"{folder / name}: {reason_of(error)}; unpack the whole task") from error
    return digest.hexdigest()[:32]


def _read_part(path: Path, clips: int) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Return the vectors, times and steps of a part of `clips` clips, or None if it is missing or damaged."""
    try:
        vectors, times_ms, steps = read_arrays(path, ("vectors", "times_ms", "steps"))
    except (OSError, DamagedFileError):
        return None
    # A part that does not fit is computed again, as one that is missing.
    fits = vectors.ndim == 2 and vectors.dtype == np.float32 and steps.shape == (clips,) and steps.dtype.kind == "i"
    fits = fits and bool((steps > 0).all()) and int(steps.sum()) == len(vectors)
    return (vectors, times_ms, steps) if fits and times_ms.shape in ((0,), (len(vectors),)) else None


def _compute_part(
    client: Client, task: Task, folder: Path, names: list[str], path: Path
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    vectors: list[np.ndarray] = []
    times: list[np.ndarray] = []
    for batch in _parts(names, batch_size(client, task)):
        audio = _stack([read_audio(folder / name, client.sample_rate_hz) for name in batch], batch, folder)
        if task.embedding_type == "scene":
            # A scene is a clip of one step.
            vectors += list(client.scenes(audio)[:, None])
        else:
            frames, times_ms = client.timestamps(audio)
            vectors += list(frames)
            times += list(times_ms)
    steps = np.array([len(clip) for clip in vectors])
    part = np.concatenate(vectors), np.concatenate(times) if times else np.zeros(0), steps
    with atomic_write(path) as file:
        np.savez(file, vectors=part[0], times_ms=part[1], steps=part[2])
    return part


def _stack(waveforms: list[np.ndarray], names: list[str], folder: Path) -> np.ndarray:
    lengths = {len(waveform) for waveform in waveforms}
    if len(lengths) > 1:
        raise InputError(
            f"{folder} has clips of {min(lengths)} to {max(lengths)} samples in the batch of {names[0]}; expected one "
            "length, as the task has a sample_duration"
        )
    return np.stack(waveforms)


def _put_together(task: Task, split: str, clips: dict[str, _Clip], order: random.Random) -> SplitEmbeddings:
    # The kit shuffles only here, so this order decides the batches of its training.
    files = list(task.files[split])
    order.shuffle(files)
    numbers = {label: number for number, label in enumerate(task.labels)}
    rows = [len(clips[name].vectors) for name in files]
    targets = np.zeros((sum(rows), len(task.labels)), dtype=bool)
    first = 0
    for name, count in zip(files, rows, strict=True):
        _mark(targets[first : first + count], task.files[split][name], clips[name].times_ms, numbers)
        first += count
    return SplitEmbeddings(
        files,
        np.concatenate([clips[name].vectors for name in files]),
        targets,
        np.repeat(np.arange(len(files)), rows),
        np.concatenate([clips[name].times_ms for name in files]),
    )


def _mark(targets: np.ndarray, labels: list[str] | list[Event], times_ms: np.ndarray, numbers: dict[str, int]) -> None:
    for label in labels:
        if isinstance(label, Event):
            during = (label.start_ms <= times_ms) & (times_ms < label.end_ms + _END_MARGIN_MS)
            targets[during, numbers[label.label]] = True
        else:
            targets[:, numbers[label]] = True
