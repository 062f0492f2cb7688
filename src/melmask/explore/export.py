"""The work of `melmask explore --export`: one HTML file that shows a collection without a server.

What would make the page very large is bounded, and what is left out is said: on the terminal and in the page.
"""

import hashlib
import io
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import soundfile
from jaxtyping import Float, Int64

from melmask.audio.files import read_audio_blocks
from melmask.audio.parts import Sound
from melmask.config import MaskingConfig
from melmask.embedding.encoder import AudioEncoder
from melmask.embedding.export_masked import export_masked
from melmask.embedding.levels import LEAST_VARIANCE, NOISE, patch_covariance
from melmask.embedding.reconstruction import predicts_normalized
from melmask.errors import AudioFileError, InputError, OutputError
from melmask.explore.collection import Collection
from melmask.explore.columns import Column
from melmask.explore.options import ExploreOptions
from melmask.explore.projection import UMAP
from melmask.explore.reduced import Reduced, reduced_vectors
from melmask.explore.server import collection_facts
from melmask.explore.sounds import SoundReader, matrix, range_db
from melmask.explore.standalone import RUNTIME, Blocks, write_standalone
from melmask.geometry import grid_of
from melmask.system.extras import available
from melmask.system.files import ensure_folder
from melmask.system.progress import track
from melmask.system.reading import read_bytes
from melmask.system.terminal import counted

LONGEST_S = 10.0
"""No sound in a page is longer, and no spectrogram."""
_PICTURE_BANDS, _PICTURE_FRAMES = 40, 80
_HIGHEST_HEARD_HZ = 48_000
_MOST_MODEL_BYTES = 64 << 20
_MOST_COLUMN_LETTERS = 24 << 20
_MOST_GROUPS = 50
_HELD = "in this page"
_SUFFIXES = (".html", ".htm")
_FARTHEST = 32767
"""What 1 on a map is as a whole number of 16 bits; -32768 is a point without a place."""


class Exported(NamedTuple):
    """The size of a page in bytes, and lines on what it holds and what it leaves out."""

    size: int
    lines: list[str]


def export_page(collection: Collection, options: ExploreOptions) -> Exported:
    """Embed what is missing, and write the page `options.export`.

    Raises:
        InputError: nothing can be embedded.
        OutputError: the page cannot be written, or is not called HTML; whatever was in its place is still there.
    """
    path = options.export
    assert path is not None
    # What cannot be written is reported before hours are spent on embedding.
    ensure_folder(path.parent)
    if path.is_dir():
        raise OutputError(f"cannot write {path}: it is a folder; give the name of a file, such as {path / 'page.html'}")
    # No table or sound that is read has such a name.
    if path.suffix.lower() not in _SUFFIXES:
        raise OutputError(f"--export is {path}; the page is HTML, so give a name such as {path.with_suffix('.html')}")
    collection.job.start()
    try:
        collection.job.wait()
    finally:
        collection.job.stop()
    if not collection.vectors.known.any():
        raise InputError(f"none of {counted(collection.count, 'sound')} could be embedded, so there is no map")
    page = _Page(collection, options)
    size = write_standalone(path, page.fill)
    return Exported(size, page.lines)


