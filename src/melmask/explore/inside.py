"""What the model makes of a point: its spectrogram, reconstructions of hidden patches, and attention."""

from collections.abc import Mapping
from threading import Lock
from typing import Any

import numpy as np
from jaxtyping import Bool

from melmask.audio.parts import Sound
from melmask.config import LOG_EPSILON, MaskingConfig
from melmask.config.objectives import MASKING_STRATEGIES
from melmask.embedding.choice import FeatureChoice
from melmask.embedding.extract import embed_files
from melmask.embedding.reconstruction import Reconstruction
from melmask.errors import AudioFileError
from melmask.explore import requests as ask
from melmask.explore.collection import Collection
from melmask.explore.requests import RequestError
from melmask.explore.sounds import LONGEST_SHOWN_S, Kept, SoundReader, decibels, matrix, range_db, wav_of
from melmask.geometry import PatchGrid, grid_of
from melmask.inspection.attention import Attention, attention_of
from melmask.inspection.masks import mask_of
from melmask.inspection.sound import equally_loud, sound_of

_MOST_FRAMES = 1 << 31
_HEARD = ("input", "visible", "reconstruction")


class Inside:
    """Looks into the model of a collection. The model computes one answer at a time."""

    def __init__(self, collection: Collection):
        self._collection, self._model = collection, collection.model
        self.sounds, self._lock = SoundReader(collection.model), Lock()
        self._attentions: Kept[Attention] = Kept(lambda attention: attention.weights.nbytes)

    def spectrogram(self, point: int, values: Mapping[str, Any]) -> dict[str, Any]:
        """Answer `spectrogram`: at most a minute of one resolution."""
        hop_s = self._model.hop_ms / 1000
        resolution = self._resolution(values)
        from_s = ask.number(values, "from_s", 0.0, 0.0, _MOST_FRAMES * hop_s)
        length_s = ask.number(values, "length_s", LONGEST_SHOWN_S, 0.0, LONGEST_SHOWN_S)
        first, frames = round(from_s / hop_s), max(1, round(length_s / hop_s))
        logmel = self._logmel(point, first, frames)
        config = self._model.card.front_end
        rows = logmel[resolution * config.mels : (resolution + 1) * config.mels]
        found = matrix(self._model, logmel, first, resolution, range_db(rows))
        return {**found, "total_s": self._collection.total_s(point)}

    def reconstruct(self, point: int, values: Mapping[str, Any]) -> dict[str, Any]:
        """Answer `reconstruct`: what the decoder makes of a unit with hidden patches."""
        resolution, (first, logmel, frames) = self._resolution(values), self._unit(point, values)
        hidden, grid = self._hidden(values, logmel.shape[1])
        with self._lock:
            made = self._reconstructed(logmel, hidden, values)
        mels = self._model.card.front_end.mels
        rows = slice(resolution * mels, (resolution + 1) * mels)
        truth, shown = logmel[rows], made.logmel[0][rows]
        levels_db = range_db(truth[:, :frames])
        config = self._model.card.model
        # (rows, bands in patch, columns, frames in patch): the mean over a patch of the absolute error.
        error = np.abs(decibels(truth) - decibels(shown)).reshape(
            grid.rows, config.patch_mels, grid.columns, config.patch_frames
        )
        by_patch = np.where(hidden, error.mean(axis=(1, 3)).reshape(-1), np.nan)
        return {
            "hidden": hidden.astype(int).tolist(),
            "rows": grid.rows,
            "columns": grid.columns,
            "loss": made.loss,
            "resolution": resolution,
            "input": matrix(self._model, logmel[:, :frames], first, resolution, levels_db),
            "reconstruction": matrix(self._model, made.logmel[0][:, :frames], first, resolution, levels_db),
            "error": [None if np.isnan(db) else round(float(db), 3) for db in by_patch],
        }

    def listen(self, point: int, values: Mapping[str, Any]) -> bytes:
        """Answer `listen`: the input, its visible part or the reconstruction as sound, equally loud, as a WAV file."""
        what = ask.one_of(values, "what", "reconstruction", _HEARD)
        _, logmel, frames = self._unit(point, values)
        hidden, grid = self._hidden(values, logmel.shape[1])
        with self._lock:
            made = self._reconstructed(logmel, hidden, values).logmel[0]
        by_value = self._over_values(hidden, grid)
        silent = np.log(np.float32(LOG_EPSILON))
        heard = {
            "input": logmel,
            "visible": np.where(by_value, silent, logmel),
            # What is visible is known, so it is heard as it is.
            "reconstruction": np.where(by_value, made, logmel),
        }
        # The input is made from its log-mel, too: what the way back to sound loses is then lost in all three.
        wanted = ("input", what) if what != "input" else ("input",)
        sounds = [sound_of(heard[name][:, :frames].astype(np.float32), self._model) for name in wanted]
        rate_hz = self._model.card.front_end.sample_rate_hz
        return wav_of(equally_loud(sounds, rate_hz)[-1], rate_hz)

    def attention(self, point: int, values: Mapping[str, Any]) -> dict[str, Any]:
        """Answer `attention`: how much one token, or all of them, take from each patch."""
        first, logmel, _ = self._unit(point, values)
        layer, head = (
            None if values.get(name) is None else ask.whole_number(values, name, None, 1, most)
            for name, most in (("layer", self._model.card.model.depth), ("head", self._model.card.model.heads))
        )
        attention = self._attentions.get((point, first), lambda: self._attended(logmel))
        begin = values.get("from", "cls" if attention.cls else "mean")
        if begin == "cls":
            weights = attention.from_cls(layer, head)
        elif begin == "mean":
            weights = attention.mean(layer, head)
        elif begin == "rollout":
            weights = attention.rollout()
        else:
            patch = ask.whole_number(values, "from", None, 0, attention.grid.patches - 1)
            weights = attention.from_patch(patch, layer, head)
        rows, columns = weights.shape
        return {"rows": rows, "columns": columns, "weights": np.round(weights.astype(float), 6).ravel().tolist()}

    def _attended(self, logmel: np.ndarray) -> Attention:
        with self._lock:
            return attention_of(self._model, logmel)

    def vector(self, sound: Sound) -> np.ndarray:
        """Return the scene vector (D,) of a sound that is looked for.

        Raises:
            AudioFileError: it cannot be read, or its vector is not finite.
        """
        with self._lock:
            (found,) = embed_files(self._model, [sound], FeatureChoice())
        if found.scene is None:
            raise AudioFileError(found.error or "the sound cannot be embedded; give another")
        return found.scene

    def _reconstructed(self, logmel: np.ndarray, hidden: np.ndarray, values: Mapping[str, Any]) -> Reconstruction:
        """Let the decoder fill the hidden patches in; `leak` takes their level and contrast from the truth."""
        leak = values.get("leak", False)
        if not isinstance(leak, bool):
            raise RequestError("leak is no true or false; expected one of them")
        return self._model.reconstruct(logmel[None], masked=hidden[None], leak=leak)

    def _over_values(self, hidden: np.ndarray, grid: PatchGrid) -> Bool[np.ndarray, "bands frames"]:
        """Spread a mask of patches over the values of a log-mel, in all resolutions."""
        config = self._model.card.model
        by_band = hidden.reshape(grid).repeat(config.patch_mels, 0).repeat(config.patch_frames, 1)
        return np.tile(by_band, (config.resolutions, 1))

    def _resolution(self, values: Mapping[str, Any]) -> int:
        return ask.whole_number(values, "resolution", 0, 0, self._model.card.front_end.resolutions - 1)

    def _logmel(self, point: int, first_frame: int, frames: int) -> np.ndarray:
        total_s = self._collection.total_s(point)
        # Before a sound has been embedded, reading finds that it ends earlier.
        if total_s is not None and first_frame * self._model.hop_ms / 1000 > total_s + self._model.hop_ms / 2000:
            raise RequestError(f"the sound ends at {total_s:g} s, before frame {first_frame}; ask for an earlier one")
        return self.sounds.logmel(self._collection.sounds[point], first_frame, frames)

    def _unit(self, point: int, values: Mapping[str, Any]) -> tuple[int, np.ndarray, int]:
        """Return the first frame, the log-mel of a unit (bands, frames of whole patches), and its frames of sound."""
        config = self._model.card.model
        first = ask.whole_number(values, "start_frame", 0, 0, _MOST_FRAMES)
        logmel = self._logmel(point, first, config.frames)
        frames = logmel.shape[1]
        missing = -frames % config.patch_frames
        # As in embedding: what is missing of the last patch is the mean of the corpus.
        mean = np.asarray(self._model.corpus_mean, np.float32).reshape(-1, 1)
        filled = np.broadcast_to(mean, (logmel.shape[0], missing))
        return first, np.concatenate([logmel, filled], axis=1), frames

    def _hidden(self, values: Mapping[str, Any], frames: int) -> tuple[Bool[np.ndarray, " patches"], PatchGrid]:
        """Return which patches are hidden: those that were painted, or those that a strategy draws."""
        grid = grid_of(self._model.card.model, frames)
        wanted = values.get("hidden")
        if isinstance(wanted, list):
            if len(wanted) != grid.patches:
                raise RequestError(
                    f"hidden has {len(wanted)} values; expected {grid.patches}, one for each of "
                    f"{grid.rows} x {grid.columns} patches"
                )
            hidden = np.array(ask.whole_numbers(values, "hidden", 2, grid.patches), bool)
        elif isinstance(wanted, dict):
            hidden = self._drawn(wanted, grid)
        else:
            raise RequestError("hidden is missing; give a list of 0 and 1, or ratio, strategy and seed")
        if hidden.all() or not hidden.any():
            raise RequestError("the mask hides all or none of the patches; hide some and leave some visible")
        return hidden, grid

    def _drawn(self, wanted: Mapping[str, Any], grid: PatchGrid) -> np.ndarray:
        masking = MaskingConfig(
            ratio=ask.number(wanted, "ratio", 0.75, 0.01, 0.99),
            strategy=ask.one_of(wanted, "strategy", "random", MASKING_STRATEGIES),
        )
        seed = ask.whole_number(wanted, "seed", 0, 0, 1 << 31)
        return mask_of(grid, masking, seed)
