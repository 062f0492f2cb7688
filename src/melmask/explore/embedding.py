"""The embedding of what is missing in a collection: in the background, part by part, and never twice.

The folder of embeddings has a table for each job, `000000.parquet` and so on, as `melmask embed` writes it. A job
embeds the sounds that no table has, so that files can be added to a collection. The parts of a job that was stopped,
`000000.parquet.parts`, are read like tables.
"""

import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from melmask.audio.parts import Sound
from melmask.config import WHITENED
from melmask.embedding.choice import FeatureChoice
from melmask.embedding.encoder import AudioEncoder
from melmask.embedding.extract import FileEmbedding, embed_files
from melmask.embedding.folder import embed_table, table_settings
from melmask.embedding.read_tables import count_scenes, read_scenes
from melmask.embedding.tables import TableJob, TableSettings, WriteParts, read_settings
from melmask.errors import InputError, MelmaskError
from melmask.explore.vectors import PointVectors
from melmask.system.files import ensure_folder
from melmask.system.progress import track
from melmask.system.terminal import counted, note

_SAME = ("model_sha256", "layer", "pooling", "scene", "normalization", "channel", "expand", "scene_dimensions")
"""Settings that have to be alike in tables whose vectors are compared."""


class _Stopped(Exception):  # noqa: N818 - nothing went wrong
    """The job has been asked to stop."""


def modified_s(sounds: Sequence[Sound]) -> np.ndarray:
    """Return when each sound's file was changed, in s since 1970 (points,) float64; NaN if it is not there."""
    found: dict[str, float] = {}
    times = np.full(len(sounds), np.nan)
    for point, sound in enumerate(sounds):
        path = str(sound.path)
        if path not in found:
            try:
                found[path] = sound.path.stat().st_mtime
            except OSError:
                found[path] = np.nan
        times[point] = found[path]
    return times


class EmbeddingJob:
    """Reads the vectors that there are, and computes the others in a thread of its own.

    Attributes: `vectors`, `error` (why the job ended early; empty otherwise).

    Raises:
        OutputError: the folder of embeddings cannot be written to.
    """

    def __init__(
        self, model: AudioEncoder, sounds: Sequence[Sound], modified_s: np.ndarray, folder: Path, source: Path
    ):
        self._model, self._sounds, self._modified_s = model, sounds, modified_s
        self._folder = ensure_folder(folder)
        self._choice = FeatureChoice()
        self._settings = table_settings(model, sounds, self._choice)
        whitening = model.card.whitening if self._settings.scene == WHITENED else None
        self.vectors, self.error = PointVectors(len(sounds), self._settings.scene_dimensions, whitening), ""
        self._stop, self._busy = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="embed", daemon=True)
        self._read(source)

    @property
    def total(self) -> int:
        """Number of points."""
        return len(self._sounds)

    @property
    def running(self) -> bool:
        """Whether sounds are still being embedded."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Begin to embed what is missing."""
        self._thread.start()

    def wait(self) -> None:
        """Wait until everything is embedded."""
        self._thread.join()

    def stop(self) -> None:
        """Stop after the current sounds; whole parts are kept."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def _missing(self) -> list[int]:
        return np.flatnonzero(~self.vectors.known).tolist()

    def _read(self, source: Path) -> None:
        """Take in the vectors of the tables that there are: what is explored, if it is one, and those in the folder."""
        points = {sound.key: point for point, sound in enumerate(self._sounds)}
        if source.suffix == ".parquet" and source.is_file() and (settings := read_settings(source)) is not None:
            if self._serves(settings):
                # The paths of a table may be written otherwise than they are found, but in the same order.
                same = count_scenes(source) == self.total
                self._take_table(source, settings, list(range(self.total)) if same else None, points)
            else:
                note(f"{source} is of another model or other settings, so its sounds are embedded again; see --model")
        parts = self._folder.glob("*.parquet.parts/part-*.parquet")
        for table in sorted((*self._folder.glob("*.parquet"), *parts)):
            settings = read_settings(table)
            if settings is not None and self._serves(settings):
                try:
                    self._take_table(table, settings, None, points)
                except InputError as error:
                    note(f"melmask: sounds are embedded again, because {error}")
        if not self._missing():
            self.vectors.finish()

    def _serves(self, settings: TableSettings) -> bool:
        return all(getattr(settings, name) == getattr(self._settings, name) for name in _SAME)

    def _take_table(
        self, table: Path, settings: TableSettings, in_order: list[int] | None, points: dict[str, int]
    ) -> None:
        """Take in the vectors of sounds that are not known yet, and that have not changed since."""
        made_s, begin = table.stat().st_mtime, 0
        for scenes in read_scenes(table, settings):
            found = [points.get(key, -1) for key in scenes.keys]
            if in_order is not None:
                found = in_order[begin : begin + len(found)]
            begin += len(found)
            chosen = np.array(found, np.int64)
            # What is gone (NaN) can still be seen on the map.
            new = (chosen >= 0) & ~self.vectors.known[chosen] & ~(self._modified_s[chosen] > made_s)
            new &= np.isfinite(scenes.vectors).all(axis=1)
            if new.any():
                self.vectors.add(chosen[new], scenes.vectors[new], scenes.durations_s[new])

    def _run(self) -> None:
        missing = self._missing()
        if not missing:
            return
        # The folder may have tables of other names, which users put there.
        names = (path.name.partition(".")[0] for path in self._folder.glob("*.parquet*"))
        number = 1 + max((int(name) for name in names if name.isascii() and name.isdecimal()), default=-1)
        table = self._folder / f"{number:06d}.parquet"
        sounds = [self._sounds[point] for point in missing]
        try:
            embed_table(self._model, sounds, table, self._choice, write_parts=self._writer(missing))
        except _Stopped:
            return
        except MelmaskError as error:
            # Where no file can be read there is no table, and each file has its reason.
            if len(self.vectors.failed) < len(missing):
                self.error = str(error)
                note(f"melmask: error: {error}")
        except Exception as error:
            self.error = f"embedding stopped: {error}"
            raise
        finally:
            self.vectors.finish()
        if self.vectors.failed:
            first = next(iter(self.vectors.failed.values()))
            note(f"melmask: {counted(len(self.vectors.failed), 'sound')} could not be embedded; the first: {first}")

    def _writer(self, points: Sequence[int]) -> WriteParts:
        def write(model: AudioEncoder, choice: FeatureChoice, job: TableJob) -> float:
            todo = job.todo()
            sounds = job.sounds_of(todo)
            rows = self._watched(embed_files(model, sounds, choice), points)
            return job.write(todo, track(rows, len(sounds), "embed"))

        return write

    def _watched(self, rows: Iterable[FileEmbedding], points: Sequence[int]) -> Iterator[FileEmbedding]:
        """Show each row on the map as soon as it is there; stop when asked to."""
        for row, point in zip(rows, points, strict=True):
            if self._stop.is_set():
                raise _Stopped
            if row.scene is not None:
                self.vectors.add(np.array([point]), row.scene[None], np.array([row.duration_s]))
            else:
                self.vectors.failed[point] = row.error or "it could not be embedded"
            yield row