class _Page:
    """Collects what goes into a page."""

    def __init__(self, collection: Collection, options: ExploreOptions):
        self._shown, self._options = collection, options
        self._names = _Names(collection)
        self.lines: list[str] = []
        """What the page holds and leaves out, for the terminal and for the page."""

    def fill(self, blocks: Blocks) -> dict[str, Any]:
        """Write the blocks, and return the facts; `static_source.js` says what they are."""
        shown = self._shown
        names = blocks.json(self._names.names)
        paths = blocks.json(self._names.paths) if shown.segments else names
        self._say_embedded()
        model = self._model(blocks)
        sounds, pictures = self._sounds(blocks)
        packed = pictures.write(blocks)
        facts = collection_facts(shown)
        columns = self._columns(blocks, [described["name"] for described in facts["columns"]])
        # What another program may still be doing is no matter of a page that is done.
        facts["embedding"] = None
        # What is installed may still be broken, which is no reason to write no page.
        maps = [name for name in shown.projections.names if name != UMAP or available("map")]
        points = {name: blocks.array(_places(shown.projections.points(name))) for name in maps}
        facts["projections"] = maps
        facts["columns"] = [column for column in facts["columns"] if column["name"] in columns]
        held = self._held(sounds, pictures)
        facts["columns"].append({"name": held.name, "kind": held.kind, "distinct": held.distinct})
        columns[held.name] = self._column(blocks, held)
        search = reduced_vectors(shown.vectors)
        self._say_search(search)
        return {
            "format": 1,
            "key": f"melmask-{hashlib.sha256(repr((shown.name, self._names.names)).encode()).hexdigest()[:16]}",
            "collection": facts,
            "note": " ".join(self.lines),
            "names": names,
            "paths": paths,
            **self._times(blocks),
            "points": points,
            "columns": columns,
            "durations": blocks.array(shown.vectors.durations_s),
            "search": search and {"rows": blocks.array(search.rows), "scales": blocks.array(search.scales)},
            "frequencies_hz": _frequencies_hz(shown.model),
            "sounds": sounds,
            "pictures": packed,
            "model": model,
            "labels": {str(point): label for point, label in shown.labels.all().items()},
        }

    def _times(self, blocks: Blocks) -> dict[str, Any]:
        sounds = self._shown.sounds
        if not self._shown.segments:
            return {"starts": None, "ends": None}
        starts = np.array([sound.start_s for sound in sounds])
        ends = np.array([np.nan if sound.end_s is None else sound.end_s for sound in sounds])
        return {"starts": blocks.array(starts), "ends": blocks.array(ends)}

    def _columns(self, blocks: Blocks, names: Sequence[str]) -> dict[str, Any]:
        """Write the columns, as long as there is room."""
        found, left_out, before = {}, [], blocks.size
        for name in names:
            if blocks.size - before > _MOST_COLUMN_LETTERS:
                left_out.append(name)
            else:
                found[name] = self._column(blocks, self._shown.column(name))
        if left_out:
            self.lines.append(f"Columns that are left out, as they would make the page large: {', '.join(left_out)}.")
        return found

    def _column(self, blocks: Blocks, column: Column) -> dict[str, Any]:
        if column.values is not None:
            return {"kind": column.kind, "values": blocks.array(column.values)}
        assert column.codes is not None
        most = len(column.categories)
        small = np.int8 if most < 128 else np.int16 if most < 32768 else np.int32
        categories = blocks.json([self._names.shortened(category) for category in column.categories])
        return {"kind": column.kind, "categories": categories, "codes": blocks.array(column.codes.astype(small))}

    def _sounds(self, blocks: Blocks) -> tuple[list[dict[str, Any]], "_Pictures"]:
        """Write the chosen sounds with what the model sees of them, and small pictures of others."""
        shown, options = self._shown, self._options
        reader, failed = SoundReader(shown.model), 0
        known = np.flatnonzero(shown.vectors.known)
        groups = _groups(shown.columns(), shown.count)
        whole = set(spread(known, groups, options.sounds).tolist())
        rest = np.array([point for point in known if point not in whole], np.int64)
        pictured = whole | set(spread(rest, groups, max(0, options.spectrograms - len(whole))).tolist())
        sounds, pictures = [], _Pictures(shown.model)
        for point in track(sorted(pictured), len(pictured), "export", unit="sound"):
            try:
                logmel = reader.logmel(shown.sounds[point], 0, _longest_frames(shown.model))
                if point in whole:
                    sounds.append(self._whole(blocks, point, logmel))
                else:
                    pictures.add(point, logmel)
            except (AudioFileError, InputError):
                failed += 1
        self._say_sounds(len(sounds), len(sounds) + len(pictures.points), failed)
        return sounds, pictures

    def _held(self, sounds: Sequence[dict[str, Any]], pictures: "_Pictures") -> Column:
        """Return the column that says what the page has of each sound, by which they can be found on the map."""
        codes = np.full(self._shown.count, 2, np.int32)
        codes[pictures.points] = 1
        codes[[sound["id"] for sound in sounds]] = 0
        return Column(name=_HELD, kind="category", codes=codes, categories=["sound and model", "picture", "place"])

    def _whole(self, blocks: Blocks, point: int, logmel: Float[np.ndarray, "bands frames"]) -> dict[str, Any]:
        """Write a sound and its log-mel."""
        held_s = logmel.shape[1] * self._shown.model.hop_ms / 1000
        low, high = float(logmel.min()), float(logmel.max())
        # 256 levels over the range of a sound are steps of some tenths of a dB.
        step = max(high - low, 1e-6) / 255
        levels = np.rint((logmel - low) / step).astype(np.uint8)
        return {
            "id": point,
            "sound": blocks.add_as_is(_flac(self._shown.sounds[point], self._shown.model)),
            "type": "audio/flac",
            "logmel": blocks.array(levels),
            "low": low,
            "step": step,
            "frames": logmel.shape[1],
            "duration_s": round(min(held_s, float(self._shown.vectors.durations_s[point])), 4),
        }

    def _model(self, blocks: Blocks) -> dict[str, Any] | None:
        """Write the model and what runs it; None if it cannot reconstruct, or is too large."""
        encoder = self._shown.model
        config, statistics = encoder.card.model, encoder.card.statistics
        if not config.has_decoder:
            self.lines.append("The model has no decoder, so the page cannot reconstruct hidden patches.")
            return None
        # Two bytes for each weight.
        expected = 2 * sum(parameter.numel() for parameter in encoder.model.parameters())
        if expected > _MOST_MODEL_BYTES:
            self.lines.append(
                f"The model is left out, as it has {expected >> 20} MB, and at most {_MOST_MODEL_BYTES >> 20} MB go "
                "into a page; so the page cannot reconstruct hidden patches."
            )
            return None
        made, masking, grid = export_masked(encoder), MaskingConfig(), grid_of(config)
        return {
            "block": blocks.add(made.content),
            "runtime": blocks.add_as_is(read_bytes(RUNTIME / "ort.wasm.gz")),
            "attention": made.attention,
            "bands": config.bands,
            "mels": config.mels,
            "patch_mels": config.patch_mels,
            "scale": {
                "means": [statistics.mean, *statistics.further_means],
                "stds": [statistics.std, *statistics.further_stds],
                "normalized": predicts_normalized(encoder.card),
                "least_variance": LEAST_VARIANCE,
                # The covariance of two patches depends only on how far they lie apart.
                "covariance": patch_covariance(grid)[0].reshape(grid).tolist(),
                "noise": NOISE,
            },
            # 0 is all rows, or all columns.
            "blocks": {
                "inverse-blocks": [masking.block_rows, masking.block_columns],
                "time": [0, masking.stripe],
                "frequency": [masking.stripe, 0],
            },
        }

    def _say_embedded(self) -> None:
        vectors, job = self._shown.vectors, self._shown.job
        if missing := self._shown.count - int(vectors.known.sum()):
            self.lines.append(f"{counted(missing, 'sound')} could not be embedded, and have no place on the map.")
        if job.error:
            self.lines.append(f"Embedding ended early: {job.error}.")

    def _say_sounds(self, whole: int, pictured: int, failed: int) -> None:
        count = self._shown.count
        self.lines.append(
            f"Sound, and what the model sees, of {whole:,} of {counted(count, 'sound')}; spectrograms of {pictured:,}; "
            f"at most {LONGEST_S:g} s of each."
        )
        if failed:
            self.lines.append(f"{counted(failed, 'sound')} could not be read.")

    def _say_search(self, search: Reduced | None) -> None:
        if search is None:
            self.lines.append("No search, as the vectors of so many sounds would make the page large.")
        elif search.found < 0.995:
            self.lines.append(f"Search is approximate: it finds {100 * search.found:.0f} % of the ten nearest sounds.")


