"""What the original MSM-MAE's evaluation did, defects included: for reproducing its published numbers, nothing else."""

import numpy as np
import torch
import torch.nn.functional as F

from melmask.embedding.choice import FeatureChoice
from melmask.embedding.encoder import AudioEncoder


@torch.inference_mode()
def scenes_normalized_by_batch(model: AudioEncoder, audio: np.ndarray, sample_rate_hz: int) -> np.ndarray:
    """The original's clip embeddings: a clip's vector changes with the clips beside it. Not for use in new work.

    The batch's own mean and standard deviation stand in for the corpus', zeros fill the last unit up to the trained
    length, and the steps count alike in the mean.

    Args:
        model: Usually converted from a file of the original.
        audio: (clips, samples), the batch.
        sample_rate_hz: Of the audio.

    Returns:
        (clips, rows * width) float32.
    """
    config = model.card.model
    logmel = torch.from_numpy(model.logmel(audio, sample_rate_hz)).to(model.device)
    steps = -(-logmel.shape[2] // config.patch_frames)
    x = (logmel - logmel.mean()) / logmel.std()
    x = F.pad(x, (0, -x.shape[2] % config.frames))
    vectors = []
    for units in x.split(config.frames, dim=2):
        *_, tokens = model.model.encoder.encode_layers(units)
        vectors.append(FeatureChoice().pool(tokens, model.model.encoder.grid.rows, config.cls_token))
    return torch.cat(vectors, dim=1)[:, :steps].mean(1).cpu().numpy()
