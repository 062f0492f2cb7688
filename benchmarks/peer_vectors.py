"""Extract the vectors of a pre-trained model that PyPI holds with its weights, for `box_proof.py`.

    python -m venv peers && peers/bin/pip install torch librosa soundfile scipy tqdm
    peers/bin/pip install --no-deps aisfx resemblyzer
    peers/bin/python benchmarks/peer_vectors.py aisfx AUDIO aisfx.npz --tables AUDIO/tasks/*.csv

It needs nothing of melmask. `--no-deps` is needed because aisfx 0.1.2 pins numpy 1.23.0 and librosa 0.9.2, and because
resemblyzer asks for webrtcvad, a C extension without wheels for its trimming of silence, which is not used here: it
would cut sounds that are no speech.

- aisfx (ISMIR 2022, X-Sequential-CE; CC BY 4.0): the mean of its embeddings, 512 numbers. Its spectrogram by librosa is
  (mels, frames), but its network takes (frames, mels) as Essentia gives them, so it is transposed here. Clips below its
  block of 2.3 s are padded with zeros after the spectrogram, by its own function.
- resemblyzer (GE2E speaker encoder; Apache-2.0): the utterance embedding, 256 numbers, of sound at its volume.
"""

import argparse
import csv
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np


def aisfx_vectors() -> Callable[[Path], np.ndarray]:
    """Load aisfx; return what gives the vector of a file."""
    import torch
    from aisfx import inference
    from aisfx.preprocessing import blocking, spectrogram_normalize
    from aisfx.spectrogram.spectrogram_librosa import compute_spectrogram
    from numpy._core.multiarray import scalar

    # Its file of weights also holds a few NumPy numbers, under a name of NumPy 1. Nothing else of it is executed.
    kinds = (np.dtype, np.dtypes.Float64DType, np.dtypes.Int64DType)
    torch.serialization.add_safe_globals([(scalar, "numpy.core.multiarray.scalar"), *kinds])
    model = inference.load_bestModel(*inference.load_weights("cpu"), "cpu")
    block = inference.EMB_BLOCK_LENGTH

    def vector(path: Path) -> np.ndarray:
        spectrogram = compute_spectrogram(
            str(path),
            inference.SAMPLE_RATE,
            inference.SPEC_BLOCK_LENGTH,
            inference.SPEC_HOP_LENGTH,
            inference.MEL_BINS,
            inference.F_MIN,
            inference.F_MAX,
        )
        blocks = blocking(spectrogram_normalize(spectrogram.T), block, block // 2, drop_partial_block=True)
        with torch.inference_mode():
            return model.get_embedding(torch.from_numpy(blocks).float()).mean(0).numpy()

    return vector


def resemblyzer_vectors() -> Callable[[Path], np.ndarray]:
    """Load resemblyzer; return what gives the vector of a file."""
    # Its audio module imports a voice detector, which only the trimming of silence uses, and a SciPy module that moved.
    import scipy.ndimage

    sys.modules.setdefault("webrtcvad", ModuleType("webrtcvad"))
    sys.modules.setdefault("scipy.ndimage.morphology", scipy.ndimage)
    import librosa
    from resemblyzer import VoiceEncoder, normalize_volume
    from resemblyzer.hparams import audio_norm_target_dBFS, sampling_rate

    model = VoiceEncoder("cpu", verbose=False)

    def vector(path: Path) -> np.ndarray:
        waveform, _ = librosa.load(str(path), sr=sampling_rate)
        # Digital silence has no volume.
        if np.any(waveform):
            waveform = normalize_volume(waveform, audio_norm_target_dBFS, increase_only=True)
        return model.embed_utterance(waveform)

    return vector


PEERS = {"aisfx": aisfx_vectors, "resemblyzer": resemblyzer_vectors}


def main() -> None:
    """Extract the vectors of all files that the tables name, once each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peer", choices=PEERS)
    parser.add_argument("audio", type=Path, help="the folder where the tables' paths start")
    parser.add_argument("out", type=Path)
    parser.add_argument("--tables", type=Path, nargs="+", required=True)
    parser.add_argument("--most", type=int, default=0, help="stop after so many files, to try it out")
    given = parser.parse_args()
    paths: dict[str, None] = {}
    for table in given.tables:
        with table.open(encoding="utf-8", newline="") as file:
            paths |= dict.fromkeys(row["path"] for row in csv.DictReader(file))
    names = list(paths)[: given.most or None]
    vector = PEERS[given.peer]()
    rows = []
    for number, name in enumerate(names, 1):
        rows.append(vector(given.audio / name))
        if number % 200 == 0 or number == len(names):
            print(f"{given.peer}: {number} of {len(names)}", flush=True)
    np.savez(given.out, paths=np.array(names), vectors=np.array(rows, np.float32))


if __name__ == "__main__":
    main()