class _Names:
    """Names and paths as a page may show them: below the folder that holds all sounds, and nothing above it."""

    def __init__(self, collection: Collection):
        paths = [str(sound.path) for sound in collection.sounds]
        self._above = ""
        names = collection.names(0, collection.count)
        # Names are below the collection's folder, unless a table names files elsewhere.
        root = collection.source if collection.source.is_dir() else collection.source.parent
        self._root = f"{os.path.abspath(root)}{os.sep}"  # noqa: PTH100 - links are not followed, as for the sounds
        if any(os.path.isabs(name) for name in names):  # noqa: PTH117
            # Files on several drives have nothing in common.
            with suppress(ValueError):
                self._above = f"{os.path.commonpath([os.path.dirname(path) for path in paths])}{os.sep}"  # noqa: PTH120
        self.names = [self.shortened(name) for name in names]
        self.paths = [self.shortened(path) for path in paths]

    def shortened(self, text: str) -> str:
        """Return a path, or another text, without the folder above."""
        for prefix in (self._root, self._above):
            if prefix and text.startswith(prefix):
                return text.removeprefix(prefix)
            if prefix and text == prefix.rstrip(os.sep):
                return "."
        return text


class _Pictures:
    """Small spectrograms: few bands and columns, which is what a card on the map shows."""

    def __init__(self, model: AudioEncoder):
        self._model = model
        self._found: list[tuple[int, dict[str, Any], np.ndarray]] = []

    @property
    def points(self) -> list[int]:
        """The sounds that have one."""
        return [point for point, _, _ in self._found]

    def add(self, point: int, logmel: Float[np.ndarray, "bands frames"]) -> None:
        """Make the picture of a sound."""
        mels = self._model.card.front_end.mels
        small = _narrowed(_narrowed(logmel[:mels], _PICTURE_FRAMES).T, _PICTURE_BANDS).T
        low_db, high_db = range_db(small)
        levels = np.rint((10 / np.log(10) * small - low_db) * (255 / (high_db - low_db)))
        shape = {"hop_ms": self._model.hop_ms * logmel.shape[1] / small.shape[1], "low_db": low_db, "high_db": high_db}
        self._found.append((point, shape, np.clip(levels, 0, 255).astype(np.uint8)))

    def write(self, blocks: Blocks) -> dict[str, Any]:
        """Write all pictures as one block, and return what tells them apart."""
        frequencies = np.array(_frequencies_hz(self._model)[0])[:, None]
        data = [pixels.reshape(-1) for _, _, pixels in self._found]
        columns: dict[str, np.ndarray] = {
            "ids": np.array(self.points, np.int32),
            "frames": np.array([pixels.shape[1] for _, _, pixels in self._found], np.uint16),
            "data": np.concatenate([np.zeros(0, np.uint8), *data]),
            "hops_ms": np.array([shape["hop_ms"] for _, shape, _ in self._found], np.float32),
            "lows_db": np.array([shape["low_db"] for _, shape, _ in self._found], np.float32),
            "highs_db": np.array([shape["high_db"] for _, shape, _ in self._found], np.float32),
        }
        shown_hz = _narrowed(frequencies.T, _PICTURE_BANDS)[0]
        return {
            "bands": len(shown_hz),
            "frequencies_hz": shown_hz.round(2).tolist(),
            **{name: blocks.array(values) for name, values in columns.items()},
        }


