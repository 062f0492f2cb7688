"""One ONNX file with everything in it: waveform in, embeddings out, for onnxruntime without torch or melmask.

Inputs  `waveform` (clips, samples) float32 in [-1, 1] at `AudioEncoder.sample_rate_hz`, at least one sample.
Outputs `scene` (clips, D), `frames` (clips, steps, D), `times_ms` (steps,); clips and samples are free.

The graph differs from `encoder.py` in form, not in result: the Fourier transform is made of matrix products, and a
clip's last unit is full length with the tokens after its end left out of attention.
"""

import json
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from melmask import __version__
from melmask.audio.logmel import mel_filterbank, resolution_filterbank, scales
from melmask.config import LOG_EPSILON, WHITENED
from melmask.config_text import to_dict
from melmask.embedding.choice import FeatureChoice
from melmask.embedding.encoder import AudioEncoder
from melmask.errors import ConfigError, OutputError
from melmask.models.whitening import whitened, whitening_shapes
from melmask.system.extras import require
from melmask.system.files import atomic_write
from melmask.system.finite import check_finite

OPSET = 18
_LEAST_COSINE = 0.9999


class ExportedEncoder(nn.Module):
    """Front end, encoder and pooling as one graph of free batch and length."""

    def __init__(self, encoder: AudioEncoder, choice: FeatureChoice):
        super().__init__()
        self.card, self.choice, self.hop_ms = encoder.card, choice, encoder.hop_ms
        self.vit = encoder.model.encoder
        self.blocks = self.vit.blocks[: choice.layers[0]] if choice.layers else self.vit.blocks
        self.norm = nn.Identity() if choice.layers else self.vit.norm
        config = encoder.card.front_end
        spectra = []
        for number in range(config.resolutions):
            name = f"_{number}" if number else ""
            window = encoder.front_end.get_buffer(f"window{name}").cpu().numpy()
            filters = resolution_filterbank(config, number) if number else mel_filterbank(config)
            spectra.append(_PowerSpectrum(window, config.hop_samples))
            self.register_buffer(f"filters_{number}", torch.from_numpy(filters))
        self.spectra = nn.ModuleList(spectra)
        mean, std = scales(encoder.card.statistics, config.mels)
        self.register_buffer("mean", torch.as_tensor(mean))
        self.register_buffer("std", torch.as_tensor(std))
        self.whitened = choice.scene == WHITENED
        if self.whitened:
            assert encoder.card.whitening is not None
            for name, array in encoder.card.whitening.arrays().items():
                self.register_buffer(f"whitening_{name}", torch.from_numpy(array))

    def forward(self, waveform: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(clips, samples) to scene, frames, times_ms."""
        model = self.card.model
        x = (self._logmel(waveform) - self.get_buffer("mean")) / self.get_buffer("std")
        clips, frames = x.shape[0], x.shape[2]
        units = (frames + model.frames - 1) // model.frames
        steps = (frames + model.patch_frames - 1) // model.patch_frames
        x = F.pad(x, (0, units * model.frames - frames))
        x = x.unflatten(2, (units, model.frames)).transpose(1, 2).flatten(0, 1)
        columns = model.frames // model.patch_frames
        # Which columns of each unit hold sound: the others are as if they were not there.
        heard = torch.arange(columns)[None] + columns * torch.arange(units)[:, None] < steps
        seen = heard[:, None].expand(-1, self.vit.grid.rows, -1).reshape(units, -1)
        if model.cls_token:
            seen = torch.cat([seen.new_ones(units, 1), seen], dim=1)
        tokens = self._encode(x, seen.repeat(clips, 1))
        vectors = self.choice.pool(tokens, self.vit.grid.rows, model.cls_token)
        vectors = vectors.unflatten(0, (clips, units)).flatten(1, 2)[:, :steps]
        number = torch.arange(steps)
        weights = (frames - number * model.patch_frames).clamp(max=model.patch_frames).to(vectors.dtype)
        scene = self._scene(vectors, weights[None, :, None] / frames)
        times_ms = (number * model.patch_frames + (model.patch_frames - 1) / 2) * self.hop_ms
        return scene, vectors, times_ms.float()

    def _scene(self, vectors: Tensor, shares: Tensor) -> Tensor:
        """(clips, steps, D) and the share of each step in its clip to (clips, D) or (clips, 2 D)."""
        mean = (vectors * shares).sum(1)
        if self.choice.scene == "mean":
            return mean
        variance = ((vectors - mean[:, None]).square() * shares).sum(1)
        scene = torch.cat([mean, variance.sqrt()], dim=1)
        if not self.whitened:
            return scene
        return whitened(scene, **{name: self.get_buffer(f"whitening_{name}") for name in whitening_shapes(0, 0)})

    def _logmel(self, waveform: Tensor) -> Tensor:
        config = self.card.front_end
        half = config.reach_samples
        # Mirrored at both ends as often as a short clip needs, which ONNX's own padding does once. The length is
        # counted, not taken from the shape: the exporter would conclude that it is never 1.
        length = torch.ones_like(waveform[0], dtype=torch.int64).sum()
        period = (2 * (length - 1)).clamp(min=1)
        ids = (torch.arange(waveform.shape[1] + 2 * half) - half).remainder(period)
        padded = waveform[:, torch.minimum(ids, period - ids)]
        logmels = []
        for number, spectrum in enumerate(self.spectra):
            # A shorter window does not reach as far as the longest one, and its frames have the same centers.
            unused = half - spectrum.get_buffer("window").numel() // 2
            inner = padded[:, unused : padded.shape[1] - unused] if unused else padded
            logmels.append((self.get_buffer(f"filters_{number}") @ spectrum(inner) + LOG_EPSILON).log())
        return torch.cat(logmels, dim=1) if len(logmels) > 1 else logmels[0]

    def _encode(self, units: Tensor, seen: Tensor) -> Tensor:
        x = self.vit.embed_all(units)
        for block in self.blocks:
            x = block(x, seen)
        return self.norm(x)


class _PowerSpectrum(nn.Module):
    """The power spectrum of windowed frames: waveform (clips, samples) to (clips, bins, frames).

    The transform of N = A B samples is two short ones with a rotation between them (Cooley and Tukey 1965). As a single
    matrix, that of a window of 256 ms at 16 kHz takes 67 MB of the file.
    """

    def __init__(self, window: np.ndarray, hop_samples: int):
        super().__init__()
        self.hop_samples = hop_samples
        size = len(window)
        a = max(n for n in range(1, math.isqrt(size) + 1) if size % n == 0)
        b = size // a
        numbers_a, numbers_b = np.arange(a), np.arange(b)
        # No more than the bins up to half of the rate.
        angles = {
            "first": np.outer(numbers_a, numbers_a) / a,
            "between": np.outer(numbers_a, numbers_b) / size,
            "second": np.outer(numbers_b, numbers_b[: b // 2 + 1]) / b,
        }
        self.register_buffer("window", torch.from_numpy(window.astype(np.float32)))
        for name, turns in angles.items():
            for part, function in (("real", np.cos), ("imaginary", np.sin)):
                values = function(-2 * np.pi * turns).astype(np.float32)
                self.register_buffer(f"{name}_{part}", torch.from_numpy(values))

    def forward(self, waveform: Tensor) -> Tensor:
        """(clips, samples) to (clips, bins, frames)."""
        window = self.get_buffer("window")
        first, between, second = (
            (self.get_buffer(f"{name}_real"), self.get_buffer(f"{name}_imaginary"))
            for name in ("first", "between", "second")
        )
        size, a = window.numel(), first[0].shape[0]
        starts = self.hop_samples * torch.arange((waveform.shape[1] - size) // self.hop_samples + 1)
        x = waveform[:, starts[:, None] + torch.arange(size)] * window
        x = x.unflatten(2, (a, size // a))
        real, imaginary = first[0] @ x, first[1] @ x
        real, imaginary = (
            real * between[0] - imaginary * between[1],
            real * between[1] + imaginary * between[0],
        )
        real, imaginary = (
            real @ second[0] - imaginary @ second[1],
            real @ second[1] + imaginary @ second[0],
        )
        # Bin i + a j is in row i and column j.
        power = (real.square() + imaginary.square()).transpose(2, 3).flatten(2)
        return power[:, :, : size // 2 + 1].transpose(1, 2)


def export_onnx(encoder: AudioEncoder, path: Path, choice: FeatureChoice = FeatureChoice()) -> float:
    """Write the graph and check it in onnxruntime; return the least cosine to PyTorch's scene and frame vectors.

    Raises:
        ConfigError: the choice is not one layer with one step a patch.
        MissingExtraError: onnx, onnxscript or onnxruntime is not installed.
        OutputError: the file cannot be written, or its outputs are not PyTorch's.
        NotFiniteError: its outputs are not finite.
    """
    if len(choice.layers) > 1 or choice.hop_ms is not None:
        raise ConfigError("an exported graph gives one layer and a step a patch; choose those")
    require("onnx")
    import onnx
    import onnxruntime

    choice = choice.of_model(encoder.card)
    if len(choice.layers) > 1:
        raise ConfigError(f"the model's features are those of layers {choice.layers}; choose one for the graph")
    graph = ExportedEncoder(encoder, choice).eval().cpu()
    rate = encoder.sample_rate_hz
    example = torch.randn(2, 3 * rate) * 0.1
    longest_fft = 2 * encoder.card.front_end.reach_samples
    dynamic = ({0: torch.export.Dim("clips"), 1: torch.export.Dim("samples", min=longest_fft)},)
    with warnings.catch_warnings():
        # The exporter of PyTorch 2.13 warns of a class that it uses itself.
        warnings.filterwarnings("ignore", message=".*LeafSpec", category=FutureWarning)
        program = torch.onnx.export(
            graph,
            (example,),
            input_names=["waveform"],
            output_names=["scene", "frames", "times_ms"],
            dynamic_shapes=dynamic,
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    proto = program.model_proto
    _strip(proto)
    _describe(proto, encoder, choice)
    content = proto.SerializeToString()
    onnx.checker.check_model(content)
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    cosine = _least_cosine(session, encoder, choice)
    if not cosine > _LEAST_COSINE:
        raise OutputError(f"the exported graph gives other embeddings (cosine {cosine:.6f}); nothing was written")
    with atomic_write(path) as file:
        file.write(content)
    return cosine


def _strip(message: Any) -> None:
    """Remove what the exporter notes of where each node comes from: names of files and folders on this machine."""
    for name in ("metadata_props", "doc_string"):
        if name in message.DESCRIPTOR.fields_by_name:
            message.ClearField(name)
    for field, value in message.ListFields():
        if field.message_type is not None:
            for part in [value] if hasattr(value, "ListFields") else value:
                _strip(part)


def _describe(proto: Any, encoder: AudioEncoder, choice: FeatureChoice) -> None:
    layer = choice.layers[0] if choice.layers else None
    facts: dict[str, object] = {
        "melmask": __version__,
        # A path says more of this machine than of the model, so only its end is given.
        "model": Path(encoder.name).name,
        "sha256": encoder.sha256,
        "layer": layer,
        "pooling": choice.pooling,
        "scene": choice.scene,
    }
    # If sound is played slower, the waveform has a rate that is as much higher, and the times are those of the sound.
    facts |= encoder.card.reading.changed_facts()
    facts |= {"front_end": to_dict(encoder.card.front_end), "statistics": to_dict(encoder.card.statistics)}
    entry = proto.metadata_props.add()
    entry.key, entry.value = "melmask", json.dumps(facts)


def _least_cosine(session: Any, encoder: AudioEncoder, choice: FeatureChoice) -> float:
    """Over clips of several lengths: shorter than a unit, one unit and a bit, several units."""
    rng = np.random.default_rng(0)
    cosines = []
    for clips, seconds in ((1, 0.5), (3, 2.2), (2, 7.3)):
        samples = int(seconds * encoder.sample_rate_hz)
        audio = (0.1 * rng.normal(size=(clips, samples))).astype(np.float32)
        ours = encoder.embed(audio, encoder.sample_rate_hz, choice)
        scene, frames, _ = session.run(None, {"waveform": audio})
        for a, b in ((ours.scene, scene), (ours.frames, frames)):
            check_finite(b, "the exported graph's embedding")
            cosines.append(((a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)).min())
    # Python's own minimum passes over NaN.
    return float(np.min(cosines))
