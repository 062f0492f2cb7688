"""X-ARES's encoder interface (https://github.com/jimbozhang/xares): a module from padded waveforms to frame vectors.

    MELMASK_MODEL=runs/mine python -m xares.run --max-jobs 0 melmask/adapters/xares.py src/tasks/*.py

X-ARES finds the encoder in a file by the end of its name, so only one name of this file may end with "Encoder". The
file needs nothing of X-ARES itself. `environment.py` lists the variables that choose the model and its features.

X-ARES pads the clips of a batch with zeros to the longest one, and does not pass their lengths. Padding is not sound,
so it is cut off before a clip is encoded: all samples at its end that are exactly 0. The steps after that end get the
mean of the clip's own frame vectors. X-ARES averages over all steps in its clip tasks and in k-NN, so that average is
the clip's own, whatever clips were in its batch.
"""

import hashlib
import json

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

import melmask.embedding.encoder as inference
from melmask.adapters.clips import embed_clips
from melmask.adapters.environment import model_from_environment
from melmask.adapters.hear import default_hop_ms
from melmask.embedding.choice import FeatureChoice
from melmask.errors import InputError
from melmask.geometry import frames_of_samples

# Annotations name the class through its module: X-ARES would take the class itself for the encoder of this file.
Model = inference.AudioEncoder


class MelmaskEncoder(nn.Module):
    """A melmask model with the attributes that X-ARES reads.

    Attributes: `sampling_rate` (Hz, to which X-ARES resamples), `output_dim` (D, the size of a frame vector),
    `hop_size_in_ms` (time between frame vectors, by default the longest hop up to 50 ms that the model allows).
    """

    def __init__(self, model: Model | None = None, choice: FeatureChoice = FeatureChoice()):
        """Take a loaded model and the features, or else those that the environment variables choose.

        Raises:
            CheckpointError: MELMASK_MODEL names no model that can be loaded.
            ConfigError: the model does not offer the choice, or a variable has a value that cannot be used.
        """
        super().__init__()
        if model is None:
            model, choice = model_from_environment()
        card = model.card
        if choice.hop_ms is None:
            choice = choice.changed(hop_ms=default_hop_ms(card))
        self.encoder, self.choice = model, choice.of_model(card)
        self.sampling_rate = model.sample_rate_hz
        self.output_dim = choice.frame_size(card.model)
        self.hop_size_in_ms = choice.hop_ms / model.reading.expand if choice.hop_ms else 0.0
        # X-ARES keeps embeddings and scores in a folder that has the name of the class. If all models had the same one,
        # it would take the scores of the first model for those of the second.
        features = json.dumps(choice.to_dict(), sort_keys=True)
        digest = hashlib.sha256((model.sha256 + features).encode()).hexdigest()[:8]
        self.__class__ = type(f"Melmask{digest}Encoder", (type(self),), {})

    def forward(
        self, audio: Float[Tensor, "..."], lengths: Int[Tensor, " clips"] | None = None
    ) -> Float[Tensor, "clips steps dims"]:
        """Return the frame vectors, float32 on the device of `audio`.

        Args:
            audio: (clips, samples), or (samples,) for one clip, in [-1, 1] at `sampling_rate`; any length.
            lengths: The true number of samples of each clip. Without it, the zeros that end a clip are padding.

        Raises:
            InputError: the audio has another shape, is not finite, or a length is not within it.
        """
        rows = audio.unsqueeze(0) if audio.ndim == 1 else audio
        if rows.ndim != 2 or not rows.numel():
            raise InputError(f"the audio is {tuple(audio.shape)}; give (clips, samples), at least one sample")
        ends = _true_ends(rows) if lengths is None else lengths
        if ends.shape != rows.shape[:1] or ends.min() < 1 or ends.max() > rows.shape[1]:
            raise InputError(f"the lengths are {ends.tolist()}; give one for each clip, from 1 to {rows.shape[1]}")
        clips = [(row[:end], self.sampling_rate) for row, end in zip(rows, ends.tolist(), strict=True)]
        made = embed_clips(self.encoder, clips, self.choice, keep_frames=True)
        frames = [torch.from_numpy(vectors.take()) for vectors in made]
        grid = self.encoder.step_grid(self.choice)
        steps = grid.steps(frames_of_samples(rows.shape[1], self.encoder.card.front_end))
        return torch.stack([_with_steps(vectors, steps) for vectors in frames]).to(audio.device)


def _true_ends(rows: Float[Tensor, "clips samples"]) -> Int[Tensor, " clips"]:
    """Return the number of samples up to the last one that is not 0; all samples of a clip that holds only zeros."""
    heard = rows != 0
    after = heard.flip(1).int().argmax(1)
    return torch.where(heard.any(1), rows.shape[1] - after, rows.shape[1])


def _with_steps(vectors: Float[Tensor, "steps dims"], steps: int) -> Float[Tensor, "more dims"]:
    """Return the vectors, followed by as many times their mean as makes `steps` of them."""
    return torch.cat([vectors, vectors.mean(0).expand(steps - len(vectors), -1)])
