"""Draw pictures of a run as it goes: the current model reconstructs the same few crops every time."""

import contextlib
import copy

import numpy as np

from melmask.config import PretrainConfig
from melmask.corpus.store import Corpus
from melmask.embedding.encoder import AudioEncoder
from melmask.errors import NotFiniteError
from melmask.figures.reconstruction import save_reconstruction_picture
from melmask.system.terminal import note
from melmask.train.pretrain import StepState

_CLIPS = 4


class ReconstructionPictures:
    """A training hook that writes pictures/step-*.png of the same crops, under the same masks, every time."""

    def __init__(self, store: Corpus, config: PretrainConfig):
        # Take the beginnings of four clips from the longest quarter, because a short clip would show little.
        clips = np.argsort(-store.frames, kind="stable")
        chosen = np.unique(clips[np.linspace(0, len(clips) // 4, _CLIPS, dtype=int)])
        frames = int(min(config.model.frames, store.frames[chosen].min()))
        # A crop with a single patch in time shows nothing, so a store of such clips gets no pictures.
        self._worth_it = frames >= 2 * config.model.patch_frames
        # Stores hold half precision, time first; the network takes (mels, frames) in single precision.
        crops = np.empty((len(chosen), frames, store.front_end.bands), dtype="<f2")
        for crop, clip in zip(crops, chosen, strict=True):
            store.read_into(crop, int(clip), 0)
        self._logmels = crops.astype(np.float32).transpose(0, 2, 1)
        self._titles = [f"clip {clip}" for clip in chosen]
        self._masking, self._objective = config.masking, config.objective.kind

    def __call__(self, state: StepState) -> dict[str, float]:
        """Write the picture of this step, if the network can reconstruct; there are no numbers to log."""
        if not self._worth_it:
            return {}
        if state.model.decoder is None:
            self._worth_it = False
            note(
                f"melmask: the objective {self._objective} keeps no decoder that reconstructs, so there are no pictures"
            )
            return {}
        # AudioEncoder freezes its model, so it gets a copy.
        encoder = AudioEncoder(copy.deepcopy(state.model), state.card, device="cpu")
        path = state.run / "pictures" / f"step-{state.step:07d}.png"
        # The training loop ends a run whose numbers are no longer finite; there is nothing to see of its model.
        with contextlib.suppress(NotFiniteError):
            save_reconstruction_picture(path, encoder, self._logmels, self._titles, masking=self._masking)
        return {}