def spread(points: Int64[np.ndarray, " points"], groups: np.ndarray, count: int) -> Int64[np.ndarray, " chosen"]:
    """Choose points so that each group has its share as far as it can, and each group's are spread over it.

    Args:
        points: What is chosen from, in order.
        groups: The group of every point of the collection.
        count: How many are chosen, or all points if there are fewer.
    """
    members = [points[groups[points] == group] for group in np.unique(groups[points])]
    shares = [0] * len(members)
    left = min(count, len(points))
    while left > 0:
        for number, group in enumerate(members):
            if left > 0 and shares[number] < len(group):
                shares[number] += 1
                left -= 1
    chosen = [
        group[np.linspace(0, len(group) - 1, share).round().astype(int)]
        for group, share in zip(members, shares, strict=True)
        if share
    ]
    return np.sort(np.concatenate([np.zeros(0, np.int64), *chosen]))


def _groups(columns: Sequence[Column], count: int) -> np.ndarray:
    """Return the codes of the first column of few categories, such as labels or folders; else one group."""
    for column in columns:
        if column.kind == "category" and column.codes is not None and 1 < column.distinct <= _MOST_GROUPS:
            return column.codes
    return np.zeros(count, np.int32)


def _longest_frames(model: AudioEncoder) -> int:
    return max(model.card.model.frames, round(1000 * LONGEST_S / model.card.front_end.hop_ms))


def _flac(sound: Sound, model: AudioEncoder) -> bytes:
    """Return the beginning of a sound as FLAC of 16 bits, mono, at the rate at which the model hears it.

    Raises:
        AudioFileError: it cannot be read.
    """
    reading, played_hz = model.reading, model.card.front_end.sample_rate_hz
    rate_hz = model.sample_rate_hz
    if reading.expand == 1:
        rate_hz = played_hz = min(rate_hz, _HIGHEST_HEARD_HZ)
    end_s = sound.start_s + _longest_frames(model) * model.hop_ms / 1000
    part = Sound(sound.path, sound.start_s, end_s if sound.end_s is None else min(end_s, sound.end_s))
    blocks: Iterator[np.ndarray] = read_audio_blocks(part, rate_hz, replace(reading, expand=1.0))
    buffer = io.BytesIO()
    samples = np.clip(np.concatenate(list(blocks)), -1, 1)
    soundfile.write(buffer, samples, played_hz, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()


def _narrowed(values: np.ndarray, most: int) -> np.ndarray:
    """Return (rows, at most `most` columns); where there are more, a column is the mean of neighbors."""
    columns = values.shape[1]
    if columns <= most:
        return values
    edges = np.linspace(0, columns, most + 1).astype(int)
    return np.add.reduceat(values, edges[:-1], axis=1) / np.diff(edges)


def _places(points: Float[np.ndarray, "points 2"]) -> np.ndarray:
    """Return places in [-1, 1] as whole numbers of 16 bits; a point without a place gets -32768."""
    scaled = np.rint(np.where(np.isnan(points), 0, points) * _FARTHEST)
    return np.where(np.isnan(points), -_FARTHEST - 1, scaled).astype(np.int16)


def _frequencies_hz(model: AudioEncoder) -> list[list[float]]:
    """Return the center frequencies of the bands of each resolution."""
    silence = np.zeros((model.card.model.bands, 1), np.float32)
    numbers = range(model.card.front_end.resolutions)
    return [matrix(model, silence, 0, number, (-1.0, 0.0))["frequencies_hz"] for number in numbers]
